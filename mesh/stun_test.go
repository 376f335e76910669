package mesh_test

import (
	"encoding/binary"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/balanceai/balance/mesh"
	"github.com/balanceai/balance/mesh/identity"
	"github.com/balanceai/balance/mesh/meshtest"
)

// serveSTUN answers binding requests with an address: in another transaction
// first, and from another port. It says nothing to the first request.
func serveSTUN(t *testing.T, us netip.AddrPort) string {
	t.Helper()
	c, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	other, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	t.Cleanup(func() { _, _ = c.Close(), other.Close(); <-done })
	go func() {
		defer close(done)
		buf := make([]byte, 100)
		for i := 0; ; i++ {
			n, from, err := c.ReadFromUDPAddrPort(buf)
			if err != nil {
				return
			}
			if i == 0 || n != 20 {
				continue
			}
			answer := func(us netip.AddrPort) []byte {
				b := append([]byte{1, 1, 0, 12}, buf[4:20]...)
				ip := us.Addr().As4()
				b = append(b, 0, 0x20, 0, 8, 0, 1)
				b = binary.BigEndian.AppendUint16(b, us.Port()^0x2112)
				return binary.BigEndian.AppendUint32(b, binary.BigEndian.Uint32(ip[:])^0x2112A442)
			}
			forged := answer(netip.MustParseAddrPort("198.51.100.66:66"))
			_, _ = other.WriteToUDPAddrPort(forged, from)
			forged[19] ^= 1
			_, _ = c.WriteToUDPAddrPort(forged, from)
			_, _ = c.WriteToUDPAddrPort(answer(us), from)
		}
	}()
	return c.LocalAddr().String()
}

// What a STUN server sees is offered to others, if it answers what it was asked.
func TestSTUN(t *testing.T) {
	us := netip.MustParseAddrPort("198.51.100.7:4000")
	n, err := mesh.Open(mesh.Config{
		Keys: meshtest.NewKeys(t), Mesh: identity.MeshID{1}, Listen: netip.MustParseAddrPort("127.0.0.1:0"),
		Log: slog.New(slog.DiscardHandler), STUN: []string{serveSTUN(t, us), "nowhere"},
	})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = n.Close() }()
	meshtest.Eventually(t, 30*time.Second, "the address is known", func() bool { return slices.Contains(n.Addrs(), us) })
	for _, a := range n.Addrs() {
		if a != us && !a.Addr().IsLoopback() {
			t.Errorf("a forged answer is believed: %v", a)
		}
	}
}
