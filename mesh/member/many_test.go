package member_test

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/balanceai/balance/mesh/identity"
	"github.com/balanceai/balance/mesh/member"
	"github.com/balanceai/balance/mesh/meshtest"
)

// hall is a network in memory in which everybody hears everybody at once.
type hall struct {
	mesh identity.MeshID

	mu    sync.Mutex
	seats map[netip.Addr]*seat
	bytes int // of packets and streams
}

// seat is a place in a hall: a listener, and a socket for packets.
type seat struct {
	hall    *hall
	addr    netip.Addr
	streams chan net.Conn
	packets chan packet
	once    sync.Once
	closed  chan struct{}
}

type packet struct {
	from netip.Addr
	data []byte
}

func (h *hall) sit(id identity.ID) *seat {
	s := &seat{hall: h, addr: h.mesh.Address(id), streams: make(chan net.Conn), packets: make(chan packet, 256), closed: make(chan struct{})}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.seats[s.addr] = s
	return s
}

func (h *hall) at(a netip.Addr) *seat {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.seats[a]
}

func (h *hall) carried(n int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.bytes += n
}

func (s *seat) Close() error {
	s.once.Do(func() { close(s.closed) })
	return nil
}

func (s *seat) Addr() net.Addr { return net.TCPAddrFromAddrPort(netip.AddrPortFrom(s.addr, port)) }

func (s *seat) LocalAddr() net.Addr { return net.UDPAddrFromAddrPort(netip.AddrPortFrom(s.addr, port)) }

func (s *seat) Accept() (net.Conn, error) {
	select {
	case c := <-s.streams:
		return c, nil
	case <-s.closed:
		return nil, net.ErrClosed
	}
}

func (s *seat) ReadFrom(b []byte) (int, net.Addr, error) {
	select {
	case p := <-s.packets:
		return copy(b, p.data), net.UDPAddrFromAddrPort(netip.AddrPortFrom(p.from, port)), nil
	case <-s.closed:
		return 0, nil, net.ErrClosed
	}
}

func (s *seat) WriteTo(b []byte, to net.Addr) (int, error) {
	s.hall.carried(len(b))
	at := s.hall.at(to.(*net.UDPAddr).AddrPort().Addr())
	if at == nil {
		return len(b), nil
	}
	select {
	case at.packets <- packet{s.addr, slices.Clone(b)}:
	default: // lost
	}
	return len(b), nil
}

func (*seat) SetDeadline(time.Time) error      { return nil }
func (*seat) SetReadDeadline(time.Time) error  { return nil }
func (*seat) SetWriteDeadline(time.Time) error { return nil }

// metered counts what a stream carries, both ways.
type metered struct {
	net.Conn
	hall *hall
}

func (m metered) Write(b []byte) (int, error) {
	n, err := m.Conn.Write(b)
	m.hall.carried(n)
	return n, err
}

func (m metered) Read(b []byte) (int, error) {
	n, err := m.Conn.Read(b)
	m.hall.carried(n)
	return n, err
}

func (s *seat) dial(ctx context.Context, id identity.ID) (net.Conn, error) {
	at := s.hall.at(s.hall.mesh.Address(id))
	if at == nil {
		return nil, errors.New("nobody is there")
	}
	near, far := net.Pipe()
	select {
	case at.streams <- far:
		return metered{near, s.hall}, nil
	case <-at.closed:
		return nil, errors.New("refused")
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// Members that all start at the same time find each other, and one that goes is
// missed by all.
func TestMany(t *testing.T) {
	n := 64
	if os.Getenv("BALANCE_LAB") != "" {
		n = 200
	}
	h := &hall{mesh: identity.MeshID{1}, seats: map[netip.Addr]*seat{}}
	ids := make([]identity.ID, n)
	for i := range ids {
		ids[i] = identity.KeyFromSeed([32]byte{byte(i), byte(i >> 8), 7}).ID()
	}
	known := map[identity.ID]bool{}
	for _, id := range ids {
		known[id] = true
	}
	lists := make([]*member.List, n)
	var mu sync.Mutex
	up := make([]int, n)
	start := time.Now()
	for i, id := range ids {
		s := h.sit(id)
		list, err := member.Start(member.Config{
			Mesh: h.mesh, Self: id, Listener: s, Packets: s, Dial: s.dial, Log: slog.New(slog.DiscardHandler),
			Roster: func() []identity.ID { return slices.Clone(ids) },
			Member: func(id identity.ID) bool { return known[id] },
			Meta:   func() []byte { return make([]byte, 300) },
			OnChange: func(_ identity.ID, state string, _ []byte) {
				mu.Lock()
				defer mu.Unlock()
				switch state {
				case member.Up:
					up[i]++
				case member.Down:
					up[i]--
				}
			},
		})
		if err != nil {
			t.Fatal(err)
		}
		lists[i] = list
	}
	defer func() {
		var wg sync.WaitGroup
		for _, l := range lists {
			wg.Go(func() { _ = l.Close() })
		}
		wg.Wait()
	}()
	all := func(want int) func() bool {
		return func() bool {
			mu.Lock()
			defer mu.Unlock()
			return !slices.ContainsFunc(up, func(n int) bool { return n < want })
		}
	}
	meshtest.Eventually(t, 3*within, "all see each other", all(n-1))
	h.mu.Lock()
	t.Logf("%d members see each other after %v; %d bytes each", n, time.Since(start).Round(time.Millisecond), h.bytes/n)
	h.mu.Unlock()
}
