package mesh

import (
	"runtime"
	"runtime/debug"
	"sync/atomic"
	"time"
)

const (
	calm = 10 * time.Second
	busy = 4096 // packets within calm: some megabytes
)

// trimmer gives memory back to the system some time after a load. The pools of
// WireGuard and of the network stack have grown by then, and Go on its own
// would let a process that has nothing to do keep them for minutes.
type trimmer struct {
	packets atomic.Int64 // since the timer was last due, or memory given back
	armed   atomic.Bool
	timer   *time.Timer
	free    func()
}

func newTrimmer(free func()) *trimmer {
	t := &trimmer{free: free}
	t.timer = time.AfterFunc(calm, t.due)
	t.stop() // until there is a load
	return t
}

// freeMemory gives back what is not in use. A pool keeps for one collection
// what the one before has found in it.
func freeMemory() {
	runtime.GC()
	debug.FreeOSMemory()
}

// saw counts packets.
func (t *trimmer) saw(packets int) {
	if t.packets.Add(int64(packets)) >= busy && t.armed.CompareAndSwap(false, true) {
		t.timer.Reset(calm)
	}
}

func (t *trimmer) due() {
	if t.packets.Swap(0) >= busy {
		t.timer.Reset(calm)
		return
	}
	t.free()
	t.armed.Store(false)
}

func (t *trimmer) stop() { t.timer.Stop() }
