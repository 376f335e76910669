package mesh

import (
	"crypto/rand"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"log/slog"
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
// answer, at the price of a look into a map; where the user has chosen STUN
// servers, of another look whether one of them owes an answer.
type bind struct {
	v4, v6  *socket // nil where the host has none
	streams *streams
	epoch   time.Time
	cfg     bindConfig

	memory *trimmer

	opened atomic.Bool // WireGuard reads
	closed atomic.Bool
	moves  atomic.Uint32 // how often the network changed

	mu      sync.RWMutex
	byKey   map[identity.WGPublic]*peer
	byAddr  map[netip.Addr]*peer
	byTag   map[wire.ProbeTag]*peer  // those with keys; see peer.derive
	byName  map[wire.FrameName]*peer // members
	sources map[sourceKey]*source
}

// bindConfig is what a bind needs of its owner. Nothing in it may block.
type bindConfig struct {
	key   identity.WGKey
	small bool // packets larger than mtu are not taken, and so their pings not answered
	log   *slog.Logger
	kind  func(netip.Addr) Kind
	news  func(*peer)                               // the path changed or the peer restarted
	addrs func() []netip.AddrPort                   // at which this node may be reached
	saw   func(by *peer, at, us netip.AddrPort)     // a peer at an address saw our datagrams come from us
	relay func(from, to *peer, frames [][]byte) int // how many frames, counted from the first, may be passed on
	load  func(*peer) byte                          // of this node as a relay for a peer; nil: it relays nothing
	stray func(msg []byte, from netip.AddrPort)     // a datagram of no peer; nil: nobody wants it

	engage func(instant, *peer) // WireGuard is to know the peer
	roused func(*peer)          // the peer is in use for the first time, and has no relays yet; nil: nobody relays
}

// sourceKey is a UDP address, or a relay and the peer behind it.
type sourceKey struct {
	addr    netip.AddrPort
	via, of *peer
}

// source is where a peer may send from.
type source struct {
	peer     *peer
	proved   bool          // it answered a ping of ours
	seen     atomic.Int64  // instant of the last authenticated probe
	instance atomic.Uint64 // that the last probe named
}

func newBind(at netip.AddrPort, cfg bindConfig) (*bind, error) {
	b := &bind{
		epoch:   time.Now().Add(-time.Hour), // so that the zero instant is long ago
		cfg:     cfg,
		memory:  newTrimmer(freeMemory),
		byKey:   map[identity.WGPublic]*peer{},
		byAddr:  map[netip.Addr]*peer{},
		byTag:   map[wire.ProbeTag]*peer{},
		byName:  map[wire.FrameName]*peer{},
		sources: map[sourceKey]*source{},
	}
	b.streams = newStreams(b, cfg.log)
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

// news, addrs and saw tell and ask the bind's owner.
func (b *bind) news(p *peer)            { b.cfg.news(p) }
func (b *bind) addrs() []netip.AddrPort { return b.cfg.addrs() }

func (b *bind) saw(by *peer, at, us netip.AddrPort) { b.cfg.saw(by, at, us) }

// load returns what this node tells a peer of its load as a relay.
func (b *bind) load(p *peer) byte {
	if b.cfg.load == nil {
		return 0
	}
	return b.cfg.load(p)
}

// place names the network that the node is in, as far as it knows.
func (b *bind) place() uint16 { return uint16(b.moves.Load()) }

// kindOf tells how a path by h runs.
func (b *bind) kindOf(h hop) Kind {
	if h.via != nil {
		return Relayed
	}
	if streamNet.Contains(h.addr.Addr()) {
		return TCP
	}
	return b.cfg.kind(h.addr.Addr())
}

// leads reports whether there is a way to the relay of h.
func leads(h hop) bool { return h.via.leg.Load() != nil }

func (b *bind) port() uint16 {
	if b.v4 != nil {
		return b.v4.port()
	}
	return b.v6.port()
}

// add makes peers known.
func (b *bind) add(list []*peer) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, p := range list {
		b.byKey[p.key] = p
		b.byAddr[p.addr] = p
		if !p.id.IsZero() {
			b.byName[p.name] = p
		}
	}
}

// identify enters the keys of a peer's probes, which is then known by them.
func (b *bind) identify(p *peer, out, receive wire.ProbeKey) {
	b.mu.Lock()
	defer b.mu.Unlock()
	p.out, p.receive = out, receive
	if b.byKey[p.key] == p {
		b.byTag[receive.Tag] = p
	}
}

// peers returns the peers for which which is true.
func (b *bind) peers(which func(*peer) bool) (list []*peer) {
	b.mu.RLock()
	defer b.mu.RUnlock()
	for _, p := range b.byKey {
		if which(p) {
			list = append(list, p)
		}
	}
	return list
}

// remove forgets peers: from now on they are strangers, and relay nothing.
func (b *bind) remove(list []*peer) {
	gone := make(map[*peer]bool, len(list))
	b.mu.Lock()
	for _, p := range list {
		gone[p] = true
		delete(b.byKey, p.key)
		delete(b.byAddr, p.addr)
		if b.byTag[p.receive.Tag] == p {
			delete(b.byTag, p.receive.Tag)
		}
		if b.byName[p.name] == p {
			delete(b.byName, p.name)
		}
		for _, key := range p.sources {
			delete(b.sources, key)
		}
		p.sources = nil
	}
	for key := range b.sources {
		if gone[key.via] {
			b.dropSource(key)
		}
	}
	b.mu.Unlock()
	for _, p := range list {
		p.close()
	}
	for _, other := range b.peers((*peer).isAwake) {
		other.drop(gone)
	}
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
	fns = append(fns, b.streams.receive())
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
	b.streams.close()
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
	if p := b.withKey(identity.WGPublic(key)); p != nil {
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
		return b.pass(now, p, bufs, r.hop)
	}
	p.send(now, bufs)
	return nil
}

// pass sends datagrams for a peer one way or another.
func (b *bind) pass(now instant, p *peer, bufs [][]byte, h hop) error {
	if h.via == nil {
		return b.write(nil, bufs, h.addr)
	}
	h.via.wake(now)
	leg := h.via.leg.Load()
	if leg == nil {
		return fmt.Errorf("send by %s: no path to the relay", h.via.id.Short())
	}
	var head [wire.FrameHeader]byte
	h.via.out.SealFrame(head[:], wire.ToRelay, p.name)
	return b.write(head[:], bufs, *leg)
}

// write sends datagrams to an address, each with head in front.
func (b *bind) write(head []byte, bufs [][]byte, to netip.AddrPort) error {
	if streamNet.Contains(to.Addr()) {
		return b.streams.send(head, bufs, to)
	}
	s := b.socket(to)
	if s == nil {
		return fmt.Errorf("send to %s: no socket of its family", to)
	}
	return s.send(head, bufs, to)
}

func (b *bind) socket(to netip.AddrPort) *socket {
	if to.Addr().Is4() {
		return b.v4
	}
	return b.v6
}

// whole sends a datagram that arrives in one piece or not at all.
func (b *bind) whole(msg []byte, to netip.AddrPort) {
	if s := b.socket(to); s != nil {
		s.sendWhole(msg, to)
	}
}

// open sends a datagram that goes as far as this node's own NAT.
func (b *bind) open(msg []byte, to netip.AddrPort) {
	if s := b.socket(to); s != nil {
		s.sendNear(msg, to)
	}
}

// receiver returns a function that reads one socket and keeps what is not
// WireGuard's.
func (b *bind) receiver(s *socket) conn.ReceiveFunc {
	var in intake
	r := s.reader()
	return func(bufs [][]byte, sizes []int, endpoints []conn.Endpoint) (n int, err error) {
		msg, from, ok, err := r.first()
		now := b.now()
		for ; ok; msg, from, ok = r.next() {
			if inner, p := b.take(now, msg, from, &in); p != nil {
				sizes[n], endpoints[n] = copy(bufs[n], inner), p
				n++
			}
			if n == len(bufs) {
				break
			}
		}
		in.flush(b, now)
		b.memory.saw(n)
		return n, err
	}
}

// intake is what becomes of the datagrams of one read. What was looked up for
// one of them is kept for those that follow, which mostly come from the same
// peer.
type intake struct {
	onward
	near, far found // where datagrams come from, and what is in frames
	name      wire.FrameName
	other     *peer // of that name; nil: not looked up, or nobody
}

// found is a source that was looked up; nil: not looked up, or none.
type found struct {
	key sourceKey
	*source
}

func (in *intake) flush(b *bind, now instant) {
	in.onward.flush(b, now)
	in.forget()
}

// forget is called when something may have changed.
func (in *intake) forget() { in.near, in.far, in.other = found{}, found{}, nil }

func (in *intake) source(b *bind, now instant, key sourceKey) *source {
	f := &in.near
	if key.via != nil {
		f = &in.far
	}
	if f.source == nil || f.key != key {
		*f = found{key, b.source(now, key)}
	}
	return f.source
}

func (in *intake) named(b *bind, name wire.FrameName) *peer {
	if in.other == nil || in.name != name {
		b.mu.RLock()
		in.name, in.other = name, b.byName[name]
		b.mu.RUnlock()
	}
	return in.other
}

// take looks at a datagram. Where it holds a message for WireGuard, it returns
// that and the peer, which otherwise is nil. What is to be relayed goes to in,
// for which it has to stay until the flush.
func (b *bind) take(now instant, buf []byte, from netip.AddrPort, in *intake) ([]byte, *peer) {
	if !wire.IsFrame(buf) {
		return buf, b.arrived(now, buf, sourceKey{addr: from}, in)
	}
	neighbour := in.source(b, now, sourceKey{addr: from})
	if neighbour == nil {
		return nil, nil
	}
	direction, name := neighbour.peer.receive.OpenFrame(buf)
	other := in.named(b, name)
	switch {
	case other == nil:
	case direction == wire.ToRelay && neighbour.proved:
		in.add(neighbour.peer, other, buf)
	case direction == wire.FromRelay:
		inner := buf[wire.FrameHeader:]
		return inner, b.arrived(now, inner, sourceKey{via: neighbour.peer, of: other}, in)
	}
	return nil, nil
}

// source returns who may send WireGuard's messages from where.
func (b *bind) source(now instant, from sourceKey) *source {
	b.mu.RLock()
	defer b.mu.RUnlock()
	if s := b.sources[from]; s != nil && instant(s.seen.Load()).within(sourceLife, now) {
		return s
	}
	return nil
}

// arrived looks at a message. It returns the peer that sent it, or nil where
// WireGuard is not to see it.
func (b *bind) arrived(now instant, msg []byte, from sourceKey, in *intake) *peer {
	if tag, ok := wire.ParseProbeTag(msg); ok {
		b.probe(now, tag, msg, from)
		in.forget()
		return nil
	}
	s := in.source(b, now, from)
	if s == nil || len(msg) == 0 {
		if s == nil && b.cfg.stray != nil && from.via == nil {
			b.cfg.stray(msg, from.addr)
		}
		return nil
	}
	switch msg[0] {
	case initiation:
		if !s.peer.initiated(now, msg, s.instance.Load()) {
			return nil
		}
		b.cfg.engage(now, s.peer)
	case response:
		if !s.peer.responded(msg) {
			return nil
		}
	case cookie, transport:
	default:
		return nil
	}
	return s.peer
}

func (b *bind) probe(now instant, tag wire.ProbeTag, msg []byte, from sourceKey) {
	b.mu.RLock()
	p := b.byTag[tag]
	b.mu.RUnlock()
	if p == nil || (from.of != nil && from.of != p) {
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
	if probe.Size > 0 && b.cfg.small {
		return
	}
	b.accept(now, p, from, probe.Instance, false)
	way := hop{from.addr, from.via}
	if probe.Kind == wire.Ping {
		p.ping(now, probe, way)
	} else {
		p.call(now, probe, way)
	}
}

// accept lets a peer send from an address or by a relay.
func (b *bind) accept(now instant, p *peer, from sourceKey, instance uint64, proved bool) {
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

// addSource enters where a peer sends from. When a peer has too many, the oldest goes, first
// of those that have not answered a ping: forged or repeated pings do not push
// out the path.
func (b *bind) addSource(p *peer, from sourceKey, proved bool) *source {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.byKey[p.key] != p {
		return nil // removed meanwhile
	}
	if old := b.sources[from]; old != nil {
		b.dropSource(from)
	}
	if len(p.sources) >= maxSources {
		b.dropSource(slices.MinFunc(p.sources, func(x, y sourceKey) int {
			return b.sources[x].compare(b.sources[y])
		}))
	}
	s := &source{peer: p, proved: proved}
	b.sources[from] = s
	p.sources = append(p.sources, from)
	return s
}

func (b *bind) dropSource(key sourceKey) {
	p := b.sources[key].peer
	delete(b.sources, key)
	p.sources = slices.DeleteFunc(p.sources, func(k sourceKey) bool { return k == key })
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
func (b *bind) has(p *peer) bool { return b.withKey(p.key) == p }

// withKey returns the peer with a WireGuard key, or nil.
func (b *bind) withKey(key identity.WGPublic) *peer {
	b.mu.RLock()
	defer b.mu.RUnlock()
	return b.byKey[key]
}

// at returns the peer with an address in the overlay, or nil.
func (b *bind) at(addr netip.Addr) *peer {
	b.mu.RLock()
	defer b.mu.RUnlock()
	return b.byAddr[addr]
}
