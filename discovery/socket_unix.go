//go:build unix

package discovery

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"syscall"

	"golang.org/x/net/ipv4"
	"golang.org/x/net/ipv6"
	"golang.org/x/sys/unix"
)

// joinGroup opens a socket for multicast DNS on one interface. It is bound to
// the address of the group, and so shares the port with the system's own
// responder without taking the unicast that is meant for that. The standard
// library binds such sockets to all addresses instead.
func joinGroup(ifi *net.Interface, v6 bool) (*net.UDPConn, netip.AddrPort, error) {
	family, group := unix.AF_INET, netip.AddrPortFrom(group4, mdnsPort)
	var sa unix.Sockaddr = &unix.SockaddrInet4{Port: mdnsPort, Addr: group4.As4()}
	if v6 {
		family, group = unix.AF_INET6, netip.AddrPortFrom(group6.WithZone(ifi.Name), mdnsPort)
		sa = &unix.SockaddrInet6{Port: mdnsPort, Addr: group6.As16(), ZoneId: uint32(ifi.Index)}
	}
	conn, err := bindShared(family, sa)
	if err != nil {
		return nil, group, fmt.Errorf("bind %v: %w", group, err)
	}
	if v6 {
		err = configure6(ipv6.NewPacketConn(conn), ifi)
	} else {
		err = configure4(ipv4.NewPacketConn(conn), ifi)
	}
	if err != nil {
		_ = conn.Close()
		return nil, group, fmt.Errorf("join %v on %s: %w", group, ifi.Name, err)
	}
	return conn, group, nil
}

func bindShared(family int, sa unix.Sockaddr) (*net.UDPConn, error) {
	syscall.ForkLock.RLock() // a child must not inherit the socket
	fd, err := unix.Socket(family, unix.SOCK_DGRAM, 0)
	if err == nil {
		unix.CloseOnExec(fd)
	}
	syscall.ForkLock.RUnlock()
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(fd), "mdns")
	defer f.Close() // FilePacketConn makes its own copy
	err = errors.Join(
		unix.SetNonblock(fd, true),
		unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1),
		unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEPORT, 1),
		ownGroupsOnly(fd, family),
		unix.Bind(fd, sa),
	)
	if err != nil {
		return nil, err
	}
	conn, err := net.FilePacketConn(f)
	if err != nil {
		return nil, err
	}
	return conn.(*net.UDPConn), nil
}

// Other nodes on this host hear us only through the loop of multicast. A time
// to live of 255 is what RFC 6762 section 11 wants.

func configure4(c *ipv4.PacketConn, ifi *net.Interface) error {
	return errors.Join(
		c.JoinGroup(ifi, &net.UDPAddr{IP: group4.AsSlice()}),
		c.SetMulticastInterface(ifi),
		c.SetMulticastLoopback(true),
		c.SetMulticastTTL(255),
	)
}

func configure6(c *ipv6.PacketConn, ifi *net.Interface) error {
	return errors.Join(
		c.JoinGroup(ifi, &net.UDPAddr{IP: group6.AsSlice()}),
		c.SetMulticastInterface(ifi),
		c.SetMulticastLoopback(true),
		c.SetMulticastHopLimit(255),
	)
}
