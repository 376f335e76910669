package mesh

import (
	"cmp"
	"net/netip"
	"slices"
	"time"

	"github.com/balanceai/balance/mesh/identity"
)

// Kind says how a path runs. The greater kind is the better one.
type Kind int

// Kinds of paths.
const (
	None    Kind = iota // nothing has answered
	Relayed             // through a member that both reach
	TCP                 // a connection between the two, where UDP does not pass
	Direct              // UDP between the two, routed
	LAN                 // UDP between the two, on one network
)

// String returns the word for people and for JSON.
func (k Kind) String() string {
	switch k {
	case LAN:
		return "lan"
	case Direct:
		return "direct"
	case TCP:
		return "tcp"
	case Relayed:
		return "relay"
	default:
		return "none"
	}
}

// Path is how packets reach a peer.
type Path struct {
	Kind Kind
	Addr netip.AddrPort // the other end's UDP or TCP address; zero for None and Relayed
	Via  identity.ID    // the relay; zero for other kinds
	RTT  time.Duration  // round trip, smoothed; 0 for None
	MTU  int            // largest packet of the overlay in bytes that fits into one datagram; 0 for None
}

// same reports whether another path runs the same way.
func (p Path) same(other Path) bool {
	return p.Kind == other.Kind && p.Addr == other.Addr && p.Via == other.Via
}

// hop is one way to a peer: a UDP address, or a relay.
type hop struct {
	addr netip.AddrPort
	via  *peer
}

func direct(addr netip.AddrPort) hop { return hop{addr: addr} }

// Timing of probes. A search sends its pings after 0, 100, 300, 700 and 1,500
// ms and gives up after 3,100.
const (
	heartbeat   = time.Second             // between pings on a path in use
	trust       = 2500 * time.Millisecond // a path is used alone for so long after an answer
	retry       = 100 * time.Millisecond  // from the first try of a search to the second, doubled at each
	tries       = 5
	recheck     = 45 * time.Second // between looks for something better than a path in use; see opening
	peek        = 5 * time.Second  // between looks whether an address that a relay stands in for answers again
	natLife     = 25 * time.Second // for which a NAT keeps what has opened it, at least
	familiarFor = 10 * time.Minute // for which an address is looked at that often
	leave       = 10 * time.Second // between looks for another relay than a crowded one
	stay        = time.Minute      // after a move between relays until load counts again: the load moves too
	wish        = 10 * time.Second // traffic that waited so long is still worth a new address
	pingsBack   = 500              // of a peer that are answered with a ping in one second: repeated calls cost little
)

// instant is a time on the clock of a bind, which only goes forward. The zero
// instant is long ago.
type instant time.Duration

func (t instant) add(d time.Duration) instant            { return t + instant(d) }
func (t instant) sub(u instant) time.Duration            { return time.Duration(t - u) }
func (t instant) within(d time.Duration, u instant) bool { return u.sub(t) < d }

// errand is something to send.
type errand struct {
	hop
	what message
	size int // of a ping in bytes; 0: the shortest
}

// sizes are those of the datagrams that are tried on a path, beyond what every
// path carries: what fits into an Ethernet frame, and into a large one, with
// the headers of IPv6 and UDP.
var sizes = [...]int{1500 - 48, 9000 - 48}

// A size is tried thrice at once, and again after a while.
const (
	soundings  = 3
	soundAgain = 10 * time.Minute
)

// message is a kind of errand.
type message int

const (
	ping    message = iota
	opening         // a ping that opens our own NAT and goes no farther
	call            // asks the peer to ping our addresses and to answer
	answer          // tells our addresses, after having pinged the peer's
)

// paths chooses the way that carries packets to one peer. It does no I/O and
// has no clock: each method takes the time and returns what to send. An address
// or a relay becomes the path when it has answered a ping of ours, never because
// something came from it.
//
// The path is trusted for a while after each answer. While there is traffic, it
// is pinged as a heartbeat; without traffic nothing is sent. When trust has run
// out and there is traffic, a search begins: packets go on over the last path,
// and over a relay beside it, and every candidate is asked. A search that nobody
// answers loses the path. One that only a relay has answered goes on to its end,
// and begins anew every now and then.
//
// Where a relay can be sent to, a NAT is opened from both sides in turn. Our first
// pings to strange addresses go no farther than our own NAT; the call goes by
// the relay; the peer's pings then come in, and open its NAT; its answer comes by
// the relay, and from then on our pings arrive. A datagram that came to the
// peer's NAT before that would mostly be dropped there, but some routers note it
// (those with Linux that answer it themselves), give the peer's mapping another
// port for it, and remember that for 30 s: hence the order, and a recheck later
// than that.
type paths struct {
	kind  func(hop) Kind // of a candidate
	leads func(hop) bool // whether a relay can be sent to now

	candidates []*candidate
	best       *candidate // the path; nil: none
	trusted    instant    // until when
	wanted     instant    // when there last was something to send
	tried      int        // rounds of the search that is going on; 0: none is
	next       instant    // when tick is due; 0: never
	checked    instant    // when all candidates were last asked
	peeked     instant    // when the familiar ones were, while a relay carries
	moves      instant    // when one relay last took over from another
	second     instant    // since when the two below are counted
	pinged     int        // pings of the peer that were answered with a ping
	called     int        // calls and answers of the peer that were heeded
}

// callsBack is how many calls of a peer are heeded in one second.
const callsBack = 20

// openings is the number of rounds of a search in which strange addresses get
// openings, if a relay is known. When no relay has answered by then, they get
// pings.
const openings = 2

// path returns the path.
func (p *paths) path() Path {
	if p.best == nil {
		return Path{}
	}
	out := Path{Kind: p.best.kind, Addr: p.best.addr, RTT: p.best.rtt, MTU: max(mtu, p.best.size-overhead)}
	if p.best.via != nil {
		out.Via = p.best.via.id
	}
	return out
}

// isTrusted reports whether the path may be used alone.
func (p *paths) isTrusted(now instant) bool { return p.best != nil && now < p.trusted }

// first returns where to send a message that begins a session while no path is
// trusted: to every candidate, without the strange ones if a relay carries it.
func (p *paths) first() []hop {
	relayed := p.hasRelay()
	var out []hop
	for _, c := range p.candidates {
		if !relayed || !c.strange() {
			out = append(out, c.hop)
		}
	}
	return out
}

// hasRelay reports whether there is a relay that can be sent to. When a node has
// just started, there may be none yet: then nothing is gained by care.
func (p *paths) hasRelay() bool {
	return slices.ContainsFunc(p.candidates, func(c *candidate) bool { return c.kind == Relayed && p.leads(c.hop) })
}

// callers returns the ways by which the peer has called lately.
func (p *paths) callers(now instant) []hop {
	var out []hop
	for _, c := range p.candidates {
		if c.heard.within(wish, now) {
			out = append(out, c.hop)
		}
	}
	return out
}

// doubted returns where data go while the path is in doubt: on over the path,
// and when it owes an answer for too long or is stale, over the relay that
// answered last beside it.
func (p *paths) doubted(now instant) []hop {
	if p.best == nil {
		return nil
	}
	out := []hop{p.best.hop}
	if !p.best.silent(now) && p.tried < 2 && !p.stale(now) {
		return out
	}
	var beside *candidate
	for _, c := range p.candidates {
		if c.kind == Relayed && c != p.best && (beside == nil || c.answered > beside.answered) {
			beside = c
		}
	}
	if beside != nil {
		out = append(out, beside.hop)
	}
	return out
}

// stale reports whether a NAT on the path may have forgotten it. Then the peer is
// called again at once, and data go by a relay too.
func (p *paths) stale(now instant) bool {
	return p.best != nil && p.best.kind == Direct && p.hasRelay() && !p.best.answered.within(natLife, now)
}

// want is called when there is something to send.
func (p *paths) want(now instant) []errand {
	p.wanted = now
	if p.isTrusted(now) || p.tried > 0 {
		return nil
	}
	if p.best != nil && !p.best.owes() && !p.stale(now) { // it was only idle
		p.tried, p.next = 1, now.add(retry)
		return p.heartbeat(now)
	}
	return p.search(now)
}

// tick is called when next has come. wanted is when there last was something
// to send.
func (p *paths) tick(now, wanted instant) []errand {
	if p.next == 0 || now < p.next {
		return nil
	}
	p.wanted = max(p.wanted, wanted)
	switch {
	case p.tried == tries && p.isTrusted(now): // there is nothing better than the relay
		p.tried, p.next = 0, now.add(heartbeat)
		return p.heartbeat(now)
	case p.tried == tries:
		p.best, p.tried, p.next = nil, 0, 0
		return nil
	case p.tried > 0:
		return p.search(now)
	case !p.wanted.within(heartbeat, now):
		p.next = 0
		return nil
	case !p.isTrusted(now), p.best.silent(now), p.best.kind == Relayed && !p.checked.within(p.patience(now), now):
		return p.search(now)
	}
	p.next = now.add(heartbeat)
	if p.best.kind < Direct && !p.peeked.within(peek, now) {
		p.peeked = now
		return append(p.ask(now, p.familiar(now)...), p.heartbeat(now)...)
	}
	if p.best.kind < LAN && !p.checked.within(recheck, now) {
		p.checked = now
		others := slices.DeleteFunc(slices.Clone(p.candidates), func(c *candidate) bool { return c == p.best })
		return append(p.ask(now, others...), p.heartbeat(now)...)
	}
	return append(p.heartbeat(now), p.sound(now)...)
}

// patience returns how long a relay is the path before something better is looked
// for.
func (p *paths) patience(now instant) time.Duration {
	if p.best.isCrowded() && !p.moves.within(stay, now) && p.hasOther() {
		return leave
	}
	return recheck
}

// hasOther reports whether there is a relay that is not crowded.
func (p *paths) hasOther() bool {
	return slices.ContainsFunc(p.candidates, func(c *candidate) bool {
		return c.kind == Relayed && !c.isCrowded() && p.leads(c.hop)
	})
}

// familiar returns the addresses that have answered not long ago. They may do so
// again when a relay has taken over for them.
func (p *paths) familiar(now instant) []*candidate {
	var out []*candidate
	for _, c := range p.candidates {
		if c.kind >= Direct && c.answered.within(familiarFor, now) {
			out = append(out, c)
		}
	}
	return out
}

// heartbeat pings the path with the largest ping that it is known to carry, so
// that it is left when it carries that no more.
func (p *paths) heartbeat(now instant) []errand {
	out := p.ask(now, p.best)
	out[0].size = p.best.size
	return out
}

// sound tries the next size on the path: its answer comes beside that to the
// heartbeat, and nobody waits for it.
func (p *paths) sound(now instant) []errand {
	c := p.best
	i := slices.IndexFunc(sizes[:], func(n int) bool { return n > c.size })
	if i < 0 || c.kind < Direct {
		return nil
	}
	if c.soundings >= soundings {
		if c.sounded.within(soundAgain, now) {
			return nil
		}
		c.soundings = 0
	}
	c.sounded = now
	c.soundings++
	return []errand{{c.hop, ping, sizes[i]}}
}

// search asks every candidate, for the first time or again, and calls the peer
// by every relay.
func (p *paths) search(now instant) []errand {
	p.next = now.add(retry << p.tried)
	p.tried++
	p.checked = now
	return p.approach(now, p.candidates...)
}

// approach asks candidates; the strange ones with care, if there are relays, by
// which it calls the peer.
func (p *paths) approach(now instant, candidates ...*candidate) []errand {
	if !p.hasRelay() {
		return p.ask(now, candidates...)
	}
	var out []errand
	careful := p.tried <= openings || (p.best != nil && p.best.kind == Relayed)
	for _, c := range candidates {
		if c.strange() && careful {
			out = append(out, errand{c.hop, opening, 0})
		} else {
			out = append(out, p.ask(now, c)...)
		}
	}
	for _, c := range p.candidates {
		if c.kind == Relayed {
			out = append(out, errand{c.hop, call, 0})
		}
	}
	return out
}

func (p *paths) ask(now instant, candidates ...*candidate) []errand {
	out := make([]errand, len(candidates))
	for i, c := range candidates {
		if !c.owes() {
			c.waiting = now
		}
		c.pinged = now
		out[i] = errand{c.hop, ping, 0}
	}
	return out
}

// pong is called when the peer answered a ping of a size that was sent by h.
func (p *paths) pong(now instant, h hop, rtt time.Duration, size int) {
	c := p.add(now, h, heard)
	switch {
	case size > c.size:
		c.size, c.soundings = size, 0
	case size < c.size && c.silent(now): // a larger one was not answered
		c.size, c.soundings = 0, 0
	}
	c.answered = now
	if c.rtt == 0 {
		c.rtt = rtt
	} else {
		c.rtt += (rtt - c.rtt) / 4
	}
	if p.best == nil || !p.isTrusted(now) || p.best.silent(now) || p.betters(now, c) {
		if p.best != nil && p.best != c && p.best.kind == Relayed && c.kind == Relayed {
			p.moves = now
		}
		p.best = c
	}
	if p.best != c {
		return
	}
	p.trusted = now.add(trust)
	if p.tried == 0 || c.kind > Relayed || !p.checked.within(retry<<tries, now) {
		p.tried, p.next = 0, now.add(heartbeat)
	}
}

// betters reports whether traffic should move to c from a path that works. Where
// it has moved from one relay to another not long ago, load is no reason: the
// traffic itself may be the load, and would go to and fro.
func (p *paths) betters(now instant, c *candidate) bool {
	if c.kind == Relayed && p.best.kind == Relayed && (c.isCrowded() || p.best.isCrowded()) && p.moves.within(stay, now) {
		return false
	}
	return c.better(p.best)
}

// ping is called when a ping of the peer came by h. It is answered with one of
// our own where h has not proved itself lately. doubt says that the peer may
// have restarted or moved, and that the answer is needed in any case.
func (p *paths) ping(now instant, h hop, doubt bool) []errand {
	c := p.add(now, h, heard)
	c.heard = now
	if !doubt && (c.answered.within(2*heartbeat, now) || c.pinged.within(retry, now)) {
		return nil
	}
	p.count(now)
	if p.pinged++; p.pinged > pingsBack {
		return nil
	}
	return p.ask(now, c)
}

func (p *paths) count(now instant) {
	if !p.second.within(time.Second, now) {
		p.second, p.pinged, p.called = now, 0, 0
	}
}

// call is called when the peer called by h, or answered a call, and told its
// addresses.
func (p *paths) call(now instant, h hop, answered bool, addrs []netip.AddrPort) []errand {
	p.count(now)
	if p.called++; p.called > callsBack {
		return nil
	}
	if p.best != nil && p.best.kind == Relayed {
		p.checked = now // the two ends take turns, so that NATs have time to forget
	}
	var told []*candidate
	for _, a := range addrs {
		told = append(told, p.add(now, direct(a), rumour))
	}
	out := p.ask(now, told...)
	if !answered {
		p.add(now, h, heard).heard = now
		out = append(out, errand{h, answer, 0})
	}
	return out
}

// moved is called when this node's network has changed: nothing is trusted, and
// whoever has been heard of lately is told where we are now.
func (p *paths) moved(now instant) []errand {
	p.trusted, p.tried = 0, 0
	if p.best == nil || !p.best.answered.within(sourceLife, now) {
		return nil
	}
	return p.search(now)
}

// relocated is called when the peer's network has changed: what its addresses
// answered before proves nothing any more.
func (p *paths) relocated() {
	p.best = nil
	for _, c := range p.candidates {
		c.answered, c.waiting = 0, 0
	}
}

// learn is called when ways to the peer became known, or a relay can be sent to
// now. They are asked at once where traffic waits for them.
func (p *paths) learn(now instant, from origin, ways ...hop) []errand {
	var fresh []*candidate
	for _, h := range ways {
		if c := p.find(h); c == nil || c.kind == Relayed && p.best == nil && c.answered == 0 {
			fresh = append(fresh, p.add(now, h, from))
		} else {
			p.add(now, h, from)
		}
	}
	if len(fresh) == 0 || !p.wanted.within(wish, now) {
		return nil
	}
	if p.best == nil && p.tried == 0 {
		p.tried, p.next = 1, now.add(retry)
	}
	return p.approach(now, fresh...)
}

// replace makes ways all those of one origin.
func (p *paths) replace(now instant, from origin, ways []hop) []errand {
	ways = ways[:min(len(ways), candidateLimit[from])]
	for _, c := range p.candidates {
		if c.origin == from && !slices.Contains(ways, c.hop) {
			c.origin = rumour
		}
	}
	p.trim(rumour)
	return p.learn(now, from, ways...)
}

// drop forgets ways that are no more.
func (p *paths) drop(gone func(hop) bool) {
	if p.best != nil && gone(p.best.hop) {
		p.best = nil
	}
	p.candidates = slices.DeleteFunc(p.candidates, func(c *candidate) bool { return gone(c.hop) })
}

func (p *paths) find(h hop) *candidate {
	for _, c := range p.candidates {
		if c.hop == h {
			return c
		}
	}
	return nil
}

// add returns the candidate for a way.
func (p *paths) add(now instant, h hop, from origin) *candidate {
	c := p.find(h)
	if c == nil {
		c = &candidate{hop: h, kind: p.kind(h)}
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
