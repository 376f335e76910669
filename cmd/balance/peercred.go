package main

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
)

// ownUser lets in nobody but the user who runs this process, and root: the
// second wall behind a Unix socket's mode, and the only one before a port of
// loopback. Where the system does not tell whose a TCP connection is, every user
// of the host comes in.
type ownUser struct {
	net.Listener
	log *slog.Logger
}

func (o ownUser) Accept() (net.Conn, error) {
	for {
		c, err := o.Listener.Accept()
		if err != nil {
			return nil, err
		}
		uid, err := userOf(c)
		if err == nil && (uid == os.Getuid() || uid == 0) || errors.Is(err, errUntold) {
			return c, nil
		}
		o.log.Warn("another user of this host was turned away", "at", o.Addr(), "uid", uid, "error", err)
		c.Close()
	}
}

var errUntold = errors.New("this system does not tell whose a TCP connection is")

// userOf returns the user at the other end of a connection within this host.
func userOf(c net.Conn) (uid int, err error) {
	switch c := c.(type) {
	case *net.UnixConn:
		return peerUID(c)
	case *net.TCPConn:
		return tcpUID(addrPort(c.RemoteAddr()), addrPort(c.LocalAddr()))
	}
	return 0, fmt.Errorf("a connection of the kind %T", c)
}

func addrPort(a net.Addr) netip.AddrPort {
	ap := a.(*net.TCPAddr).AddrPort()
	return netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port())
}

// peerUID returns the user at the other end of a Unix socket.
func peerUID(c *net.UnixConn) (uid int, err error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return 0, err
	}
	var failed error
	err = raw.Control(func(fd uintptr) { uid, failed = socketUID(int(fd)) })
	return uid, errors.Join(err, failed)
}
