package hostnet

import (
	"net/netip"
	"sync"
	"time"
)

const (
	// maxFlows is how many flows are remembered at least, and half of how many
	// at most.
	maxFlows = 4096
	// flowLife is how long an answer may come in at least after the last packet
	// that went out, and half of how long at most. RFC 4787 asks for two
	// minutes of a NAT.
	flowLife = 2 * time.Minute
)

// flow is a port of the host and whom it talks to.
type flow struct {
	local  uint16
	remote netip.AddrPort
}

// flows are the flows that were seen going out lately. There are two
// generations: where the young one is full or has lived its time, it takes the
// place of the old one, which is forgotten.
type flows struct {
	mu         sync.Mutex
	young, old map[flow]struct{}
	born       time.Time // of the young generation
}

// add remembers a flow that has sent something.
func (f *flows) add(k flow, now time.Time) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.ageLocked(now)
	if _, ok := f.young[k]; ok {
		return
	}
	if len(f.young) == maxFlows {
		f.turnLocked(now)
	}
	f.young[k] = struct{}{}
}

// has reports whether a flow is remembered.
func (f *flows) has(k flow, now time.Time) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.ageLocked(now)
	if _, ok := f.young[k]; ok {
		return true
	}
	_, ok := f.old[k]
	return ok
}

func (f *flows) ageLocked(now time.Time) {
	age := now.Sub(f.born)
	if age < flowLife && f.young != nil {
		return
	}
	f.turnLocked(now)
	if age >= 2*flowLife {
		f.old = nil
	}
}

func (f *flows) turnLocked(now time.Time) {
	f.old, f.young, f.born = f.young, map[flow]struct{}{}, now
}
