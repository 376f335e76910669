// Package discovery finds members on the local network and gives names to
// those of the mesh.
//
// # On the local network
//
// [Start] announces this node by multicast DNS (RFC 6762) as an instance of
// the service _balance._udp.local (RFC 6763), asks for others, and reports the
// members that it hears. What it reports is a rumour: an address to try. Who
// is there is decided by the WireGuard handshake alone.
//
// An announcement tells strangers that something here speaks Balance, at which
// addresses and on which UDP port, and no more. Instead of names it carries
// pseudonyms that only the holders of a shared key can compute or recognise,
// and that change every 15 minutes (see alias.go). Pseudonyms of two epochs
// cannot be linked without the key, but what carries them can be: the
// addresses of the host, which its other traffic shows as well, and the UDP
// port, where it is an unusual one. Nothing is ever asked or told about one
// particular member.
//
// The network may be hostile. Packets are sorted out by their bytes and then
// by a budget for each sender before they are parsed; all memory is bounded;
// an address is reported at most once a minute, and only if it is on this
// link or private, so that a forger cannot send members against others on the
// internet. Who can flood or forge on the link can still keep members there
// from finding each other by this means; they have others.
//
// Two things differ from RFC 6762 on purpose. Names are not probed for: they
// hold 64 random bits, and a probe lets any neighbour silence a node by
// claiming its name. Unicast to port 5353 is left to the system's own
// responder, with which the port is shared.
//
// # In the mesh
//
// A [Zone] says what the mesh's own domain, <mesh>.internal, contains: an
// address for each node, the reverse, and each published service for browsing
// by DNS-SD. [Zone.Index] checks it, and [Serve] answers from the index. The
// server has authority for that domain and for the reverse of the overlay's
// prefix, refuses all other names, and never asks anybody else.
package discovery
