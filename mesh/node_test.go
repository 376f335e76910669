package mesh_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"slices"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/balanceai/balance/mesh"
	"github.com/balanceai/balance/mesh/identity"
	"github.com/balanceai/balance/mesh/meshtest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// within is generous: the machine may be busy. What is awaited takes
// milliseconds.
const within = 30 * time.Second

func timeout(t testing.TB, d time.Duration) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), d)
	t.Cleanup(cancel)
	return ctx
}

func TestThreeNodes(t *testing.T) {
	m := meshtest.New(t, 3)
	for i := range 3 {
		for j := range 3 {
			m.MustTalk(i, j, within)
		}
	}
	for i, n := range m.Nodes {
		for j := range m.Nodes {
			if id, ok := n.Who(m.ID.Address(m.Node(j))); !ok || id != m.Node(j) {
				t.Errorf("node %d takes the address of node %d for %v", i, j, id)
			}
			if i == j {
				continue
			}
			p := n.Path(m.Node(j))
			if p.Kind != mesh.LAN || p.Addr != m.Addr(i, j) || p.RTT <= 0 {
				t.Errorf("path from %d to %d: %+v", i, j, p)
			}
			if p, err := n.Ping(timeout(t, within), m.Node(j)); err != nil || p.Addr != m.Addr(i, j) || p.RTT <= 0 {
				t.Errorf("ping from %d to %d: %+v, %v", i, j, p, err)
			}
		}
		if _, ok := n.Who(m.ID.DoorAddress()); ok {
			t.Error("the door's address belongs to a member")
		}
	}
}

func TestConnectionsShowTheirMember(t *testing.T) {
	m := meshtest.New(t, 2)
	l, err := m.Nodes[1].Listen(80)
	if err != nil {
		t.Fatal(err)
	}
	c, err := m.Nodes[0].Dial(timeout(t, within), m.Node(1), 80)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	in, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	from, ok := in.RemoteAddr().(*net.TCPAddr)
	if !ok {
		t.Fatalf("remote address is a %T", in.RemoteAddr())
	}
	if id, ok := m.Nodes[1].Who(from.AddrPort().Addr()); !ok || id != m.Node(0) {
		t.Errorf("connection from %v, member %v", from, id)
	}
}

func TestPackets(t *testing.T) {
	m := meshtest.New(t, 2)
	var conns []net.PacketConn
	for _, n := range m.Nodes {
		c, err := n.ListenPacket(5000)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		conns = append(conns, c)
	}
	if _, err := conns[0].WriteTo([]byte("hello"), conns[1].LocalAddr()); err != nil {
		t.Fatal(err)
	}
	_ = conns[1].SetReadDeadline(time.Now().Add(within))
	buf := make([]byte, 100)
	n, from, err := conns[1].ReadFrom(buf)
	if err != nil || string(buf[:n]) != "hello" || from.String() != conns[0].LocalAddr().String() {
		t.Errorf("%q from %v, %v", buf[:n], from, err)
	}
}

func TestErrors(t *testing.T) {
	m := meshtest.New(t, 2)
	stranger := identity.ID{1}
	if _, err := m.Nodes[0].Dial(t.Context(), stranger, 80); !errors.Is(err, mesh.ErrUnknownPeer) {
		t.Errorf("dial a stranger: %v", err)
	}
	if _, err := m.Nodes[0].Ping(t.Context(), stranger); !errors.Is(err, mesh.ErrUnknownPeer) {
		t.Errorf("ping a stranger: %v", err)
	}
	if _, err := m.Nodes[0].Dial(timeout(t, within), m.Node(1), 81); err == nil || errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("dial a closed port: %v, want a refusal", err)
	}
	m.Stop(1)
	if _, err := m.Nodes[0].Ping(timeout(t, 300*time.Millisecond), m.Node(1)); !errors.Is(err, mesh.ErrNoAnswer) {
		t.Errorf("ping a node that is down: %v", err)
	}
	if _, err := mesh.Open(mesh.Config{
		Keys: m.Keys[1], Mesh: m.ID, Listen: m.Addr(1, 0), Log: slog.New(slog.DiscardHandler),
	}); err == nil {
		t.Error("two nodes on one UDP port")
	}
}

// Any free port, all addresses, IPv4 and IPv6.
func TestAnyPort(t *testing.T) {
	keys := []identity.Keys{meshtest.NewKeys(t), meshtest.NewKeys(t)}
	var nodes []*mesh.Node
	for _, k := range keys {
		n, err := mesh.Open(mesh.Config{Keys: k, Mesh: identity.MeshID{1}, Log: slog.New(slog.DiscardHandler)})
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = n.Close() }()
		nodes = append(nodes, n)
	}
	loopbacks := []string{"127.0.0.1"}
	if c, err := net.ListenPacket("udp6", "[::1]:0"); err == nil {
		c.Close()
		loopbacks = append(loopbacks, "::1")
	}
	for _, loopback := range loopbacks {
		at := netip.AddrPortFrom(netip.MustParseAddr(loopback), nodes[1].Port())
		peer := mesh.Peer{ID: keys[1].Identity.ID(), WG: keys[1].WG.Public(), Addrs: []netip.AddrPort{at}}
		nodes[0].SetPeers(nil)
		nodes[0].SetPeers([]mesh.Peer{peer})
		nodes[1].SetPeers([]mesh.Peer{{ID: keys[0].Identity.ID(), WG: keys[0].WG.Public()}})
		if p, err := nodes[0].Ping(timeout(t, within), peer.ID); err != nil || p.Addr != at {
			t.Errorf("by %s: %+v, %v", loopback, p, err)
		}
	}
	if addrs := nodes[0].Addrs(); len(addrs) == 0 || addrs[0].Port() != nodes[0].Port() {
		t.Errorf("local addresses %v, port %d", addrs, nodes[0].Port())
	}
}

// A third of all datagrams is lost and the rest are late.
func TestLossAndDelay(t *testing.T) {
	m := meshtest.Shaped(t, 2)
	m.Link(0, 1).Shape(50*time.Millisecond, 0.3)
	m.MustTalk(0, 1, 2*within)
	m.MustTalk(1, 0, 2*within)
}

func TestPartition(t *testing.T) {
	m := meshtest.Shaped(t, 2)
	paths := newRecorder(m)
	m.MustTalk(0, 1, within)
	m.Link(0, 1).Cut()
	if err := m.Talk(timeout(t, 200*time.Millisecond), 0, 1); err == nil {
		t.Error("talk over a link that is cut")
	}
	go func() { _ = m.Talk(timeout(t, within), 0, 1) }() // there must be traffic for the loss to be seen
	meshtest.Eventually(t, within, "the path is lost", func() bool { return m.Nodes[0].Path(m.Node(1)).Kind == mesh.None })
	m.Link(0, 1).Heal()
	m.MustTalk(0, 1, within)
	meshtest.Eventually(t, within, "the path's coming, going and coming is told", func() bool {
		return slices.Equal(paths.of(0, m.Node(1)), []mesh.Kind{mesh.LAN, mesh.None, mesh.LAN})
	})
}

// recorder keeps what OnPath tells.
type recorder struct {
	mu    sync.Mutex
	kinds map[string][]mesh.Kind
}

func newRecorder(m *meshtest.Mesh) *recorder {
	r := &recorder{kinds: map[string][]mesh.Kind{}}
	m.Watch(func(node int, id identity.ID, p mesh.Path) {
		r.mu.Lock()
		defer r.mu.Unlock()
		key := fmt.Sprint(node, id)
		r.kinds[key] = append(r.kinds[key], p.Kind)
	})
	return r
}

func (r *recorder) of(node int, id identity.ID) []mesh.Kind {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.kinds[fmt.Sprint(node, id)]
}

// A connection goes on when one end, then the other, appears under another
// address.
func TestAddressChange(t *testing.T) {
	m := meshtest.Shaped(t, 2)
	c, err := m.Nodes[0].Dial(timeout(t, within), m.Node(1), meshtest.EchoPort)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	for _, moved := range []int{0, 1, 0} {
		if err := meshtest.Exchange(c, []byte("before")); err != nil {
			t.Fatal(err)
		}
		m.Link(0, 1).Move(t, moved)
		_ = c.SetDeadline(time.Now().Add(within))
		if err := meshtest.Exchange(c, []byte("after")); err != nil {
			t.Fatalf("after node %d has moved: %v", moved, err)
		}
	}
}

// Either end restarts, again and again, and is reached from either side.
func TestRestart(t *testing.T) {
	m := meshtest.New(t, 2)
	m.MustTalk(0, 1, within)
	for i := range 8 {
		m.Stop(i % 2)
		m.Start(i % 2)
		from := i / 2 % 2
		start := time.Now()
		m.MustTalk(from, 1-from, within)
		t.Logf("node %d restarted, node %d talks: %v", i%2, from, time.Since(start))
	}
}

// A connection whose other end restarted without a word fails as soon as that
// is known.
func TestRestartEndsConnections(t *testing.T) {
	m := meshtest.Shaped(t, 3)
	var open []net.Conn
	for _, to := range []int{1, 2} {
		c, err := m.Nodes[0].Dial(timeout(t, within), m.Node(to), meshtest.EchoPort)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if err := meshtest.Exchange(c, []byte("before")); err != nil {
			t.Fatal(err)
		}
		open = append(open, c)
	}
	m.Link(0, 1).Cut()
	m.Stop(1)
	m.Start(1)
	m.Link(0, 1).Heal()
	m.MustTalk(1, 0, within)
	_ = open[0].SetReadDeadline(time.Now().Add(5 * time.Second))
	if n, err := open[0].Read(make([]byte, 1)); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("%d bytes, %v, want an error of the connection", n, err)
	}
	if err := meshtest.Exchange(open[1], []byte("after")); err != nil {
		t.Errorf("the connection with another node: %v", err)
	}
}

// Both ends begin at the same moment.
func TestBothAtOnce(t *testing.T) {
	m := meshtest.New(t, 2)
	for range 10 {
		m.Stop(0)
		m.Stop(1)
		m.Start(0)
		m.Start(1)
		var both sync.WaitGroup
		both.Go(func() { m.MustTalk(0, 1, within) })
		both.Go(func() { m.MustTalk(1, 0, within) })
		both.Wait()
	}
}

// An address that becomes known while somebody waits is used at once.
func TestRumour(t *testing.T) {
	m := meshtest.New(t, 2)
	roster := m.Roster(0)
	at := roster[0].Addrs
	roster[0].Addrs = nil
	m.Nodes[0].SetPeers(nil)
	m.Nodes[0].SetPeers(roster)
	m.Nodes[1].SetPeers(nil)
	m.Nodes[1].SetPeers([]mesh.Peer{{ID: m.Node(0), WG: m.Keys[0].WG.Public()}})
	done := make(chan error, 1)
	go func() { done <- m.Talk(timeout(t, within), 0, 1) }()
	time.Sleep(50 * time.Millisecond)
	m.Nodes[0].AddAddrs(identity.ID{9}, at...) // of nobody
	m.Nodes[0].AddAddrs(m.Node(1), netip.MustParseAddrPort("127.0.0.1:9"), at[0])
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// Who leaves the roster is a stranger at once, to connections that are open
// too.
func TestRemovedPeer(t *testing.T) {
	m := meshtest.New(t, 3)
	c, err := m.Nodes[0].Dial(timeout(t, within), m.Node(1), meshtest.EchoPort)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if err := meshtest.Exchange(c, []byte("member")); err != nil {
		t.Fatal(err)
	}
	m.MustTalk(0, 2, within)
	m.Nodes[1].SetPeers(m.Roster(1)[1:]) // without node 0
	_ = c.SetDeadline(time.Now().Add(300 * time.Millisecond))
	if err := meshtest.Exchange(c, []byte("stranger")); err == nil {
		t.Error("a removed peer's connection goes on")
	}
	if err := m.Talk(timeout(t, 300*time.Millisecond), 0, 1); err == nil {
		t.Error("a removed peer connects")
	}
	if err := m.Talk(timeout(t, 300*time.Millisecond), 1, 0); !errors.Is(err, mesh.ErrUnknownPeer) {
		t.Errorf("dial a removed peer: %v", err)
	}
	if _, err := m.Nodes[0].Ping(timeout(t, 300*time.Millisecond), m.Node(1)); !errors.Is(err, mesh.ErrNoAnswer) {
		t.Errorf("a removed peer's ping: %v", err)
	}
	if _, ok := m.Nodes[1].Who(m.ID.Address(m.Node(0))); ok {
		t.Error("a removed peer is known")
	}
	m.MustTalk(0, 2, within)
	m.MustTalk(2, 1, within)
	m.Nodes[1].SetPeers(m.Roster(1))
	m.MustTalk(0, 1, within)
}

// A member that has a new WireGuard key is reached by it.
func TestNewKey(t *testing.T) {
	m := meshtest.New(t, 2)
	m.MustTalk(0, 1, within)
	m.Stop(1)
	m.Keys[1].WG = meshtest.NewKeys(t).WG
	m.Start(1)
	m.Nodes[0].SetPeers(m.Roster(0))
	m.MustTalk(0, 1, within)
}

// A roster may hold what cannot be reached: oneself, members without a key,
// one key twice, keys of small order.
func TestStrangeRoster(t *testing.T) {
	m := meshtest.New(t, 2)
	twin := meshtest.NewKeys(t).Identity.ID()
	m.Nodes[0].SetPeers(append(m.Roster(0),
		mesh.Peer{ID: m.Node(0), WG: m.Keys[0].WG.Public()},
		mesh.Peer{ID: identity.ID{2}},
		mesh.Peer{ID: identity.ID{3}, WG: identity.WGPublic{1}},
		mesh.Peer{ID: twin, WG: m.Keys[1].WG.Public()},
	))
	m.MustTalk(0, 1, within)
	if _, ok := m.Nodes[0].Who(m.ID.Address(twin)); ok {
		t.Error("one key belongs to two members")
	}
}

// The roster changes while everybody talks.
func TestRosterUnderLoad(t *testing.T) {
	m := meshtest.New(t, 3)
	m.MustTalk(0, 1, within)
	stop := make(chan struct{})
	var busy sync.WaitGroup
	busy.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
				m.Nodes[0].SetPeers(m.Roster(0)[:1])
				m.Nodes[0].SetPeers(m.Roster(0))
				m.Nodes[0].AddAddrs(m.Node(2), m.Addr(0, 2))
			}
		}
	})
	for range 20 {
		m.MustTalk(0, 1, within)
	}
	close(stop)
	busy.Wait()
	m.MustTalk(0, 2, within)
}

// A node closes while connections are in use.
func TestClose(t *testing.T) {
	m := meshtest.New(t, 2)
	c, err := m.Nodes[0].Dial(timeout(t, within), m.Node(1), meshtest.EchoPort)
	if err != nil {
		t.Fatal(err)
	}
	go func() { _, _ = io.Copy(c, zeros{}) }()
	_, _ = io.CopyN(io.Discard, c, 1<<20)
	_ = m.Nodes[0].Close()
	if _, err := c.Write([]byte("more")); err == nil {
		t.Error("a connection survives its node")
	}
	if _, err := m.Nodes[0].Dial(timeout(t, within), m.Node(1), meshtest.EchoPort); err == nil || errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("dial from a closed node: %v", err)
	}
	m.Nodes[0].SetPeers(nil)
	m.Nodes[0].SetPeers(m.Roster(0))
	_ = m.Nodes[0].Close() // twice does no harm
}

type zeros struct{}

func (zeros) Read(b []byte) (int, error) { return len(b), nil }
