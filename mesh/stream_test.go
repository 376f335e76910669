package mesh_test

import (
	"bytes"
	"crypto/tls"
	"encoding/hex"
	"io"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/balanceai/balance/mesh"
	"github.com/balanceai/balance/mesh/identity"
	"github.com/balanceai/balance/mesh/meshtest"
	"github.com/balanceai/balance/mesh/wire"
)

// blocked starts three nodes, of which the first reaches nobody by UDP, and the
// last relays and can be reached by TCP at the address that is returned.
func blocked(t *testing.T) (*meshtest.Mesh, netip.AddrPort) {
	t.Helper()
	m := meshtest.PrepareShaped(t, 3)
	m.Relay = anyone
	m.Link(0, 1).Cut()
	m.Link(0, 2).Cut()
	for i := range 3 {
		m.Start(i)
	}
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- m.Nodes[2].ServeStreams(l) }()
	t.Cleanup(func() {
		_ = l.Close()
		if err := <-served; err != nil {
			t.Error(err)
		}
	})
	return m, l.Addr().(*net.TCPAddr).AddrPort()
}

func TestStream(t *testing.T) {
	m, at := blocked(t)
	relay := []mesh.Relay{{ID: m.Node(2), Streams: []netip.AddrPort{at}}}
	m.Nodes[0].SetRelays(relay)
	m.Nodes[1].SetRelays(relay)
	m.MustTalk(0, 2, within)
	if p := m.Nodes[0].Path(m.Node(2)); p.Kind != mesh.TCP || p.Addr != at || p.RTT <= 0 {
		t.Errorf("path to the relay: %+v", p)
	}
	m.MustTalk(0, 1, within)
	if p := m.Nodes[0].Path(m.Node(1)); p.Kind != mesh.Relayed || p.Via != m.Node(2) {
		t.Errorf("path to the other: %+v", p)
	}
	m.MustTalk(1, 0, within)

	// When UDP passes again, it takes over.
	m.Link(0, 2).Heal()
	m.Nodes[0].NetworkChanged()
	meshtest.Eventually(t, within, "UDP again", func() bool {
		_ = m.Talk(timeout(t, within), 0, 2)
		return m.Nodes[0].Path(m.Node(2)).Kind == mesh.LAN
	})
}

// A relay that restarts is connected to again.
func TestStreamComesBack(t *testing.T) {
	m, at := blocked(t)
	m.Nodes[0].SetRelays([]mesh.Relay{{ID: m.Node(2), Streams: []netip.AddrPort{at}}})
	m.MustTalk(0, 2, within)
	m.Stop(2)
	m.Start(2)
	l, err := net.Listen("tcp4", at.String())
	if err != nil {
		t.Fatal(err)
	}
	go func() { _ = m.Nodes[2].ServeStreams(l) }()
	m.MustTalk(0, 2, within)
}

// Who does not know the tag of a member gets no byte, nor does who does not
// speak TLS.
func TestStreamForStrangers(t *testing.T) {
	m, at := blocked(t)
	other, err := identity.NewWGKey()
	if err != nil {
		t.Fatal(err)
	}
	key, _, err := wire.ProbeKeys(other, m.Keys[2].WG.Public())
	if err != nil {
		t.Fatal(err)
	}
	hello := func(name string) []byte {
		client, server := net.Pipe()
		defer client.Close()
		go func() { _ = tls.Client(client, &tls.Config{ServerName: name}).Handshake() }()
		buf := make([]byte, 4096)
		n, err := server.Read(buf)
		if err != nil {
			t.Fatal(err)
		}
		return buf[:n]
	}
	for name, msg := range map[string][]byte{
		"nothing": nil, "HTTP": []byte("GET / HTTP/1.1\r\nHost: x\r\n\r\n"), "noise": bytes.Repeat([]byte{0x16, 3, 1, 2, 0}, 200),
		"TLS": hello("example.org"), "TLS with a stranger's tag": hello(hex.EncodeToString(key.Tag[:]) + ".invalid"), "TLS with half a tag": hello("0011.invalid"),
	} {
		c, err := net.Dial("tcp", at.String())
		if err != nil {
			t.Fatal(err)
		}
		if _, err := c.Write(msg); err != nil {
			t.Fatal(err)
		}
		_ = c.(*net.TCPConn).CloseWrite()
		_ = c.SetReadDeadline(time.Now().Add(within))
		got, _ := io.ReadAll(c)
		if len(got) > 0 {
			t.Errorf("%s: the answer is %q", name, got)
		}
		_ = c.Close()
	}
}
