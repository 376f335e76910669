package fleet

import (
	"github.com/balanceai/balance/exec/policy"
	"github.com/balanceai/balance/exec/task"
)

// What a device has to do for somebody else than runs before it counts as in
// use: a desktop that only shows its windows does not.
const (
	busyPercent = 10
	busyVRAM    = task.GiB
)

// Presence tells whether the owner uses the machine. held says what runs hold.
func (s *Sampler) Presence(held Held) policy.Conditions {
	c := presence("/")
	c.GPU = s.foreign(held)
	return c
}

// foreign returns the model of a device that no run holds and that is busy
// nevertheless. Who uses a device that a run holds cannot be told.
func (s *Sampler) foreign(held Held) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	live := s.last.live(held)
	for i, g := range s.last.gpus {
		if !live.GPUs[i].Held && (g.Percent >= busyPercent || g.VRAMUsed >= busyVRAM && !s.last.unified[i]) {
			return g.UUID
		}
	}
	return ""
}
