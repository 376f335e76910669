package mesh

import (
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/balanceai/balance/mesh/portmap"
)

const (
	sightLife = 3 * time.Minute // a mapping of a NAT that was not seen for so long may be gone
	maxSights = 16
	maxSeen   = 3 // addresses of one's own that are offered by hearsay
)

// sight is what a peer, or a STUN server, saw our datagrams come from.
type sight struct {
	by   *peer          // nil: a server
	at   netip.AddrPort // where it was
	us   netip.AddrPort
	when instant
}

// of reports whether the sight is one of the peer or the server at an address, of
// the same family as us.
func (s *sight) of(by *peer, at, us netip.AddrPort) bool {
	return s.by == by && (by != nil || s.at == at) && s.us.Addr().Is4() == us.Addr().Is4()
}

// sights are the newest, one of each peer or server and family. Every member is a STUN
// server to every other: it tells with each pong where the ping came from.
type sights struct {
	mu   sync.Mutex
	list []sight
}

// saw takes what a peer says, or a STUN server where by is nil. Who lies makes
// others try a wrong address, no more.
func (t *tunnel) saw(by *peer, at, us netip.AddrPort) {
	us = netip.AddrPortFrom(us.Addr().Unmap(), us.Port())
	if len(usable([]netip.AddrPort{us}, t.addr)) == 0 || us.Addr().IsLoopback() || us.Addr().IsLinkLocalUnicast() {
		return
	}
	t.sights.mu.Lock()
	defer t.sights.mu.Unlock()
	t.sights.list = slices.DeleteFunc(t.sights.list, func(s sight) bool {
		return s.of(by, at, us)
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
// of the host, the one that the router forwards, then those that others saw.
func (t *tunnel) candidates() []netip.AddrPort {
	if len(t.told) > 0 {
		return t.told
	}
	out := t.localAddrs()
	if at, ok := t.forwarded(); ok && !slices.Contains(out, at) {
		out = append(out, at)
	}
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

// startMapping has the router asked for the UDP port.
func (t *tunnel) startMapping() {
	t.mapper = portmap.Start(portmap.Config{Port: t.bind.port(), Log: t.log, Wanted: t.wantsMapping})
}

// wantsMapping reports whether the host is one that others reach only through a
// router: it has a private address of IPv4, and no public one.
func (t *tunnel) wantsMapping() bool {
	t.local.refresh()
	private := false
	for _, a := range t.localAddrs() {
		ip := a.Addr()
		if ip.Is4() && isPublic(ip) {
			return false
		}
		private = private || ip.Is4() && !ip.IsLoopback()
	}
	return private
}

// sharedNet is for providers' NATs (RFC 6598): an address there is not one of
// the internet.
var sharedNet = netip.MustParsePrefix("100.64.0.0/10")

func isPublic(a netip.Addr) bool {
	return a.IsGlobalUnicast() && !a.IsPrivate() && !sharedNet.Contains(a)
}

// mapping returns what the router has given.
func (t *tunnel) mapping() portmap.Mapping {
	if t.mapper == nil {
		return portmap.Mapping{}
	}
	return t.mapper.Current()
}

// forwarded returns the public address that leads here by the router. One that
// is itself behind a NAT is of no use to others.
func (t *tunnel) forwarded() (netip.AddrPort, bool) {
	at := t.mapping().External
	return at, at.IsValid() && isPublic(at.Addr())
}
