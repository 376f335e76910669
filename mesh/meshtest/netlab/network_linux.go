package netlab

import (
	"fmt"
	"net/netip"
)

// Network is where hosts are: the internet, a LAN behind a router, or a LAN with
// no way out.
type Network struct {
	lab    *Lab
	ns     *namespace // what the cables of its hosts lead into
	v6     bool
	prefix netip.Prefix // of a LAN
	public netip.Addr   // of a LAN behind a router: the router's
	uplink string       // of a LAN behind a router: the internet's end of its cable
	hosts  int          // addresses of a LAN that are in use

	forwards *forwards // nil: the router forwards no ports
}

// LAN makes a LAN without a router: a switch. The network is the first three
// bytes of its addresses, such as "192.168.1".
func (l *Lab) LAN(network string) *Network {
	l.t.Helper()
	prefix, err := netip.ParsePrefix(network + ".0/24")
	l.must(err)
	n := &Network{lab: l, ns: l.namespace(), prefix: prefix, hosts: 1}
	l.must(n.ns.ip(
		"link add lan type bridge mcast_snooping 0",
		fmt.Sprintf("addr add %s.1/24 dev lan", network),
		"link set lan up",
		// One port is always in use, so that the switch itself never loses its
		// carrier: the kernel is slow to give it back.
		"link add used type veth peer name user",
		"link set used master lan up",
		"link set user up",
	))
	l.must(n.ns.nft(lanRules))
	return n
}

// lanRules drop what goes from one port of the switch to another where there is
// a hole.
const lanRules = `
table bridge lab {
	set holes { type ifname . ifname; }
	chain forward {
		type filter hook forward priority filter
		iifname . oifname @holes drop
	}
}
`

// Router makes a LAN with a router of a kind at its address .1. LANs of one lab
// may have the same addresses, as people's homes have.
func (l *Lab) Router(kind NAT, network string) *Network {
	l.t.Helper()
	n := l.LAN(network)
	addr, gateway := l.site(false)
	n.public, n.uplink = addr.Addr(), fmt.Sprintf("s%d", l.sites)
	l.must(n.ns.ip(fmt.Sprintf("link add wan index 1000 type veth peer name %s netns %s", n.uplink, l.core.path())))
	l.must(l.core.ip(
		fmt.Sprintf("addr add %s dev %s", gateway, n.uplink),
		fmt.Sprintf("link set %s up", n.uplink),
	))
	l.must(n.ns.ip(
		fmt.Sprintf("addr add %s dev wan", addr),
		"link set wan up",
		fmt.Sprintf("route add default via %s", gateway.Addr()),
	))
	n.ns.sysctl("net/ipv4/ip_forward", "1")
	n.SetNAT(kind)
	return n
}

// SetNAT makes a router one of another kind, which forgets all connections.
func (n *Network) SetNAT(kind NAT) {
	n.lab.t.Helper()
	n.lab.must(n.ns.nft(natRules(kind)))
	n.Forget()
}

// Forget makes a router forget all connections, as when it is restarted.
func (n *Network) Forget() {
	n.lab.t.Helper()
	n.lab.must(n.ns.forget())
}

// Cut pulls the cable between a router and the internet.
func (n *Network) Cut() { n.lab.must(n.lab.core.ip("link set " + n.uplink + " down")) }

// Mend puts it back.
func (n *Network) Mend() { n.lab.must(n.lab.core.ip("link set " + n.uplink + " up")) }

// DropMulticast makes a LAN one whose access point does not carry multicast from
// one of its hosts to another. IPv6's neighbour discovery is let through.
func (n *Network) DropMulticast() {
	n.lab.t.Helper()
	n.lab.must(n.ns.nft(`
table bridge multicast
delete table bridge multicast
table bridge multicast {
	chain forward {
		type filter hook forward priority filter
		ip daddr 224.0.0.0/4 drop
		ip6 daddr ff02::1:ff00:0/104 accept
		ip6 daddr ff00::/8 drop
	}
}
`))
}

// PassMulticast ends DropMulticast.
func (n *Network) PassMulticast() {
	n.lab.t.Helper()
	n.lab.must(n.ns.nft("table bridge multicast\ndelete table bridge multicast"))
}

// seat is a host's place in a network.
type seat struct {
	addr    netip.Prefix
	gateway netip.Addr // zero: none
	public  netip.Addr // the address that the internet sees; zero: none
	connect []string   // commands of ip(8) that make %s, the end of the host's cable, part of the network
}

// take returns the next free place.
func (n *Network) take() seat {
	n.lab.t.Helper()
	if n.ns == n.lab.core {
		addr, gateway := n.lab.site(n.v6)
		return seat{addr, gateway.Addr(), addr.Addr(), []string{fmt.Sprintf("addr add %s dev %%s", gateway), "link set %s up"}}
	}
	n.hosts++
	b := n.prefix.Addr().As4()
	b[3] = byte(n.hosts)
	s := seat{addr: netip.PrefixFrom(netip.AddrFrom4(b), 24), public: n.public, connect: []string{"link set %s master lan up"}}
	if n.uplink != "" {
		s.gateway = n.prefix.Addr().Next()
	}
	return s
}
