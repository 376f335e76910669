package mesh

import (
	"net"
	"net/netip"
	"sync"

	"golang.org/x/net/ipv4"
	"golang.org/x/net/ipv6"
	"golang.zx2c4.com/wireguard/conn"
)

// guestBind is the UDP port for guests, for WireGuard. Any source that WireGuard
// has authenticated is where a guest is now, as everywhere with plain WireGuard.
// Answers leave from the address that the guest sent to, as its router may let
// in no others; the host's own choice would be another one where it has several.
type guestBind struct {
	at netip.Addr // to listen on; unspecified or not valid: all of the host's

	mu   sync.Mutex
	open []*socket // nil: closed
}

// guestEnd is where a guest is, and at which address of the host it found us.
type guestEnd struct {
	conn.StdNetEndpoint
	control []byte // for messages to it
}

// guestControl is the space in bytes for control messages of datagrams from
// guests: their size and where they were sent to.
const guestControl = 128

// Open opens the port, or any free one for 0.
func (b *guestBind) Open(port uint16) ([]conn.ReceiveFunc, uint16, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.open != nil {
		return nil, 0, conn.ErrBindAlreadyOpen
	}
	v4, v6, err := openSockets(netip.AddrPortFrom(b.at, port))
	if err != nil {
		return nil, 0, err
	}
	// Systems that do not tell where datagrams were sent to choose themselves.
	var fns []conn.ReceiveFunc
	if v4 != nil {
		_ = ipv4.NewPacketConn(v4.UDPConn).SetControlMessage(ipv4.FlagDst, true)
		b.open, fns = append(b.open, v4), append(fns, receiveGuests(v4, answer4))
	}
	if v6 != nil {
		_ = ipv6.NewPacketConn(v6.UDPConn).SetControlMessage(ipv6.FlagDst, true)
		b.open, fns = append(b.open, v6), append(fns, receiveGuests(v6, answer6))
	}
	return fns, b.open[0].port(), nil
}

// receiveGuests returns a function that reads a socket for WireGuard.
func receiveGuests(s *socket, answer func(control []byte) []byte) conn.ReceiveFunc {
	r := s.reader()
	for i := range r.msgs {
		r.msgs[i].OOB = make([]byte, guestControl)
	}
	return func(bufs [][]byte, sizes []int, ends []conn.Endpoint) (n int, err error) {
		msg, from, ok, err := r.first()
		for ; ok; msg, from, ok = r.next() {
			sizes[n], ends[n] = copy(bufs[n], msg), &guestEnd{conn.StdNetEndpoint{AddrPort: from}, answer(r.about)}
			if n++; n == len(bufs) {
				break
			}
		}
		return n, err
	}
}

// answer4 makes the control message of an answer of that of a datagram.
func answer4(control []byte) []byte {
	var c ipv4.ControlMessage
	if c.Parse(control) != nil || c.Dst == nil {
		return nil
	}
	return (&ipv4.ControlMessage{Src: c.Dst}).Marshal()
}

func answer6(control []byte) []byte {
	var c ipv6.ControlMessage
	if c.Parse(control) != nil || c.Dst == nil {
		return nil
	}
	out := ipv6.ControlMessage{Src: c.Dst}
	if c.Dst.IsLinkLocalUnicast() {
		out.IfIndex = c.IfIndex
	}
	return out.Marshal()
}

// Send sends WireGuard's messages to a guest.
func (b *guestBind) Send(bufs [][]byte, to conn.Endpoint) error {
	end, ok := to.(*guestEnd)
	if !ok {
		return conn.ErrWrongEndpointType
	}
	b.mu.Lock()
	open := b.open
	b.mu.Unlock()
	for _, s := range open {
		if s.LocalAddr().(*net.UDPAddr).AddrPort().Addr().Unmap().Is4() != end.Addr().Is4() {
			continue
		}
		for _, buf := range bufs {
			_, _, err := s.WriteMsgUDPAddrPort(buf, end.control, end.AddrPort)
			if err != nil { // the host may not have that address any more
				_, err = s.WriteToUDPAddrPort(buf, end.AddrPort)
			}
			if err != nil {
				return err
			}
		}
		return nil
	}
	return net.ErrClosed
}

// Close closes the port. It can be opened again.
func (b *guestBind) Close() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, s := range b.open {
		_ = s.Close()
	}
	b.open = nil
	return nil
}

// port returns the port that is open; 0 for none.
func (b *guestBind) port() uint16 {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.open == nil {
		return 0
	}
	return b.open[0].port()
}

// ParseEndpoint returns the endpoint of a text, as [conn.Bind] demands; none is
// configured here.
func (b *guestBind) ParseEndpoint(s string) (conn.Endpoint, error) {
	at, err := netip.ParseAddrPort(s)
	return &guestEnd{StdNetEndpoint: conn.StdNetEndpoint{AddrPort: at}}, err
}

// SetMark has nothing to mark: the mesh's packets do not leave by the routes
// of the host's own traffic.
func (b *guestBind) SetMark(uint32) error { return nil }

// BatchSize returns how many datagrams are read at once at most.
func (b *guestBind) BatchSize() int { return batch }
