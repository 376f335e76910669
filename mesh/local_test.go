package mesh

import (
	"net/netip"
	"slices"
	"testing"
)

func TestOffer(t *testing.T) {
	many := []string{}
	for i := range 12 {
		many = append(many, netip.AddrFrom4([4]byte{10, 0, 0, byte(i)}).String()+"/24")
	}
	for _, c := range []struct {
		name  string
		links []string
		v6    bool
		want  []string
	}{
		{"nothing but loopback", []string{"127.0.0.1/8", "::1/128"}, true, []string{"127.0.0.1", "::1"}},
		{
			"private first",
			[]string{"127.0.0.1/8", "203.0.113.5/24", "fd12::1/64", "192.168.1.5/24", "2001:db8::5/64"},
			true,
			[]string{"192.168.1.5", "fd12::1", "203.0.113.5", "2001:db8::5"},
		},
		{"no IPv6", []string{"fd12::1/64", "192.168.1.5/24"}, false, []string{"192.168.1.5"}},
		{"no link-local", []string{"fe80::1/64", "169.254.1.1/16", "10.0.0.1/8"}, true, []string{"10.0.0.1"}},
		{"the most", many, true, []string{"10.0.0.0", "10.0.0.1", "10.0.0.2", "10.0.0.3", "10.0.0.4"}},
	} {
		var links []netip.Prefix
		for _, l := range c.links {
			links = append(links, netip.MustParsePrefix(l))
		}
		var got []string
		for _, a := range offer(links, 7000, c.v6) {
			if a.Port() != 7000 {
				t.Errorf("%s: port %d", c.name, a.Port())
			}
			got = append(got, a.Addr().String())
		}
		if !slices.Equal(got, c.want) {
			t.Errorf("%s: %v, want %v", c.name, got, c.want)
		}
	}
}

func TestKind(t *testing.T) {
	l := &localNet{links: []netip.Prefix{netip.MustParsePrefix("203.0.113.5/24"), netip.MustParsePrefix("2001:db8::5/64")}}
	for addr, want := range map[string]Kind{
		"192.168.9.9": LAN, "127.0.0.1": LAN, "::1": LAN, "fd00::1": LAN, "203.0.113.77": LAN, "2001:db8::77": LAN,
		"198.51.100.1": Direct, "2001:db8:1::1": Direct, "100.64.0.1": Direct,
	} {
		if got := l.kind(netip.MustParseAddr(addr)); got != want {
			t.Errorf("%s is %v, want %v", addr, got, want)
		}
	}
}

func TestInnerInterfaces(t *testing.T) {
	for name, want := range map[string]bool{
		"docker0": true, "br-0123456789ab": true, "veth12ab": true, "wg0": true, "tun0": true, "utun3": true, "tailscale0": true, "balance0": true,
		"eth0": false, "enp3s0": false, "wlan0": false, "wlp2s0": false, "en0": false, "br0": false, "bond0": false,
	} {
		if got := inner(name); got != want {
			t.Errorf("%s is inner: %v", name, got)
		}
	}
}

func TestUsable(t *testing.T) {
	var given []netip.AddrPort
	for _, a := range []string{
		"192.168.1.5:9", "[::ffff:10.0.0.1]:9", "[2001:db8::5]:9", "127.0.0.1:9", // good
		"192.168.1.5:0", "0.0.0.0:9", "[::]:9", "224.0.0.251:9", "[ff02::fb]:9",
		"[fd12:3456:789a::7]:9", "[fd12:3456:789a:2::1]:9", // of the overlay
	} {
		given = append(given, netip.MustParseAddrPort(a))
	}
	given = append(given, netip.AddrPort{})
	want := []netip.AddrPort{given[0], netip.MustParseAddrPort("10.0.0.1:9"), given[2], given[3]}
	if got := usable(given, netip.MustParseAddr("fd12:3456:789a::1")); !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}
