package netstack

import (
	"bytes"
	"encoding/binary"
	"math"

	"gvisor.dev/gvisor/pkg/buffer"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
)

// lookBack is how many runs are searched for one that a packet continues.
const lookBack = 16

// run is packets that become one: segments of one TCP connection, each
// continuing the one before, with equal headers but for the sequence number,
// the push flag and the checksum. Everything else is a run of one.
type run struct {
	packets [][]byte
	head    int    // bytes of the headers; 0: nothing continues the run
	size    int    // bytes of the headers once and all payloads
	next    uint32 // sequence number that continues the run
}

// coalescer makes few large packets of the many that arrive at once, as waking
// the stack up costs more than a packet. Packets of one connection stay in
// order.
type coalescer struct {
	runs []run
	used int // runs in use; the others are kept for their memory
}

// add takes a packet that lies still until flush.
func (c *coalescer) add(packet []byte) {
	head, payload := segment(packet)
	if head > 0 {
		for i := c.used - 1; i >= max(0, c.used-lookBack); i-- {
			r := &c.runs[i]
			if !sameConnection(r.packets[0], packet) {
				continue
			}
			if r.continues(packet, head, payload) {
				r.packets = append(r.packets, packet)
				r.size += payload
				r.next += uint32(payload)
				if packet[tcpFlags]&uint8(header.TCPFlagPsh) != 0 {
					r.head = 0 // the sender wants it delivered
				}
				return
			}
			break
		}
	}
	if c.used == len(c.runs) {
		c.runs = append(c.runs, run{})
	}
	r := &c.runs[c.used]
	c.used++
	*r = run{packets: append(r.packets[:0], packet), size: len(packet)}
	if payload > 0 && packet[tcpFlags] == uint8(header.TCPFlagAck) {
		r.head = head
		r.next = binary.BigEndian.Uint32(packet[tcpSeq:]) + uint32(payload)
	}
}

// segment returns the sizes of a TCP packet's headers and payload. The first is
// 0 for other packets and those that contradict themselves.
func segment(packet []byte) (head, payload int) {
	if len(packet) < tcpFinish || packet[6] != TCP ||
		int(binary.BigEndian.Uint16(packet[ipLength:])) != len(packet)-tcpStart {
		return 0, 0
	}
	head = tcpStart + int(header.TCP(packet[tcpStart:]).DataOffset())
	if head < tcpFinish || head > len(packet) {
		return 0, 0
	}
	return head, len(packet) - head
}

// sameConnection compares the addresses and ports of a TCP packet with those of
// another packet.
func sameConnection(other, packet []byte) bool {
	return len(other) >= tcpFinish && other[6] == TCP && bytes.Equal(other[ipSrc:tcpSeq], packet[ipSrc:tcpSeq])
}

// continues reports whether a TCP packet of the run's connection can be made
// one with it.
func (r *run) continues(packet []byte, head, payload int) bool {
	first := r.packets[0]
	return head == r.head && payload > 0 && r.size+payload <= tcpStart+math.MaxUint16 &&
		binary.BigEndian.Uint32(packet[tcpSeq:]) == r.next &&
		packet[tcpFlags]&^uint8(header.TCPFlagPsh) == first[tcpFlags] &&
		bytes.Equal(packet[:ipLength], first[:ipLength]) && packet[7] == first[7] && // class, flow, hop limit
		bytes.Equal(packet[tcpSeq+4:tcpFlags], first[tcpSeq+4:tcpFlags]) && // acknowledgement, offset
		bytes.Equal(packet[tcpFlags+1:tcpSum], first[tcpFlags+1:tcpSum]) && // window
		bytes.Equal(packet[tcpSum+2:head], first[tcpSum+2:head]) // urgent pointer, options
}

// flush gives the runs to deliver, a packet each, and forgets them.
func (c *coalescer) flush(deliver func(*stack.PacketBuffer)) {
	for i := range c.runs[:c.used] {
		r := &c.runs[i]
		p := stack.NewPacketBuffer(stack.PacketBufferOptions{Payload: r.merge()})
		deliver(p)
		p.DecRef()
		clear(r.packets) // they are the caller's again
	}
	c.used = 0
}

// merge copies the run to one packet. Its checksum is not one: the stack does
// not look at it. Headers and payload are apart, as the stack copies what it
// looks at once more.
func (r *run) merge() buffer.Buffer {
	first := r.packets[0]
	head, payload := segment(first)
	if payload == 0 {
		return buffer.MakeWithData(first)
	}
	h := buffer.NewViewWithData(first[:head])
	b := h.AsSlice()
	binary.BigEndian.PutUint16(b[ipLength:], uint16(r.size-tcpStart))
	b[tcpFlags] = r.packets[len(r.packets)-1][tcpFlags]
	v := buffer.NewViewSize(r.size - head)
	b = v.AsSlice()
	for _, p := range r.packets {
		b = b[copy(b, p[head:]):]
	}
	whole := buffer.MakeWithView(h)
	_ = whole.Append(v) // fails for a view that is in use
	return whole
}
