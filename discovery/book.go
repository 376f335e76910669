package discovery

import (
	"cmp"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/balanceai/balance/mesh/identity"
)

const (
	pageAge     = 10 * time.Second // a new member is recognised after at most this
	farPages    = 4                // pages kept for clocks that differ from ours
	farEvery    = 2 * time.Second  // how often one more of those is computed
	repeatAfter = time.Minute      // before the same address is reported again
	maxSighted  = 8                // addresses of one member within repeatAfter
)

// book recognises members by their tags and remembers where they were seen.
// All links share it. Its size depends on the number of members alone.
type book struct {
	key     [32]byte
	self    identity.ID
	members func() []identity.ID

	mu      sync.Mutex
	pages   map[epoch]*page
	lastFar time.Time
	seen    map[identity.ID][]sighting
	heard   map[identity.ID]time.Time // when a member's announcement came last
	own     time.Time                 // when one of our own did
}

// page holds the tags of all members in one epoch.
type page struct {
	made, hit time.Time // hit: a member was last found on it; zero for never
	ids       map[tag]identity.ID
}

type sighting struct {
	addr netip.AddrPort
	at   time.Time
}

func newBook(cfg *Config) *book {
	return &book{
		key: cfg.Key, self: cfg.Self, members: cfg.Members,
		pages: map[epoch]*page{}, seen: map[identity.ID][]sighting{}, heard: map[identity.ID]time.Time{},
	}
}

// find returns the member that has tag t in epoch e. current is the epoch by
// our clock. Pages of the epochs around it are always there; pages of others
// are for members whose clock is wrong, and a forger can make us compute only
// so many.
func (b *book) find(e epoch, t tag, current epoch, now time.Time) (identity.ID, bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	p := b.pages[e]
	if p != nil {
		if id, ok := p.ids[t]; ok {
			p.hit = now
			return id, true
		}
		if now.Sub(p.made) < pageAge {
			return identity.ID{}, false
		}
	} else if !near(e, current) {
		if now.Sub(b.lastFar) < farEvery {
			return identity.ID{}, false
		}
		b.lastFar = now
	}
	p = b.writeLocked(e, now)
	id, ok := p.ids[t]
	if ok {
		p.hit = now
	}
	b.trimLocked(current)
	return id, ok
}

func near(e, current epoch) bool { return e-current+1 <= 2 } // wraps below 0

func (b *book) writeLocked(e epoch, now time.Time) *page {
	p := b.pages[e]
	if p == nil {
		p = &page{}
		b.pages[e] = p
	}
	members := b.members()
	p.made, p.ids = now, make(map[tag]identity.ID, len(members))
	for _, id := range members {
		if id != b.self {
			p.ids[aliasOf(b.key, id, e).tag] = id
		}
	}
	return p
}

// trimLocked drops the far pages that were of use the longest time ago, those
// never of use first, so that a forger's epochs displace only each other.
func (b *book) trimLocked(current epoch) {
	var far []epoch
	for e := range b.pages {
		if !near(e, current) {
			far = append(far, e)
		}
	}
	if len(far) <= farPages {
		return
	}
	slices.SortFunc(far, func(x, y epoch) int {
		p, q := b.pages[x], b.pages[y]
		return cmp.Or(p.hit.Compare(q.hit), p.made.Compare(q.made))
	})
	for _, e := range far[:len(far)-farPages] {
		delete(b.pages, e)
	}
}

// forget makes the book ask for the members again.
func (b *book) forget() {
	b.mu.Lock()
	defer b.mu.Unlock()
	clear(b.pages)
}

// note remembers that an announcement of a member was heard.
func (b *book) note(id identity.ID, now time.Time) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if id == b.self {
		b.own = now
	} else {
		b.heard[id] = now
	}
}

// fresh returns those of a member's addresses that are to be reported now, and
// remembers them.
func (b *book) fresh(id identity.ID, addrs []netip.AddrPort, now time.Time) []netip.AddrPort {
	b.mu.Lock()
	defer b.mu.Unlock()
	known := make([]sighting, 0, maxSighted)
	for _, s := range b.seen[id] {
		if now.Sub(s.at) < repeatAfter {
			known = append(known, s)
		}
	}
	var out []netip.AddrPort
	for _, a := range addrs {
		same := func(s sighting) bool { return s.addr == a }
		if len(known) < maxSighted && !slices.ContainsFunc(known, same) {
			known = append(known, sighting{a, now})
			out = append(out, a)
		}
	}
	b.seen[id] = known
	return out
}
