package hostnet

import (
	"encoding/binary"
	"net/netip"
	"testing"
	"time"
)

var (
	testMesh  = netip.MustParsePrefix("fd12:3456:789a::/48")
	self      = netip.MustParseAddr("fd12:3456:789a::1")
	member    = netip.MustParseAddr("fd12:3456:789a::2")
	other     = netip.MustParseAddr("fd12:3456:789a::3")
	joiner    = netip.MustParseAddr("fd12:3456:789a:1::1")
	doorAddr  = netip.MustParseAddr("fd12:3456:789a:2::1")
	stranger  = netip.MustParseAddr("2001:db8::1")
	testStart = time.Unix(1_000_000, 0)
)

const (
	apiPort  = 7420
	openPort = 8080
)

// newFilter is that of a node that listens on apiPort and has a connection from
// its port 50000 to port 80 of member.
func newFilter() *filter {
	return &filter{
		self: self, prefix: testMesh, private: []uint16{apiPort}, open: []uint16{openPort},
		joiner: func(a netip.Addr) bool { return a == joiner },
		owns: func(proto uint8, local, remote netip.AddrPort) bool {
			return proto == protoTCP && (local.Port() == apiPort || local.Port() == 50000 && remote == netip.AddrPortFrom(member, 80))
		},
	}
}

// ipv6 makes a packet.
func ipv6(src, dst netip.Addr, proto uint8, payload ...byte) []byte {
	b := make([]byte, ipv6HeaderLen, ipv6HeaderLen+len(payload))
	b[0], b[6], b[7] = 0x60, proto, 64
	binary.BigEndian.PutUint16(b[4:], uint16(len(payload)))
	copy(b[8:], src.AsSlice())
	copy(b[24:], dst.AsSlice())
	return append(b, payload...)
}

func ports(from, to uint16) []byte {
	return binary.BigEndian.AppendUint16(binary.BigEndian.AppendUint16(nil, from), to)
}

func tcp(src, dst netip.Addr, from, to uint16, flags byte) []byte {
	payload := append(ports(from, to), make([]byte, 16)...)
	payload[12], payload[13] = 5<<4, flags
	return ipv6(src, dst, protoTCP, payload...)
}

func udp(src, dst netip.Addr, from, to uint16) []byte {
	return ipv6(src, dst, protoUDP, append(ports(from, to), 0, 9, 0, 0, 'x')...)
}

func icmp(src, dst netip.Addr, kind byte, about ...byte) []byte {
	return ipv6(src, dst, protoICMPv6, append([]byte{kind, 0, 0, 0, 0, 0, 0, 0}, about...)...)
}

const syn = 0x02

func TestFilterIn(t *testing.T) {
	fragment := ipv6(member, self, 44, make([]byte, 32)...)
	for _, c := range []struct {
		what string
		b    []byte
		want verdict
	}{
		{"connection to the node", tcp(member, self, 5000, apiPort, syn), toNode},
		{"segment of a connection of the node's", tcp(member, self, 80, 50000, flagACK), toNode},
		{"the same ports of somebody else", tcp(other, self, 80, 50000, flagACK), toHost},
		{"connection to the host", tcp(member, self, 5000, 22, syn), drop},
		{"connection to an open port", tcp(member, self, 5000, openPort, syn), toHost},
		{"answer to a connection of the host's", tcp(member, self, 22, 40000, syn|flagACK), toHost},
		{"segment", tcp(member, self, 22, 40000, flagACK), toHost},
		{"reset", tcp(member, self, 22, 40000, flagRST), toHost},
		{"probe without flags", tcp(member, self, 22, 40000, 0), drop},
		{"probe with FIN", tcp(member, self, 22, 40000, 0x01), drop},
		{"TCP from a joiner", tcp(joiner, doorAddr, 5000, 1, syn), toNode},
		{"TCP from a joiner to the host", tcp(joiner, self, 5000, 22, flagACK), toNode},
		{"TCP to the door", tcp(member, doorAddr, 5000, 1, syn), toNode},
		{"datagram", udp(member, self, 53, 40000), drop},
		{"datagram to an open port", udp(member, self, 5000, openPort), toHost},
		{"echo request", icmp(member, self, echoRequest), toHost},
		{"echo reply", icmp(member, self, echoReply), toHost},
		{"router advertisement", icmp(member, self, 134), drop},
		{"redirect", icmp(member, self, 137), drop},
		{"error about the host's packet", icmp(member, self, 1, tcp(self, member, 40000, 22, syn)...), toHost},
		{"error about the node's packet", icmp(member, self, 2, tcp(self, member, 50000, 80, flagACK)...), toNode},
		{"error about another's packet", icmp(member, self, 1, tcp(other, member, 40000, 22, syn)...), drop},
		{"error about nothing", icmp(member, self, 1), drop},
		{"fragment", fragment, drop},
		{"hop-by-hop options", ipv6(member, self, 0, make([]byte, 32)...), drop},
		{"routing header", ipv6(member, self, 43, make([]byte, 32)...), drop},
		{"destination options", ipv6(member, self, 60, make([]byte, 32)...), drop},
		{"ESP", ipv6(member, self, 50, make([]byte, 32)...), drop},
		{"nothing inside", ipv6(member, self, 59), drop},
		{"IPv4", append([]byte{0x45}, make([]byte, 60)...), drop},
		{"nothing", nil, drop},
	} {
		if got := newFilter().in(c.b, testStart, &memo{}); got != c.want {
			t.Errorf("%s: %d, want %d", c.what, got, c.want)
		}
	}
}

func TestFilterOut(t *testing.T) {
	for _, c := range []struct {
		what string
		b    []byte
		want bool
	}{
		{"connection of the host's", tcp(self, member, 40000, 22, syn), true},
		{"segment from an open port", tcp(self, member, openPort, 5000, flagACK), true},
		{"datagram", udp(self, member, 40000, 53), true},
		{"echo request", icmp(self, member, echoRequest), true},
		{"error", icmp(self, member, 1, udp(member, self, 5000, openPort)...), true},
		{"connection to another node", tcp(self, member, 40000, apiPort, syn), false},
		{"datagram to another node", udp(self, member, 40000, apiPort), false},
		{"from a port where the node listens", tcp(self, member, apiPort, 5000, flagACK), false},
		{"into a connection of the node's", tcp(self, member, 50000, 80, flagRST), false},
		{"from another address", tcp(other, member, 40000, 22, syn), false},
		{"to itself", tcp(self, self, 40000, 22, syn), false},
		{"out of the mesh", tcp(self, stranger, 40000, 22, syn), false},
		{"multicast", icmp(self, netip.MustParseAddr("ff02::16"), 143), false},
		{"neighbour solicitation", icmp(self, member, 135), false},
		{"fragment", ipv6(self, member, 44, make([]byte, 32)...), false},
	} {
		if got := newFilter().out(c.b, testStart, &memo{}); got != c.want {
			t.Errorf("%s: %v, want %v", c.what, got, c.want)
		}
	}
}

// Headers that are cut short anywhere are refused, and so are packets that are
// shorter than they say.
func TestFilterCutShort(t *testing.T) {
	for _, whole := range [][]byte{
		tcp(member, self, 22, 40000, flagACK), udp(member, self, 5000, openPort), icmp(member, self, echoRequest),
	} {
		for n := range len(whole) {
			if v := newFilter().in(whole[:n], testStart, &memo{}); v != drop {
				t.Errorf("%d of %d bytes of protocol %d: %d", n, len(whole), whole[6], v)
			}
		}
		for n := ipv6HeaderLen; n < ipv6HeaderLen+8; n++ {
			cut := append([]byte{}, whole[:n]...)
			binary.BigEndian.PutUint16(cut[4:], uint16(n-ipv6HeaderLen))
			if v := newFilter().in(cut, testStart, &memo{}); v != drop {
				t.Errorf("protocol %d with a header of %d bytes: %d", whole[6], n-ipv6HeaderLen, v)
			}
		}
	}
	long := tcp(member, self, 22, 40000, flagACK)
	long[ipv6HeaderLen+12] = 15 << 4
	if v := newFilter().in(long, testStart, &memo{}); v != drop {
		t.Errorf("a TCP header that is longer than its packet: %d", v)
	}
}

// A datagram comes in while the host has lately sent one the other way.
func TestFilterFlows(t *testing.T) {
	f := newFilter()
	ask, answer := udp(self, member, 40000, 53), udp(member, self, 53, 40000)
	in := func(b []byte, at time.Duration) bool { return f.in(b, testStart.Add(at), &memo{}) == toHost }
	if !f.out(ask, testStart, &memo{}) || !in(answer, time.Second) {
		t.Error("the answer does not come in")
	}
	for what, b := range map[string][]byte{
		"from another member": udp(other, self, 53, 40000),
		"from another port":   udp(member, self, 54, 40000),
		"to another port":     udp(member, self, 53, 40001),
		"as TCP":              tcp(member, self, 53, 40000, syn),
	} {
		if in(b, time.Second) {
			t.Errorf("an answer %s comes in", what)
		}
	}
	if !in(answer, flowLife) {
		t.Error("an answer does not come in after the time that it has")
	}
	if in(answer, 2*flowLife) {
		t.Error("an answer comes in long after the question")
	}
	f.out(ask, testStart.Add(3*flowLife), &memo{})
	f.out(ask, testStart.Add(4*flowLife-1), &memo{})
	if !in(answer, 5*flowLife-1) {
		t.Error("a flow that goes on is forgotten")
	}
}

// A program that talks to everybody does not fill the memory.
func TestFlowsBounded(t *testing.T) {
	var f flows
	for i := range 5 * maxFlows {
		f.add(flow{uint16(i), netip.AddrPortFrom(member, uint16(i>>4))}, testStart)
	}
	if n := len(f.young) + len(f.old); n > 2*maxFlows {
		t.Errorf("%d flows are remembered", n)
	}
	last := 5*maxFlows - 1
	if !f.has(flow{uint16(last), netip.AddrPortFrom(member, uint16(last>>4))}, testStart) {
		t.Error("the newest flow is forgotten")
	}
}

// The node's stack is asked once for packets of one flow that come together, and
// again for another flow.
func TestFilterMemo(t *testing.T) {
	f, asked := newFilter(), 0
	owns := f.owns
	f.owns = func(proto uint8, local, remote netip.AddrPort) bool { asked++; return owns(proto, local, remote) }
	var m memo
	for _, c := range []struct {
		b     []byte
		want  verdict
		asked int
	}{
		{tcp(member, self, 22, 40000, flagACK), toHost, 1},
		{tcp(member, self, 22, 40000, flagACK), toHost, 1},
		{tcp(member, self, 22, 40000, syn), drop, 1},
		{tcp(member, self, 80, 50000, flagACK), toNode, 2},
		{udp(member, self, 80, 50000), drop, 3},
		{tcp(other, self, 80, 50000, flagACK), toHost, 4},
	} {
		if got := f.in(c.b, testStart, &m); got != c.want || asked != c.asked {
			t.Errorf("%d after %d questions, want %d after %d", got, asked, c.want, c.asked)
		}
	}
}

// FuzzFilter holds that no bytes make the filter fail, and that what comes in to
// the host is what the filter promises.
func FuzzFilter(f *testing.F) {
	for _, b := range [][]byte{
		tcp(member, self, 5000, apiPort, syn), tcp(member, self, 22, 40000, flagACK), udp(member, self, 5000, openPort),
		icmp(member, self, echoRequest), icmp(member, self, 1, tcp(self, member, 40000, 22, syn)...),
		ipv6(member, self, 44, make([]byte, 32)...), ipv6(self, member, 0, make([]byte, 32)...),
		{0x60},
	} {
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		filter := newFilter()
		if filter.in(b, testStart, &memo{}) == toHost {
			p, ok := parse(b)
			src, dst := ends(b)
			begins := p.proto == protoTCP && p.flags&(flagACK|flagRST) == 0 || p.proto == protoUDP
			if !ok || dst.Addr() != self || src.Addr() == joiner || begins && dst.Port() != openPort {
				t.Errorf("the host gets %x", b)
			}
		}
		if filter.out(b, testStart, &memo{}) {
			p, ok := parse(b)
			src, dst := ends(b)
			if !ok || src.Addr() != self || !testMesh.Contains(dst.Addr()) || p.proto != protoICMPv6 && dst.Port() == apiPort {
				t.Errorf("the mesh gets %x", b)
			}
		}
	})
}

func BenchmarkFilterIn(b *testing.B) {
	f, m := newFilter(), memo{}
	packet := append(tcp(member, self, 22, 40000, flagACK), make([]byte, 1200)...)
	for b.Loop() {
		f.in(packet, testStart, &m)
	}
}
