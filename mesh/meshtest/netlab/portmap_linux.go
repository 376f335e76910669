package netlab

import (
	"encoding/binary"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"sync"
)

// forwards are the ports that a router forwards for who has asked it to.
type forwards struct {
	network *Network
	conn    *net.UDPConn
	done    chan struct{}

	mu    sync.Mutex
	ports map[uint16]netip.Addr
}

// MapPorts makes a router one that forwards UDP ports to hosts that ask for it
// by NAT-PMP (RFC 6886). It gives the port that is asked for, for as long as the
// lab is there, and knows no other protocol.
func (n *Network) MapPorts() {
	n.lab.t.Helper()
	f := &forwards{network: n, done: make(chan struct{}), ports: map[uint16]netip.Addr{}}
	n.lab.must(n.ns.do(func() (err error) {
		f.conn, err = net.ListenUDP("udp4", &net.UDPAddr{IP: n.prefix.Addr().Next().AsSlice(), Port: 5351})
		return err
	}))
	n.forwards = f
	n.lab.t.Cleanup(func() { _ = f.conn.Close(); <-f.done })
	go f.serve()
}

// Forwarded returns the ports that the router forwards.
func (n *Network) Forwarded() map[uint16]netip.Addr {
	n.forwards.mu.Lock()
	defer n.forwards.mu.Unlock()
	return maps.Clone(n.forwards.ports)
}

func (f *forwards) serve() {
	defer close(f.done)
	b := make([]byte, 64)
	for {
		n, from, err := f.conn.ReadFromUDPAddrPort(b)
		if err != nil {
			return
		}
		if answer := f.answer(b[:n], from.Addr()); answer != nil {
			_, _ = f.conn.WriteToUDPAddrPort(answer, from)
		}
	}
}

func (f *forwards) answer(b []byte, from netip.Addr) []byte {
	const epoch, unsupported = "\x00\x00\x00\x01", 1
	switch {
	case len(b) < 2:
		return nil
	case b[0] != 0:
		return append([]byte{0, b[1] | 0x80, 0, unsupported}, epoch...)
	case b[1] == 0:
		ip := f.network.public.As4()
		return append(append([]byte{0, 0x80, 0, 0}, epoch...), ip[:]...)
	case b[1] != 1 || len(b) != 12:
		return nil
	}
	port, life := binary.BigEndian.Uint16(b[4:]), binary.BigEndian.Uint32(b[8:])
	f.forward(port, from, life > 0)
	out := append([]byte{0, 0x81, 0, 0}, epoch...)
	out = binary.BigEndian.AppendUint16(out, port)
	out = binary.BigEndian.AppendUint16(out, port)
	return binary.BigEndian.AppendUint32(out, life)
}

func (f *forwards) forward(port uint16, to netip.Addr, on bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	_, was := f.ports[port]
	change := "add"
	switch {
	case was == on:
		return
	case on:
		f.ports[port] = to
	default:
		change = "delete"
		delete(f.ports, port)
	}
	if err := f.network.ns.nft(fmt.Sprintf("%s element ip nat inside { %d : %s }", change, port, to)); err != nil {
		f.network.lab.t.Error(err)
	}
}
