package netstack

import (
	"bytes"
	"encoding/binary"
	"io"
	"math/rand/v2"
	"net/netip"
	"sync"
	"testing"
	"time"

	"gvisor.dev/gvisor/pkg/buffer"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/checksum"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"pgregory.net/rapid"
)

const (
	ack  = uint8(header.TCPFlagAck)
	push = uint8(header.TCPFlagPsh)
	fin  = uint8(header.TCPFlagFin)
)

// segmentOf is a TCP packet from addrA to addrB, without a checksum.
type segmentOf struct {
	from, to uint16 // ports
	seq, ack uint32
	flags    uint8
	window   uint16
	stamp    uint8 // in the options
	options  int   // bytes, in fours
	data     []byte
	class    uint8 // of traffic
	hops     uint8 // already made
}

func (s segmentOf) packet() []byte {
	head := header.TCPMinimumSize + s.options
	b := make([]byte, tcpStart+head, tcpStart+head+len(s.data))
	header.IPv6(b).Encode(&header.IPv6Fields{
		PayloadLength: uint16(head + len(s.data)), TransportProtocol: header.TCPProtocolNumber, HopLimit: 64 - s.hops, TrafficClass: s.class,
		SrcAddr: tcpip.AddrFrom16(addrA.As16()), DstAddr: tcpip.AddrFrom16(addrB.As16()),
	})
	tcp := header.TCP(b[tcpStart:])
	tcp.Encode(&header.TCPFields{
		SrcPort: s.from, DstPort: s.to, SeqNum: s.seq, AckNum: s.ack, DataOffset: uint8(head),
		Flags: header.TCPFlags(s.flags), WindowSize: s.window,
	})
	for i := range s.options {
		b[tcpFinish+i] = s.stamp
	}
	return append(b, s.data...)
}

func letters(n int, seed uint32) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(uint32(i)*7 + seed)
	}
	return b
}

// A large packet of the stack leaves as segments that the other end puts
// together to the same, whatever WireGuard reads at a time.
func TestSegments(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		d := newDevice(Config{MTU: mtu})
		size := rapid.IntRange(1, mtu-tcpFinish-12).Draw(t, "segment")
		payload := letters(rapid.IntRange(0, 60_000).Draw(t, "payload"), 3)
		large := segmentOf{
			from: 1, to: 2, seq: rapid.Uint32().Draw(t, "seq"), ack: 99, window: 500, options: 12, stamp: 8,
			flags: ack | rapid.SampledFrom([]uint8{0, push, fin, push | fin}).Draw(t, "flags"),
		}
		p := stack.NewPacketBuffer(stack.PacketBufferOptions{ReserveHeaderBytes: 100, Payload: buffer.MakeWithData(payload)})
		head := large.packet()
		copy(p.TransportHeader().Push(len(head)-tcpStart), head[tcpStart:])
		copy(p.NetworkHeader().Push(tcpStart), head[:tcpStart])
		p.GSOOptions = stack.GSO{Type: stack.GSOTCPv6, MSS: uint16(size), NeedsCsum: true}
		d.link.out <- p

		const offset = 16
		var got []byte
		for seq := large.seq; ; {
			bufs := make([][]byte, rapid.IntRange(1, 8).Draw(t, "batch"))
			for i := range bufs {
				bufs[i] = make([]byte, offset+mtu)
			}
			sizes := make([]int, len(bufs))
			n, err := d.Read(bufs, sizes, offset)
			if err != nil {
				t.Fatal(err)
			}
			for i := range n {
				b := bufs[i][offset : offset+sizes[i]]
				head, payloadSize := segment(b)
				if head == 0 || payloadSize > size {
					t.Fatalf("segment of %d bytes, %d of them headers, of a size of %d", len(b), head, size)
				}
				want := large
				want.seq, want.data = seq, b[head:]
				seq += uint32(payloadSize)
				got = append(got, b[head:]...)
				if len(got) < len(payload) {
					want.flags &^= push | fin
				}
				if !header.TCP(b[tcpStart:]).IsChecksumValid(header.IPv6(b).SourceAddress(), header.IPv6(b).DestinationAddress(),
					checksum.Checksum(b[head:], 0), uint16(payloadSize)) {
					t.Fatal("wrong checksum")
				}
				b[tcpSum], b[tcpSum+1] = 0, 0
				if !bytes.Equal(b, want.packet()) {
					t.Fatalf("segment %x\nwant %x", b, want.packet())
				}
			}
			if len(got) >= len(payload) {
				break
			}
		}
		if !bytes.Equal(got, payload) || d.out.packet != nil {
			t.Fatalf("%d bytes came of %d; something is left: %v", len(got), len(payload), d.out.packet != nil)
		}
	})
}

// coalesce gives what becomes of packets.
func coalesce(packets [][]byte) (out [][]byte) {
	var c coalescer
	for range 2 { // its memory serves again
		out = nil
		for _, p := range packets {
			c.add(p)
		}
		c.flush(func(p *stack.PacketBuffer) {
			v := p.ToView()
			out = append(out, bytes.Clone(v.AsSlice()))
			v.Release()
		})
	}
	return out
}

// undo takes coalesced packets apart with the help of those that went in: in
// the order of its connection each must be a row of them.
func undo(t interface{ Fatalf(string, ...any) }, in, out [][]byte) {
	queues := map[string][][]byte{}
	key := func(p []byte) string {
		if head, _ := segment(p); head > 0 {
			return string(p[ipSrc:tcpSeq])
		}
		return "" // all others keep their order too
	}
	for _, p := range in {
		queues[key(p)] = append(queues[key(p)], p)
	}
	for _, o := range out {
		if len(o) > tcpStart+1<<16-1 {
			t.Fatalf("a packet of %d bytes", len(o))
		}
		k := key(o)
		head, rest := segment(o)
		for begun := false; !begun || rest > 0; begun = true {
			if len(queues[k]) == 0 {
				t.Fatalf("a packet of nothing: %x", o)
			}
			p := queues[k][0]
			queues[k] = queues[k][1:]
			if !begun && len(o) == len(p) {
				if !bytes.Equal(o, p) {
					t.Fatalf("packet %x\nbecame %x", p, o)
				}
				break
			}
			h, payload := segment(p)
			if h != head || payload == 0 || payload > rest {
				t.Fatalf("packet %x\ngot into %x", p, o)
			}
			// What the packet must have been.
			w := append(bytes.Clone(o[:head]), o[len(o)-rest:len(o)-rest+payload]...)
			binary.BigEndian.PutUint16(w[ipLength:], uint16(len(w)-tcpStart))
			binary.BigEndian.PutUint32(w[tcpSeq:], binary.BigEndian.Uint32(o[tcpSeq:])+uint32(len(o)-head-rest))
			rest -= payload
			if rest > 0 {
				w[tcpFlags] &^= push
			}
			copy(w[tcpSum:tcpSum+2], p[tcpSum:])
			if !bytes.Equal(w, p) {
				t.Fatalf("packet %x\nhas become part of\n%x", p, o)
			}
		}
	}
	for k, q := range queues {
		if len(q) > 0 {
			t.Fatalf("%d packets of %x are gone", len(q), k)
		}
	}
}

// Whatever arrives in one batch, each connection gets the same bytes in the
// same order as if its packets had come one by one.
func TestCoalesce(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		flows := make([]segmentOf, rapid.IntRange(1, 20).Draw(t, "connections"))
		for i := range flows {
			flows[i] = segmentOf{from: uint16(i), to: 2, seq: rapid.Uint32().Draw(t, "seq"), window: 9, flags: ack, options: 12}
		}
		var in [][]byte
		for range rapid.IntRange(0, 128).Draw(t, "packets") {
			f := &flows[rapid.IntRange(0, len(flows)-1).Draw(t, "connection")]
			s := *f
			s.data = letters(rapid.SampledFrom([]int{0, 1, 1208, 1208, 1208, 1208, 1208}).Draw(t, "size"), s.seq)
			switch rapid.IntRange(0, 20).Draw(t, "special") {
			case 0:
				f.ack++
			case 1:
				f.window++
			case 2:
				f.stamp++
			case 3:
				s.options = 0
			case 4:
				s.flags |= rapid.Uint8().Draw(t, "flags")
			case 5:
				s.seq -= 1208 // comes again
			case 6:
				f.seq += 1208 // is missing
			case 7:
				s.class++
			case 11:
				s.hops++
			case 8:
				in = append(in, echoRequest(addrA, addrB))
			case 9, 10:
				s.flags |= push
			}
			in = append(in, s.packet())
			f.seq += uint32(len(s.data))
		}
		undo(t, in, coalesce(in))
	})
}

// What can be one packet is: two interleaved connections, each a row of
// segments with a last one that is shorter and pushed.
func TestCoalesceAll(t *testing.T) {
	var in [][]byte
	for i := range uint32(40) {
		for from := range uint16(2) {
			s := segmentOf{from: from, seq: i*1208 - 5000, flags: ack, options: 12, data: letters(1208, i)}
			if i == 39 {
				s.data, s.flags = s.data[:100], ack|push
			}
			in = append(in, s.packet())
		}
	}
	out := coalesce(in)
	undo(t, in, out)
	if len(out) != 2 {
		t.Errorf("%d packets have become %d, want 2", len(in), len(out))
	}
}

// The filter decides on each packet, not on what becomes of them.
func TestFilterSeesEachPacket(t *testing.T) {
	seen := 0
	n, err := New(Config{Addrs: []netip.Addr{addrB}, MTU: mtu, Accept: func(p Packet) bool {
		seen++
		return p.DstPort == 2
	}})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = n.Close() }()
	var in [][]byte
	for i := range uint32(10) {
		s := segmentOf{from: 1, to: 2, seq: i * 1208, flags: ack, data: letters(1208, i)}
		if i == 5 {
			s.to = 3
		}
		in = append(in, s.packet())
	}
	if _, err := n.Device().Write(in, 0); err != nil {
		t.Fatal(err)
	}
	if seen != len(in) {
		t.Errorf("the filter has seen %d packets of %d", seen, len(in))
	}
}

// roughCable carries packets in another order, and loses some.
func roughCable(from, to *Device) {
	random := rand.New(rand.NewPCG(1, 2))
	bufs, sizes := make([][]byte, 64), make([]int, 64)
	for i := range bufs {
		bufs[i] = make([]byte, mtu)
	}
	for {
		n, err := from.Read(bufs, sizes, 0)
		if err != nil {
			return
		}
		var packets [][]byte
		for i := range n {
			if random.IntN(200) > 0 {
				packets = append(packets, bufs[i][:sizes[i]])
			}
		}
		if random.IntN(10) == 0 && len(packets) > 2 {
			i := random.IntN(len(packets) - 2)
			packets[i], packets[i+2] = packets[i+2], packets[i]
		}
		if _, err := to.Write(packets, 0); err != nil {
			return
		}
	}
}

// Several connections at a time get their bytes through a network that loses
// and reorders.
func TestRoughNetwork(t *testing.T) {
	a, errA := New(Config{Addrs: []netip.Addr{addrA}, MTU: mtu})
	b, errB := New(Config{Addrs: []netip.Addr{addrB}, MTU: mtu})
	if errA != nil || errB != nil {
		t.Fatal(errA, errB)
	}
	var cable, transfers sync.WaitGroup
	cable.Go(func() { roughCable(a.Device(), b.Device()) })
	cable.Go(func() { roughCable(b.Device(), a.Device()) })
	defer func() {
		_ = a.Close()
		_ = b.Close()
		cable.Wait()
	}()
	l := listen(t, b, netip.AddrPortFrom(addrB, 80))
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				_, _ = io.Copy(c, c) // the other end notices
			}()
		}
	}()
	for i := range uint32(4) {
		transfers.Go(func() {
			c, err := a.DialTCP(within(t), addrA, netip.AddrPortFrom(addrB, 80))
			if err != nil {
				t.Error(err)
				return
			}
			defer c.Close()
			_ = c.SetDeadline(time.Now().Add(time.Minute))
			sent := letters(2<<20, i)
			transfers.Go(func() {
				_, _ = c.Write(sent) // the reader notices
				_ = c.(interface{ CloseWrite() error }).CloseWrite()
			})
			got, err := io.ReadAll(c)
			if err != nil || !bytes.Equal(got, sent) {
				t.Errorf("connection %d: %d of %d bytes came back, error %v", i, len(got), len(sent), err)
			}
		})
	}
	transfers.Wait()
}

// FuzzCoalesce cuts its input into packets: a length in two bytes before each.
func FuzzCoalesce(f *testing.F) {
	var seed []byte
	for i := range uint32(3) {
		p := segmentOf{from: 1, to: 2, seq: i * 10, flags: ack, options: 4, data: letters(10, i)}.packet()
		seed = append(binary.BigEndian.AppendUint16(seed, uint16(len(p))), p...)
	}
	f.Add(seed)
	f.Add(append(seed, append([]byte{0, 56}, echoRequest(addrA, addrB)...)...))
	f.Fuzz(func(t *testing.T, b []byte) {
		var in [][]byte
		for len(b) > 2 {
			n := min(int(binary.BigEndian.Uint16(b)), len(b)-2)
			if p := b[2 : 2+n]; len(p) >= header.IPv6MinimumSize { // as parse holds
				in = append(in, p)
			}
			b = b[2+n:]
		}
		undo(t, in, coalesce(in))
	})
}
