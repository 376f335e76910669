package run

import (
	"sync"

	"github.com/balanceai/balance/exec/supervise"
)

// keeper keeps one supervisor ready: to start one takes longer than all else
// that a run needs.
type keeper struct {
	mu     sync.Mutex
	spare  *supervise.Spare // nil for none
	closed bool
}

// take returns a supervisor.
func (k *keeper) take() (*supervise.Spare, error) {
	k.mu.Lock()
	s := k.spare
	k.spare = nil
	k.mu.Unlock()
	if s != nil {
		return s, nil
	}
	return supervise.Ready()
}

// fill has one ready. Where that fails, take finds out why.
func (k *keeper) fill() {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.spare == nil && !k.closed {
		k.spare, _ = supervise.Ready()
	}
}

func (k *keeper) close() {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.closed = true
	if k.spare != nil {
		_ = k.spare.Close()
		k.spare = nil
	}
}
