package mesh_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"sync"
	"testing"
	"time"

	"github.com/balanceai/balance/mesh"
	"github.com/balanceai/balance/mesh/identity"
	"github.com/balanceai/balance/mesh/meshtest"
	"github.com/balanceai/balance/mesh/wire"
)

// hub starts nodes of which the first two do not reach each other; the others
// relay, if they may.
func hub(t *testing.T, n int, may func(node int, from, to identity.ID) bool) *meshtest.Mesh {
	t.Helper()
	m := meshtest.PrepareShaped(t, n)
	join(t, m, may)
	return m
}

// join starts the nodes of a mesh like that.
func join(t *testing.T, m *meshtest.Mesh, may func(node int, from, to identity.ID) bool) {
	n := len(m.Keys)
	m.Relay = may
	m.Link(0, 1).Cut()
	for i := range n {
		m.Start(i)
	}
	for i := range n {
		var relays []mesh.Relay
		for r := 2; r < n; r++ {
			if r != i {
				relays = append(relays, mesh.Relay{ID: m.Node(r)})
			}
		}
		m.Nodes[i].SetRelays(relays)
	}
	for i := range 2 {
		meshtest.Eventually(t, within, "homes", func() bool { return len(m.Nodes[i].Homes()) == n-2 })
	}
}

func anyone(int, identity.ID, identity.ID) bool { return true }

func TestRelay(t *testing.T) {
	m := hub(t, 3, anyone)
	secret := []byte("what the relay must not see")
	for _, l := range []*meshtest.Link{m.Link(0, 2), m.Link(1, 2)} {
		l.Tap(func(_ int, msg []byte) {
			if bytes.Contains(msg, secret) {
				t.Error("what is relayed can be read")
			}
		})
	}
	c, err := m.Nodes[0].Dial(timeout(t, within), m.Node(1), meshtest.EchoPort)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if err := meshtest.Exchange(c, secret); err != nil {
		t.Fatal(err)
	}
	p := m.Nodes[0].Path(m.Node(1))
	if p.Kind != mesh.Relayed || p.Via != m.Node(2) || p.Addr.IsValid() || p.RTT <= 0 {
		t.Errorf("path %+v", p)
	}
	m.MustTalk(1, 0, within)
	if m.Nodes[2].Relayed() == 0 || m.Nodes[0].Relayed() != 0 {
		t.Error("the relay has not counted what it relayed")
	}
}

// The address takes over from the relay as soon as it works.
func TestRelayIsLeft(t *testing.T) {
	m := hub(t, 3, anyone)
	m.MustTalk(0, 1, within)
	m.Link(0, 1).Heal()
	for i := range 2 {
		m.Nodes[i].NetworkChanged() // rather than wait for the next search
		m.MustTalk(i, 1-i, within)
		meshtest.Eventually(t, within, "a path without the relay", func() bool { return m.Nodes[i].Path(m.Node(1-i)).Kind == mesh.LAN })
	}
}

// A relay's owner decides. A member that may not is not relayed for.
func TestRelayIsTheOwnersChoice(t *testing.T) {
	for name, may := range map[string]func(int, identity.ID, identity.ID) bool{
		"nothing is relayed": nil,
		"not for this pair":  func(int, identity.ID, identity.ID) bool { return false },
	} {
		t.Run(name, func(t *testing.T) {
			m := hub(t, 3, may)
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			defer cancel()
			if _, err := m.Nodes[0].Ping(ctx, m.Node(1)); !errors.Is(err, mesh.ErrNoAnswer) {
				t.Errorf("ping: %v", err)
			}
			if m.Nodes[2].Relayed() != 0 {
				t.Error("something was relayed")
			}
		})
	}
}

// Traffic goes on by another relay when one dies.
func TestRelayDies(t *testing.T) {
	m := hub(t, 4, anyone)
	c, err := m.Nodes[0].Dial(timeout(t, within), m.Node(1), meshtest.EchoPort)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if err := meshtest.Exchange(c, []byte("before")); err != nil {
		t.Fatal(err)
	}
	used := 2
	if m.Nodes[0].Path(m.Node(1)).Via == m.Node(3) {
		used = 3
	}
	m.Stop(used)
	start := time.Now()
	_ = c.SetDeadline(time.Now().Add(within))
	if err := meshtest.Exchange(c, []byte("after")); err != nil {
		t.Fatal(err)
	}
	t.Logf("traffic again after %v", time.Since(start))
}

// A relay that is not in the roster any more carries nothing.
func TestRelayLeaves(t *testing.T) {
	m := hub(t, 3, anyone)
	m.MustTalk(0, 1, within)
	for i := range 2 {
		var without []mesh.Peer
		for _, p := range m.Roster(i) {
			if p.ID != m.Node(2) {
				without = append(without, p)
			}
		}
		m.Nodes[i].SetPeers(without)
		if p := m.Nodes[i].Path(m.Node(1 - i)); p.Kind != mesh.None {
			t.Errorf("path %+v", p)
		}
	}
	m.Nodes[0].SetPeers(m.Roster(0))
	m.Nodes[1].SetPeers(m.Roster(1))
	m.MustTalk(0, 1, within)
}

// A stranger who copies frames, and a member's own from an address that has not
// proved itself, get nothing forwarded.
func TestRelayForStrangers(t *testing.T) {
	m := hub(t, 3, anyone)
	var mu sync.Mutex
	var frames [][]byte
	m.Link(0, 2).Tap(func(from int, msg []byte) {
		if wire.IsFrame(msg) {
			mu.Lock()
			frames = append(frames, append([]byte(nil), msg...))
			mu.Unlock()
		}
	})
	m.MustTalk(0, 1, within)
	m.Stop(0)
	m.Stop(1)
	before := m.Nodes[2].Relayed()
	for still := 0; still < 10; still++ { // what they have sent is still coming in
		time.Sleep(10 * time.Millisecond)
		if now := m.Nodes[2].Relayed(); now != before {
			before, still = now, 0
		}
	}
	s := stranger(t)
	mu.Lock()
	defer mu.Unlock()
	if len(frames) == 0 {
		t.Fatal("no frames were seen")
	}
	for _, f := range append(frames, noise(t, m)...) {
		if _, err := s.WriteToUDPAddrPort(f, m.Addr(1, 2)); err != nil && !errors.Is(err, net.ErrClosed) {
			t.Fatal(err)
		}
	}
	if got := drain(s); len(got) > 0 {
		t.Errorf("the relay answers a stranger: %x", got)
	}
	if m.Nodes[2].Relayed() != before {
		t.Error("frames of a stranger were forwarded")
	}
}

func TestRelayCarriesBulk(t *testing.T) {
	m := hub(t, 3, anyone)
	c, err := m.Nodes[0].Dial(timeout(t, within), m.Node(1), meshtest.EchoPort)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(2 * within))
	const size = 8 << 20
	sent := make(chan error, 1)
	go func() {
		_, err := c.Write(make([]byte, size))
		sent <- err
	}()
	n, err := io.Copy(io.Discard, io.LimitReader(c, size))
	if err := errors.Join(err, <-sent); err != nil || n != size {
		t.Errorf("%d bytes came back: %v", n, err)
	}
}

// Whoever repeats what went through a relay, from another address, moves no
// path, has nothing forwarded and learns no address.
func TestReplayOfRelayed(t *testing.T) {
	m := hub(t, 3, anyone)
	var mu sync.Mutex
	var captured [][]byte
	for i := range 2 {
		m.Link(i, 2).Tap(func(_ int, msg []byte) {
			mu.Lock()
			defer mu.Unlock()
			captured = append(captured, bytes.Clone(msg))
		})
	}
	m.MustTalk(0, 1, within)
	for i := range 2 {
		m.Link(i, 2).Tap(nil)
	}
	attacker := stranger(t)
	before := m.Nodes[2].Relayed()
	mu.Lock()
	defer mu.Unlock()
	for _, msg := range captured {
		for i := range 3 {
			to := netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), m.Nodes[i].Port())
			if _, err := attacker.WriteToUDPAddrPort(msg, to); err != nil {
				t.Fatal(err)
			}
		}
	}
	for _, got := range drain(attacker) {
		if len(got) != wire.ProbeSize {
			t.Errorf("the attacker gets %x", got)
		}
	}
	if got := m.Nodes[2].Relayed(); got-before > 4096 { // heartbeats of the members go on
		t.Errorf("%d bytes were relayed", got-before)
	}
	for i := range 2 {
		if p := m.Nodes[i].Path(m.Node(1 - i)); p.Kind != mesh.Relayed || p.Via != m.Node(2) {
			t.Errorf("path %+v", p)
		}
		m.MustTalk(i, 1-i, within)
	}
}

// Of two relays the one is used that is not crowded, whichever it is.
func TestRelayByLoad(t *testing.T) {
	for crowded := 2; crowded <= 3; crowded++ {
		m := meshtest.PrepareShaped(t, 4)
		m.Config = func(node int, cfg *mesh.Config) {
			if node == crowded {
				cfg.Busy = func() int { return 100 }
			}
		}
		join(t, m, anyone)
		idle := m.Node(2 + 3 - crowded)
		m.MustTalk(0, 1, within)
		meshtest.Eventually(t, within, "the idle relay carries", func() bool {
			m.MustTalk(0, 1, within)
			p := m.Nodes[0].Path(m.Node(1))
			return p.Kind == mesh.Relayed && p.Via == idle
		})
	}
}
