package mesh

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"reflect"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.zx2c4.com/wireguard/device"

	"github.com/balanceai/balance/mesh/identity"
	"github.com/balanceai/balance/mesh/netstack"
	"github.com/balanceai/balance/mesh/wire"
)

var quiet = slog.New(slog.DiscardHandler)

// openNode starts a node on loopback.
func openNode(t testing.TB) (*Node, identity.Keys) {
	t.Helper()
	id, err := identity.NewKey()
	if err != nil {
		t.Fatal(err)
	}
	wg, err := identity.NewWGKey()
	if err != nil {
		t.Fatal(err)
	}
	keys := identity.Keys{Identity: id, WG: wg}
	n, err := Open(Config{Keys: keys, Mesh: identity.MeshID{7}, Listen: netip.MustParseAddrPort("127.0.0.1:0"), Log: quiet})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = n.Close() })
	return n, keys
}

// openDoor starts a node whose door is open to the holder of an invite.
func openDoor(t testing.TB, open time.Duration) (*Node, *wire.Invite) {
	t.Helper()
	n, keys := openNode(t)
	secret, err := wire.NewInviteSecret()
	if err != nil {
		t.Fatal(err)
	}
	v := &wire.Invite{Mesh: n.cfg.Mesh, Door: keys.WG.Public(), Secret: secret, Endpoints: n.Addrs()}
	n.OpenDoor(visitor(v, open))
	l, err := n.DoorListener()
	if err != nil {
		t.Fatal(err)
	}
	go echo(l)
	return n, v
}

func visitor(v *wire.Invite, open time.Duration) Joiner {
	k := v.Secret.Keys(v.Mesh)
	return Joiner{ID: k.Sign.ID(), WG: k.WG.Public(), PSK: k.PSK, Until: time.Now().Add(open)}
}

func echo(l net.Listener) {
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		go func() {
			defer c.Close()
			_, _ = io.Copy(c, c)
		}()
	}
}

func exchange(c net.Conn, patience time.Duration) error {
	_ = c.SetDeadline(time.Now().Add(patience))
	if _, err := c.Write([]byte("knock")); err != nil {
		return err
	}
	_, err := io.ReadFull(c, make([]byte, 5))
	return err
}

func soon(t testing.TB, d time.Duration) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), d)
	t.Cleanup(cancel)
	return ctx
}

const (
	patience = 30 * time.Second       // for what must happen
	silence  = 300 * time.Millisecond // for what must not
)

func knock(t testing.TB, v *wire.Invite) (*Visitor, net.Conn) {
	t.Helper()
	g, err := Knock(soon(t, patience), v, quiet)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = g.Close() })
	c, err := g.Dial(soon(t, patience))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	if err := exchange(c, patience); err != nil {
		t.Fatal(err)
	}
	return g, c
}

func TestKnock(t *testing.T) {
	n, v := openDoor(t, time.Hour)
	start := time.Now()
	_, c := knock(t, v)
	t.Log("first contact in", time.Since(start))
	joiner := v.Mesh.JoinAddress(v.Secret.Keys(v.Mesh).Sign.ID())
	if at := c.LocalAddr().(*net.TCPAddr).AddrPort().Addr(); at != joiner {
		t.Errorf("the guest's address is %v, want %v", at, joiner)
	}
	if _, ok := n.Who(joiner); ok {
		t.Error("a joiner passes for a member")
	}
}

func TestKnockInVain(t *testing.T) {
	_, v := openDoor(t, time.Hour)
	fails := func(what string, change func(*wire.Invite)) {
		t.Helper()
		other := *v
		change(&other)
		if _, err := Knock(soon(t, silence), &other, quiet); !errors.Is(err, ErrNoAnswer) {
			t.Errorf("%s: %v, want no answer", what, err)
		}
	}
	fails("another secret", func(v *wire.Invite) { v.Secret[0] ^= 1 })
	fails("another mesh", func(v *wire.Invite) { v.Mesh[0] ^= 1 })
	fails("another door", func(v *wire.Invite) { v.Door[0] ^= 1 })
	fails("nobody there", func(v *wire.Invite) { v.Endpoints = []netip.AddrPort{netip.MustParseAddrPort("127.0.0.1:9")} })
	fails("no address", func(v *wire.Invite) { v.Endpoints = nil })
	bad := *v
	bad.Door = identity.WGPublic{}
	if _, err := Knock(soon(t, silence), &bad, quiet); err == nil || errors.Is(err, ErrNoAnswer) {
		t.Errorf("a door key of small order: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := Knock(ctx, v, quiet); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
}

// TRUST T18: a door that closes, or whose invite expires, says no word more.
func TestCloseDoor(t *testing.T) {
	for name, shut := range map[string]func(*Node, *wire.Invite){
		"closed": func(n *Node, v *wire.Invite) { n.CloseDoor(v.Secret.Keys(v.Mesh).Sign.ID()) },
		"expired": func(n *Node, v *wire.Invite) {
			n.OpenDoor(visitor(v, time.Millisecond))
			time.Sleep(50 * time.Millisecond)
		},
		"late": func(n *Node, v *wire.Invite) { n.OpenDoor(visitor(v, -time.Second)) },
	} {
		t.Run(name, func(t *testing.T) {
			n, v := openDoor(t, time.Hour)
			g, c := knock(t, v)
			shut(n, v)
			before := received(t, g)
			if err := exchange(c, silence); err == nil {
				t.Error("the connection goes on")
			}
			if _, err := g.Dial(soon(t, silence)); err == nil {
				t.Error("a new connection")
			}
			if got := received(t, g) - before; got != 0 {
				t.Errorf("%d bytes from the door", got)
			}
			if _, err := Knock(soon(t, silence), v, quiet); !errors.Is(err, ErrNoAnswer) {
				t.Errorf("knock again: %v", err)
			}
		})
	}
}

// received returns how many bytes WireGuard has got.
func received(t *testing.T, g *Visitor) int {
	t.Helper()
	state, err := g.dev.IpcGet()
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(state, "rx_bytes=")
	count, _, _ := strings.Cut(rest, "\n")
	n := 0
	for _, c := range count {
		n = n*10 + int(c-'0')
	}
	return n
}

// TRUST T16: whatever a joiner does with its own end, it reaches one port of
// one address, and under no other name than its own.
func TestDoorIsNarrow(t *testing.T) {
	n, v := openDoor(t, time.Hour)
	_, memberKeys := openNode(t)
	member := Peer{ID: memberKeys.Identity.ID(), WG: memberKeys.WG.Public()}
	n.SetPeers([]Peer{member})
	var arrived atomic.Int32
	for _, at := range []netip.AddrPort{netip.AddrPortFrom(n.addr, 80), netip.AddrPortFrom(n.addr, DoorPort), netip.AddrPortFrom(n.door, 80)} {
		l, err := n.net.ListenTCP(at)
		if err != nil {
			t.Fatal(err)
		}
		go func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				c.Close()
				arrived.Add(1)
			}
		}()
		p, err := n.net.ListenUDP(at)
		if err != nil {
			t.Fatal(err)
		}
		go func() {
			if _, _, err := p.ReadFrom(make([]byte, 9)); err == nil {
				arrived.Add(1)
			}
		}()
	}

	// A joiner that routes everything to the door, and takes a member's and the
	// node's address besides its own.
	keys := v.Secret.Keys(v.Mesh)
	own := v.Mesh.JoinAddress(keys.Sign.ID())
	spoofed := []netip.Addr{v.Mesh.Address(member.ID), v.Mesh.JoinAddress(identity.ID{9})}
	evil, err := openTunnel(tunnelConfig{key: keys.WG, addrs: append([]netip.Addr{own}, spoofed...), log: quiet, onPath: func(*peer, Path) {}})
	if err != nil {
		t.Fatal(err)
	}
	defer evil.close()
	door := newPeer(evil.bind, v.Door, v.Mesh.DoorAddress())
	door.psk = keys.PSK
	door.store(v.Endpoints)
	evil.addPeers([]*peer{door})
	evil.engage(evil.bind.now(), door)
	evil.set("public_key=" + v.Door.Hex() + "\nallowed_ip=::/0\n")
	at := netip.AddrPortFrom(n.door, DoorPort)
	c, err := evil.net.DialTCP(soon(t, patience), own, at)
	if err != nil {
		t.Fatal("the door itself is not reached:", err)
	}
	c.Close()

	for _, from := range append([]netip.Addr{own}, spoofed...) {
		for _, to := range []netip.AddrPort{
			netip.AddrPortFrom(n.addr, 80), netip.AddrPortFrom(n.addr, DoorPort), netip.AddrPortFrom(n.door, 80),
			netip.AddrPortFrom(v.Mesh.Address(identity.ID{5}), 80), at,
		} {
			if from == own && to == at {
				continue
			}
			if _, err := evil.net.DialTCP(soon(t, silence/3), from, to); !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("from %v to %v: %v, want silence", from, to, err)
			}
			p, err := evil.net.ListenUDP(netip.AddrPortFrom(from, 0))
			if err != nil {
				t.Fatal(err)
			}
			_, _ = p.WriteTo([]byte("spoof"), net.UDPAddrFromAddrPort(to))
			p.Close()
		}
	}
	time.Sleep(silence)
	if got := arrived.Load(); got != 0 {
		t.Errorf("%d connections or packets came through", got)
	}
}

func TestFilter(t *testing.T) {
	n, _ := openNode(t)
	joiner, member := n.cfg.Mesh.JoinAddress(identity.ID{1}), n.cfg.Mesh.Address(identity.ID{2})
	for _, c := range []struct {
		name string
		p    netstack.Packet
		want bool
	}{
		{"joiner to the door", netstack.Packet{Src: joiner, Dst: n.door, Proto: netstack.TCP, DstPort: DoorPort}, true},
		{"joiner to another port", netstack.Packet{Src: joiner, Dst: n.door, Proto: netstack.TCP, DstPort: 2}, false},
		{"joiner to the node", netstack.Packet{Src: joiner, Dst: n.addr, Proto: netstack.TCP, DstPort: DoorPort}, false},
		{"joiner by UDP", netstack.Packet{Src: joiner, Dst: n.door, Proto: 17, DstPort: DoorPort}, false},
		{"joiner's ping", netstack.Packet{Src: joiner, Dst: n.door, Proto: 58}, false},
		{"member to the node", netstack.Packet{Src: member, Dst: n.addr, Proto: netstack.TCP, DstPort: 80}, true},
		{"member's ping", netstack.Packet{Src: member, Dst: n.addr, Proto: 58}, true},
		{"member to the door", netstack.Packet{Src: member, Dst: n.door, Proto: netstack.TCP, DstPort: DoorPort}, false},
	} {
		if got := n.accept(c.p); got != c.want {
			t.Errorf("%s: accepted %v", c.name, got)
		}
	}
}

// WireGuard knows those whom the node knows, and nobody else.
func TestPeersOfWireGuard(t *testing.T) {
	n, v := openDoor(t, time.Hour)
	a, b := Peer{ID: identity.ID{1}, WG: identity.WGPublic{31: 1}}, Peer{ID: identity.ID{2}, WG: identity.WGPublic{31: 2}}
	for _, step := range []struct {
		what string
		do   func()
		want int
	}{
		{"an open door", func() {}, 1},
		{"two members", func() { n.SetPeers([]Peer{a, b}) }, 3},
		{"one of them gone", func() { n.SetPeers([]Peer{b}) }, 2},
		{"another key", func() { b.WG[31] = 3; n.SetPeers([]Peer{b}) }, 2},
		{"the door closed", func() { n.CloseDoor(v.Secret.Keys(v.Mesh).Sign.ID()) }, 1},
		{"nobody", func() { n.SetPeers(nil) }, 0},
	} {
		step.do()
		for _, p := range n.bind.peers(func(*peer) bool { return true }) {
			n.engage(n.bind.now(), p)
		}
		state, err := n.dev.IpcGet()
		if err != nil {
			t.Fatal(err)
		}
		if got := strings.Count(state, "public_key="); got != step.want || strings.Count(state, "allowed_ip=") != got {
			t.Errorf("%s: %d peers, want %d:\n%s", step.what, got, step.want, state)
		}
		if len(n.bind.byKey) != step.want || len(n.bind.byTag) != step.want {
			t.Errorf("%s: the bind knows %d", step.what, len(n.bind.byKey))
		}
	}
}

// A peer that restarts after its clock was set back is known at once. Stock
// WireGuard refuses it until its clock has caught up: the time stamp of its
// initiation must be later than the last.
func TestClockSetBack(t *testing.T) {
	a, aKeys := openNode(t)
	b, bKeys := openNode(t)
	a.SetPeers([]Peer{{ID: b.self, WG: bKeys.WG.Public(), Addrs: b.Addrs()}})
	toA := []Peer{{ID: a.self, WG: aKeys.WG.Public(), Addrs: a.Addrs()}}
	b.SetPeers(toA)
	l, err := a.Listen(80)
	if err != nil {
		t.Fatal(err)
	}
	go echo(l)
	contact := func(n *Node) {
		t.Helper()
		c, err := n.Dial(soon(t, patience), a.self, 80)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if err := exchange(c, patience); err != nil {
			t.Fatal(err)
		}
	}
	contact(b)
	_ = b.Close()

	// As if b's clock had been an hour ahead then: a has seen a stamp that b
	// cannot reach.
	stamp := reflect.ValueOf(a.dev.LookupPeer(device.NoisePublicKey(bKeys.WG.Public()))).Elem().FieldByName("handshake").FieldByName("lastTimestamp")
	(*[12]byte)(stamp.Addr().UnsafePointer())[7] += 0x10 // TAI64N: seconds, big endian, in the first 8 bytes
	(*[12]byte)(stamp.Addr().UnsafePointer())[6] += 0x0E

	again, err := Open(Config{Keys: bKeys, Mesh: b.cfg.Mesh, Listen: netip.MustParseAddrPort("127.0.0.1:0"), Log: quiet})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = again.Close() }()
	again.SetPeers(toA)
	contact(again)
}

func FuzzArrived(f *testing.F) {
	n, keys := openNode(f)
	b := n.bind
	other, err := identity.NewWGKey()
	if err != nil {
		f.Fatal(err)
	}
	p := newPeer(b, other.Public(), n.addr)
	p.id = identity.ID{1}
	b.add([]*peer{p})
	p.derive()
	at := netip.MustParseAddrPort("127.0.0.1:9")
	b.accept(b.now(), p, sourceKey{addr: at}, 1, true)
	theirs, _, err := wire.ProbeKeys(other, keys.WG.Public())
	if err != nil {
		f.Fatal(err)
	}
	f.Add(theirs.Seal(wire.Probe{Kind: wire.Ping, Tx: 1, Instance: 2}))
	f.Add(theirs.Seal(wire.Probe{Kind: wire.Pong, Tx: 1, Instance: 2}))
	f.Add(theirs.Seal(wire.Probe{Kind: wire.Call, Instance: 2, Addrs: []netip.AddrPort{at}}))
	for _, d := range []wire.FrameDirection{wire.ToRelay, wire.FromRelay} {
		frame := append(make([]byte, wire.FrameHeader), theirs.Seal(wire.Probe{Kind: wire.Ping, Tx: 1, Instance: 2})...)
		theirs.SealFrame(frame, d, p.name)
		f.Add(frame)
	}
	for _, head := range []byte{initiation, response, cookie, transport} {
		f.Add([]byte{head})
		f.Add(append([]byte{head, 0, 0, 0}, make([]byte, 144)...))
	}
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, msg []byte) {
		var in intake
		unknown := netip.MustParseAddrPort("127.0.0.1:10")
		if _, probe := wire.ParseProbeTag(msg); !probe {
			if _, p := b.take(b.now(), bytes.Clone(msg), unknown, &in); p != nil || len(in.frames) > 0 {
				t.Error("a message from an unknown address passes")
			}
		}
		b.take(b.now(), bytes.Clone(msg), at, &in)
	})
}
