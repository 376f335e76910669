package netstack

import (
	"encoding/binary"
	"net/netip"

	"gvisor.dev/gvisor/pkg/tcpip/checksum"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
)

// Offsets in bytes from the start of a packet whose first header after IPv6's
// is TCP's (RFC 8200, RFC 9293).
const (
	ipLength  = 4 // of what follows IPv6's header
	ipSrc     = 8
	ipDst     = 24
	tcpStart  = header.IPv6MinimumSize
	tcpSeq    = tcpStart + header.TCPSeqNumOffset
	tcpFlags  = tcpStart + header.TCPFlagsOffset
	tcpSum    = tcpStart + header.TCPChecksumOffset
	tcpFinish = tcpStart + header.TCPMinimumSize // without options
)

// outgoing is a packet from the stack on its way to WireGuard. One of TCP may
// be larger than a packet can be: the stack leaves it to the interface to make
// segments of it, and to compute their checksums.
type outgoing struct {
	packet *stack.PacketBuffer // nil: none
	parts  [][]byte            // what has not been taken
	head   []byte              // of every segment; nil: the packet is whole
	seq    uint32              // of the next segment
	left   int                 // bytes of payload that have not been taken
	size   int                 // most bytes of payload in a segment
}

// begin takes a packet, which it will release, and cuts it as fits.
func (o *outgoing) begin(p *stack.PacketBuffer, fits func(netip.Addr) int) {
	*o = outgoing{packet: p, parts: p.AsSlices()}
	if p.GSOOptions.Type != stack.GSOTCPv6 {
		return
	}
	o.left = p.Data().Size()
	o.size = int(p.GSOOptions.MSS)
	if o.size == 0 {
		o.size = o.left
	}
	o.head = make([]byte, p.Size()-o.left)
	o.copy(o.head)
	if fits != nil {
		o.size = max(o.size, fits(netip.AddrFrom16([16]byte(o.head[ipDst:])))-len(o.head))
	}
	o.seq = binary.BigEndian.Uint32(o.head[tcpSeq:])
}

// next writes the next packet to buf and returns its size. Once the last one is
// written, the packet is released.
func (o *outgoing) next(buf []byte) int {
	if o.head == nil {
		n := o.copy(buf)
		o.release()
		return n
	}
	payload := min(o.left, o.size)
	o.left -= payload
	n := copy(buf, o.head)
	n += o.copy(buf[n : n+payload])
	buf = buf[:n]
	binary.BigEndian.PutUint16(buf[ipLength:], uint16(n-tcpStart))
	binary.BigEndian.PutUint32(buf[tcpSeq:], o.seq)
	o.seq += uint32(payload)
	if o.left > 0 {
		buf[tcpFlags] &^= uint8(header.TCPFlagFin | header.TCPFlagPsh)
	}
	putChecksum(buf)
	if o.left == 0 {
		o.release()
	}
	return n
}

// copy moves bytes of the packet to buf until one of the two ends.
func (o *outgoing) copy(buf []byte) (n int) {
	for len(o.parts) > 0 && n < len(buf) {
		c := copy(buf[n:], o.parts[0])
		n += c
		if o.parts[0] = o.parts[0][c:]; len(o.parts[0]) == 0 {
			o.parts = o.parts[1:]
		}
	}
	return n
}

func (o *outgoing) release() {
	if o.packet != nil {
		o.packet.DecRef()
	}
	*o = outgoing{}
}

// putChecksum computes the checksum of a TCP packet: of the addresses, the
// length, the protocol's number, and all that follows IPv6's header.
func putChecksum(packet []byte) {
	packet[tcpSum], packet[tcpSum+1] = 0, 0
	sum := checksum.Combine(uint16(len(packet)-tcpStart), uint16(TCP))
	sum = checksum.Checksum(packet[ipSrc:], sum)
	binary.BigEndian.PutUint16(packet[tcpSum:], ^sum)
}
