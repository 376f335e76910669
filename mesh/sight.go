package mesh

import (
	"net/netip"
	"slices"
	"sync"
	"time"
)

const (
	sightLife = 3 * time.Minute // a mapping of a NAT that was not seen for so long may be gone
	maxSights = 16
	maxSeen   = 3 // addresses of one's own that are offered by hearsay
)

// sight is what a peer saw our datagrams come from.
type sight struct {
	by   *peer
	at   netip.AddrPort // where the peer was
	us   netip.AddrPort
	when instant
}

// sights are the newest, one of each peer and family. Every member is a STUN
// server to every other: it tells with each pong where the ping came from.
type sights struct {
	mu   sync.Mutex
	list []sight
}

// saw takes what a peer says. A peer that lies makes others try a wrong address,
// no more.
func (t *tunnel) saw(by *peer, at, us netip.AddrPort) {
	us = netip.AddrPortFrom(us.Addr().Unmap(), us.Port())
	if len(usable([]netip.AddrPort{us}, t.addr)) == 0 || us.Addr().IsLoopback() || us.Addr().IsLinkLocalUnicast() {
		return
	}
	t.sights.mu.Lock()
	defer t.sights.mu.Unlock()
	t.sights.list = slices.DeleteFunc(t.sights.list, func(s sight) bool {
		return s.by == by && s.us.Addr().Is4() == us.Addr().Is4()
	})
	t.sights.list = append(t.sights.list, sight{by, at, us, t.bind.now()})
	if excess := len(t.sights.list) - maxSights; excess > 0 {
		t.sights.list = slices.Delete(t.sights.list, 0, excess)
	}
}

// newest returns what was seen lately, the newest first.
func (s *sights) newest(now instant) []sight {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := slices.DeleteFunc(slices.Clone(s.list), func(x sight) bool { return !x.when.within(sightLife, now) })
	slices.Reverse(out)
	return out
}

// forget drops all: the node is somewhere else now.
func (s *sights) forget() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.list = nil
}

// candidates returns the UDP addresses at which this node may be reached: those
// of the host, then those that others saw.
func (t *tunnel) candidates() []netip.AddrPort {
	if len(t.told) > 0 {
		return t.told
	}
	out := t.localAddrs()
	own := len(out)
	for _, s := range t.sights.newest(t.bind.now()) {
		if len(out)-own == maxSeen {
			break
		}
		if !slices.Contains(out, s.us) {
			out = append(out, s.us)
		}
	}
	return out
}
