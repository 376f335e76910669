package mesh

import (
	"net/netip"
	"slices"
	"testing"

	"golang.zx2c4.com/wireguard/tun"

	"github.com/balanceai/balance/mesh/identity"
	"github.com/balanceai/balance/mesh/netstack"
)

// recorder is a network stack that keeps what it gets, and sends what it is told
// to.
type recorder struct {
	tun.Device
	got   [][]byte
	sends [][]byte
}

func (r *recorder) Write(bufs [][]byte, offset int) (int, error) {
	for _, b := range bufs {
		r.got = append(r.got, slices.Clone(b[offset:]))
	}
	return len(bufs), nil
}

func (r *recorder) Read(bufs [][]byte, sizes []int, offset int) (int, error) {
	for i, b := range r.sends {
		sizes[i] = copy(bufs[i][offset:], b)
	}
	return len(r.sends), nil
}

var (
	crossMesh   = identity.MeshID{7}
	crossSelf   = crossMesh.Address(identity.ID{1})
	crossMember = crossMesh.Address(identity.ID{2})
	crossGuest  = crossMesh.GuestAddress(identity.ID{1}, identity.WGPublic{3})
	crossOther  = crossMesh.GuestAddress(identity.ID{2}, identity.WGPublic{3})
	crossJoiner = crossMesh.JoinAddress(identity.ID{4})
	elsewhere   = netip.MustParseAddr("2001:db8::1")
)

// newJunction makes a junction with one guest. onward is what goes on to others.
func newJunction() (j *junction, g *guestLink, stack *recorder, onward *[][]byte) {
	stack, onward = &recorder{}, new([][]byte)
	j = &junction{
		Device: stack, self: crossSelf, joiner: crossMesh.IsJoiner,
		leads: func(a netip.Addr) bool { return a == crossMember || a == crossOther },
		out:   func(p []byte) { *onward = append(*onward, slices.Clone(p)) },
	}
	g = newGuestLink(j)
	g.addrs.Store(&map[netip.Addr]bool{crossGuest: true})
	j.guests.Store(g)
	return j, g, stack, onward
}

func packetOf(src, dst netip.Addr, payload ...byte) []byte {
	p := make([]byte, 40, 40+len(payload))
	p[0], p[5], p[6], p[7] = 0x60, byte(len(payload)), 59, 64
	s, d := src.As16(), dst.As16()
	copy(p[8:], s[:])
	copy(p[24:], d[:])
	return append(p, payload...)
}

// queued takes what waits for the guests' WireGuard.
func queued(g *guestLink) (out [][]byte) {
	for len(g.queue) > 0 {
		out = append(out, <-g.queue)
	}
	return out
}

const testOffset = 16 // of packets in WireGuard's buffers

func shifted(packets ...[]byte) (bufs [][]byte) {
	for _, p := range packets {
		bufs = append(bufs, append(make([]byte, testOffset), p...))
	}
	return bufs
}

func TestJunctionWhatGuestsSend(t *testing.T) {
	_, g, stack, onward := newJunction()
	toSelf, toSelf2 := packetOf(crossGuest, crossSelf, 1), packetOf(crossGuest, crossSelf, 2)
	toMember, toOther, toGuest := packetOf(crossGuest, crossMember), packetOf(crossGuest, crossOther), packetOf(crossGuest, crossGuest)
	bufs := shifted(
		toSelf, toMember, packetOf(crossGuest, crossMesh.DoorAddress()), toOther, packetOf(crossGuest, crossJoiner),
		toGuest, packetOf(crossGuest, elsewhere), packetOf(crossGuest, crossMesh.GuestAddress(identity.ID{9}, identity.WGPublic{})),
		[]byte{0x45, 0, 0, 20}, nil, toSelf2,
	)
	if n, err := g.Write(bufs, testOffset); n != len(bufs) || err != nil {
		t.Fatal(n, err)
	}
	same(t, "to the node", stack.got, toSelf, toSelf2)
	same(t, "to others", *onward, toMember, toOther)
	same(t, "to guests", queued(g), toGuest)
}

func TestJunctionWhatArrives(t *testing.T) {
	j, g, stack, onward := newJunction()
	toSelf, toGuest, fromOther := packetOf(crossMember, crossSelf), packetOf(crossMember, crossGuest), packetOf(crossOther, crossGuest)
	door := packetOf(crossJoiner, crossMesh.DoorAddress())
	bufs := shifted(toGuest, toSelf, packetOf(crossJoiner, crossGuest), door, fromOther)
	if n, err := j.Write(bufs, testOffset); n != len(bufs) || err != nil {
		t.Fatal(n, err)
	}
	same(t, "to the node", stack.got, toSelf, door)
	same(t, "to guests", queued(g), toGuest, fromOther)
	same(t, "to others", *onward)
}

func TestJunctionWhatTheNodeSends(t *testing.T) {
	j, g, stack, _ := newJunction()
	toMember, toGuest := packetOf(crossSelf, crossMember), packetOf(crossSelf, crossGuest)
	stack.sends = [][]byte{toGuest, toMember}
	bufs, sizes := shifted(make([]byte, 100), make([]byte, 100)), make([]int, 2)
	if n, err := j.Read(bufs, sizes, testOffset); n != 2 || err != nil || sizes[0] != 0 || sizes[1] != len(toMember) {
		t.Errorf("WireGuard gets %d packets of %v bytes, %v", n, sizes, err)
	}
	same(t, "to guests", queued(g), toGuest)
}

// Whoever sends to a guest that takes nothing does not wait.
func TestJunctionSlowGuest(t *testing.T) {
	j, g, _, _ := newJunction()
	for range 3 * guestQueue {
		if _, err := j.Write(shifted(packetOf(crossMember, crossGuest)), testOffset); err != nil {
			t.Fatal(err)
		}
	}
	if n := len(queued(g)); n != guestQueue {
		t.Errorf("%d packets wait, want %d", n, guestQueue)
	}
}

func same(t *testing.T, what string, got [][]byte, want ...[]byte) {
	t.Helper()
	if !slices.EqualFunc(got, want, slices.Equal) {
		t.Errorf("%s: %x, want %x", what, got, want)
	}
}

// What a guest may send to a node, by what the filter sees of a packet.
func TestAcceptFromGuests(t *testing.T) {
	n, _ := openNode(t)
	n.cfg.Private = []uint16{7420, 7946, DoorPort}
	guest := n.cfg.Mesh.GuestAddress(n.self, identity.WGPublic{3})
	for _, c := range []struct {
		proto uint8
		port  uint16
		want  bool
	}{
		{netstack.TCP, 8000, true},
		{netstack.TCP, 53, true},
		{netstack.UDP, 53, true},
		{netstack.TCP, 7420, false},
		{netstack.TCP, 7946, false},
		{netstack.UDP, 7946, false},
		{netstack.TCP, DoorPort, false},
		{0, 0, false},  // hop-by-hop options, before whatever
		{43, 0, false}, // routing header
		{44, 0, false}, // fragment
		{60, 0, false}, // destination options
		{4, 0, false},  // IPv4 inside
		{41, 0, false}, // IPv6 inside
	} {
		if got := n.accept(netstack.Packet{Src: guest, Dst: n.addr, Proto: c.proto, DstPort: c.port}); got != c.want {
			t.Errorf("protocol %d, port %d: %v, want %v", c.proto, c.port, got, c.want)
		}
		if n.accept(netstack.Packet{Src: guest, Dst: n.door, Proto: c.proto, DstPort: c.port}) {
			t.Errorf("protocol %d, port %d: a guest reaches the door", c.proto, c.port)
		}
	}
	for kind := range 256 {
		p := netstack.Packet{Src: guest, Dst: n.addr, Proto: netstack.ICMPv6, Type: uint8(kind)}
		if want := kind == 128 || kind == 129; n.accept(p) != want {
			t.Errorf("ICMPv6 type %d: %v, want %v", kind, !want, want)
		}
	}
}

// FuzzJunction holds that no bytes make a junction fail, and that each packet
// goes where its destination says or nowhere.
func FuzzJunction(f *testing.F) {
	for _, to := range []netip.Addr{crossSelf, crossMember, crossGuest, crossOther, elsewhere} {
		f.Add(packetOf(crossGuest, to), packetOf(crossMember, to))
	}
	f.Add([]byte{0x60}, []byte(nil))
	f.Fuzz(func(t *testing.T, ours, theirs []byte) {
		j, g, stack, onward := newJunction()
		if _, err := g.Write(shifted(ours, theirs), testOffset); err != nil {
			t.Fatal(err)
		}
		to := func(b []byte) netip.Addr { _, dst := ends(b); return dst }
		for _, b := range stack.got {
			if to(b) != crossSelf {
				t.Errorf("the node gets %x", b)
			}
		}
		for _, b := range *onward {
			if to(b) != crossMember && to(b) != crossOther {
				t.Errorf("the mesh gets %x", b)
			}
		}
		stack.got = nil
		if _, err := j.Write(shifted(theirs, ours), testOffset); err != nil {
			t.Fatal(err)
		}
		for _, b := range stack.got {
			if to(b) == crossGuest {
				t.Errorf("the node gets what is for a guest: %x", b)
			}
		}
		for _, b := range queued(g) {
			if to(b) != crossGuest {
				t.Errorf("guests get %x", b)
			}
		}
	})
}
