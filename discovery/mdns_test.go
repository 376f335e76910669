package discovery

import (
	"net"
	"net/netip"
	"sync/atomic"
	"testing"
	"time"

	"github.com/balanceai/balance/mesh/identity"
)

func loopback(t *testing.T) func() ([]net.Interface, error) {
	t.Helper()
	all, err := net.Interfaces()
	if err != nil {
		t.Fatal(err)
	}
	for _, ifi := range all {
		if ifi.Flags&net.FlagLoopback != 0 && ifi.Flags&net.FlagUp != 0 {
			conn, _, err := joinGroup(&ifi, false)
			need(t, err == nil, "multicast on the loopback interface")
			_ = conn.Close()
			return func() ([]net.Interface, error) { return []net.Interface{ifi}, nil }
		}
	}
	need(t, false, "a loopback interface")
	return nil
}

func TestTwoNodesOnOneHostFindEachOther(t *testing.T) {
	ifaces := loopback(t)
	ids := members(3) // 2 is a member that is not here
	var found [2]finds
	var lans [2]*LAN
	for i := range found {
		cfg := testConfig(i, ids, &found[i])
		cfg.Interfaces = ifaces
		lans[i] = Start(cfg)
		defer lans[i].Close()
	}
	for i := range found {
		eventually(t, "heard itself and the other", func() bool {
			h := lans[i].Hearing()
			_, ok := h.Members[member(1-i)]
			return ok && len(h.Members) == 1 && !h.Own.IsZero() && len(h.Interfaces) == 1
		})
		eventually(t, "found the other", func() bool { return len(found[i].of(member(1-i))) > 0 })
		want := netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), uint16(41000+1-i))
		if got := found[i].of(member(1 - i)); got[0] != want {
			t.Errorf("node %d found %v, want %v", i, got, want)
		}
		if found[i].of(member(i)) != nil || found[i].of(member(2)) != nil {
			t.Errorf("node %d found itself or who is not there", i)
		}
	}
}

func TestKickLooksAgain(t *testing.T) {
	ifaces := loopback(t)
	var found [2]finds
	var known atomic.Pointer[[]identity.ID] // nobody at first
	known.Store(&[]identity.ID{})
	var lans [2]*LAN
	for i := range lans {
		cfg := testConfig(i, nil, &found[i])
		cfg.Interfaces, cfg.Members = ifaces, func() []identity.ID { return *known.Load() }
		lans[i] = Start(cfg)
		defer lans[i].Close()
	}
	time.Sleep(500 * time.Millisecond)
	if found[0].of(member(1)) != nil {
		t.Error("found who is not a member")
	}
	ids := members(2)
	known.Store(&ids)
	lans[0].Kick()
	eventually(t, "found the new member", func() bool { return len(found[0].of(member(1))) > 0 })
}

func TestCloseIsQuickAndRepeatable(t *testing.T) {
	var found finds
	cfg := testConfig(0, members(1), &found)
	cfg.Interfaces = loopback(t)
	lan := Start(cfg)
	lan.Kick()
	lan.Kick()
	start := time.Now()
	lan.Close()
	lan.Close()
	lan.Kick()
	if d := time.Since(start); d > 10*time.Second {
		t.Errorf("Close took %v", d)
	}
}
