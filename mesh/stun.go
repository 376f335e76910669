package mesh

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"
)

// STUN, RFC 8489: a server tells where a binding request came from. Members do
// the same for each other; this is for a mesh that is too small, or whose
// members are all behind NATs.

const (
	stunRequest = 0x0001 // binding
	stunSuccess = 0x0101
	stunHeader  = 20 // bytes
	stunCookie  = 0x2112A442

	stunMapped    = 0x0001 // MAPPED-ADDRESS
	stunXorMapped = 0x0020 // XOR-MAPPED-ADDRESS
	stunIPv4      = 1      // family

	stunEvery = 2 * time.Minute        // between questions: less than sightLife
	stunWait  = 500 * time.Millisecond // for an answer
	stunTries = 3
)

// stunTx names a binding request.
type stunTx [12]byte

// stun asks the servers that the user has chosen.
type stun struct {
	servers []string           // host:port
	kick    chan chan struct{} // asks for a round, at whose end the value is closed

	mu    sync.Mutex
	asked map[netip.AddrPort]stunTx // without an answer
}

func newSTUN(servers []string) *stun {
	return &stun{servers: servers, kick: make(chan chan struct{}, 1), asked: map[netip.AddrPort]stunTx{}}
}

// again has all servers asked soon.
func (s *stun) again() {
	select {
	case s.kick <- make(chan struct{}):
	default:
	}
}

// ask has all servers asked, and waits until they have answered, or not, or ctx
// ends.
func (s *stun) ask(ctx context.Context) {
	round := make(chan struct{})
	select {
	case s.kick <- round:
	case <-ctx.Done():
		return
	}
	select {
	case <-round:
	case <-ctx.Done():
	}
}

// take reads a datagram of no peer, and returns what a server says in answer to
// what it was asked.
func (s *stun) take(msg []byte, from netip.AddrPort) (us netip.AddrPort, ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	tx, ok := s.asked[from]
	if !ok {
		return us, false
	}
	if us, ok = parseBinding(msg, tx); ok {
		delete(s.asked, from)
	}
	return us, ok
}

// request returns a question to a server, which is to be repeated as it is.
func (s *stun) request(to netip.AddrPort) []byte {
	s.mu.Lock()
	defer s.mu.Unlock()
	tx, ok := s.asked[to]
	if !ok {
		_, _ = rand.Read(tx[:]) // never fails
		s.asked[to] = tx
	}
	return appendBinding(nil, tx)
}

// silent returns the servers that have not answered.
func (s *stun) silent(servers []netip.AddrPort) (out []netip.AddrPort) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, at := range servers {
		if _, ok := s.asked[at]; ok {
			out = append(out, at)
		}
	}
	return out
}

// begin forgets what was asked before, and returns the servers' addresses: of
// each the first of IPv4 and of IPv6.
func (s *stun) begin(ctx context.Context, log *slog.Logger) (out []netip.AddrPort) {
	s.mu.Lock()
	clear(s.asked)
	s.mu.Unlock()
	for _, server := range s.servers {
		host, service, err := net.SplitHostPort(server)
		if err != nil {
			log.Warn("STUN server", "server", server, "error", err)
			continue
		}
		port, err := net.DefaultResolver.LookupPort(ctx, "udp", service)
		if err != nil {
			log.Warn("STUN server", "server", server, "error", err)
			continue
		}
		for _, network := range []string{"ip4", "ip6"} {
			addrs, err := net.DefaultResolver.LookupNetIP(ctx, network, host)
			if err == nil && len(addrs) > 0 { // a server need not have both
				out = append(out, netip.AddrPortFrom(addrs[0].Unmap(), uint16(port)))
			}
		}
	}
	return out
}

// askSTUN asks the servers now and then, and soon after being told to, until the
// tunnel closes.
func (t *tunnel) askSTUN() {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	t.watch.Go(func() { <-t.done; cancel() })
	round := make(chan struct{})
	for {
		servers := t.stun.begin(ctx, t.log)
		for try := 0; try < stunTries && len(servers) > 0; try++ {
			for _, at := range servers {
				_ = t.bind.write(nil, [][]byte{t.stun.request(at)}, at) // it may be out of reach
			}
			select {
			case <-ctx.Done():
			case <-time.After(stunWait):
			}
			servers = t.stun.silent(servers)
		}
		close(round)
		round = make(chan struct{})
		select {
		case <-ctx.Done():
			return
		case round = <-t.stun.kick:
		case <-time.After(stunEvery):
		}
	}
}

// stray looks at a datagram that is of no peer.
func (t *tunnel) stray(msg []byte, from netip.AddrPort) {
	if us, ok := t.stun.take(msg, from); ok {
		t.saw(nil, from, us)
	}
}

// appendBinding appends a binding request.
func appendBinding(b []byte, tx stunTx) []byte {
	b = binary.BigEndian.AppendUint16(b, stunRequest)
	b = binary.BigEndian.AppendUint16(b, 0) // bytes of attributes
	b = binary.BigEndian.AppendUint32(b, stunCookie)
	return append(b, tx[:]...)
}

// parseBinding reads a success response to a binding request: the address that
// the server saw.
func parseBinding(b []byte, tx stunTx) (us netip.AddrPort, ok bool) {
	if len(b) < stunHeader || binary.BigEndian.Uint16(b) != stunSuccess ||
		binary.BigEndian.Uint32(b[4:]) != stunCookie || stunTx(b[8:]) != tx {
		return us, false
	}
	mask := [16]byte(b[4:]) // the cookie and the transaction
	attrs := b[stunHeader:]
	if n := int(binary.BigEndian.Uint16(b[2:])); n <= len(attrs) {
		attrs = attrs[:n]
	}
	for len(attrs) >= 4 {
		kind, n := binary.BigEndian.Uint16(attrs), int(binary.BigEndian.Uint16(attrs[2:]))
		if attrs = attrs[4:]; n > len(attrs) {
			break
		}
		switch value := attrs[:n]; kind {
		case stunXorMapped:
			return stunAddress(value, mask)
		case stunMapped: // of servers from before the other one
			us, ok = stunAddress(value, [16]byte{})
		}
		attrs = attrs[min((n+3)&^3, len(attrs)):]
	}
	return us, ok
}

// stunAddress reads an address and a port, both masked.
func stunAddress(b []byte, mask [16]byte) (at netip.AddrPort, ok bool) {
	if len(b) < 4 {
		return at, false
	}
	ip := slices.Clone(b[4:])
	for i := range min(len(ip), len(mask)) {
		ip[i] ^= mask[i]
	}
	addr, ok := netip.AddrFromSlice(ip)
	if !ok || addr.Is4() != (b[1] == stunIPv4) {
		return at, false
	}
	return netip.AddrPortFrom(addr.Unmap(), binary.BigEndian.Uint16(b[2:])^binary.BigEndian.Uint16(mask[:])), true
}
