package mesh

import (
	"cmp"
	"context"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/balanceai/balance/mesh/identity"
	"github.com/balanceai/balance/mesh/wire"
)

const (
	maxHomes  = 3                // relays that a node keeps a path to
	maxRelays = 16               // relays that it looks at
	keepHome  = 20 * time.Second // between pings to a home: a NAT forgets after 30 s
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
