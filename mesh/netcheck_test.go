package mesh_test

import (
	"testing"
	"time"

	"github.com/balanceai/balance/mesh"
	"github.com/balanceai/balance/mesh/meshtest"
)

// Netcheck asks relays and reports their paths, also of one that is silent.
func TestNetcheck(t *testing.T) {
	m := meshtest.New(t, 3)
	n := m.Nodes[0]
	n.SetRelays([]mesh.Relay{{ID: m.Node(1)}, {ID: m.Node(2)}})
	meshtest.Eventually(t, 30*time.Second, "both relays are homes", func() bool { return len(n.Homes()) == 2 })
	r := n.Netcheck(t.Context())
	if r.UDP != mesh.UDPLocal || r.NAT != mesh.NATUnknown || r.Port != n.Port() || len(r.Addrs) == 0 || len(r.Sights) != 0 {
		t.Errorf("on loopback: %+v", r)
	}
	for _, relay := range r.Relays {
		if relay.Path.Kind != mesh.LAN || relay.Path.RTT == 0 || !relay.Home {
			t.Errorf("relay: %+v", relay)
		}
	}
	m.Stop(1)
	meshtest.Eventually(t, 30*time.Second, "the dead relay is seen to be dead", func() bool {
		r := n.Netcheck(t.Context())
		return len(r.Relays) == 2 && r.Relays[0].Path.Kind == mesh.None && r.Relays[1].Path.Kind == mesh.LAN
	})
}
