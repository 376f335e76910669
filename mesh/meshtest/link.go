package meshtest

import (
	"bytes"
	"math/rand/v2"
	"net"
	"net/netip"
	"sync"
	"testing"
	"time"
)

// Link carries the UDP datagrams between two nodes. Each of the two sends to a
// relay of its own and sees the other behind it.
type Link struct {
	m     *Mesh
	nodes [2]int
	run   sync.WaitGroup
	late  [2]chan late // what nodes[k] sent and is on its way

	mu     sync.Mutex
	relay  [2]*net.UDPConn // relay[k] is where nodes[k] sees the other
	delay  time.Duration   // each way
	loss   float64         // each way, 0 to 1
	mtu    int             // bytes of the largest datagram that passes; 0: any
	cut    bool
	tap    func(from int, msg []byte)
	closed bool
}

// late is a datagram that arrives at a time.
type late struct {
	due time.Time
	msg []byte
}

// inFlight is how many datagrams are on their way at most; more are lost.
const inFlight = 4096

func newLink(t testing.TB, m *Mesh, a, b int) *Link {
	t.Helper()
	l := &Link{m: m, nodes: [2]int{a, b}}
	for k := range l.relay {
		l.open(t, k)
		l.late[k] = make(chan late, inFlight)
		l.run.Go(func() {
			for d := range l.late[k] {
				time.Sleep(time.Until(d.due))
				l.deliver(k, d.msg)
			}
		})
	}
	t.Cleanup(func() {
		l.mu.Lock()
		l.closed = true
		_ = l.relay[0].Close()
		_ = l.relay[1].Close()
		close(l.late[0])
		close(l.late[1])
		l.mu.Unlock()
		l.run.Wait()
	})
	return l
}

func (l *Link) open(t testing.TB, k int) {
	t.Helper()
	c, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	_ = c.SetReadBuffer(4 << 20)
	l.mu.Lock()
	l.relay[k] = c
	l.mu.Unlock()
	l.run.Go(func() { l.carry(k, c) })
}

// carry passes on what nodes[k] sends.
func (l *Link) carry(k int, c *net.UDPConn) {
	buf := make([]byte, 64<<10)
	for {
		n, from, err := c.ReadFromUDPAddrPort(buf)
		if err != nil {
			return
		}
		if from != l.m.addrs[l.nodes[k]] {
			continue
		}
		l.mu.Lock()
		if l.tap != nil {
			l.tap(l.nodes[k], buf[:n])
		}
		if l.closed || l.cut || l.mtu > 0 && n > l.mtu || rand.Float64() < l.loss {
			l.mu.Unlock()
			continue
		}
		if l.delay > 0 {
			select {
			case l.late[k] <- late{time.Now().Add(l.delay), bytes.Clone(buf[:n])}:
			default:
			}
			l.mu.Unlock()
			continue
		}
		l.mu.Unlock()
		l.deliver(k, buf[:n])
	}
}

// deliver sends what came from nodes[k] to the other, from where the other sees
// nodes[k].
func (l *Link) deliver(k int, msg []byte) {
	l.mu.Lock()
	out := l.relay[1-k]
	l.mu.Unlock()
	_, _ = out.WriteToUDPAddrPort(msg, l.m.addrs[l.nodes[1-k]]) // a datagram may be lost
}

// addr returns where a node sees the other.
func (l *Link) addr(from int) netip.AddrPort {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.relay[l.side(from)].LocalAddr().(*net.UDPAddr).AddrPort()
}

func (l *Link) side(node int) int {
	if node == l.nodes[0] {
		return 0
	}
	return 1
}

// Shape sets the delay, each way, and the share of datagrams that are lost,
// each way.
func (l *Link) Shape(delay time.Duration, loss float64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.delay, l.loss = delay, loss
}

// Narrow lets no datagram of more than so many bytes pass.
func (l *Link) Narrow(size int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.mtu = size
}

// Tap has f see every datagram that a node sends, until the next call. f keeps
// nothing of msg and calls nothing of the link.
func (l *Link) Tap(f func(from int, msg []byte)) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.tap = f
}

// Cut stops everything on the link; Heal lets it pass again.
func (l *Link) Cut() { l.setCut(true) }

// Heal ends a Cut.
func (l *Link) Heal() { l.setCut(false) }

func (l *Link) setCut(cut bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.cut = cut
}

// Move gives a node another address, as the other sees it; the old one is dead.
func (l *Link) Move(t testing.TB, node int) {
	t.Helper()
	k := 1 - l.side(node)
	l.mu.Lock()
	old := l.relay[k]
	l.mu.Unlock()
	l.open(t, k)
	_ = old.Close()
}
