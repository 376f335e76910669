package run

import (
	"time"

	"golang.org/x/sys/unix"

	"github.com/balanceai/balance/exec/supervise"
	"github.com/balanceai/balance/exec/task"
)

// freeDisk returns what programs of this user may still write to the file
// system that dir is on.
func freeDisk(dir string) (task.Bytes, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return 0, err
	}
	return task.Bytes(st.Bavail) * task.Bytes(st.Bsize), nil //nolint:unconvert // the types differ between systems
}

// vramPeriod is how often the memory that a run holds of its GPUs is looked at.
// What it holds for less than that may stay unseen.
const vramPeriod = time.Second

// watchVRAM looks at the memory that the run holds of its GPUs, until stop is
// called, which fills in the most that was seen at one time. Where the driver
// does not tell, and for a run without a control group, that is nothing.
func (x *live) watchVRAM(fin *task.Finished) (stop func()) {
	o, err := supervise.ReadOrder(x.dir)
	if err != nil || o.Group == nil || len(x.grant.Devices) == 0 || x.r.cfg.VRAM == nil {
		return func() {}
	}
	done, over := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(over)
		tick := time.NewTicker(vramPeriod)
		defer tick.Stop()
		for {
			fin.Usage.PeakVRAM = max(fin.Usage.PeakVRAM, vram(x.r.cfg.VRAM(x.grant.Devices), o.Group.Processes()))
			select {
			case <-done:
				return
			case <-tick.C:
			}
		}
	}()
	return func() {
		close(done)
		<-over
	}
}

// vram is what the processes of a run hold together.
func vram(held map[int]task.Bytes, processes []int) (sum task.Bytes) {
	for _, pid := range processes {
		sum += held[pid]
	}
	return sum
}
