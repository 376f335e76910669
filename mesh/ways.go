package mesh

import (
	"net/netip"
	"slices"

	"github.com/balanceai/balance/mesh/identity"
)

// usable returns the addresses that can lead somewhere other than back into the
// overlay of which one address is given.
func usable(list []netip.AddrPort, inside netip.Addr) (out []netip.AddrPort) {
	overlay := netip.PrefixFrom(inside, identity.MeshID{}.Prefix().Bits()).Masked()
	for _, a := range list {
		ip := a.Addr().Unmap()
		if ip.IsValid() && !ip.IsUnspecified() && !ip.IsMulticast() && !overlay.Contains(ip) && !streamNet.Contains(ip) && a.Port() != 0 {
			out = append(out, netip.AddrPortFrom(ip, a.Port()))
		}
	}
	return out
}

// store makes addresses to try those that the roster says.
func (p *peer) store(addrs []netip.AddrPort) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !slices.Equal(p.stored, addrs) {
		p.stored = slices.Clone(addrs)
		p.take(roster, p.ways(addrs))
	}
}

// hear adds addresses to try that somebody told.
func (p *peer) hear(addrs []netip.AddrPort) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.awake.Load() {
		p.take(rumour, p.ways(addrs))
		return
	}
	for _, a := range usable(addrs, p.addr) {
		p.rumours = append(slices.DeleteFunc(p.rumours, func(known netip.AddrPort) bool { return known == a }), a)
	}
	p.rumours = p.rumours[max(0, len(p.rumours)-candidateLimit[rumour]):]
}

// ways returns the addresses that can lead to the peer.
func (p *peer) ways(addrs []netip.AddrPort) (out []hop) {
	for _, a := range usable(addrs, p.addr) {
		out = append(out, direct(a))
	}
	return out
}

// relayBy makes relays those that may lead to the peer.
func (p *peer) relayBy(relays []hop) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.take(relay, relays)
}

// stream adds a stream to the ways to the peer.
func (p *peer) stream(addr netip.AddrPort) {
	p.lock()
	defer p.mu.Unlock()
	p.take(rumour, []hop{direct(addr)})
}

// take adds ways to the peer, if it is awake; those that are stored and relays
// replace those of before. The caller holds the lock.
func (p *peer) take(from origin, ways []hop) {
	if p.closed || !p.awake.Load() {
		return
	}
	now := p.bind.now()
	if from >= roster {
		p.do(now, p.paths.replace(now, from, ways))
	} else {
		p.do(now, p.paths.learn(now, from, ways...))
	}
	p.settle()
}

// drop forgets relays.
func (p *peer) drop(gone map[*peer]bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.paths.drop(func(h hop) bool { return gone[h.via] })
	if !p.closed {
		p.settle()
	}
}

// forgetAddr forgets an address that is no more.
func (p *peer) forgetAddr(addr netip.AddrPort) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.paths.drop(func(h hop) bool { return h.addr == addr })
	if !p.closed {
		p.settle()
	}
}
