package mesh

import (
	"net/netip"
	"testing"

	"github.com/balanceai/balance/mesh/identity"
)

func TestNATOf(t *testing.T) {
	at := netip.MustParseAddrPort
	own := []netip.Addr{netip.MustParseAddr("192.168.1.5"), netip.MustParseAddr("2001:db8::5")}
	seen := func(pairs ...string) (out []Sight) {
		for i := 0; i < len(pairs); i += 2 {
			out = append(out, Sight{By: identity.ID{byte(i)}, At: at(pairs[i]), Us: at(pairs[i+1])})
		}
		return out
	}
	for _, c := range []struct {
		name   string
		sights []Sight
		want   NAT
	}{
		{"nobody", nil, NATUnknown},
		{"one", seen("203.0.113.1:1", "198.51.100.9:4000"), NATUnknown},
		{"the same twice", seen("203.0.113.1:1", "198.51.100.9:4000", "203.0.113.2:1", "198.51.100.9:4000"), NATEasy},
		{"two ports of one other", seen("203.0.113.1:1", "198.51.100.9:4000", "203.0.113.1:2", "198.51.100.9:4000"), NATEasy},
		{"another port for each", seen("203.0.113.1:1", "198.51.100.9:4000", "203.0.113.2:1", "198.51.100.9:4001"), NATHard},
		{"another address for each", seen("203.0.113.1:1", "198.51.100.9:4000", "203.0.113.2:1", "198.51.100.8:4000"), NATHard},
		{"one from two members at one place", seen("203.0.113.1:1", "198.51.100.9:4000", "203.0.113.1:1", "198.51.100.9:4000"), NATUnknown},
		{"a neighbour behind the same router", seen("203.0.113.1:1", "198.51.100.9:4000", "198.51.100.9:7", "198.51.100.9:4005"), NATUnknown},
		{"a provider's NAT from within", seen("203.0.113.1:1", "198.51.100.9:4000", "100.64.0.3:1", "100.64.0.9:4001"), NATUnknown},
		{"IPv6 alone", seen("[2001:db8::1]:1", "[2001:db8::5]:4000"), NATNone},
		{"IPv6 does not make up for IPv4", seen("[2001:db8::1]:1", "[2001:db8::5]:4000", "203.0.113.1:1", "198.51.100.9:4000"), NATUnknown},
	} {
		if got := natOf(own, c.sights); got != c.want {
			t.Errorf("%s: %s, want %s", c.name, got, c.want)
		}
	}
	if got := natOf([]netip.Addr{netip.MustParseAddr("198.51.100.9")}, seen("203.0.113.1:1", "198.51.100.9:4000")); got != NATNone {
		t.Errorf("a public host: %s", got)
	}
}

func TestUDPOf(t *testing.T) {
	for _, c := range []struct {
		outside, lately bool
		kinds           []Kind
		want            UDP
	}{
		{false, false, nil, UDPUnknown},
		{false, false, []Kind{None, Relayed}, UDPUnknown},
		{false, false, []Kind{LAN, None}, UDPLocal},
		{false, false, []Kind{LAN, Direct}, UDPWorks},
		{false, false, []Kind{TCP, Relayed}, UDPBlocked},
		{false, false, []Kind{LAN, TCP}, UDPBlocked},
		{true, false, []Kind{TCP, Direct}, UDPBlocked}, // Direct is not in use any more
		{true, true, []Kind{TCP, Direct}, UDPWorks},
		{true, false, []Kind{Relayed}, UDPWorks},
	} {
		var paths []Path
		for _, k := range c.kinds {
			paths = append(paths, Path{Kind: k})
		}
		if got := udpOf(c.outside, c.lately, paths); got != c.want {
			t.Errorf("%v: %s, want %s", c, got, c.want)
		}
	}
}
