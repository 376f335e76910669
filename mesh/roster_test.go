package mesh_test

import (
	"crypto/rand"
	"fmt"
	"net/netip"
	"os"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/balanceai/balance/mesh"
	"github.com/balanceai/balance/mesh/meshtest"
)

// A roster of 10,000 costs little, as does a change of it. Its members can be
// reached at once, and can all call soon.
func TestLargeRoster(t *testing.T) {
	const limit = 40 << 20
	members := 10_000
	if meshtest.Race {
		members = 1000
	}
	m := meshtest.Prepare(t, 3)
	m.Knows = func(node, _ int) bool { return node != 0 }
	for i := range 3 {
		m.Start(i)
	}
	m.Knows = nil
	list := make([]mesh.Peer, members-2, members)
	for i := range list {
		_, _ = rand.Read(list[i].ID[:])
		_, _ = rand.Read(list[i].WG[:]) // X25519 takes any
		list[i].Addrs = []netip.AddrPort{netip.MustParseAddrPort("127.0.0.1:9")}
	}
	list = append(list, m.Roster(0)...)
	n := m.Nodes[0]
	before := heap()
	start := time.Now()
	n.SetPeers(list)
	t.Logf("SetPeers: %v", time.Since(start))
	if _, err := n.Ping(timeout(t, within), m.Node(1)); err != nil {
		t.Fatal(err)
	}
	t.Logf("a member has answered after %v", time.Since(start))
	if _, err := m.Nodes[2].Ping(timeout(t, within), m.Node(0)); err != nil {
		t.Fatal(err)
	}
	t.Logf("the last member has called after %v", time.Since(start))
	start = time.Now()
	n.SetPeers(list[1:])
	t.Logf("SetPeers without one: %v", time.Since(start))
	start = time.Now()
	n.SetPeers(list)
	t.Logf("SetPeers with one more: %v", time.Since(start))
	after := heap()
	t.Logf("heap: %d KiB, %d of them for the roster; resident: %d KiB, with all that runs here", after>>10, (after-before)>>10, resident())
	if after-before > limit {
		t.Errorf("the roster takes %d bytes, want at most %d", after-before, limit)
	}
	runtime.KeepAlive(list)
}

// heap returns how many bytes of the heap are in use.
func heap() int {
	var m runtime.MemStats
	runtime.GC()
	runtime.GC() // pools keep for one collection what they hold
	runtime.ReadMemStats(&m)
	return int(m.HeapAlloc)
}

// resident returns how many KiB of this process are in memory; 0 where the
// system does not tell (proc_pid_status(5)).
func resident() (size int) {
	b, _ := os.ReadFile("/proc/self/status")
	_, rest, _ := strings.Cut(string(b), "VmRSS:")
	_, _ = fmt.Sscan(rest, &size)
	return size
}
