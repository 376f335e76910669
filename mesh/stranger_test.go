package mesh_test

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.zx2c4.com/wireguard/conn"
	"golang.zx2c4.com/wireguard/device"

	"github.com/balanceai/balance/mesh"
	"github.com/balanceai/balance/mesh/meshtest"
	"github.com/balanceai/balance/mesh/netstack"
	"github.com/balanceai/balance/mesh/wire"
)

// stranger is a UDP socket outside the mesh.
func stranger(t *testing.T) *net.UDPConn {
	t.Helper()
	c, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

// drain returns the datagrams that have come to a socket, and that still come
// within a moment.
func drain(c *net.UDPConn) (got [][]byte) {
	buf := make([]byte, 2048)
	for {
		_ = c.SetReadDeadline(time.Now().Add(300 * time.Millisecond))
		n, err := c.Read(buf)
		if err != nil {
			return got
		}
		got = append(got, bytes.Clone(buf[:n]))
	}
}

// noise is what strangers may send: anything, and what has the form of
// WireGuard's messages and of probes.
func noise(t *testing.T, m *meshtest.Mesh) [][]byte {
	r := rand.New(rand.NewPCG(1, 2))
	bytesOf := func(n int, head ...byte) []byte {
		b := make([]byte, n)
		for i := range b {
			b[i] = byte(r.Uint32())
		}
		copy(b, head)
		return b
	}
	var out [][]byte
	for range 1500 {
		out = append(out, bytesOf(r.IntN(1500)),
			bytesOf(148, 1, 0, 0, 0), bytesOf(92, 2, 0, 0, 0), bytesOf(64, 3, 0, 0, 0), bytesOf(32+16*r.IntN(60), 4, 0, 0, 0),
			bytesOf(r.IntN(148), byte(1+r.IntN(4)), 0, 0, 0), bytesOf(wire.ProbeSize, 0xB5, 1), bytesOf(r.IntN(100), 0xB5, 2))
	}
	// Probes of somebody who knows the node's public key; probes of a member
	// that were changed on the way.
	own, _, err := wire.ProbeKeys(meshtest.NewKeys(t).WG, m.Keys[0].WG.Public())
	if err != nil {
		t.Fatal(err)
	}
	members, _, err := wire.ProbeKeys(m.Keys[1].WG, m.Keys[0].WG.Public())
	if err != nil {
		t.Fatal(err)
	}
	for i := range 500 {
		changed := members.Seal(wire.Probe{Kind: wire.Ping, Tx: uint64(i), Instance: 1})
		changed[12+i%52] ^= byte(1 + i%255)
		out = append(out, own.Seal(wire.Probe{Kind: wire.Ping, Tx: uint64(i), Instance: 1}), changed, changed[:i%wire.ProbeSize])
	}
	return out
}

// TRUST T1: a stranger gets nothing.
func TestSilence(t *testing.T) {
	m := meshtest.New(t, 2)
	m.MustTalk(1, 0, within)
	c := stranger(t)
	for i, b := range noise(t, m) {
		if _, err := c.WriteToUDPAddrPort(b, m.Addr(1, 0)); err != nil && len(b) > 0 {
			t.Fatal(err)
		}
		if i%500 == 0 {
			time.Sleep(time.Millisecond) // do not overrun the socket
		}
	}
	if got := drain(c); len(got) > 0 {
		t.Errorf("%d answers to a stranger, the first %x", len(got), got[0])
	}
	m.MustTalk(1, 0, within)
}

// TRUST T2: nor does one who knows the public key, and so makes initiations
// that WireGuard would look at.
func TestSilenceToWhoKnowsTheKey(t *testing.T) {
	m := meshtest.New(t, 1)
	var devices []*device.Device
	for range 5 {
		n, err := netstack.New(netstack.Config{Addrs: []netip.Addr{m.ID.Address(m.Node(0))}, MTU: 1280})
		if err != nil {
			t.Fatal(err)
		}
		d := device.NewDevice(n.Device(), conn.NewDefaultBind(), &device.Logger{Verbosef: device.DiscardLogf, Errorf: device.DiscardLogf})
		defer d.Close()
		conf := fmt.Sprintf("private_key=%s\npublic_key=%s\nendpoint=127.0.0.1:%d\nallowed_ip=::/0\npersistent_keepalive_interval=1\n",
			meshtest.NewKeys(t).WG.SecretHex(), m.Keys[0].WG.Public().Hex(), m.Nodes[0].Port())
		if err := d.IpcSet(conf); err != nil {
			t.Fatal(err)
		}
		if err := d.Up(); err != nil {
			t.Fatal(err)
		}
		devices = append(devices, d)
	}
	time.Sleep(300 * time.Millisecond)
	for _, d := range devices {
		state, err := d.IpcGet()
		if err != nil {
			t.Fatal(err)
		}
		if strings.Contains(state, "tx_bytes=0\n") || !strings.Contains(state, "rx_bytes=0\n") {
			t.Errorf("a stranger sent nothing or got something:\n%s", state)
		}
	}
}

// TRUST T18: who was removed gets nothing, whatever it sends, though it was
// talked to a moment ago.
func TestSilenceAfterRemoval(t *testing.T) {
	m := meshtest.Shaped(t, 2)
	m.MustTalk(0, 1, within)
	m.MustTalk(1, 0, within)
	m.Nodes[1].SetPeers(nil)
	time.Sleep(50 * time.Millisecond) // what was on its way arrives
	var sent, got atomic.Int32
	m.Link(0, 1).Tap(func(from int, _ []byte) {
		if from == 0 {
			sent.Add(1)
		} else {
			got.Add(1)
		}
	})
	_ = m.Talk(timeout(t, 2*time.Second), 0, 1) // longer than a heartbeat
	m.Link(0, 1).Tap(nil)
	if sent.Load() == 0 || got.Load() != 0 {
		t.Errorf("a removed peer sent %d datagrams and got %d", sent.Load(), got.Load())
	}
}

// TRUST T4 and R8: who repeats from another address what a member has sent,
// also after the receiver has lost all memory, moves no path and gets no data.
func TestReplay(t *testing.T) {
	m := meshtest.Shaped(t, 2)
	var captured [][]byte
	m.Link(0, 1).Tap(func(from int, msg []byte) {
		if from == 0 {
			captured = append(captured, bytes.Clone(msg))
		}
	})
	m.MustTalk(0, 1, within)
	m.Link(0, 1).Tap(nil)
	attacker := stranger(t)
	at := attacker.LocalAddr().(*net.UDPAddr).AddrPort()
	for _, restarted := range []bool{false, true} {
		if restarted {
			m.Stop(1)
			m.Start(1)
		}
		target := netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), m.Nodes[1].Port())
		for range 3 {
			for _, msg := range captured {
				if _, err := attacker.WriteToUDPAddrPort(msg, target); err != nil {
					t.Fatal(err)
				}
			}
			for _, got := range drain(attacker) {
				if got[0] == 4 {
					t.Errorf("restarted %v: %d bytes of data to the attacker", restarted, len(got))
				}
				if len(got) != wire.ProbeSize && len(got) != 92 {
					t.Errorf("restarted %v: answer of %d bytes", restarted, len(got))
				}
			}
			if p := m.Nodes[1].Path(m.Node(0)); p.Addr == at {
				t.Errorf("restarted %v: the path is %v", restarted, p)
			}
		}
		m.MustTalk(1, 0, within)
		m.MustTalk(0, 1, within)
		if p := m.Nodes[1].Path(m.Node(0)); p.Kind != mesh.LAN || p.Addr != m.Addr(1, 0) {
			t.Errorf("restarted %v: in the end the path is %+v", restarted, p)
		}
		for _, got := range drain(attacker) {
			if got[0] == 4 {
				t.Errorf("restarted %v: data to the attacker", restarted)
			}
		}
	}
}
