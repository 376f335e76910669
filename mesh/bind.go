package mesh

import (
	"crypto/rand"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.zx2c4.com/wireguard/conn"

	"github.com/balanceai/balance/mesh/identity"
	"github.com/balanceai/balance/mesh/wire"
)

const (
	batch = 128 // datagrams that WireGuard takes at once

	// WireGuard's messages are let in from an address for so long after its
	// last authenticated probe: as long as a session of WireGuard can live.
	sourceLife = 3 * time.Minute
	// Addresses that one peer may send from at a time.
	maxSources = 8
)

// bind is WireGuard's socket. To WireGuard, the endpoint of a peer is the peer
// itself, and never changes; which address carries its packets is chosen here.
//
// Three things arrive at the UDP port. Probes that a peer has authenticated
// are answered. WireGuard's messages are passed on if they come from an address
// from which such a probe came lately. Everything else ends here, without an
// answer, at the price of a look into a map.
type bind struct {
	v4, v6 *socket // nil where the host has none
	epoch  time.Time
	kind   func(netip.Addr) Kind
	news   func(*peer) // the path changed or the peer restarted; must not block

	memory *trimmer

	opened atomic.Bool // WireGuard reads
	closed atomic.Bool

	mu      sync.RWMutex
	byKey   map[identity.WGPublic]*peer
	byTag   map[wire.ProbeTag]*peer
	sources map[netip.AddrPort]*source
}

// source is an address that a peer may send from.
type source struct {
	peer     *peer
	proved   bool          // it answered a ping of ours
	seen     atomic.Int64  // instant of the last authenticated probe
	instance atomic.Uint64 // that the last probe named
}

func newBind(at netip.AddrPort, kind func(netip.Addr) Kind, news func(*peer)) (*bind, error) {
	b := &bind{
		epoch:   time.Now().Add(-time.Hour), // so that the zero instant is long ago
		kind:    kind,
		news:    news,
		memory:  newTrimmer(freeMemory),
		byKey:   map[identity.WGPublic]*peer{},
		byTag:   map[wire.ProbeTag]*peer{},
		sources: map[netip.AddrPort]*source{},
	}
	var err error
	b.v4, b.v6, err = openSockets(at)
	return b, err
}

func random() uint64 {
	var b [8]byte
	_, _ = rand.Read(b[:]) // never fails
	return binary.BigEndian.Uint64(b[:])
}

func (b *bind) now() instant { return instant(time.Since(b.epoch)) }

func (b *bind) port() uint16 {
	if b.v4 != nil {
		return b.v4.port()
	}
	return b.v6.port()
}

// add makes a peer known.
func (b *bind) add(p *peer) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.byKey[p.key] = p
	b.byTag[p.receive.Tag] = p
}

// remove forgets a peer: from now on it is a stranger.
func (b *bind) remove(p *peer) {
	b.mu.Lock()
	delete(b.byKey, p.key)
	delete(b.byTag, p.receive.Tag)
	for _, addr := range p.sources {
		delete(b.sources, addr)
	}
	p.sources = nil
	b.mu.Unlock()
	p.close()
}

// Open returns the functions by which WireGuard reads. The port was chosen
// when the bind was made.
func (b *bind) Open(uint16) ([]conn.ReceiveFunc, uint16, error) {
	if b.closed.Load() {
		return nil, 0, net.ErrClosed
	}
	b.opened.Store(true)
	var fns []conn.ReceiveFunc
	for _, s := range []*socket{b.v4, b.v6} {
		if s != nil {
			fns = append(fns, b.receiver(s))
		}
	}
	return fns, b.port(), nil
}

// Close closes the port, for good. WireGuard calls it once before Open too;
// that call does nothing.
func (b *bind) Close() error {
	if b.opened.Load() {
		b.shut()
	}
	return nil
}

func (b *bind) shut() {
	if b.closed.Swap(true) {
		return
	}
	b.memory.stop()
	for _, s := range []*socket{b.v4, b.v6} {
		if s != nil {
			_ = s.Close()
		}
	}
}

// SetMark has nothing to mark: the mesh's packets do not leave by the routes
// of the host's own traffic.
func (b *bind) SetMark(uint32) error { return nil }

// BatchSize returns how many datagrams are read at once at most.
func (b *bind) BatchSize() int { return batch }

// ParseEndpoint returns the endpoint of a peer: the text is its public key.
func (b *bind) ParseEndpoint(s string) (conn.Endpoint, error) {
	key, err := hex.DecodeString(s)
	if err != nil || len(key) != len(identity.WGPublic{}) {
		return nil, fmt.Errorf("endpoint %q is no public key", s)
	}
	b.mu.RLock()
	defer b.mu.RUnlock()
	if p, ok := b.byKey[identity.WGPublic(key)]; ok {
		return p, nil
	}
	return nil, fmt.Errorf("endpoint %q: no such peer", s)
}

// Send sends WireGuard's messages to a peer.
func (b *bind) Send(bufs [][]byte, to conn.Endpoint) error {
	p, ok := to.(*peer)
	if !ok {
		return conn.ErrWrongEndpointType
	}
	b.memory.saw(len(bufs))
	now := b.now()
	p.sent.Store(int64(now))
	if r := p.route.Load(); r != nil && now < r.until && bufs[0][0] == transport {
		return b.write(bufs, r.addr)
	}
	p.send(now, bufs)
	return nil
}

func (b *bind) write(bufs [][]byte, to netip.AddrPort) error {
	s := b.v6
	if to.Addr().Is4() {
		s = b.v4
	}
	if s == nil {
		return fmt.Errorf("send to %s: no socket of its family", to)
	}
	return s.send(nil, bufs, to)
}

// receiver returns a function that reads one socket and keeps what is not
// WireGuard's.
func (b *bind) receiver(s *socket) conn.ReceiveFunc {
	r := s.reader()
	return func(bufs [][]byte, sizes []int, endpoints []conn.Endpoint) (n int, err error) {
		msg, from, ok := r.next()
		if !ok {
			if err := r.read(); errors.Is(err, net.ErrClosed) {
				return 0, net.ErrClosed
			} else if err != nil { // WireGuard would give up the socket
				time.Sleep(100 * time.Millisecond)
				return 0, nil
			}
			msg, from, ok = r.next()
		}
		for now := b.now(); ok; msg, from, ok = r.next() {
			if p := b.arrived(now, msg, from); p != nil {
				sizes[n], endpoints[n] = copy(bufs[n], msg), p
				n++
			}
			if n == len(bufs) {
				break
			}
		}
		b.memory.saw(n)
		return n, nil
	}
}

// arrived looks at a datagram. It returns the peer whose message it is, or nil
// where WireGuard is not to see it.
func (b *bind) arrived(now instant, msg []byte, from netip.AddrPort) *peer {
	if tag, ok := wire.ParseProbeTag(msg); ok {
		b.probe(now, tag, msg, from)
		return nil
	}
	b.mu.RLock()
	s := b.sources[from]
	b.mu.RUnlock()
	if s == nil || len(msg) == 0 || !instant(s.seen.Load()).within(sourceLife, now) {
		return nil
	}
	switch msg[0] {
	case initiation:
		if !s.peer.initiated(now, msg, s.instance.Load()) {
			return nil
		}
	case response:
		if !s.peer.responded(msg) {
			return nil
		}
	}
	return s.peer
}

func (b *bind) probe(now instant, tag wire.ProbeTag, msg []byte, from netip.AddrPort) {
	b.mu.RLock()
	p := b.byTag[tag]
	b.mu.RUnlock()
	if p == nil {
		return
	}
	probe, ok := p.receive.Open(msg)
	if !ok {
		return
	}
	if probe.Kind == wire.Pong {
		if p.pong(now, probe) {
			b.accept(now, p, from, probe.Instance, true)
		}
		return
	}
	b.accept(now, p, from, probe.Instance, false)
	p.ping(now, probe, from)
}

// accept lets a peer send from an address.
func (b *bind) accept(now instant, p *peer, from netip.AddrPort, instance uint64, proved bool) {
	b.mu.RLock()
	s := b.sources[from]
	known := s != nil && s.peer == p && (s.proved || !proved)
	b.mu.RUnlock()
	if !known {
		if s = b.addSource(p, from, proved); s == nil {
			return
		}
	}
	s.seen.Store(int64(now))
	s.instance.Store(instance)
}

// addSource enters an address. When a peer has too many, the oldest goes, first
// of those that have not answered a ping: forged or repeated pings do not push
// out the path.
func (b *bind) addSource(p *peer, from netip.AddrPort, proved bool) *source {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.byKey[p.key] != p {
		return nil // removed meanwhile
	}
	if old := b.sources[from]; old != nil {
		b.dropSource(from)
	}
	if len(p.sources) >= maxSources {
		b.dropSource(slices.MinFunc(p.sources, func(x, y netip.AddrPort) int {
			return b.sources[x].compare(b.sources[y])
		}))
	}
	s := &source{peer: p, proved: proved}
	b.sources[from] = s
	p.sources = append(p.sources, from)
	return s
}

func (b *bind) dropSource(addr netip.AddrPort) {
	p := b.sources[addr].peer
	delete(b.sources, addr)
	p.sources = slices.DeleteFunc(p.sources, func(a netip.AddrPort) bool { return a == addr })
}

// compare orders sources by what is lost with them.
func (s *source) compare(other *source) int {
	if s.proved != other.proved {
		if other.proved {
			return -1
		}
		return 1
	}
	return int(s.seen.Load() - other.seen.Load())
}

// has reports whether a peer is known.
func (b *bind) has(p *peer) bool {
	b.mu.RLock()
	defer b.mu.RUnlock()
	return b.byKey[p.key] == p
}
