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

// peer is the other end of a tunnel: a member, a joiner, or to a guest the
// door. It is the endpoint that WireGuard knows.
type peer struct {
	bind *bind
	id   identity.ID // zero: no member
	key  identity.WGPublic
	addr netip.Addr // in the overlay: the only address that it may use
	psk  [32]byte   // zero: none

	life    uint64           // instance that our probes name; see wire.Probe
	out     wire.ProbeKey    // of probes to the peer
	receive wire.ProbeKey    // of probes of the peer
	sources []netip.AddrPort // guarded by bind.mu

	route atomic.Pointer[route]
	sent  atomic.Int64 // instant when WireGuard last had something to send

	mu         sync.Mutex
	closed     bool
	timer      *time.Timer
	paths      paths
	handshakes handshakes
	asked      map[uint64]asked // pings without an answer, by transaction
	waiting    []chan Path      // who waits for the next answer
	instance   uint64           // that the peer's probes name; 0: not known yet
	restarted  uint64           // instance that WireGuard's peer is to be renewed for; 0: none
	told       Path             // what was reported last
}

// route is the path as long as it is trusted.
type route struct {
	addr  netip.AddrPort
	until instant
}

type asked struct {
	addr netip.AddrPort
	at   instant
}

func newPeer(b *bind, self identity.WGKey, key identity.WGPublic, addr netip.Addr) (*peer, error) {
	p := &peer{bind: b, key: key, addr: addr, life: random(), asked: map[uint64]asked{}}
	p.paths.kind = b.kind
	own := self.Public()
	p.handshakes.first = bytes.Compare(own[:], key[:]) < 0
	var err error
	if p.out, p.receive, err = wire.ProbeKeys(self, key); err != nil {
		return nil, err
	}
	p.timer = time.AfterFunc(time.Hour, p.tick)
	p.timer.Stop()
	return p, nil
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
	p.timer.Stop()
	p.paths.best = nil
	p.route.Store(nil)
	p.bind.news(p)
}

// send sends messages of WireGuard where the path is in doubt or the message
// belongs to a handshake. The lock is held while it does, here and below: a
// message of a handshake that leaves late does harm.
func (p *peer) send(now instant, bufs [][]byte) {
	p.mu.Lock()
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
	p.ask(now, p.paths.want(now))
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
	for _, addr := range p.targets(now, bufs[0][0]) {
		_ = p.bind.write(bufs, addr) // an address may be wrong
	}
}

// targets returns the addresses to send a message of WireGuard to. While no
// path is trusted, an initiation goes to every candidate and its answer to
// wherever the peer has called from; data go by the last path. None of this
// makes an address the path.
func (p *peer) targets(now instant, message byte) []netip.AddrPort {
	switch best := p.paths.path().Addr; {
	case p.paths.isTrusted(now), best.IsValid() && message == transport:
		return []netip.AddrPort{best}
	case message == initiation:
		return p.paths.all()
	default:
		to := p.paths.callers(now)
		if best.IsValid() && !slices.Contains(to, best) {
			to = append(to, best)
		}
		return to
	}
}

// ask pings addresses.
func (p *peer) ask(now instant, addrs []netip.AddrPort) {
	if len(p.asked) > maxAsked {
		maps.DeleteFunc(p.asked, func(_ uint64, a asked) bool { return !a.at.within(handshakeLife, now) })
	}
	for _, addr := range addrs {
		tx := random()
		p.asked[tx] = asked{addr, now}
		p.probe(addr, wire.Probe{Kind: wire.Ping, Tx: tx})
	}
}

func (p *peer) probe(to netip.AddrPort, probe wire.Probe) {
	probe.Instance = p.life
	_ = p.bind.write([][]byte{p.out.Seal(probe)}, to) // an address may be wrong
}

// settle makes what was decided take effect: the route, the timer, the report.
func (p *peer) settle() {
	path := p.paths.path()
	if path.Kind == None {
		p.route.Store(nil)
	} else if r := p.route.Load(); r == nil || r.addr != path.Addr || r.until != p.paths.trusted {
		p.route.Store(&route{path.Addr, p.paths.trusted})
	}
	if due := earliest(p.paths.next, p.handshakes.next); due != 0 {
		p.timer.Reset(due.sub(p.bind.now()))
	}
	if path.Kind != p.told.Kind || path.Addr != p.told.Addr {
		p.bind.news(p)
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
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return
	}
	now := p.bind.now()
	p.ask(now, p.paths.tick(now, instant(p.sent.Load())))
	if next := p.handshakes.next; next != 0 && next <= now {
		p.write(now, p.handshakes.again(now))
	}
	p.settle()
}

// ping answers an authenticated ping. Our own ping goes before the answer: the
// peer, when it goes on after the answer, has then proved its address.
func (p *peer) ping(now instant, probe wire.Probe, from netip.AddrPort) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return
	}
	doubt := p.instance != 0 && probe.Instance != p.instance
	p.ask(now, p.paths.ping(now, from, doubt))
	p.probe(from, wire.Probe{Kind: wire.Pong, Tx: probe.Tx, Seen: from})
	p.settle()
}

// pong takes an authenticated pong and reports whether it answers a ping of
// ours.
func (p *peer) pong(now instant, probe wire.Probe) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	ask, ok := p.asked[probe.Tx]
	if !ok || p.closed {
		return false
	}
	delete(p.asked, probe.Tx)
	p.meet(probe.Instance)
	rtt := now.sub(ask.at)
	p.paths.pong(now, ask.addr, rtt)
	if ask.at > p.handshakes.sent { // the initiation did not go with this ping
		p.write(now, p.handshakes.again(now))
	}
	answer := p.paths.path()
	answer.RTT = rtt
	for _, w := range p.waiting {
		w <- answer
	}
	p.waiting = nil
	p.settle()
	return true
}

// meet compares the peer's instance with the one known. A new one has lost
// WireGuard's sessions, and the peer's clock may have been set back, which
// WireGuard would refuse for as long: so WireGuard's peer is made anew.
func (p *peer) meet(instance uint64) {
	switch {
	case p.instance == 0:
		p.instance = instance
	case p.instance != instance && p.restarted != instance:
		p.restarted = instance
		p.paths.best = nil // it may be somewhere else now
		p.bind.news(p)
	}
}

// renewed is called when WireGuard's peer was made anew.
func (p *peer) renewed() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.instance, p.restarted = p.restarted, 0
	p.handshakes = handshakes{first: p.handshakes.first}
}

// initiated takes an initiation of the peer and reports whether WireGuard is to
// see it. instance is what the last probe from its address named: as long as a
// restart is not proved and dealt with, the session that the initiation would
// make would not last.
func (p *peer) initiated(now instant, msg []byte, instance uint64) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.instance != 0 && instance != p.instance {
		return false
	}
	pass, send := p.handshakes.arrives(now, msg)
	p.write(now, send)
	return pass
}

// responded takes a response of the peer and reports whether WireGuard is to see
// it.
func (p *peer) responded(msg []byte) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.handshakes.answered(msg)
}

// usable returns the addresses that can lead somewhere other than back into the
// overlay of which one address is given.
func usable(list []netip.AddrPort, inside netip.Addr) (out []netip.AddrPort) {
	overlay := netip.PrefixFrom(inside, identity.MeshID{}.Prefix().Bits()).Masked()
	for _, a := range list {
		ip := a.Addr().Unmap()
		if ip.IsValid() && !ip.IsUnspecified() && !ip.IsMulticast() && !overlay.Contains(ip) && a.Port() != 0 {
			out = append(out, netip.AddrPortFrom(ip, a.Port()))
		}
	}
	return out
}

// learn adds addresses to try; stored ones replace those stored before.
func (p *peer) learn(from origin, addrs []netip.AddrPort) {
	addrs = usable(addrs, p.addr)
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return
	}
	now := p.bind.now()
	if from == roster {
		p.ask(now, p.paths.replace(now, addrs))
	} else {
		p.ask(now, p.paths.learn(now, from, addrs...))
	}
	p.settle()
}

// path returns the path as it is now.
func (p *peer) path() Path {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.paths.path()
}

// report returns the path and whether it is another one than at the last call,
// and whether WireGuard's peer is to be renewed.
func (p *peer) report() (path Path, changed, restarted bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	path = p.paths.path()
	changed = path.Kind != p.told.Kind || path.Addr != p.told.Addr
	p.told = path
	return path, changed, p.restarted != 0 && !p.closed
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
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return
	}
	if !slices.Contains(p.waiting, answer) {
		p.waiting = append(p.waiting, answer)
	}
	now := p.bind.now()
	to := p.paths.all()
	if p.paths.isTrusted(now) && !p.paths.best.owes() {
		to = []netip.AddrPort{p.paths.best.addr}
	}
	p.ask(now, to)
}

func (p *peer) forget(answer chan Path) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.waiting = slices.DeleteFunc(p.waiting, func(c chan Path) bool { return c == answer })
}
