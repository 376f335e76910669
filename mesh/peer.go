package mesh

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/balanceai/balance/mesh/identity"
	"github.com/balanceai/balance/mesh/wire"
)

// Most pings of ours to one peer that may be without an answer.
const maxAsked = 64

// peer is the other end of a tunnel: a member, a joiner, or to a visitor the
// door. It is the endpoint that WireGuard knows.
//
// Most members of a large roster are idle: of them, little more is kept than the
// roster says. A peer wakes when there is something to send to it or something
// came from it, and WireGuard knows it while there are messages for WireGuard.
type peer struct {
	bind *bind
	id   identity.ID // zero: no member
	key  identity.WGPublic
	addr netip.Addr // in the overlay: the only address that it may use, beside those of its guests
	psk  [32]byte   // zero: none
	name wire.FrameName

	life    uint64        // instance that our probes name; see wire.Probe
	out     wire.ProbeKey // of probes to the peer
	receive wire.ProbeKey // of probes of the peer
	sources []sourceKey   // guarded by bind.mu, which is held too when the keys are entered
	homes   []identity.ID // relays that it can be reached by; guarded by Node.mu
	claimed uint64        // the last roster that has its key; guarded by configure
	kept    uint64        // the last roster that has it; guarded by configure

	keys    sync.Once   // derive
	waking  sync.Once   // rouse
	awake   atomic.Bool // set with mu held
	engaged atomic.Bool // WireGuard knows it; set with engaging held

	carries []identity.WGPublic // its guests; guarded by tunnel.configure
	guests  []netip.Addr        // their addresses; guarded by tunnel.engaging

	route atomic.Pointer[route]
	size  atomic.Int64                   // largest packet for the peer that fits into a datagram; 0: what fits everywhere
	leg   atomic.Pointer[netip.AddrPort] // where frames for the peer go: the last path without a relay
	load  atomic.Uint32                  // as a relay, as its last pong said; see wire.Probe
	sent  atomic.Int64                   // instant when there last was something to send
	timer atomic.Pointer[time.Timer]     // nil: not needed yet

	mu         sync.Mutex
	closed     bool
	stored     []netip.AddrPort // where it may be, as the roster says
	rumours    []netip.AddrPort // the same, as others said before it woke
	paths      paths
	handshakes handshakes
	asked      map[uint64]asked // pings without an answer, by transaction; nil: none yet
	waiting    []chan Path      // who waits for the next answer
	instance   uint64           // that the peer's probes name; 0: not known yet
	place      uint16           // that the peer's pongs of this instance name
	restarted  uint64           // instance that WireGuard's peer is to be renewed for; 0: none
	told       Path             // what was reported last
}

// route is the path as long as it is trusted.
type route struct {
	hop
	until instant
}

type asked struct {
	hop
	at   instant
	size int // of the ping; 0: the shortest
}

func newPeer(b *bind, key identity.WGPublic, addr netip.Addr) *peer {
	return &peer{bind: b, key: key, addr: addr, name: wire.NameOf(key), life: random()}
}

// derive derives the keys of probes, which costs as much as a handshake, and
// makes the peer known by them. A key of small order, which trust refuses too,
// makes no probes: its owner is never reached.
func (p *peer) derive() {
	p.keys.Do(func() {
		out, receive, err := wire.ProbeKeys(p.bind.cfg.key, p.key)
		if err != nil {
			p.bind.cfg.log.Warn("peer ignored", "peer", p.id.Short(), "error", err)
			p.close()
			return
		}
		p.bind.identify(p, out, receive)
	})
}

// rouse prepares a peer for use.
func (p *peer) rouse() {
	p.derive()
	p.mu.Lock()
	p.awake.Store(true)
	p.paths.kind, p.paths.leads = p.bind.kindOf, leads
	own := p.bind.cfg.key.Public()
	p.handshakes.first = bytes.Compare(own[:], p.key[:]) < 0
	now := p.bind.now()
	p.paths.replace(now, roster, p.ways(p.stored)) // nothing waits for them yet
	p.paths.learn(now, rumour, p.ways(p.rumours)...)
	p.rumours = nil
	p.mu.Unlock()
	if p.bind.cfg.roused != nil {
		p.bind.cfg.roused(p)
	}
}

// isCrowded reports whether the peer is to be avoided as a relay.
func (p *peer) isCrowded() bool { return p.load.Load() >= crowded }

func (p *peer) isAwake() bool { return p.awake.Load() }

// lock takes the lock of a peer that is used.
func (p *peer) lock() {
	p.waking.Do(p.rouse)
	p.mu.Lock()
}

// alarm has tick called after some time. It takes no lock.
func (p *peer) alarm(after time.Duration) {
	if t := p.timer.Load(); t != nil {
		t.Reset(after)
		return
	}
	t := time.AfterFunc(after, p.tick)
	if !p.timer.CompareAndSwap(nil, t) {
		t.Stop()
		p.timer.Load().Reset(after)
	}
}

// The methods of conn.Endpoint. WireGuard counts messages under load by DstIP
// and binds cookies to DstToBytes: both stand for the peer, wherever it is.

func (p *peer) ClearSrc()           {}
func (p *peer) SrcToString() string { return "" }
func (p *peer) SrcIP() netip.Addr   { return netip.Addr{} }
func (p *peer) DstToString() string { return p.key.Hex() }
func (p *peer) DstToBytes() []byte  { return p.key[:] }
func (p *peer) DstIP() netip.Addr   { return p.addr }

// close ends the timer. A tick that is running does nothing more.
func (p *peer) close() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.closed = true
	if t := p.timer.Load(); t != nil {
		t.Stop()
	}
	p.paths.best = nil
	p.route.Store(nil)
	p.leg.Store(nil)
	p.bind.news(p)
}

// send sends messages of WireGuard where the path is in doubt or the message
// belongs to a handshake. The lock is held while it does, here and below: a
// message of a handshake that leaves late does harm.
func (p *peer) send(now instant, bufs [][]byte) {
	p.lock()
	defer p.mu.Unlock()
	if p.closed {
		return
	}
	hold := false
	switch bufs[0][0] {
	case initiation:
		hold = !p.handshakes.initiated(now, bufs[0])
	case response:
		p.handshakes.responded(now, bufs[0])
	}
	p.do(now, p.paths.want(now))
	if !hold {
		p.write(now, bufs...)
	}
	p.settle()
}

// write sends messages of WireGuard of one type to where they belong. Nil is
// none.
func (p *peer) write(now instant, bufs ...[]byte) {
	if len(bufs[0]) == 0 {
		return
	}
	for _, h := range p.targets(now, bufs[0][0]) {
		_ = p.bind.pass(now, p, bufs, h) // a way may lead nowhere
	}
}

// targets returns where to send a message of WireGuard. While no path is
// trusted, an initiation goes to every candidate and its answer to wherever the
// peer has called from; data go by the last path, and by a relay beside it. None
// of this makes a candidate the path.
func (p *peer) targets(now instant, message byte) []hop {
	switch {
	case p.paths.isTrusted(now):
		return []hop{p.paths.best.hop}
	case p.paths.best != nil && message == transport:
		return p.paths.doubted(now)
	case message == initiation:
		return p.paths.first()
	default:
		to := p.paths.callers(now)
		if best := p.paths.best; best != nil && !slices.Contains(to, best.hop) {
			to = append(to, best.hop)
		}
		return to
	}
}

// do does errands.
func (p *peer) do(now instant, errands []errand) {
	if len(p.asked) > maxAsked {
		maps.DeleteFunc(p.asked, func(_ uint64, a asked) bool { return !a.at.within(handshakeLife, now) })
	}
	for _, e := range errands {
		switch e.what {
		case ping:
			tx := random()
			if p.asked == nil {
				p.asked = map[uint64]asked{}
			}
			p.asked[tx] = asked{e.hop, now, e.size}
			p.probe(now, e.hop, wire.Probe{Kind: wire.Ping, Tx: tx, Size: e.size})
		case opening:
			p.bind.open(p.out.Seal(wire.Probe{Kind: wire.Ping, Tx: random(), Instance: p.life}), e.addr)
		case call:
			p.probe(now, e.hop, wire.Probe{Kind: wire.Call, Tx: random(), Addrs: p.bind.addrs()})
		case answer:
			p.probe(now, e.hop, wire.Probe{Kind: wire.Answer, Tx: random(), Addrs: p.bind.addrs()})
		}
	}
}

func (p *peer) probe(now instant, to hop, probe wire.Probe) {
	probe.Instance, probe.Place = p.life, p.bind.place()
	if probe.Size > 0 {
		p.bind.whole(p.out.Seal(probe), to.addr)
		return
	}
	_ = p.bind.pass(now, p, [][]byte{p.out.Seal(probe)}, to) // a way may lead nowhere
}

// settle makes what was decided take effect: the route, the timer, the report.
func (p *peer) settle() {
	path := p.paths.path()
	if path.Kind == None {
		p.route.Store(nil)
	} else if r := p.route.Load(); r == nil || r.hop != p.paths.best.hop || r.until != p.paths.trusted {
		p.route.Store(&route{p.paths.best.hop, p.paths.trusted})
	}
	p.size.Store(int64(path.MTU))
	if leg := p.leg.Load(); path.Addr.IsValid() && (leg == nil || *leg != path.Addr) {
		p.leg.Store(&path.Addr) // never a relay: what goes through one goes through no other
	}
	if due := earliest(p.paths.next, p.handshakes.next); due != 0 {
		p.alarm(due.sub(p.bind.now()))
	}
	if !path.same(p.told) {
		p.bind.news(p)
	}
}

// wake has the peer look for its path soon, because there is something to send
// that does not wait for it. It takes no lock.
func (p *peer) wake(now instant) {
	p.sent.Store(int64(now))
	if r := p.route.Load(); r == nil || now >= r.until {
		p.alarm(0)
	}
}

// earliest returns the earlier of two instants of which 0 is none.
func earliest(a, b instant) instant {
	if a == 0 || (b != 0 && b < a) {
		return b
	}
	return a
}

// tick does what is due.
func (p *peer) tick() {
	p.lock()
	defer p.mu.Unlock()
	if p.closed {
		return
	}
	now, sent := p.bind.now(), instant(p.sent.Load())
	if p.paths.next == 0 && sent.within(heartbeat, now) {
		p.do(now, p.paths.want(now))
	}
	p.do(now, p.paths.tick(now, sent))
	if next := p.handshakes.next; next != 0 && next <= now {
		p.write(now, p.handshakes.again(now))
	}
	p.settle()
}

// ping answers an authenticated ping. Our own ping goes before the answer: the
// peer, when it goes on after the answer, has then proved its address.
func (p *peer) ping(now instant, probe wire.Probe, from hop) {
	p.lock()
	defer p.mu.Unlock()
	if p.closed {
		return
	}
	doubt := p.instance != 0 && (probe.Instance != p.instance || probe.Place != p.place)
	p.do(now, p.paths.ping(now, from, doubt))
	p.probe(now, from, wire.Probe{Kind: wire.Pong, Tx: probe.Tx, Seen: from.addr, Load: p.bind.load(p)})
	p.settle()
}

// call heeds an authenticated call, or the answer to one. They come by relays
// alone: one that comes from an address was repeated by who knows whom.
func (p *peer) call(now instant, probe wire.Probe, from hop) {
	p.lock()
	defer p.mu.Unlock()
	if p.closed || from.via == nil || p.instance != 0 && probe.Instance != p.instance {
		return
	}
	p.do(now, p.paths.call(now, from, probe.Kind == wire.Answer, usable(probe.Addrs, p.addr)))
	p.settle()
}

// pong takes an authenticated pong and reports whether it answers a ping of
// ours.
func (p *peer) pong(now instant, probe wire.Probe) bool {
	p.lock()
	defer p.mu.Unlock()
	ask, ok := p.asked[probe.Tx]
	if !ok || p.closed {
		return false
	}
	delete(p.asked, probe.Tx)
	if !p.meet(probe) {
		return false
	}
	if ask.via == nil {
		p.bind.saw(p, ask.addr, probe.Seen)
		p.load.Store(uint32(probe.Load))
	}
	rtt := now.sub(ask.at)
	p.paths.pong(now, ask.hop, rtt, ask.size)
	if ask.at > p.handshakes.sent { // the initiation did not go with this ping
		p.write(now, p.handshakes.again(now))
	}
	path := p.paths.path()
	path.RTT = rtt
	for _, w := range p.waiting {
		w <- p.seen(path)
	}
	p.waiting = nil
	p.settle()
	return true
}

// moved looks for the peer from where this node is now, and tells it so.
func (p *peer) moved(now instant) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.closed {
		p.do(now, p.paths.moved(now))
		p.settle()
	}
}

// meet compares what a pong says of the peer with what is known, and is false
// for a pong from before the peer's network changed. A new instance has lost
// WireGuard's sessions, and the peer's clock may have been set back, which
// WireGuard would refuse for as long: so WireGuard's peer is made anew.
func (p *peer) meet(pong wire.Probe) bool {
	switch {
	case p.instance == 0:
		p.instance, p.place = pong.Instance, pong.Place
	case p.instance != pong.Instance && p.restarted != pong.Instance:
		p.restarted, p.place = pong.Instance, pong.Place
		p.paths.best = nil // it may be somewhere else now
		p.bind.news(p)
	case p.place != pong.Place:
		if int16(pong.Place-p.place) < 0 { // serial numbers, as in RFC 1982
			return false
		}
		p.place = pong.Place
		p.paths.relocated()
	}
	return true
}

// renewed is called when WireGuard's peer was made anew.
func (p *peer) renewed() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.instance, p.restarted = p.restarted, 0
	p.handshakes = p.handshakes.renewed(p.bind.now())
}

// initiated takes an initiation of the peer and reports whether WireGuard is to
// see it. instance is what the last probe from its address, or by its relay, named:
// as long as a restart is not proved and dealt with, the session that the
// initiation would make would not last.
func (p *peer) initiated(now instant, msg []byte, instance uint64) bool {
	p.lock()
	defer p.mu.Unlock()
	if p.restarted != 0 || p.instance != 0 && instance != p.instance {
		return false
	}
	pass, send := p.handshakes.arrives(now, msg)
	p.write(now, send)
	return pass
}

// responded takes a response of the peer and reports whether WireGuard is to see
// it.
func (p *peer) responded(msg []byte) bool {
	p.lock()
	defer p.mu.Unlock()
	return p.handshakes.answered(msg)
}

// path returns the path as it is now.
func (p *peer) path() Path {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.seen(p.paths.path())
}

// answersUDP reports whether the path is a UDP address, and no search shows that
// it does not answer.
func (p *peer) answersUDP() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.paths.best != nil && p.paths.best.kind >= Direct && p.paths.tried <= openings
}

// seen returns a path as others than this package see it.
func (p *peer) seen(path Path) Path {
	if path.Kind == TCP {
		path.Addr = p.bind.streams.remote(path.Addr)
	}
	return path
}

// report returns the path and whether it is another one than at the last call,
// and whether WireGuard's peer is to be renewed.
func (p *peer) report() (path Path, changed, restarted bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	path = p.paths.path()
	changed = !path.same(p.told)
	p.told = path
	return p.seen(path), changed, p.restarted != 0 && !p.closed
}

// ErrNoAnswer means that no address of the peer has answered.
var ErrNoAnswer = errors.New("no answer from any address")

// knock pings until the peer answers or ctx ends.
func (p *peer) knock(ctx context.Context) (Path, error) {
	answer := make(chan Path, 1)
	for wait := retry; ; wait = min(2*wait, heartbeat) {
		p.await(answer)
		again := time.NewTimer(wait)
		select {
		case path := <-answer:
			again.Stop()
			return path, nil
		case <-again.C:
		case <-ctx.Done():
			again.Stop()
			p.forget(answer)
			return Path{}, fmt.Errorf("%w: %w", ErrNoAnswer, ctx.Err())
		}
	}
}

// await pings the path if it is trusted, else every candidate, and has the next
// answer sent to a channel.
func (p *peer) await(answer chan Path) {
	p.lock()
	defer p.mu.Unlock()
	if p.closed {
		return
	}
	if !slices.Contains(p.waiting, answer) {
		p.waiting = append(p.waiting, answer)
	}
	now := p.bind.now()
	errands := p.paths.want(now)
	switch {
	case errands != nil:
	case p.paths.isTrusted(now) && !p.paths.best.owes():
		errands = p.paths.ask(now, p.paths.best)
	default:
		errands = p.paths.approach(now, p.paths.candidates...)
	}
	p.do(now, errands)
	p.settle()
}

func (p *peer) forget(answer chan Path) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.waiting = slices.DeleteFunc(p.waiting, func(c chan Path) bool { return c == answer })
}
