package mesh

import (
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/time/rate"

	"github.com/balanceai/balance/mesh/identity"
)

const permitFor = time.Second // how long the owner's answer holds

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
