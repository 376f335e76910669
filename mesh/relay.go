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

// onward collects the frames of one read that go on to others, so that those to
// one peer leave together.
type onward struct {
	to     []*peer
	frames [][]byte
}

// add takes a frame that a peer has sent and turns its header round.
func (o *onward) add(b *bind, now instant, from, to *peer, frame []byte) {
	if from == to || b.cfg.relay == nil || !b.cfg.relay(from, to, len(frame)) {
		return
	}
	to.wake(now)
	if to.leg.Load() == nil {
		return
	}
	to.out.SealFrame(frame, wire.FromRelay, from.name)
	o.to, o.frames = append(o.to, to), append(o.frames, frame)
}

func (o *onward) flush(b *bind) {
	for i := 0; i < len(o.to); {
		end := i + 1
		for end < len(o.to) && o.to[end] == o.to[i] {
			end++
		}
		if leg := o.to[i].leg.Load(); leg != nil {
			_ = b.write(nil, o.frames[i:end], *leg) // a datagram may be lost
		}
		i = end
	}
	clear(o.to)
	clear(o.frames)
	o.to, o.frames = o.to[:0], o.frames[:0]
}

// carrier decides what this node relays.
type carrier struct {
	may   func(from, to identity.ID) (rate int, ok bool)
	bytes atomic.Uint64

	mu      sync.Mutex
	permits map[[2]*peer]permit
	buckets map[*peer]*rate.Limiter
}

type permit struct {
	rate  int // bytes per second; 0: any number
	ok    bool
	until time.Time
}

func newCarrier(may func(from, to identity.ID) (rate int, ok bool)) *carrier {
	return &carrier{may: may, permits: map[[2]*peer]permit{}, buckets: map[*peer]*rate.Limiter{}}
}

// take reports whether n bytes may go from one peer to another now.
func (c *carrier) take(from, to *peer, n int) bool {
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
	if !p.ok || (p.rate > 0 && !c.buckets[from].AllowN(now, n)) {
		return false
	}
	c.bytes.Add(uint64(n))
	return true
}

// setRate makes a rate, in bytes per second, that of a sender; a quarter of a
// second of it may come at once.
func (c *carrier) setRate(from *peer, perSecond int) {
	if b := c.buckets[from]; perSecond > 0 && (b == nil || b.Limit() != rate.Limit(perSecond)) {
		c.buckets[from] = rate.NewLimiter(rate.Limit(perSecond), max(perSecond/4, 1<<17))
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
	again := time.NewTimer(udpFirst)
	defer again.Stop()
	var since time.Time // when UDP came back
	for {
		select {
		case <-ctx.Done():
			return
		case <-n.calling:
			again.Reset(udpFirst)
			continue
		case <-again.C:
		}
		relays, udp := n.streamRelays()
		switch {
		case len(relays) == 0:
			continue // until there is news
		case !udp:
			since = time.Time{}
			n.callThem(ctx, relays)
			again.Reset(callAgain)
		case !n.bind.streams.any():
		case since.IsZero():
			since = time.Now()
			again.Reset(udpBack)
		case time.Since(since) >= udpBack:
			n.bind.streams.hangUp(func(*peer) bool { return true })
		default:
			again.Reset(udpBack - time.Since(since))
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
		if p.path().Kind >= Direct {
			udp = true
		}
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

// settleHomes chooses the homes anew: those that are and can be reached stay.
func (n *Node) settleHomes() {
	n.mu.Lock()
	type home struct {
		id   identity.ID
		rtt  time.Duration
		kept bool
	}
	var near []home
	for _, id := range n.relayIDs() {
		p := n.members[id]
		if p == nil {
			continue
		}
		if path := p.path(); path.Kind > Relayed {
			near = append(near, home{id, path.RTT, slices.Contains(n.homes, id)})
		}
	}
	slices.SortStableFunc(near, func(a, b home) int {
		if a.kept != b.kept {
			if a.kept {
				return -1
			}
			return 1
		}
		return cmp.Compare(a.rtt, b.rtt)
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
