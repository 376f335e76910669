package mesh

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"syscall"

	"golang.org/x/net/ipv4"
	"golang.org/x/net/ipv6"
)

const (
	socketBuffer = 4 << 20 // bytes that the kernel may keep for us while we are busy
	portTries    = 16      // ports to try until one is free for IPv4 and IPv6
)

// socket is one UDP socket, of IPv4 or IPv6.
type socket struct {
	*net.UDPConn
	batch batcher
}

// batcher moves several datagrams in one system call where the system can.
// Messages of IPv4 and IPv6 have one type.
type batcher interface {
	ReadBatch(msgs []ipv6.Message, flags int) (int, error)
	WriteBatch(msgs []ipv6.Message, flags int) (int, error)
}

// openSockets opens the UDP port. Without an address it is that of all
// addresses of the host: one socket for IPv4 and, where the host has it, one
// for IPv6, on one port.
func openSockets(at netip.AddrPort) (v4, v6 *socket, err error) {
	if at.Addr().IsValid() && !at.Addr().IsUnspecified() {
		if at = netip.AddrPortFrom(at.Addr().Unmap(), at.Port()); at.Addr().Is4() {
			v4, err = openSocket("udp4", at)
		} else {
			v6, err = openSocket("udp6", at)
		}
		return v4, v6, err
	}
	for range portTries {
		v4, err = openSocket("udp4", netip.AddrPortFrom(netip.IPv4Unspecified(), at.Port()))
		if err != nil {
			return nil, nil, err
		}
		v6, err = openSocket("udp6", netip.AddrPortFrom(netip.IPv6Unspecified(), v4.port()))
		switch {
		case err == nil, errors.Is(err, syscall.EAFNOSUPPORT), errors.Is(err, syscall.EADDRNOTAVAIL):
			return v4, v6, nil
		}
		_ = v4.Close()
		if at.Port() != 0 {
			break
		}
	}
	return nil, nil, err
}

func openSocket(network string, at netip.AddrPort) (*socket, error) {
	c, err := net.ListenUDP(network, net.UDPAddrFromAddrPort(at))
	if err != nil {
		return nil, fmt.Errorf("open UDP port: %w", err)
	}
	// A host that grants less is slower under load, no more.
	_ = c.SetReadBuffer(socketBuffer)
	_ = c.SetWriteBuffer(socketBuffer)
	if at.Addr().Is4() {
		return &socket{c, ipv4.NewPacketConn(c)}, nil
	}
	return &socket{c, ipv6.NewPacketConn(c)}, nil
}

func (s *socket) port() uint16 { return uint16(s.LocalAddr().(*net.UDPAddr).Port) }

// send sends datagrams to one address, each with head in front.
func (s *socket) send(head []byte, bufs [][]byte, to netip.AddrPort) error {
	if len(bufs) == 1 && head == nil {
		_, err := s.WriteToUDPAddrPort(bufs[0], to)
		return err
	}
	addr := net.UDPAddrFromAddrPort(to)
	msgs := make([]ipv6.Message, len(bufs))
	for i := range bufs {
		msgs[i] = ipv6.Message{Buffers: bufs[i : i+1], Addr: addr}
		if head != nil {
			msgs[i].Buffers = [][]byte{head, bufs[i]}
		}
	}
	for len(msgs) > 0 {
		n, err := s.batch.WriteBatch(msgs, 0)
		if err != nil {
			return err
		}
		msgs = msgs[n:]
	}
	return nil
}
