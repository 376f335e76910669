package mesh

import (
	"cmp"
	"context"
	"maps"
	"net"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/time/rate"

	"github.com/balanceai/balance/mesh/identity"
	"github.com/balanceai/balance/mesh/wire"
)

const (
	maxHomes  = 3                // relays that a node keeps a path to
	maxRelays = 16               // relays that it looks at
	keepHome  = 20 * time.Second // between pings to a home: a NAT forgets after 30 s
	permitFor = time.Second      // how long the owner's answer holds
)

// onward collects the frames of one read that go on to others, so that those
// from one peer to one peer are decided on, and leave, together.
type onward struct {
	runs   []run
	frames [][]byte // of all runs
}

// run is the frames that follow each other from one peer to another.
type run struct {
	from, to *peer
	end      int // in frames
}

func (o *onward) add(from, to *peer, frame []byte) {
	if last := len(o.runs) - 1; last < 0 || o.runs[last].from != from || o.runs[last].to != to {
		o.runs = append(o.runs, run{from: from, to: to})
	}
	o.frames = append(o.frames, frame)
	o.runs[len(o.runs)-1].end = len(o.frames)
}

// flush sends the frames that may go on, with their headers turned round.
func (o *onward) flush(b *bind, now instant) {
	first := 0
	for _, r := range o.runs {
		frames := o.frames[first:r.end]
		first = r.end
		if r.from == r.to || b.cfg.relay == nil {
			continue
		}
		frames = frames[:b.cfg.relay(r.from, r.to, frames)]
		if len(frames) == 0 {
			continue
		}
		r.to.wake(now)
		leg := r.to.leg.Load()
		if leg == nil {
			continue
		}
		var head [wire.FrameHeader]byte
		r.to.out.SealFrame(head[:], wire.FromRelay, r.from.name)
		for _, f := range frames {
			copy(f, head[:])
		}
		_ = b.write(nil, frames, *leg) // a datagram may be lost
	}
	clear(o.runs)
	clear(o.frames)
	o.runs, o.frames = o.runs[:0], o.frames[:0]
}

// carrier decides what this node relays.
type carrier struct {
	may   func(from, to identity.ID) (rate int, ok bool)
	busy  func() int // percent; nil: not known
	bytes atomic.Uint64

	mu      sync.Mutex
	permits map[[2]*peer]permit
	buckets map[*peer]*bucket
}

// bucket is what one sender may send, and what it asks for.
type bucket struct {
	*rate.Limiter
	demand meter
}

type permit struct {
	rate  int // bytes per second; 0: any number
	ok    bool
	until time.Time
}

func newCarrier(may func(from, to identity.ID) (rate int, ok bool), busy func() int) *carrier {
	return &carrier{may: may, busy: busy, permits: map[[2]*peer]permit{}, buckets: map[*peer]*bucket{}}
}

// take returns how many frames, counted from the first, may go from one peer to
// another now.
func (c *carrier) take(from, to *peer, frames [][]byte) int {
	now := time.Now()
	c.mu.Lock()
	defer c.mu.Unlock()
	key := [2]*peer{from, to}
	p, ok := c.permits[key]
	if !ok || now.After(p.until) {
		maps.DeleteFunc(c.permits, func(_ [2]*peer, p permit) bool { return now.After(p.until) })
		p.rate, p.ok = c.may(from.id, to.id)
		p.until = now.Add(permitFor)
		c.permits[key] = p
		c.setRate(from, p.rate)
	}
	if !p.ok {
		return 0
	}
	var b *bucket
	if p.rate > 0 {
		b = c.buckets[from]
		for _, f := range frames {
			b.demand.add(now, len(f))
		}
	}
	for i, f := range frames {
		if b != nil && !b.AllowN(now, len(f)) {
			return i
		}
		c.bytes.Add(uint64(len(f)))
	}
	return len(frames)
}

// setRate makes a rate, in bytes per second, that of a sender; a quarter of a
// second of it may come at once.
func (c *carrier) setRate(from *peer, perSecond int) {
	if b := c.buckets[from]; perSecond > 0 && (b == nil || b.Limit() != rate.Limit(perSecond)) {
		c.buckets[from] = &bucket{Limiter: rate.NewLimiter(rate.Limit(perSecond), max(perSecond/4, 1<<17))}
	}
}

// load returns how much of what this node can do for a sender is used, in
// 255ths: of the sender's own rate, or of the processors.
func (c *carrier) load(from *peer) byte {
	used := 0.0
	if c.busy != nil {
		used = float64(c.busy()) / 100
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if b := c.buckets[from]; b != nil {
		used = max(used, float64(b.demand.perSecond(time.Now()))/float64(b.Limit()))
	}
	return byte(255 * min(max(used, 0), 1))
}

// meter counts bytes by the second.
type meter struct {
	since      time.Time
	now, whole int // of the second that has begun, and of the one before
}

func (m *meter) add(now time.Time, n int) {
	m.turn(now)
	m.now += n
}

// perSecond returns the bytes of a second, the last whole one or this one.
func (m *meter) perSecond(now time.Time) int {
	m.turn(now)
	return max(m.whole, m.now)
}

func (m *meter) turn(now time.Time) {
	switch age := now.Sub(m.since); {
	case age >= 2*time.Second:
		m.since, m.whole, m.now = now, 0, 0
	case age >= time.Second:
		m.since, m.whole, m.now = m.since.Add(time.Second), m.now, 0
	}
}

// forget drops what is kept of peers that have left.
func (c *carrier) forget(gone []*peer) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, p := range gone {
		delete(c.buckets, p)
	}
	maps.DeleteFunc(c.permits, func(key [2]*peer, _ permit) bool {
		return slices.Contains(gone, key[0]) || slices.Contains(gone, key[1])
	})
}

// Relayed returns how many bytes this node has passed on for others.
func (n *Node) Relayed() uint64 { return n.carrier.bytes.Load() }

// Relay is a member that relays.
type Relay struct {
	ID      identity.ID
	Streams []netip.AddrPort // TCP addresses, for nodes whose UDP does not pass
}

// SetRelays says which members relay for this node: the likely ones first; the
// node looks at sixteen. It keeps a path to the three nearest, its homes, so that
// whoever relays by them reaches it, and so that it can send by them at once.
func (n *Node) SetRelays(list []Relay) {
	list = slices.DeleteFunc(slices.Clone(list), func(r Relay) bool { return r.ID == n.self })
	list = list[:min(len(list), maxRelays)]
	n.mu.Lock()
	same := slices.EqualFunc(list, n.relays, func(a, b Relay) bool { return a.ID == b.ID && slices.Equal(a.Streams, b.Streams) })
	n.relays = list
	n.mu.Unlock()
	if !same {
		n.keepHomes()
		n.settleHomes()
		n.assignAll()
	}
}

// SetHomes says by which relays a member is reached.
func (n *Node) SetHomes(id identity.ID, homes []identity.ID) {
	n.mu.Lock()
	p := n.members[id]
	same := p == nil || slices.Equal(homes, p.homes)
	if !same {
		p.homes = slices.Clone(homes[:min(len(homes), maxHomes)])
	}
	n.mu.Unlock()
	if !same {
		n.assign(p)
	}
}

// Homes returns the relays by which this node can be reached now, the nearest
// first.
func (n *Node) Homes() []identity.ID {
	n.mu.RLock()
	defer n.mu.RUnlock()
	return slices.Clone(n.homes)
}

// beat is called now and then.
func (n *Node) beat() {
	n.settleHomes() // one may have become crowded
	n.keepHomes()
}

// keepHomes sees to it that the paths to homes, or to what may become one, are
// known and stay open.
func (n *Node) keepHomes() {
	n.mu.RLock()
	look := n.homes
	if len(look) < maxHomes {
		look = n.relayIDs()
	}
	var list []*peer
	for _, id := range look {
		if p := n.members[id]; p != nil {
			list = append(list, p)
		}
	}
	n.mu.RUnlock()
	now := n.bind.now()
	for _, p := range list {
		p.wake(now)
	}
	n.streamsWanted()
}

// relayIDs returns the relays. The caller holds the lock.
func (n *Node) relayIDs() []identity.ID {
	ids := make([]identity.ID, len(n.relays))
	for i, r := range n.relays {
		ids[i] = r.ID
	}
	return ids
}

// streamsWanted has relays called by TCP soon, if UDP has reached none of them
// by then.
func (n *Node) streamsWanted() {
	select {
	case n.calling <- struct{}{}:
	default:
	}
}

const (
	udpFirst  = 500 * time.Millisecond // what UDP is given before TCP is tried
	callAgain = 5 * time.Second        // after which TCP is tried again
	lookAtUDP = time.Second            // between looks whether UDP still works
	udpBack   = 30 * time.Second       // for which UDP works before streams end
)

// callRelays keeps streams to two relays while UDP reaches none, until the node
// closes.
func (n *Node) callRelays() {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	go func() {
		select {
		case <-n.done:
			cancel()
		case <-ctx.Done():
		}
	}()
	due := time.Now().Add(udpFirst) // zero: not before there is news
	again := time.NewTimer(udpFirst)
	defer again.Stop()
	in := func(d time.Duration) {
		due = time.Now().Add(d)
		again.Reset(d)
	}
	var since time.Time // when UDP came back
	for {
		select {
		case <-ctx.Done():
			return
		case <-n.calling:
			if due.IsZero() || time.Until(due) > udpFirst {
				in(udpFirst)
			}
			continue
		case <-again.C:
			due = time.Time{}
		}
		relays, udp := n.streamRelays()
		switch {
		case len(relays) == 0:
		case !udp:
			since = time.Time{}
			n.callThem(ctx, relays)
			in(callAgain)
		case since.IsZero():
			since = time.Now()
			in(lookAtUDP)
		case time.Since(since) >= udpBack:
			n.bind.streams.hangUp(func(*peer) bool { return true })
			in(lookAtUDP)
		default:
			in(lookAtUDP)
		}
	}
}

// streamRelays returns the relays that can be called by TCP, and whether UDP
// reaches any relay.
func (n *Node) streamRelays() (relays map[*peer][]netip.AddrPort, udp bool) {
	n.mu.RLock()
	defer n.mu.RUnlock()
	relays = map[*peer][]netip.AddrPort{}
	for _, r := range n.relays {
		p := n.members[r.ID]
		if p == nil {
			continue
		}
		udp = udp || p.answersUDP()
		if len(r.Streams) > 0 && len(relays) < maxCalled {
			relays[p] = r.Streams
		}
	}
	return relays, udp
}

// maxCalled is how many relays a node without UDP has a stream to.
const maxCalled = 2

func (n *Node) callThem(ctx context.Context, relays map[*peer][]netip.AddrPort) {
	var calls sync.WaitGroup
	for p, addrs := range relays {
		if n.bind.streams.to(p) {
			continue
		}
		calls.Go(func() {
			if err := n.bind.streams.dial(ctx, p, addrs); err != nil && ctx.Err() == nil {
				n.log.Debug("call a relay by TCP", "relay", p.id.Short(), "error", err)
			}
		})
	}
	calls.Wait()
}

// ServeStreams accepts the TCP connections of members whose UDP does not pass,
// until the listener or the node closes. A stranger gets no byte.
func (n *Node) ServeStreams(l net.Listener) error { return n.bind.streams.serve(l) }

// settleHomes chooses the homes anew: those that are and can be reached stay,
// unless they are crowded and others are not.
func (n *Node) settleHomes() {
	n.mu.Lock()
	type home struct {
		id      identity.ID
		rtt     time.Duration
		crowded bool
		kept    bool
	}
	var near []home
	for _, id := range n.relayIDs() {
		p := n.members[id]
		if p == nil {
			continue
		}
		if path := p.path(); path.Kind > Relayed {
			near = append(near, home{id, path.RTT, p.isCrowded(), slices.Contains(n.homes, id)})
		}
	}
	slices.SortStableFunc(near, func(a, b home) int {
		return cmp.Or(trueLast(a.crowded, b.crowded), trueLast(!a.kept, !b.kept), cmp.Compare(a.rtt, b.rtt))
	})
	var homes []identity.ID
	for _, h := range near[:min(len(near), maxHomes)] {
		homes = append(homes, h.id)
	}
	same := slices.Equal(homes, n.homes)
	n.homes = homes
	n.mu.Unlock()
	if !same {
		n.assignAll()
	}
}

// trueLast compares two truths.
func trueLast(a, b bool) int {
	switch {
	case a == b:
		return 0
	case b:
		return -1
	}
	return 1
}

// assignAll assigns relays to the peers that are awake.
func (n *Node) assignAll() {
	for _, p := range n.bind.peers((*peer).isAwake) {
		if !p.id.IsZero() {
			n.assign(p)
		}
	}
}

// assign tells a peer the relays that may lead to it: its homes, then ours, and
// while we know of neither, any. One that is not awake is told when it wakes.
func (n *Node) assign(p *peer) {
	n.mu.RLock()
	ids := append(slices.Clone(p.homes), n.homes...)
	if len(ids) == 0 {
		ids = n.relayIDs()
	}
	var ways []hop
	for _, id := range ids {
		via := n.members[id]
		if h := (hop{via: via}); via != nil && via != p && !slices.Contains(ways, h) {
			ways = append(ways, h)
		}
	}
	n.mu.RUnlock()
	p.relayBy(ways)
}
