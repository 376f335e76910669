package mesh

import (
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/balanceai/balance/mesh/identity"
)

// known returns how many peers WireGuard knows.
func known(t testing.TB, n *Node) int {
	t.Helper()
	state, err := n.dev.IpcGet()
	if err != nil {
		t.Fatal(err)
	}
	return strings.Count(state, "public_key=")
}

// apart is more than WireGuard demands between two initiations of one peer, whose
// time stamps are coarse.
const apart = 50 * time.Millisecond

// WireGuard knows the members that are talked with, and forgets those that have
// not been for long, after which they are talked with again.
func TestOnDemand(t *testing.T) {
	a, aKeys := openNode(t)
	b, bKeys := openNode(t)
	idle := Peer{ID: identity.ID{1}, WG: identity.WGPublic{31: 1}}
	a.SetPeers([]Peer{idle, {ID: b.self, WG: bKeys.WG.Public(), Addrs: b.Addrs()}})
	b.SetPeers([]Peer{idle, {ID: a.self, WG: aKeys.WG.Public()}})
	if na, nb := known(t, a), known(t, b); na != 0 || nb != 0 {
		t.Fatalf("WireGuard knows %d and %d idle members", na, nb)
	}
	l, err := b.Listen(80)
	if err != nil {
		t.Fatal(err)
	}
	go echo(l)
	for _, rested := range [][]*Node{nil, {a}, {a, b}} {
		for _, n := range rested {
			n.rest(n.bind.now().add(restAfter))
			if got := known(t, n); got != 0 {
				t.Errorf("WireGuard knows %d members that were idle for long", got)
			}
		}
		c, err := a.Dial(soon(t, patience), b.self, 80)
		if err != nil {
			t.Fatal(err)
		}
		if err := exchange(c, patience); err != nil {
			t.Fatal(err)
		}
		a.rest(a.bind.now())
		b.rest(b.bind.now())
		if na, nb := known(t, a), known(t, b); na != 1 || nb != 1 {
			t.Errorf("WireGuard knows %d and %d members, want the one that is talked with", na, nb)
		}
		c.Close()
		time.Sleep(apart) // the end of the conversation belongs to it
	}
}

// A member is talked with again at the very moment that it is found idle. The
// other end is not looked at: it would lose a session that this end still has,
// which does not happen after minutes.
func TestRestUnderLoad(t *testing.T) {
	a, aKeys := openNode(t)
	b, bKeys := openNode(t)
	a.SetPeers([]Peer{{ID: b.self, WG: bKeys.WG.Public(), Addrs: b.Addrs()}})
	b.SetPeers([]Peer{{ID: a.self, WG: aKeys.WG.Public(), Addrs: a.Addrs()}})
	l, err := b.Listen(80)
	if err != nil {
		t.Fatal(err)
	}
	go echo(l)
	stop, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		for {
			select {
			case <-stop:
				return
			case <-time.After(100 * time.Microsecond):
				a.rest(a.bind.now().add(restAfter - apart))
			}
		}
	}()
	for range 40 {
		c, err := a.Dial(soon(t, patience), b.self, 80)
		if err != nil {
			t.Fatal(err)
		}
		if err := exchange(c, patience); err != nil {
			t.Fatal(err)
		}
		c.Close()
		time.Sleep(apart - 2*time.Millisecond + rand.N(4*time.Millisecond))
	}
	close(stop)
	<-stopped
}
