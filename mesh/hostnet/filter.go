package hostnet

import (
	"encoding/binary"
	"net/netip"
	"slices"
	"time"
)

// Protocol numbers of IPv6's next header.
const (
	protoTCP    = 6
	protoUDP    = 17
	protoICMPv6 = 58
)

// Flags of TCP, RFC 9293 section 3.1.
const (
	flagRST = 0x04
	flagACK = 0x10
)

// Types of ICMPv6, RFC 4443. Those up to lastError quote the packet that they
// are about.
const (
	firstError  = 1
	lastError   = 4
	echoRequest = 128
	echoReply   = 129
)

const ipv6HeaderLen = 40 // bytes

// packet is what the filter sees of an IPv6 packet beside its addresses.
type packet struct {
	proto uint8
	flags uint8  // of TCP
	icmp  uint8  // type
	about []byte // as much of a packet as an error of ICMPv6 quotes
}

// parse reads the headers of an IPv6 packet of TCP, UDP or ICMPv6. It is false
// for everything else: fragments, extension headers, what is cut short.
func parse(b []byte) (p packet, ok bool) {
	if len(b) < ipv6HeaderLen || b[0]>>4 != 6 {
		return p, false
	}
	end := ipv6HeaderLen + int(binary.BigEndian.Uint16(b[4:]))
	if end > len(b) {
		return p, false
	}
	p.proto = b[6]
	payload := b[ipv6HeaderLen:end]
	switch p.proto {
	case protoTCP:
		if len(payload) < 20 {
			return p, false
		}
		if header := int(payload[12]>>4) * 4; header < 20 || header > len(payload) {
			return p, false
		}
		p.flags = payload[13]
	case protoUDP:
		if len(payload) < 8 {
			return p, false
		}
	case protoICMPv6:
		if len(payload) < 8 {
			return p, false
		}
		p.icmp = payload[0]
		if p.icmp >= firstError && p.icmp <= lastError {
			p.about = payload[8:]
		}
	default:
		return p, false
	}
	return p, true
}

// addrs returns the addresses of an IPv6 packet.
func addrs(b []byte) (src, dst netip.Addr) {
	return netip.AddrFrom16([16]byte(b[8:24])), netip.AddrFrom16([16]byte(b[24:40]))
}

// ends returns the addresses and ports of a packet of TCP or UDP.
func ends(b []byte) (src, dst netip.AddrPort) {
	from, to := addrs(b)
	return netip.AddrPortFrom(from, binary.BigEndian.Uint16(b[ipv6HeaderLen:])), netip.AddrPortFrom(to, binary.BigEndian.Uint16(b[ipv6HeaderLen+2:]))
}

// verdict says where a packet goes.
type verdict uint8

const (
	drop   verdict = iota
	toNode         // to the node's own stack
	toHost         // to the kernel's
)

// filter decides about packets between the mesh, the node's own stack and the
// host. It asks no clock and does no I/O. Its methods are safe for concurrent
// use.
type filter struct {
	self    netip.Addr   // the address that the node and the host share
	prefix  netip.Prefix // the mesh
	private []uint16     // see Config, as open
	open    []uint16
	joiner  func(netip.Addr) bool
	owns    func(proto uint8, local, remote netip.AddrPort) bool
	flows   flows // of UDP that programs of the host began
}

// memo is what was decided about the flow of TCP or UDP of the packet before:
// packets that travel together are mostly of one. The zero memo is empty. One
// memo is for one moment and one direction.
type memo struct {
	flow  [16 + 16 + 4]byte // source, destination and both ports
	proto uint8
	node  bool // it is the node's
	pass  bool // the rest of it passes, whatever its packets say
}

// is reports whether the memo is about the flow of a packet.
func (m *memo) is(proto uint8, b []byte) bool {
	return m.proto == proto && m.flow == [len(m.flow)]byte(b[8:])
}

// in decides about a packet from the mesh, whose source WireGuard has
// authenticated. The host gets what belongs to conversations that its programs
// began, and what is for open ports.
func (f *filter) in(b []byte, now time.Time, m *memo) verdict {
	p, ok := parse(b)
	if !ok {
		return drop
	}
	if p.proto == protoICMPv6 {
		return f.icmp(b, p)
	}
	if !m.is(p.proto, b) {
		src, dst := ends(b)
		*m = memo{flow: [len(m.flow)]byte(b[8:]), proto: p.proto}
		m.node = f.nodeOnly(src.Addr(), dst.Addr()) || f.owns(p.proto, dst, src)
		m.pass = slices.Contains(f.open, dst.Port()) || p.proto == protoUDP && f.flows.has(flow{dst.Port(), src}, now)
	}
	switch {
	case m.node:
		return toNode
	// A TCP segment with neither flag begins something, or probes for ports.
	case m.pass, p.proto == protoTCP && p.flags&(flagACK|flagRST) != 0:
		return toHost
	}
	return drop
}

// nodeOnly reports whether packets from src to dst are no business of the
// host's, as the filter of the door decides about them.
func (f *filter) nodeOnly(src, dst netip.Addr) bool { return dst != f.self || f.joiner(src) }

func (f *filter) icmp(b []byte, p packet) verdict {
	switch src, dst := addrs(b); {
	case f.nodeOnly(src, dst):
		return toNode
	case p.icmp == echoRequest, p.icmp == echoReply:
		return toHost
	case p.about != nil:
		return f.concerns(p.about)
	}
	return drop
}

// concerns tells whose packet an error of ICMPv6 quotes.
func (f *filter) concerns(quoted []byte) verdict {
	if len(quoted) < ipv6HeaderLen+4 || quoted[0]>>4 != 6 {
		return drop
	}
	src, dst := ends(quoted) // of another protocol: the ports are of no use
	switch proto := quoted[6]; {
	case src.Addr() != f.self:
		return drop
	case (proto == protoTCP || proto == protoUDP) && f.owns(proto, src, dst):
		return toNode
	}
	return toHost
}

// out reports whether a packet of the host may go to the mesh, and remembers
// flows of UDP, so that answers come in.
func (f *filter) out(b []byte, now time.Time, m *memo) bool {
	p, ok := parse(b)
	switch {
	case !ok:
		return false
	case p.proto == protoICMPv6:
		src, dst := addrs(b)
		return f.leads(src, dst) && (p.icmp == echoRequest || p.icmp == echoReply || p.about != nil)
	case m.is(p.proto, b):
		return m.pass
	}
	src, dst := ends(b)
	*m = memo{flow: [len(m.flow)]byte(b[8:]), proto: p.proto}
	m.pass = f.leads(src.Addr(), dst.Addr()) && !slices.Contains(f.private, dst.Port()) && !f.owns(p.proto, src, dst)
	if m.pass && p.proto == protoUDP {
		f.flows.add(flow{src.Port(), dst}, now)
	}
	return m.pass
}

// leads reports whether addresses of the host's packet are those of the host and
// of somebody else in the mesh.
func (f *filter) leads(src, dst netip.Addr) bool {
	return src == f.self && dst != f.self && f.prefix.Contains(dst)
}
