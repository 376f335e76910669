package mesh

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/net/ipv4"
	"golang.org/x/net/ipv6"
)

const (
	socketBuffer = 4 << 20 // bytes that the kernel may keep for us while we are busy
	portTries    = 16      // ports to try until one is free for IPv4 and IPv6

	reads       = 16                 // buffers that one system call fills
	readBuffer  = 1 << 16            // bytes: the largest datagram, or several that the kernel has put together
	maxDatagram = 1<<16 - 1 - 20 - 8 // bytes of payload: what IPv4's and UDP's headers leave
	maxSegments = 64                 // datagrams that the kernel makes of one message
)

// socket is one UDP socket, of IPv4 or IPv6. Where the kernel can, it takes many
// datagrams as one message, and gives many as one (UDP segmentation and receive
// offload, udp(7)): the way through the kernel costs more than the bytes do.
type socket struct {
	*net.UDPConn
	batch    batcher
	segments atomic.Bool // messages of several datagrams can be sent
	writers  sync.Pool   // *writer
	whole    sync.Mutex  // held while the socket is set not to fragment
}

// batcher moves several messages in one system call where the system can.
// Messages of IPv4 and IPv6 have one type.
type batcher interface {
	ReadBatch(msgs []ipv6.Message, flags int) (int, error)
	WriteBatch(msgs []ipv6.Message, flags int) (int, error)
}

// openSockets opens the UDP port. Without an address it is that of all
// addresses of the host: one socket for IPv4 and, where the host has it, one
// for IPv6, on one port.
func openSockets(at netip.AddrPort) (v4, v6 *socket, err error) {
	if at.Addr().IsValid() && !at.Addr().IsUnspecified() {
		if at = netip.AddrPortFrom(at.Addr().Unmap(), at.Port()); at.Addr().Is4() {
			v4, err = openSocket("udp4", at)
		} else {
			v6, err = openSocket("udp6", at)
		}
		return v4, v6, err
	}
	for range portTries {
		v4, err = openSocket("udp4", netip.AddrPortFrom(netip.IPv4Unspecified(), at.Port()))
		if err != nil {
			return nil, nil, err
		}
		v6, err = openSocket("udp6", netip.AddrPortFrom(netip.IPv6Unspecified(), v4.port()))
		switch {
		case err == nil, errors.Is(err, syscall.EAFNOSUPPORT), errors.Is(err, syscall.EADDRNOTAVAIL):
			return v4, v6, nil
		}
		_ = v4.Close()
		if at.Port() != 0 {
			break
		}
	}
	return nil, nil, err
}

func openSocket(network string, at netip.AddrPort) (*socket, error) {
	c, err := net.ListenUDP(network, net.UDPAddrFromAddrPort(at))
	if err != nil {
		return nil, fmt.Errorf("open UDP port: %w", err)
	}
	// A host that grants less is slower under load, no more.
	_ = c.SetReadBuffer(socketBuffer)
	_ = c.SetWriteBuffer(socketBuffer)
	s := &socket{UDPConn: c, writers: sync.Pool{New: func() any { return &writer{} }}}
	if at.Addr().Is4() {
		s.batch = ipv4.NewPacketConn(c)
	} else {
		s.batch = ipv6.NewPacketConn(c)
	}
	s.segments.Store(offload(c))
	return s, nil
}

func (s *socket) port() uint16 { return uint16(s.LocalAddr().(*net.UDPAddr).Port) }

// send sends datagrams to one address, each of them after head.
func (s *socket) send(head []byte, bufs [][]byte, to netip.AddrPort) error {
	if len(bufs) == 1 && len(head) == 0 {
		_, err := s.WriteToUDPAddrPort(bufs[0], to)
		return err
	}
	w := s.writers.Get().(*writer)
	defer func() {
		w.clear()
		s.writers.Put(w)
	}()
	addr := net.UDPAddrFromAddrPort(to)
	segments := s.segments.Load()
	w.pack(head, bufs, addr, segments)
	err := w.write(s.batch)
	if refuses, all := refusesSegments(err); segments && refuses {
		s.segments.Store(!all)
		w.pack(head, bufs, addr, false) // what has gone already goes twice, which WireGuard notices
		err = w.write(s.batch)
	}
	return err
}

// writer makes messages of datagrams.
type writer struct {
	msgs   []ipv6.Message
	pieces [][]byte // of all messages
}

// pack makes the messages: of one datagram each, or of as many as one message
// can carry, all of one size but for the last, which may be shorter.
func (w *writer) pack(head []byte, bufs [][]byte, to *net.UDPAddr, segments bool) {
	w.msgs, w.pieces = w.msgs[:0], slices.Grow(w.pieces[:0], 2*len(bufs)) // msgs point into pieces
	for len(bufs) > 0 {
		n := 1
		if segments {
			n = together(len(head), bufs)
		}
		first := len(w.pieces)
		for i, b := range bufs[:n] {
			if len(head) > 0 {
				w.pieces = append(w.pieces, head)
			} else if last := len(w.pieces) - 1; i > 0 && precedes(w.pieces[last], b) { // as in what is relayed
				w.pieces[last] = w.pieces[last][:len(w.pieces[last])+len(b)]
				continue
			}
			w.pieces = append(w.pieces, b)
		}
		msg := ipv6.Message{Buffers: w.pieces[first:len(w.pieces):len(w.pieces)], Addr: to}
		if n > 1 {
			msg.OOB = segmentSize(len(head) + len(bufs[0]))
		}
		w.msgs = append(w.msgs, msg)
		bufs = bufs[n:]
	}
}

// precedes reports whether b lies in memory right behind a, as a part of what a
// was cut from.
func precedes(a, b []byte) bool {
	end := len(a)
	return len(b) > 0 && cap(a) >= end+len(b) && &a[:end+1][end] == &b[0]
}

// together returns how many of the datagrams, counted from the first, can go as
// one message, given the size of what precedes each.
func together(head int, bufs [][]byte) int {
	size, total := len(bufs[0]), 0
	for i, b := range bufs {
		total += head + len(b)
		if i > 0 && (i == maxSegments || len(b) > size || total > maxDatagram) {
			return i
		}
		if len(b) < size {
			return i + 1
		}
	}
	return len(bufs)
}

func (w *writer) write(to batcher) error {
	for msgs := w.msgs; len(msgs) > 0; {
		n, err := to.WriteBatch(msgs, 0)
		if err != nil {
			return err
		}
		msgs = msgs[n:]
	}
	return nil
}

// clear forgets the datagrams, which are their owner's again.
func (w *writer) clear() {
	clear(w.msgs)
	clear(w.pieces)
}

// reader reads datagrams. Those that came as one message lie in one buffer.
type reader struct {
	batch batcher
	msgs  []ipv6.Message
	left  []ipv6.Message // read, and not given out yet
	rest  []byte         // of the first of left
	size  int            // of a datagram in rest, but for the last
	about []byte         // control messages of those in rest
	from  netip.AddrPort
}

func (s *socket) reader() *reader {
	r := &reader{batch: s.batch, msgs: make([]ipv6.Message, reads)}
	for i := range r.msgs {
		r.msgs[i].Buffers = [][]byte{make([]byte, readBuffer)}
		r.msgs[i].OOB = make([]byte, controlSize)
	}
	return r
}

// read waits for datagrams. It is called when next has none.
func (r *reader) read() error {
	n, err := r.batch.ReadBatch(r.msgs, 0)
	if err != nil {
		return err
	}
	r.left = r.msgs[:n]
	return nil
}

// first returns the next datagram as [reader.next] does, and waits for one if
// there is none. The only error is net.ErrClosed: WireGuard gives up a socket for
// any error, and others pass.
func (r *reader) first() (datagram []byte, from netip.AddrPort, ok bool, err error) {
	if datagram, from, ok = r.next(); ok {
		return datagram, from, ok, nil
	}
	switch err := r.read(); {
	case errors.Is(err, net.ErrClosed):
		return nil, from, false, net.ErrClosed
	case err != nil:
		time.Sleep(100 * time.Millisecond)
		return nil, from, false, nil
	}
	datagram, from, ok = r.next()
	return datagram, from, ok, nil
}

// next returns a datagram that was read, and its source; false means that there
// is none. It is valid until the next read.
func (r *reader) next() (datagram []byte, from netip.AddrPort, ok bool) {
	for len(r.rest) == 0 {
		if len(r.left) == 0 {
			return nil, netip.AddrPort{}, false
		}
		m := &r.left[0]
		r.left = r.left[1:]
		r.rest, r.size, r.about = m.Buffers[0][:m.N], m.N, m.OOB[:m.NN]
		if size := segmentsOf(r.about); size > 0 {
			r.size = size
		}
		from := m.Addr.(*net.UDPAddr).AddrPort()
		r.from = netip.AddrPortFrom(from.Addr().Unmap(), from.Port())
	}
	n := min(r.size, len(r.rest))
	datagram, r.rest = r.rest[:n], r.rest[n:]
	return datagram, r.from, true
}
