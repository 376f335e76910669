package mesh

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"os"
	"runtime"
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

// crowd returns members that there are in the roster alone.
func crowd(t testing.TB, n int) []Peer {
	t.Helper()
	list := make([]Peer, n)
	for i := range list {
		key, err := identity.NewWGKey()
		if err != nil {
			t.Fatal(err)
		}
		list[i].WG = key.Public()
		binary.BigEndian.PutUint64(list[i].ID[:], uint64(i+1))
		list[i].Addrs = []netip.AddrPort{netip.MustParseAddrPort("127.0.0.1:9")}
	}
	return list
}

// WireGuard knows the members that are talked with, and forgets those that have
// not been for long, after which they are talked with again.
func TestOnDemand(t *testing.T) {
	a, aKeys := openNode(t)
	b, bKeys := openNode(t)
	idle := crowd(t, 10)
	a.SetPeers(append(idle, Peer{ID: b.self, WG: bKeys.WG.Public(), Addrs: b.Addrs()}))
	b.SetPeers(append(idle, Peer{ID: a.self, WG: aKeys.WG.Public()}))
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
	}
}

// Traffic goes on while the idle are looked for all the time.
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
			default:
				a.rest(a.bind.now())
				b.rest(b.bind.now())
			}
		}
	}()
	for range 50 {
		c, err := a.Dial(soon(t, patience), b.self, 80)
		if err != nil {
			t.Fatal(err)
		}
		if err := exchange(c, patience); err != nil {
			t.Fatal(err)
		}
		c.Close()
	}
	close(stop)
	<-stopped
}

// A roster of 10,000 costs little, as does a change of it, and all of its
// members can call.
func TestLargeRoster(t *testing.T) {
	const members, limit = 10_000, 40 << 20
	list := crowd(t, members)
	caller, callerKeys := openNode(t)
	list[members-1] = Peer{ID: caller.self, WG: callerKeys.WG.Public()}
	n, keys := openNode(t)
	heap := func() uint64 {
		var m runtime.MemStats
		runtime.GC()
		runtime.GC() // pools keep for one collection what they hold
		runtime.ReadMemStats(&m)
		return m.HeapAlloc
	}
	before, residentBefore := heap(), resident()
	start := time.Now()
	n.SetPeers(list)
	t.Logf("SetPeers: %v", time.Since(start))
	caller.SetPeers([]Peer{{ID: n.self, WG: keys.WG.Public(), Addrs: n.Addrs()}})
	if _, err := caller.Ping(soon(t, patience), n.self); err != nil {
		t.Error(err)
	}
	t.Logf("the last member has called after %v", time.Since(start))
	for deadline := time.Now().Add(patience); ; time.Sleep(10 * time.Millisecond) {
		n.bind.mu.RLock()
		tags := len(n.bind.byTag)
		n.bind.mu.RUnlock()
		if tags == members {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("%d members can call, want %d", tags, members)
		}
	}
	t.Logf("all can call after %v", time.Since(start))
	start = time.Now()
	n.SetPeers(list[1:])
	t.Logf("SetPeers without one: %v", time.Since(start))
	start = time.Now()
	n.SetPeers(list)
	t.Logf("SetPeers with one more: %v", time.Since(start))
	cost := heap() - before
	t.Logf("heap: %d KiB for the roster; resident: %d KiB, of all that runs here %d", cost>>10, resident()-residentBefore, resident())
	if cost > limit {
		t.Errorf("the roster takes %d bytes, want at most %d", cost, limit)
	}
	if got := known(t, n); got > 1 {
		t.Errorf("WireGuard knows %d members", got)
	}
	runtime.KeepAlive(list)
}

// resident returns how many KiB of this process are in memory; 0 where the
// system does not tell (proc_pid_status(5)).
func resident() (size int) {
	b, _ := os.ReadFile("/proc/self/status")
	_, rest, _ := strings.Cut(string(b), "VmRSS:")
	_, _ = fmt.Sscan(rest, &size)
	return size
}
