// Package meshtest runs several nodes of one mesh in one test, on the loopback
// interface, without root and without the internet.
//
// [New] joins them directly, [Shaped] through a [Link] for each pair: a pair of
// UDP relays that can delay, drop or cut, and let a node appear under another
// address. Nodes have their keys for the whole test; one that is stopped and
// started again is the same member in a new process.
//
// Everything ends with the test.
package meshtest

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/netip"
	"sync"
	"testing"
	"time"

	"github.com/balanceai/balance/mesh"
	"github.com/balanceai/balance/mesh/identity"
)

// EchoPort is a TCP port that every node answers on: it sends back what it
// gets.
const EchoPort = 7

// Mesh is a set of nodes with one roster.
type Mesh struct {
	ID    identity.MeshID
	Keys  []identity.Keys
	Nodes []*mesh.Node // nil: stopped
	Log   *slog.Logger

	// Relay says what each node passes on for others; nil: nothing. It is set
	// before nodes start.
	Relay func(node int, from, to identity.ID) bool

	// Config changes what a node is opened with; nil: nothing.
	Config func(node int, c *mesh.Config)

	// Knows says whether a node has another in its roster; nil: all have all. It
	// is set before nodes start.
	Knows func(node, other int) bool

	t     testing.TB
	addrs []netip.AddrPort // of each node's UDP socket, also while it is stopped
	links map[[2]int]*Link

	advertise []netip.AddrPort // what nodes say of themselves instead of where they are

	mu     sync.Mutex
	onPath func(node int, id identity.ID, p mesh.Path)
}

// New starts n nodes that know each other's UDP addresses.
func New(t testing.TB, n int) *Mesh {
	t.Helper()
	m := Prepare(t, n)
	for i := range n {
		m.Start(i)
	}
	return m
}

// Shaped starts n nodes that reach each other through links.
func Shaped(t testing.TB, n int) *Mesh {
	t.Helper()
	m := PrepareShaped(t, n)
	for i := range n {
		m.Start(i)
	}
	return m
}

// PrepareShaped makes what [Shaped] starts.
func PrepareShaped(t testing.TB, n int) *Mesh {
	t.Helper()
	m := Prepare(t, n)
	m.advertise = []netip.AddrPort{netip.MustParseAddrPort("127.0.0.1:9")} // nobody goes round a link
	for i := range n {
		for j := range i {
			m.links[[2]int{j, i}] = newLink(t, m, j, i)
		}
	}
	return m
}

// Prepare makes the keys and addresses of n nodes, none of which runs.
func Prepare(t testing.TB, n int) *Mesh {
	t.Helper()
	m := &Mesh{
		ID: identity.MeshID{1, 2, 3, 4, 5}, Nodes: make([]*mesh.Node, n), Log: slog.New(slog.DiscardHandler),
		t: t, links: map[[2]int]*Link{},
	}
	for range n {
		m.Keys = append(m.Keys, NewKeys(t))
		c := listen(t)
		defer func() { _ = c.Close() }() // after all have got a port of their own
		m.addrs = append(m.addrs, c.LocalAddr().(*net.UDPAddr).AddrPort())
	}
	return m
}

// listen opens a UDP port that stays free after it was closed: it is below
// those that systems give to whoever asks for any.
func listen(t testing.TB) *net.UDPConn {
	t.Helper()
	var last error
	for range 100 {
		c, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 12000 + rand.IntN(20000)})
		if err == nil {
			return c
		}
		last = err
	}
	t.Fatal(last)
	return nil
}

// NewKeys makes the keys of a node.
func NewKeys(t testing.TB) identity.Keys {
	t.Helper()
	id, err := identity.NewKey()
	if err != nil {
		t.Fatal(err)
	}
	wg, err := identity.NewWGKey()
	if err != nil {
		t.Fatal(err)
	}
	return identity.Keys{Identity: id, WG: wg}
}

// Start starts a node that does not run, at the address that it always has.
func (m *Mesh) Start(i int) {
	m.t.Helper()
	cfg := mesh.Config{
		Keys: m.Keys[i], Mesh: m.ID, Listen: m.addrs[i], Log: m.Log,
		Advertise: m.advertise,
		Relay:     func(from, to identity.ID) (int, bool) { return 0, m.Relay != nil && m.Relay(i, from, to) },
		OnPath: func(id identity.ID, p mesh.Path) {
			m.mu.Lock()
			defer m.mu.Unlock()
			if m.onPath != nil {
				m.onPath(i, id, p)
			}
		},
	}
	if m.Config != nil {
		m.Config(i, &cfg)
	}
	n, err := mesh.Open(cfg)
	if err != nil {
		m.t.Fatal(err)
	}
	m.t.Cleanup(func() { _ = n.Close() })
	l, err := n.Listen(EchoPort)
	if err != nil {
		m.t.Fatal(err)
	}
	go Echo(l)
	n.SetPeers(m.Roster(i))
	m.Nodes[i] = n
}

// Watch has f told what each node is told of its paths, from now on.
func (m *Mesh) Watch(f func(node int, id identity.ID, p mesh.Path)) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.onPath = f
}

// Stop ends a node. Nobody is told.
func (m *Mesh) Stop(i int) {
	_ = m.Nodes[i].Close()
	m.Nodes[i] = nil
}

// Node returns the identity of a node.
func (m *Mesh) Node(i int) identity.ID { return m.Keys[i].Identity.ID() }

// Roster returns the nodes that one knows, without itself, as it sees them.
func (m *Mesh) Roster(of int) []mesh.Peer {
	var out []mesh.Peer
	for i, k := range m.Keys {
		if i != of && (m.Knows == nil || m.Knows(of, i)) {
			out = append(out, mesh.Peer{ID: m.Node(i), WG: k.WG.Public(), Addrs: []netip.AddrPort{m.Addr(of, i)}})
		}
	}
	return out
}

// Addr returns the UDP address at which one node sees another.
func (m *Mesh) Addr(from, to int) netip.AddrPort {
	if l := m.Link(from, to); l != nil {
		return l.addr(from)
	}
	return m.addrs[to]
}

// Link returns the link between two nodes; nil where they are joined directly.
func (m *Mesh) Link(a, b int) *Link { return m.links[[2]int{min(a, b), max(a, b)}] }

// Links returns all links.
func (m *Mesh) Links() []*Link {
	var out []*Link
	for _, l := range m.links {
		out = append(out, l)
	}
	return out
}

// Talk sends something from one node to the echo port of another, and waits
// for it to come back.
func (m *Mesh) Talk(ctx context.Context, from, to int) error {
	c, err := m.Nodes[from].Dial(ctx, m.Node(to), EchoPort)
	if err != nil {
		return err
	}
	defer c.Close()
	if deadline, ok := ctx.Deadline(); ok {
		_ = c.SetDeadline(deadline)
	}
	return Exchange(c, []byte("balance"))
}

// MustTalk fails the test if Talk does not succeed within the time, trying
// again when a try fails.
func (m *Mesh) MustTalk(from, to int, within time.Duration) {
	m.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), within)
	defer cancel()
	for {
		err := m.Talk(ctx, from, to)
		if err == nil {
			return
		}
		if ctx.Err() != nil {
			m.t.Fatalf("node %d does not reach node %d within %v: %v", from, to, within, err)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// Exchange writes a message to an echoing connection and reads it again.
func Exchange(c net.Conn, msg []byte) error {
	if _, err := c.Write(msg); err != nil {
		return err
	}
	got := make([]byte, len(msg))
	if _, err := io.ReadFull(c, got); err != nil {
		return err
	}
	if !bytes.Equal(got, msg) {
		return fmt.Errorf("sent %q, got %q", msg, got)
	}
	return nil
}

// Echo sends back what comes in, until the listener closes.
func Echo(l net.Listener) {
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

// Eventually fails the test if ok does not become true within the time.
func Eventually(t testing.TB, within time.Duration, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(within); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("not within %v: %s", within, what)
		}
	}
}
