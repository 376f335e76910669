package mesh_test

import (
	"errors"
	"io"
	"net"
	"testing"
	"time"

	"github.com/balanceai/balance/mesh"
	"github.com/balanceai/balance/mesh/meshtest"
)

// carry sends so much to the echo port and takes it back.
func carry(c net.Conn, size int64) error {
	_ = c.SetDeadline(time.Now().Add(within))
	sent := make(chan error, 1)
	go func() {
		_, err := c.Write(make([]byte, size))
		sent <- err
	}()
	_, err := io.CopyN(io.Discard, c, size)
	return errors.Join(err, <-sent)
}

// A path is used with packets as large as it carries, and with small ones
// again when it carries the large ones no more.
func TestPathMTU(t *testing.T) {
	m := meshtest.Shaped(t, 2)
	largest := 0
	m.Link(0, 1).Tap(func(_ int, msg []byte) { largest = max(largest, len(msg)) })
	c, err := m.Nodes[0].Dial(timeout(t, within), m.Node(1), meshtest.EchoPort)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	path := func() mesh.Path { return m.Nodes[0].Path(m.Node(1)) }
	if got := path().MTU; got != 1280 {
		t.Errorf("at first the MTU is %d", got)
	}
	busy := func(mtu int) {
		t.Helper()
		meshtest.Eventually(t, within, "the MTU is found", func() bool {
			if err := carry(c, 10<<10); err != nil {
				t.Fatal(err)
			}
			return path().MTU == mtu
		})
		if err := carry(c, 4<<20); err != nil {
			t.Fatal(err)
		}
	}
	busy(8920)
	m.Link(0, 1).Narrow(1500)
	busy(1420)
	m.Link(0, 1).Narrow(1400)
	busy(1280)
	m.Link(0, 1).Tap(nil)
	if largest < 8920 {
		t.Errorf("the largest datagram had %d bytes", largest)
	}
}
