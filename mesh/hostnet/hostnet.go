// Package hostnet lets every program of the host use the mesh: it makes an
// interface of the kernel's (TUN) with the node's address and a route to the
// mesh, and joins it to the node's own stack, which stays.
//
// The two stacks share one address. A packet from the mesh goes to the node's
// stack if that has a socket for it, and else to the kernel. So the node
// listens where it always does, whatever programs of the host listen on, and
// needs no right to open low ports.
//
// What the filter promises:
//   - The mesh does not open the host. From members come answers to what
//     programs of the host began, echo requests, errors, and what is for ports
//     that the owner has named. What else the host listens on stays as far away
//     as without the interface.
//   - Programs of the host do not speak for the node. What the members' nodes say
//     to each other goes over private ports, which the interface does not reach.
//   - Fragments and extension headers do not pass, in either direction.
//
// Nothing is left behind: interface, address and route vanish with the process,
// however it ends.
package hostnet

import (
	"errors"
	"log/slog"
	"net/netip"

	"golang.zx2c4.com/wireguard/tun"
)

// ErrUnavailable means that this host cannot have the interface, or the node may
// not make it. The text says why and what to do.
var ErrUnavailable = errors.New("no interface for programs of this host")

// Config says what the interface is.
type Config struct {
	Addr   netip.Addr   // the node's, in the overlay
	Prefix netip.Prefix // the mesh
	MTU    int          // bytes
	Log    *slog.Logger

	Node tun.Device // the node's own stack; closed with the device
	// Owns reports whether the node's stack has a socket for a flow of TCP (6)
	// or UDP (17). It must not block.
	Owns func(proto uint8, local, remote netip.AddrPort) bool
	// Joiner reports whether an address is that of somebody who is to become a
	// member, and so is the business of the node alone.
	Joiner func(netip.Addr) bool
	// Private are the ports at which members take whoever calls for the node
	// itself.
	Private []uint16
	// Open are the host's ports of TCP and UDP that every member reaches.
	Open []uint16
}
