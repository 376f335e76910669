package fleet

import (
	"slices"

	"github.com/balanceai/balance/exec/task"
)

// teller is a card that knows who uses it.
type teller interface {
	// processes adds what each process holds of the device's memory.
	processes(into map[int]task.Bytes)
}

// Processes returns how much memory of some devices, given by their UUIDs, each
// process holds. A process of which the driver does not tell is not in it.
func (p *Probe) Processes(devices []string) map[int]task.Bytes {
	p.mu.Lock()
	defer p.mu.Unlock()
	out := map[int]task.Bytes{}
	for _, c := range p.cards {
		if t, ok := c.(teller); ok && slices.Contains(devices, c.device().UUID) {
			ask(t, out)
		}
	}
	return out
}

// ask takes a panic in a driver's binding for a device that does not tell.
func ask(t teller, into map[int]task.Bytes) {
	defer func() { _ = recover() }()
	t.processes(into)
}
