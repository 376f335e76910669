package mesh

import (
	"cmp"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
)

// maxLocal bounds the addresses of the host that a node offers.
const maxLocal = 5

// Names of interfaces that lead to this host's own containers and virtual
// machines, or into other tunnels: their addresses are of no use to others.
var innerInterfaces = []string{
	"docker", "br-", "veth", "virbr", "vmnet", "vboxnet", "cni", "flannel", "cali", "cilium", "podman", "lxc", "lxd",
	"balance", "tun", "tap", "wg", "utun", "tailscale", "zt", "nebula", "awdl", "llw",
}

// localNet knows the networks that the host is in.
type localNet struct {
	mu    sync.RWMutex
	links []netip.Prefix // the host's addresses with their networks
}

func readLocalNet() *localNet {
	l := &localNet{}
	l.refresh()
	return l
}

// refresh reads the interfaces again.
func (l *localNet) refresh() {
	interfaces, err := net.Interfaces()
	if err != nil {
		return // what was known stays
	}
	var links []netip.Prefix
	for _, i := range interfaces {
		if i.Flags&net.FlagUp == 0 || i.Flags&net.FlagPointToPoint != 0 || inner(i.Name) {
			continue
		}
		addrs, err := i.Addrs()
		if err != nil {
			continue // it is just going away
		}
		for _, a := range addrs {
			if p, err := netip.ParsePrefix(a.String()); err == nil {
				links = append(links, netip.PrefixFrom(p.Addr().Unmap(), p.Bits()))
			}
		}
	}
	l.mu.Lock()
	l.links = links
	l.mu.Unlock()
}

func inner(name string) bool {
	return slices.ContainsFunc(innerInterfaces, func(prefix string) bool { return strings.HasPrefix(name, prefix) })
}

// kind tells whether an address is near: private, or in a network of this host.
func (l *localNet) kind(a netip.Addr) Kind {
	if a.IsPrivate() || a.IsLoopback() || a.IsLinkLocalUnicast() {
		return LAN
	}
	l.mu.RLock()
	defer l.mu.RUnlock()
	if slices.ContainsFunc(l.links, func(p netip.Prefix) bool { return p.Masked().Contains(a) }) {
		return LAN
	}
	return Direct
}

// Addrs returns the UDP addresses at which others may reach this node: the
// host's own, the best first, and then those that members have seen it come
// from; eight at most. Loopback is among them only where the host has nothing
// else or the node listens on it. Config.Advertise replaces them all.
func (n *Node) Addrs() []netip.AddrPort {
	n.local.refresh()
	return n.candidates()
}

// StreamAddrs returns the TCP addresses at which others may reach a listener for
// [Node.ServeStreams] on a port: those of the host, or Config.Advertise.
func (n *Node) StreamAddrs(port uint16) (out []netip.AddrPort) {
	addrs := n.told
	if len(addrs) == 0 {
		n.local.refresh()
		addrs = n.localAddrs()
	}
	for _, a := range addrs {
		out = append(out, netip.AddrPortFrom(a.Addr(), port))
	}
	return out
}

// localAddrs returns the host's own addresses, as they were when last read.
func (t *tunnel) localAddrs() []netip.AddrPort {
	if at := t.listen.Addr(); at.IsValid() && !at.IsUnspecified() {
		return []netip.AddrPort{netip.AddrPortFrom(at.Unmap(), t.bind.port())}
	}
	t.local.mu.RLock()
	defer t.local.mu.RUnlock()
	return offer(t.local.links, t.bind.port(), t.bind.v6 != nil)
}

// offer chooses from the host's addresses: private before public, IPv4 before
// IPv6, which has more addresses that change.
func offer(links []netip.Prefix, port uint16, v6 bool) []netip.AddrPort {
	var out, loopback []netip.AddrPort
	for _, l := range links {
		a := l.Addr()
		switch {
		case a.Is6() && !v6, a.IsLinkLocalUnicast(), a.IsMulticast():
		case a.IsLoopback():
			loopback = append(loopback, netip.AddrPortFrom(a, port))
		default:
			out = append(out, netip.AddrPortFrom(a, port))
		}
	}
	if len(out) == 0 {
		out = loopback
	}
	rank := func(a netip.Addr) int {
		switch {
		case a.IsPrivate() && a.Is4():
			return 0
		case a.IsPrivate():
			return 1
		case a.Is4():
			return 2
		}
		return 3
	}
	slices.SortStableFunc(out, func(a, b netip.AddrPort) int { return cmp.Compare(rank(a.Addr()), rank(b.Addr())) })
	return out[:min(len(out), maxLocal)]
}
