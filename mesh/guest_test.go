package mesh_test

import (
	"context"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/balanceai/balance/mesh"
	"github.com/balanceai/balance/mesh/identity"
	"github.com/balanceai/balance/mesh/meshtest"
)

const (
	privatePort = 7420
	silence     = 200 * time.Millisecond // for what must not come
)

// guestLab is two nodes, of which the first carries guests.
type guestLab struct {
	*meshtest.Mesh
	t    *testing.T
	port uint16 // for guests
	keys []identity.WGPublic
}

func newGuestLab(t *testing.T) *guestLab {
	l := &guestLab{Mesh: meshtest.Prepare(t, 2), t: t}
	l.Config = func(_ int, c *mesh.Config) { c.Private, c.GuestPort = []uint16{privatePort}, l.port }
	for i := range l.Nodes {
		l.Start(i)
		ln, err := l.Nodes[i].Listen(privatePort)
		if err != nil {
			t.Fatal(err)
		}
		go func() {
			for {
				c, err := ln.Accept()
				if err != nil {
					return
				}
				t.Errorf("node %d takes %v at a private port", i, c.RemoteAddr())
				c.Close()
			}
		}()
	}
	return l
}

// set makes keys the guests of the first node.
func (l *guestLab) set(keys ...identity.WGPublic) {
	l.t.Helper()
	l.keys = keys
	if err := l.Nodes[0].SetGuests(keys); err != nil {
		l.t.Fatal(err)
	}
	roster := l.Roster(1)
	roster[0].Guests = keys
	l.Nodes[1].SetPeers(roster)
	l.port = l.Nodes[0].GuestPort()
}

// invite makes a guest and returns its key and its configuration.
func (l *guestLab) invite() (identity.WGPublic, string) {
	l.t.Helper()
	key, err := identity.NewWGKey()
	if err != nil {
		l.t.Fatal(err)
	}
	l.set(append(slices.Clone(l.keys), key.Public())...)
	at, public := l.Nodes[0].GuestEndpoint()
	if public || at.Port() != l.port || !at.Addr().IsLoopback() {
		l.t.Fatalf("guests of a node on loopback reach it at %v (public: %v)", at, public)
	}
	return key.Public(), l.Nodes[0].GuestConfig(key, at.String())
}

func (l *guestLab) phone(config string, as netip.Addr) *meshtest.Phone {
	l.t.Helper()
	p, err := meshtest.NewPhone(config, as)
	if err != nil {
		l.t.Fatal(err)
	}
	l.t.Cleanup(p.Close)
	return p
}

func (l *guestLab) addr(node int, port uint16) string {
	return netip.AddrPortFrom(l.Nodes[node].Address(), port).String()
}

func talk(p *meshtest.Phone, within time.Duration, addr string) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(context.Background(), within)
	defer cancel()
	c, err := p.DialContext(ctx, "tcp", addr)
	if err != nil {
		return nil, err
	}
	_ = c.SetDeadline(time.Now().Add(within))
	return c, meshtest.Exchange(c, []byte("from a guest"))
}

func (l *guestLab) reaches(p *meshtest.Phone, addr string) net.Conn {
	l.t.Helper()
	for end := time.Now().Add(2 * within); ; {
		c, err := talk(p, 3*time.Second, addr)
		if err == nil {
			_ = c.SetDeadline(time.Time{})
			return c
		}
		if time.Now().After(end) {
			l.t.Fatalf("a guest does not reach %s: %v", addr, err)
		}
	}
}

func (l *guestLab) inVain(p *meshtest.Phone, what, addr string) {
	l.t.Helper()
	if _, err := talk(p, silence, addr); err == nil {
		l.t.Errorf("%s: a guest reaches %s", what, addr)
	}
}

func TestGuest(t *testing.T) {
	l := newGuestLab(t)
	key, config := l.invite()
	p := l.phone(config, netip.Addr{})
	for i, n := range l.Nodes {
		l.reaches(p, l.addr(i, meshtest.EchoPort)).Close()
		l.inVain(p, "a private port", l.addr(i, privatePort))
		if id, ok := n.Who(p.Addr); ok {
			t.Errorf("node %d takes a guest for %v", i, id)
		}
		if id, ok := n.Carrier(p.Addr); !ok || id != l.Node(0) {
			t.Errorf("node %d thinks that %v carries the guest", i, id)
		}
	}
	l.inVain(p, "the door", netip.AddrPortFrom(l.ID.DoorAddress(), mesh.DoorPort).String())

	// Another guest, of this carrier and of the other one.
	_, config2 := l.invite()
	second := l.phone(config2, netip.Addr{})
	ln, err := p.ListenTCPAddrPort(netip.AddrPortFrom(p.Addr, 80))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = ln.Close() }()
	go meshtest.Echo(ln)
	l.reaches(second, ln.Addr().String()).Close()
	third, err := identity.NewWGKey()
	if err != nil {
		t.Fatal(err)
	}
	if err := l.Nodes[1].SetGuests([]identity.WGPublic{third.Public()}); err != nil {
		t.Fatal(err)
	}
	roster := l.Roster(0)
	roster[0].Guests = []identity.WGPublic{third.Public()}
	l.Nodes[0].SetPeers(roster)
	at, _ := l.Nodes[1].GuestEndpoint()
	other := l.phone(l.Nodes[1].GuestConfig(third, at.String()), netip.Addr{})
	l.reaches(other, ln.Addr().String()).Close()

	// Taken back, its connections end, and it is a stranger.
	var open []net.Conn
	for i := range l.Nodes {
		open = append(open, l.reaches(p, l.addr(i, meshtest.EchoPort)))
	}
	l.set(l.keys[1:]...)
	for i, n := range l.Nodes {
		if _, ok := n.Carrier(p.Addr); ok {
			t.Errorf("node %d still knows the guest", i)
		}
		l.inVain(p, "taken back", l.addr(i, meshtest.EchoPort))
		_ = open[i].SetDeadline(time.Now().Add(silence))
		if err := meshtest.Exchange(open[i], []byte("still there?")); err == nil {
			t.Errorf("the connection to node %d goes on", i)
		}
		l.reaches(second, l.addr(i, meshtest.EchoPort)).Close()
	}
	if slices.Contains(l.keys, key) {
		t.Fatal("the wrong guest was taken back")
	}
}

// The carrier stops, for its guests and for the member that they talk to, and
// comes back: nobody has to do anything. Stock WireGuard notices after 15 s.
func TestGuestSurvivesRestart(t *testing.T) {
	if testing.Short() {
		t.Skip("takes 15 s")
	}
	l := newGuestLab(t)
	_, config := l.invite()
	p := l.phone(config, netip.Addr{})
	l.reaches(p, l.addr(1, meshtest.EchoPort)).Close()
	l.Stop(0)
	l.Start(0)
	l.set(l.keys...)
	for i := range l.Nodes {
		l.reaches(p, l.addr(i, meshtest.EchoPort)).Close()
	}
}

// While there are no guests, there is no port; the next ones find the same.
func TestGuestPort(t *testing.T) {
	l := newGuestLab(t)
	if l.Nodes[0].GuestPort() != 0 {
		t.Error("a port is open for nobody")
	}
	l.invite()
	first := l.port
	l.set()
	free := func() bool {
		c, err := net.ListenUDP("udp", &net.UDPAddr{Port: int(first)})
		if err == nil {
			_ = c.Close()
		}
		return err == nil
	}
	if !free() {
		t.Error("the port stays open without guests")
	}
	l.invite()
	if l.port != first || free() {
		t.Errorf("the port for guests is %d, and was %d", l.port, first)
	}
}

// A guest that uses an address of somebody else's gets nothing through (T16).
func TestGuestCannotImpersonate(t *testing.T) {
	l := newGuestLab(t)
	_, config := l.invite()
	honest := l.phone(config, netip.Addr{})
	l.reaches(honest, l.addr(1, meshtest.EchoPort)).Close()
	_, config2 := l.invite()
	for what, as := range map[string]netip.Addr{
		"the carrier":   l.Nodes[0].Address(),
		"a member":      l.Nodes[1].Address(),
		"another guest": honest.Addr,
		"a joiner":      l.ID.JoinAddress(l.Node(0)),
		"the door":      l.ID.DoorAddress(),
	} {
		p := l.phone(config2, as)
		for i := range l.Nodes {
			l.inVain(p, "as "+what, l.addr(i, meshtest.EchoPort))
			l.inVain(p, "as "+what, l.addr(i, privatePort))
		}
		p.Close()
	}
	l.reaches(honest, l.addr(1, meshtest.EchoPort)).Close()
}

// Strangers get no byte from the port for guests, whatever they send; nor does
// who knows its public key, but is not expected.
func TestGuestPortIsSilent(t *testing.T) {
	l := newGuestLab(t)
	_, config := l.invite()
	at, _ := l.Nodes[0].GuestEndpoint()
	c := stranger(t)
	for _, b := range noise(t, l.Mesh) {
		if _, err := c.WriteToUDPAddrPort(b, at); err != nil {
			t.Fatal(err)
		}
	}
	if got := drain(c); len(got) > 0 {
		t.Errorf("a stranger got %x", got)
	}
	unknown, err := identity.NewWGKey()
	if err != nil {
		t.Fatal(err)
	}
	p := l.phone(l.Nodes[0].GuestConfig(unknown, at.String()), netip.Addr{})
	l.inVain(p, "with an unknown key", l.addr(0, meshtest.EchoPort))
	state, err := p.State()
	if err != nil || strings.Contains(state, "tx_bytes=0\n") || !strings.Contains(state, "rx_bytes=0\n") {
		t.Errorf("an unknown key sent nothing or got something: %v\n%s", err, state)
	}
	// The node listens on one address of the host's alone.
	beside := strings.ReplaceAll(config, "127.0.0.1", "[::1]")
	l.inVain(l.phone(beside, netip.Addr{}), "at another address", l.addr(0, meshtest.EchoPort))
	l.reaches(l.phone(config, netip.Addr{}), l.addr(0, meshtest.EchoPort)).Close()
}
