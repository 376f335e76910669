package main

import (
	"os"
	"slices"
	"testing"
	"time"

	"github.com/balanceai/balance/mesh/meshtest/netlab"
)

// newRelayNode returns a node that relays for all members, over TCP, too.
func newRelayNode(t testing.TB, h *netlab.Host) *labNode {
	t.Helper()
	n := newLabNode(t, h, "--listen", "0.0.0.0:41841", "--relay-tcp", ":8443")
	if err := n.home.make(); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(n.home.path(rulesFile), []byte("offer: all\nrelay: all\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	return n
}

// A node that moves to another network is found again at once, also by one that
// waits for nothing from it but has something to send.
func TestRoam(t *testing.T) {
	if testing.Short() {
		t.Skip("takes some seconds")
	}
	lab := netlab.New(t)
	home, office := lab.Router(netlab.Easy, "192.168.1"), lab.Router(netlab.Hard, "192.168.1")
	_, nodes := labMesh(t, lab, home.Host("a"), lab.Internet.Host("b"))
	a, b := nodes[0], nodes[1]
	awaitPeers("direct", nodes...)
	for _, to := range []*netlab.Network{office, lab.Internet, home} {
		a.Roam(to)
		start := time.Now()
		b.eventually("an answer of a", func() bool { return b.ping(a).Error == "" })
		answer := time.Since(start)
		b.knows(a)
		b.runs(a)
		a.knows(b)
		a.runs(b)
		t.Logf("%v answers after %v; a run each way has ended after %v", a.Host, answer.Round(time.Millisecond), time.Since(start).Round(time.Millisecond))
	}
}

// Two nodes that both move to other networks at once find each other again,
// through the third that has stayed.
func TestBothRoam(t *testing.T) {
	if testing.Short() {
		t.Skip("takes some seconds")
	}
	lab := netlab.New(t)
	home, office := lab.Router(netlab.Easy, "192.168.1"), lab.Router(netlab.Easy, "192.168.1")
	_, nodes := labMesh(t, lab, home.Host("a"), office.Host("b"))
	a, b := nodes[0], nodes[1]
	awaitPeers("direct", nodes...)
	for _, to := range [][2]*netlab.Network{{office, home}, {lab.Internet, office}, {home, lab.Internet}, {home, office}} {
		a.Roam(to[0])
		b.Roam(to[1])
		start := time.Now()
		for _, ends := range [][2]*labNode{{a, b}, {b, a}} {
			ends[0].eventually("an answer of "+ends[1].Name, func() bool { return ends[0].ping(ends[1]).Error == "" })
		}
		t.Logf("%v and %v meet again after %v: %v", a.Host, b.Host, time.Since(start).Round(time.Millisecond), a.ping(b))
		awaitPeers("direct", nodes...)
		a.runs(b)
	}
}

// A relay that dies is replaced by another.
func TestRelayDies(t *testing.T) {
	if testing.Short() {
		t.Skip("takes some seconds")
	}
	lab := netlab.New(t)
	relays := []*labNode{newRelayNode(t, lab.Internet.Host("relay1")), newRelayNode(t, lab.Internet.Host("relay2"))}
	a := newLabNode(t, lab.Router(netlab.Hard, "192.168.1").Host("a"))
	b := newLabNode(t, lab.Router(netlab.Hard, "192.168.1").Host("b"))
	foundLab(relays[0], relays[1], a, b)
	for range 3 {
		awaitPeers("relay", a, b)
		for _, r := range relays {
			a.knows(r)
			b.knows(r)
		}
		via := a.ping(b).Via
		i := slices.IndexFunc(relays, func(r *labNode) bool { return r.Name == via })
		if i < 0 {
			t.Fatalf("the path is via %q", via)
		}
		relays[i].process.Kill()
		start := time.Now()
		a.eventually("an answer via the other relay", func() bool { p := a.ping(b); return p.Error == "" && p.Via == relays[1-i].Name })
		took := time.Since(start)
		a.runs(b)
		t.Logf("%s is dead, %s has taken over after %v", via, relays[1-i].Name, took.Round(time.Millisecond))
		relays[i].up()
	}
}

// A network that begins to block UDP, and stops, moves a path to a relay's TCP
// port and back.
func TestUDPBlocked(t *testing.T) {
	if testing.Short() {
		t.Skip("takes some seconds")
	}
	lab := netlab.New(t)
	cafe := lab.Router(netlab.Easy, "192.168.1")
	pub, nodes := labMesh(t, lab, cafe.Host("a"), lab.Internet.Host("b"))
	a, b := nodes[0], nodes[1]
	awaitPeers("direct", nodes...)
	cafe.SetNAT(netlab.NoUDP)
	start := time.Now()
	a.eventually("an answer without UDP", func() bool { p := a.ping(b); return p.Error == "" && p.Via == pub.Name })
	t.Logf("over TCP after %v", time.Since(start).Round(time.Millisecond))
	a.runs(b)
	b.runs(a)
	cafe.SetNAT(netlab.Easy)
	start = time.Now()
	awaitPeers("direct", nodes...)
	t.Logf("direct again after %v", time.Since(start).Round(time.Millisecond))
}
