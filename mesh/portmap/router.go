//go:build linux || darwin || freebsd || netbsd || openbsd

package portmap

import (
	"net"
	"net/netip"
)

// routerAt returns the router at an address, with the address of this host from
// which it is asked. No packet is sent for that.
func routerAt(gw netip.Addr) (Router, error) {
	c, err := net.DialUDP("udp4", nil, net.UDPAddrFromAddrPort(netip.AddrPortFrom(gw, pcpPort)))
	if err != nil {
		return Router{}, err
	}
	defer func() { _ = c.Close() }()
	return Router{gw, addrPort(c.LocalAddr()).Addr()}, nil
}
