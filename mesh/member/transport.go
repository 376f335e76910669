package member

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"time"

	"github.com/hashicorp/memberlist"

	"github.com/balanceai/balance/mesh/identity"
)

// maxPacket is the largest packet that can arrive through the overlay.
const maxPacket = 1280

// transport carries memberlist's packets and streams over the mesh.
type transport struct {
	cfg  Config
	port uint16

	packets chan *memberlist.Packet
	streams chan net.Conn
	run     sync.WaitGroup
	once    sync.Once
	done    chan struct{} // no more dialling
}

func newTransport(cfg Config) *transport {
	t := &transport{
		cfg:     cfg,
		port:    uint16(cfg.Packets.LocalAddr().(*net.UDPAddr).Port),
		packets: make(chan *memberlist.Packet),
		streams: make(chan net.Conn),
		done:    make(chan struct{}),
	}
	t.run.Go(t.readPackets)
	t.run.Go(t.acceptStreams)
	return t
}

func (t *transport) readPackets() {
	buf := make([]byte, maxPacket)
	for {
		n, from, err := t.cfg.Packets.ReadFrom(buf)
		if err != nil {
			return
		}
		select {
		case t.packets <- &memberlist.Packet{Buf: bytes.Clone(buf[:n]), From: from, Timestamp: time.Now()}:
		case <-t.done:
		}
	}
}

func (t *transport) acceptStreams() {
	for {
		c, err := t.cfg.Listener.Accept()
		if err != nil {
			return
		}
		select {
		case t.streams <- c:
		case <-t.done:
			c.Close()
		}
	}
}

// FinalAdvertiseAddr returns the node's own address.
func (t *transport) FinalAdvertiseAddr(string, int) (net.IP, int, error) {
	return t.cfg.Mesh.Address(t.cfg.Self).AsSlice(), int(t.port), nil
}

// WriteToAddress sends a packet to a node, named by its identity. The address
// that a message claims for it does not count.
func (t *transport) WriteToAddress(b []byte, to memberlist.Address) (time.Time, error) {
	id, err := identity.ParseID(to.Name)
	if err != nil {
		return time.Time{}, err
	}
	addr := net.UDPAddrFromAddrPort(netip.AddrPortFrom(t.cfg.Mesh.Address(id), t.port))
	_, err = t.cfg.Packets.WriteTo(b, addr)
	return time.Now(), err
}

// DialAddressTimeout opens a stream to a node, named by its identity.
func (t *transport) DialAddressTimeout(to memberlist.Address, timeout time.Duration) (net.Conn, error) {
	id, err := identity.ParseID(to.Name)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	go func() {
		select {
		case <-t.done:
			cancel()
		case <-ctx.Done():
		}
	}()
	return t.cfg.Dial(ctx, id)
}

// WriteTo and DialTimeout belong to the interface; nodes are always named.

func (t *transport) WriteTo(_ []byte, addr string) (time.Time, error) {
	return time.Time{}, fmt.Errorf("send to %s: no name", addr)
}

func (t *transport) DialTimeout(addr string, _ time.Duration) (net.Conn, error) {
	return nil, fmt.Errorf("dial %s: no name", addr)
}

func (t *transport) PacketCh() <-chan *memberlist.Packet { return t.packets }
func (t *transport) StreamCh() <-chan net.Conn           { return t.streams }

// hangUp ends calls that are under way, and refuses new ones.
func (t *transport) hangUp() { t.once.Do(func() { close(t.done) }) }

// Shutdown ends everything.
func (t *transport) Shutdown() error {
	t.hangUp()
	t.cfg.Listener.Close()
	t.cfg.Packets.Close()
	t.run.Wait()
	return nil
}
