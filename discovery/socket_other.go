//go:build !unix

package discovery

import (
	"net"
	"net/netip"
)

// joinGroup opens a socket for multicast DNS on one interface.
func joinGroup(ifi *net.Interface, v6 bool) (*net.UDPConn, netip.AddrPort, error) {
	network, group := "udp4", netip.AddrPortFrom(group4, mdnsPort)
	if v6 {
		network, group = "udp6", netip.AddrPortFrom(group6.WithZone(ifi.Name), mdnsPort)
	}
	conn, err := net.ListenMulticastUDP(network, ifi, net.UDPAddrFromAddrPort(group))
	return conn, group, err
}
