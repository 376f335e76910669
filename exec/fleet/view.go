package fleet

import (
	"cmp"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/balanceai/balance/exec/task"
	"github.com/balanceai/balance/mesh/identity"
)

// HistoryLen is how many samples a [View] keeps for each node: one minute.
const HistoryLen = 60

// View is this machine's picture of the mesh: the newest facts about every
// member. It is safe for concurrent use.
type View struct {
	now func() time.Time

	mu      sync.Mutex
	nodes   map[identity.ID]*Node
	byName  []*Node
	version uint64
	changed chan struct{} // closed and replaced at each change
}

// NewView returns an empty view. now is the clock that ages are told by.
func NewView(now func() time.Time) *View {
	return &View{now: now, nodes: map[identity.ID]*Node{}, changed: make(chan struct{})}
}

// SetMembers replaces the set of members. Who stays keeps its facts; State and
// Path of a member that is new are taken from it.
func (v *View) SetMembers(members []Node) {
	v.update(func() bool {
		next := make(map[identity.ID]*Node, len(members))
		for _, m := range members {
			n, ok := v.nodes[m.ID]
			if !ok {
				n = &Node{State: m.State, Path: m.Path}
			}
			n.ID, n.Name, n.Owner, n.Address, n.Self = m.ID, m.Name, m.Owner, m.Address, m.Self
			next[m.ID] = n
		}
		v.nodes = next
		v.byName = slices.SortedFunc(maps.Values(next), func(a, b *Node) int {
			return cmp.Or(cmp.Compare(a.Name, b.Name), slices.Compare(a.ID[:], b.ID[:]))
		})
		return true
	})
}

// SetOffer stores a member's offer. Nil withdraws it.
func (v *View) SetOffer(id identity.ID, o *Offer) {
	v.node(id, func(n *Node) bool { n.Offer = o; return true })
}

// clockJump is how far a member's clock goes back before its facts count as
// measured after a correction, not as late ones.
const clockJump = time.Minute

// SetLive stores what is free on a member, unless it is a little older than
// what is there: gossip may overtake itself.
func (v *View) SetLive(id identity.ID, l Live) {
	v.node(id, func(n *Node) bool {
		if n.Live != nil && n.Live.Millis > l.Millis && n.Live.Millis-l.Millis < clockJump.Milliseconds() {
			return false
		}
		n.Live, n.LiveAt = &l, v.now()
		return true
	})
}

// SetState stores whether a member is alive. A member that is down keeps its
// last facts; their age tells.
func (v *View) SetState(id identity.ID, state string) {
	v.node(id, func(n *Node) bool {
		same := n.State == state
		n.State = state
		return !same
	})
}

// SetPath stores how packets reach a member. What a path of the same kind was
// measured to carry stays.
func (v *View) SetPath(id identity.ID, p Path) {
	v.node(id, func(n *Node) bool {
		if p.Kind == n.Path.Kind && p.Via == n.Path.Via {
			p.Rate = n.Path.Rate
		}
		same := n.Path == p
		n.Path = p
		return !same
	})
}

// leastTold is how large what was sent has to be to tell what a path carries: much
// of less is in buffers, and the connection has not got up to speed.
const leastTold = 16 * task.MiB

// Carried tells that so many bytes went to a member in a time.
func (v *View) Carried(id identity.ID, n task.Bytes, in time.Duration) {
	if n < leastTold || in <= 0 {
		return
	}
	rate := task.Bytes(float64(n) / in.Seconds())
	v.node(id, func(n *Node) bool {
		if n.Path.Rate > 0 {
			rate = (n.Path.Rate + rate) / 2
		}
		n.Path.Rate = rate
		return true
	})
}

// AddSample appends a measurement of a member.
func (v *View) AddSample(id identity.ID, s Sample) {
	v.node(id, func(n *Node) bool {
		if len(n.History) >= HistoryLen {
			n.History = slices.Clone(n.History[len(n.History)-HistoryLen+1:])
		}
		n.History = append(n.History, s)
		return true
	})
}

// Snapshot returns every member by name, and the version of the view. The facts
// behind the pointers are not changed afterwards.
func (v *View) Snapshot() ([]Node, uint64) {
	v.mu.Lock()
	defer v.mu.Unlock()
	out := make([]Node, len(v.byName))
	for i, n := range v.byName {
		out[i] = *n
		out[i].History = slices.Clip(n.History)
	}
	return out, v.version
}

// Node returns a member.
func (v *View) Node(id identity.ID) (Node, bool) {
	v.mu.Lock()
	defer v.mu.Unlock()
	n, ok := v.nodes[id]
	if !ok {
		return Node{}, false
	}
	c := *n
	c.History = slices.Clip(c.History)
	return c, true
}

// Changed returns a channel that is closed when the view is no longer of the
// given version.
func (v *View) Changed(version uint64) <-chan struct{} {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.version != version {
		done := make(chan struct{})
		close(done)
		return done
	}
	return v.changed
}

func (v *View) node(id identity.ID, change func(*Node) bool) {
	v.update(func() bool {
		n, ok := v.nodes[id]
		return ok && change(n)
	})
}

func (v *View) update(change func() bool) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if change() {
		v.version++
		close(v.changed)
		v.changed = make(chan struct{})
	}
}
