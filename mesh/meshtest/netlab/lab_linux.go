package netlab

import (
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"testing"
)

// Lab is a set of networks and hosts that ends with a test.
type Lab struct {
	// Internet gives each of its hosts a public IPv4 address in a network of its
	// own, Internet6 an IPv6 address and no IPv4. They do not reach each other.
	Internet, Internet6 *Network

	t         testing.TB
	core      *namespace // routes between the sites
	sites     int        // networks of the internet that are in use
	spaces    []*namespace
	hosts     []*Host
	processes []*Process
}

// New returns a lab without a host. Without BALANCE_LAB=1, which make e2e sets,
// the test is skipped: labs take their time. A test that this machine cannot run
// is skipped too, or fails if BALANCE_REQUIRE=1 says that it has to.
func New(t testing.TB) *Lab {
	t.Helper()
	if os.Getenv("BALANCE_LAB") != "1" {
		t.Skip("networks of namespaces are for make e2e: it sets BALANCE_LAB=1")
	}
	if why := missing(); why != "" {
		if os.Getenv("BALANCE_REQUIRE") == "1" {
			t.Fatalf("this test needs %s", why)
		}
		t.Skipf("this test needs %s", why)
	}
	l := &Lab{t: t}
	t.Cleanup(l.close)
	l.core = l.namespace()
	l.core.sysctl("net/ipv4/ip_forward", "1")
	l.core.sysctl("net/ipv6/conf/all/forwarding", "1")
	l.must(l.core.nft(coreRules))
	l.Internet = &Network{lab: l, ns: l.core}
	l.Internet6 = &Network{lab: l, ns: l.core, v6: true}
	return l
}

// missing says what a lab needs and this machine has not.
func missing() string {
	if os.Getuid() != 0 {
		return "root, for network namespaces"
	}
	for _, tool := range []string{"ip", "nft"} {
		if _, err := exec.LookPath(tool); err != nil {
			return tool
		}
	}
	ns, err := newNamespace()
	if err != nil {
		return "network namespaces: " + err.Error()
	}
	defer ns.file.Close()
	if err := ns.nft(natRules(Cone)); err != nil {
		return "NAT of nftables: " + err.Error()
	}
	return ""
}

// coreRules drop what goes from one public address to another where there is a
// hole.
const coreRules = `
table inet lab {
	set holes { type ipv4_addr . ipv4_addr; }
	set holes6 { type ipv6_addr . ipv6_addr; }
	chain forward {
		type filter hook forward priority filter
		ip saddr . ip daddr @holes drop
		ip6 saddr . ip6 daddr @holes6 drop
	}
}
`

func (l *Lab) close() {
	for _, p := range l.processes {
		p.Kill()
		if l.t.Failed() {
			l.t.Logf("%s: %v\n%s", p.host.Name, p.cmd.Args, p.Output())
		}
	}
	for _, h := range l.hosts {
		if h.cable != nil {
			h.cable.close()
		}
	}
	for _, ns := range l.spaces {
		ns.file.Close()
	}
}

func (l *Lab) must(err error) {
	if err != nil {
		l.t.Helper()
		l.t.Fatal(err)
	}
}

func (l *Lab) namespace() *namespace {
	l.t.Helper()
	ns, err := newNamespace()
	l.must(err)
	l.spaces = append(l.spaces, ns)
	return ns
}

// Hole makes everything vanish that one host sends to another, from now on; the
// way back stays open. Between two networks it is between the public addresses
// that they have now, so for all their hosts.
func (l *Lab) Hole(from, to *Host) { l.hole("add", from, to) }

// Fill ends a Hole.
func (l *Lab) Fill(from, to *Host) { l.hole("delete", from, to) }

func (l *Lab) hole(change string, from, to *Host) {
	l.t.Helper()
	if from.in == to.in && from.in.ns != l.core {
		l.must(from.in.ns.nft(fmt.Sprintf("%s element bridge lab holes { %q . %q }", change, from.port, to.port)))
		return
	}
	set := "holes"
	if from.Public().Is6() {
		set = "holes6"
	}
	l.must(l.core.nft(fmt.Sprintf("%s element inet lab %s { %s . %s }", change, set, from.Public(), to.Public())))
}

// site takes the next network of the internet: the address there and the one of
// the internet's own router. Sites of IPv4 are /30 of 203.0.113.0/24 and
// 198.51.100.0/24, those of IPv6 /64 of 2001:db8::/32, all of which are for
// documentation (RFC 5737, RFC 3849).
func (l *Lab) site(v6 bool) (addr, gateway netip.Prefix) {
	l.t.Helper()
	n := l.sites
	l.sites++
	if v6 {
		b := [16]byte{0x20, 0x01, 0x0d, 0xb8, byte(n >> 8), byte(n)}
		b[15] = 1
		router := netip.AddrFrom16(b)
		return netip.PrefixFrom(router.Next(), 64), netip.PrefixFrom(router, 64)
	}
	b := [4]byte{203, 0, 113, byte(n%64*4 + 1)}
	if n >= 64 {
		b = [4]byte{198, 51, 100, b[3]}
	}
	if n >= 128 {
		l.t.Fatal("a lab has at most 128 sites on the internet")
	}
	router := netip.AddrFrom4(b)
	return netip.PrefixFrom(router.Next(), 30), netip.PrefixFrom(router, 30)
}
