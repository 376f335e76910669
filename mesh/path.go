package mesh

import (
	"cmp"
	"net/netip"
	"slices"
	"time"
)

// Kind says how a path runs. The greater kind is the better one.
type Kind int

// Kinds of paths.
const (
	None   Kind = iota // no address has answered
	Direct             // UDP between the two, routed
	LAN                // UDP between the two, on one network
)

// String returns the word for people and for JSON.
func (k Kind) String() string {
	switch k {
	case LAN:
		return "lan"
	case Direct:
		return "direct"
	default:
		return "none"
	}
}

// Path is how packets reach a peer.
type Path struct {
	Kind Kind
	Addr netip.AddrPort // the other end's UDP address; zero for None
	RTT  time.Duration  // round trip, smoothed; 0 for None
}

// Timing of probes. A search sends its pings after 0, 100, 300, 700 and 1,500
// ms and gives up after 3,100.
const (
	heartbeat = time.Second             // between pings on a path in use
	trust     = 2500 * time.Millisecond // a path is used alone for so long after an answer
	retry     = 100 * time.Millisecond  // from the first try of a search to the second, doubled at each
	tries     = 5
	recheck   = 30 * time.Second // between looks for something better than a path in use
	wish      = 10 * time.Second // traffic that waited so long is still worth a new address
	calls     = 500              // of a peer that are answered with a ping in one second: repeated calls cost little
)

// instant is a time on the clock of a bind, which only goes forward. The zero
// instant is long ago.
type instant time.Duration

func (t instant) add(d time.Duration) instant            { return t + instant(d) }
func (t instant) sub(u instant) time.Duration            { return time.Duration(t - u) }
func (t instant) within(d time.Duration, u instant) bool { return u.sub(t) < d }

// origin is where an address of a peer is known from.
type origin int

const (
	heard  origin = iota // only an authenticated ping that came from it
	rumour               // somebody said so
	roster               // stored, or from an invite
)

// Most candidates of each origin: a flood of rumours cannot push out what is
// stored.
var candidateLimit = [...]int{heard: 4, rumour: 8, roster: 8}

// candidate is an address that may reach the peer.
type candidate struct {
	addr     netip.AddrPort
	kind     Kind
	origin   origin
	rtt      time.Duration // smoothed; 0: it never answered
	known    instant       // learnt, or heard of again
	heard    instant       // an authenticated ping came from it
	pinged   instant
	waiting  instant // the first ping since the last answer
	answered instant
}

// better reports whether traffic should move from another path to c. Round
// trips must differ clearly, so that it does not move to and fro.
func (c *candidate) better(than *candidate) bool {
	if c.kind != than.kind {
		return c.kind > than.kind
	}
	return c.rtt < than.rtt*3/4 && than.rtt-c.rtt > time.Millisecond
}

// owes reports whether an answer of c is outstanding, and silent whether it is
// overdue.
func (c *candidate) owes() bool { return c.waiting > c.answered }

func (c *candidate) silent(now instant) bool {
	return c.owes() && !c.waiting.within(retry+4*c.rtt, now)
}

// paths chooses the address that carries packets to one peer. It does no I/O
// and has no clock: each method takes the time and returns the addresses to
// ping. An address becomes the path when it has answered a ping of ours, never
// because something came from it.
//
// The path is trusted for a while after each answer. While there is traffic, it
// is pinged as a heartbeat; without traffic nothing is sent. When trust has run
// out and there is traffic, a search begins: packets go on over the last path
// and every candidate is asked. A search that nobody answers loses the path.
type paths struct {
	kind func(netip.Addr) Kind // of a candidate: Direct or LAN

	candidates []*candidate
	best       *candidate // the path; nil: none
	trusted    instant    // until when
	wanted     instant    // when there last was something to send
	tried      int        // pings sent in the search that is going on; 0: none is
	next       instant    // when tick is due; 0: never
	checked    instant    // when all candidates were last asked
	second     instant    // since when calls are counted
	called     int        // calls answered with a ping since then
}

// path returns the path.
func (p *paths) path() Path {
	if p.best == nil {
		return Path{}
	}
	return Path{p.best.kind, p.best.addr, p.best.rtt}
}

// isTrusted reports whether the path may be used alone.
func (p *paths) isTrusted(now instant) bool { return p.best != nil && now < p.trusted }

// all returns the address of every candidate.
func (p *paths) all() []netip.AddrPort {
	out := make([]netip.AddrPort, len(p.candidates))
	for i, c := range p.candidates {
		out[i] = c.addr
	}
	return out
}

// callers returns the addresses from which the peer has called lately.
func (p *paths) callers(now instant) []netip.AddrPort {
	var out []netip.AddrPort
	for _, c := range p.candidates {
		if c.heard.within(wish, now) {
			out = append(out, c.addr)
		}
	}
	return out
}

// want is called when there is something to send.
func (p *paths) want(now instant) []netip.AddrPort {
	p.wanted = now
	if p.isTrusted(now) || p.tried > 0 {
		return nil
	}
	if p.best != nil && !p.best.owes() { // it was only idle
		p.tried, p.next = 1, now.add(retry)
		return p.ask(now, p.best)
	}
	return p.search(now)
}

// tick is called when next has come. wanted is when there last was something
// to send.
func (p *paths) tick(now, wanted instant) []netip.AddrPort {
	if p.next == 0 || now < p.next {
		return nil
	}
	p.wanted = max(p.wanted, wanted)
	switch {
	case p.tried == tries:
		p.best, p.tried, p.next = nil, 0, 0
		return nil
	case p.tried > 0:
		return p.search(now)
	case !p.wanted.within(heartbeat, now):
		p.next = 0
		return nil
	case !p.isTrusted(now), p.best.silent(now):
		return p.search(now)
	}
	p.next = now.add(heartbeat)
	if p.best.kind < LAN && !p.checked.within(recheck, now) {
		return p.askAll(now)
	}
	return p.ask(now, p.best)
}

// search asks every candidate, for the first time or again.
func (p *paths) search(now instant) []netip.AddrPort {
	p.next = now.add(retry << p.tried)
	p.tried++
	return p.askAll(now)
}

func (p *paths) askAll(now instant) []netip.AddrPort {
	p.checked = now
	return p.ask(now, p.candidates...)
}

func (p *paths) ask(now instant, candidates ...*candidate) []netip.AddrPort {
	addrs := make([]netip.AddrPort, len(candidates))
	for i, c := range candidates {
		if !c.owes() {
			c.waiting = now
		}
		c.pinged = now
		addrs[i] = c.addr
	}
	return addrs
}

// pong is called when the peer answered a ping that was sent to addr.
func (p *paths) pong(now instant, addr netip.AddrPort, rtt time.Duration) {
	c := p.add(now, addr, heard)
	c.answered = now
	if c.rtt == 0 {
		c.rtt = rtt
	} else {
		c.rtt += (rtt - c.rtt) / 4
	}
	if p.best == nil || !p.isTrusted(now) || p.best.silent(now) || c.better(p.best) {
		p.best = c
	}
	if p.best == c {
		p.trusted = now.add(trust)
		p.tried, p.next = 0, now.add(heartbeat)
	}
}

// ping is called when a ping of the peer came from addr. It is answered with
// one of our own where addr has not proved itself lately. doubt says that the
// peer may have restarted, and that the answer is needed in any case.
func (p *paths) ping(now instant, addr netip.AddrPort, doubt bool) []netip.AddrPort {
	c := p.add(now, addr, heard)
	c.heard = now
	if !doubt && (c.answered.within(2*heartbeat, now) || c.pinged.within(retry, now)) {
		return nil
	}
	if !p.second.within(time.Second, now) {
		p.second, p.called = now, 0
	}
	if p.called++; p.called > calls {
		return nil
	}
	return p.ask(now, c)
}

// learn is called when addresses of the peer became known. They are asked at
// once where traffic waits for them.
func (p *paths) learn(now instant, from origin, addrs ...netip.AddrPort) []netip.AddrPort {
	var fresh []*candidate
	for _, a := range addrs {
		if p.find(a) == nil {
			fresh = append(fresh, p.add(now, a, from))
		} else {
			p.add(now, a, from)
		}
	}
	if len(fresh) == 0 || !p.wanted.within(wish, now) {
		return nil
	}
	if p.best == nil && p.tried == 0 {
		p.tried, p.next = 1, now.add(retry)
	}
	return p.ask(now, fresh...)
}

// replace makes addrs the stored addresses.
func (p *paths) replace(now instant, addrs []netip.AddrPort) []netip.AddrPort {
	addrs = addrs[:min(len(addrs), candidateLimit[roster])]
	for _, c := range p.candidates {
		if c.origin == roster && !slices.Contains(addrs, c.addr) {
			c.origin = rumour
		}
	}
	p.trim(rumour)
	return p.learn(now, roster, addrs...)
}

func (p *paths) find(addr netip.AddrPort) *candidate {
	for _, c := range p.candidates {
		if c.addr == addr {
			return c
		}
	}
	return nil
}

// add returns the candidate with that address.
func (p *paths) add(now instant, addr netip.AddrPort, from origin) *candidate {
	c := p.find(addr)
	if c == nil {
		c = &candidate{addr: addr, kind: p.kind(addr.Addr())}
		p.candidates = append(p.candidates, c)
	}
	c.known, c.origin = now, max(c.origin, from)
	p.trim(c.origin)
	return c
}

// trim removes the candidates of one origin that are too many: those that were
// of use longest ago, but never the path.
func (p *paths) trim(from origin) {
	var mine []*candidate
	for _, c := range p.candidates {
		if c.origin == from && c != p.best {
			mine = append(mine, c)
		}
	}
	excess := len(mine) - candidateLimit[from]
	if excess <= 0 {
		return
	}
	slices.SortStableFunc(mine, func(a, b *candidate) int {
		return cmp.Compare(max(a.known, a.answered), max(b.known, b.answered))
	})
	p.candidates = slices.DeleteFunc(p.candidates, func(c *candidate) bool { return slices.Contains(mine[:excess], c) })
}
