package place

import (
	"cmp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/balanceai/balance/exec/fleet"
	"github.com/balanceai/balance/exec/policy"
	"github.com/balanceai/balance/exec/task"
	"github.com/balanceai/balance/mesh/identity"
)

// Index decides among many machines. It keeps what it has worked out about a
// machine for runs that ask for the same until the machine changes, so that a
// decision looks closely at what has changed alone. What it keeps does not grow
// with the runs that it has placed. It must not be used by two goroutines at
// once.
type Index struct {
	scale *scale
	slots []slot
	where map[identity.ID]int
	memo  map[string]*column
	clock uint64 // counts decisions
	taken uint64 // runs that machines have taken, as far as was seen
}

// slot is a machine.
type slot struct {
	node    fleet.Node
	stand   *stand // nil: to be worked out
	version uint64 // of node; grows
	seen    bool   // in the last Update
}

// column has what was worked out for runs that ask for the same.
type column struct {
	cells []cell
	used  uint64 // clock of the last use
}

type cell struct {
	version uint64 // of the machine; 0: nothing was worked out
	fits    bool   // but for the rules of its owner, which look at the clock
	score   int
}

// How much an index keeps: columns for at least some kinds of runs, and for more
// where the machines are few.
const (
	minColumns = 16
	maxCells   = 1 << 18
)

// NewIndex returns an index without machines.
func NewIndex(w *Workload) *Index {
	return &Index{scale: newScale(w), where: map[identity.ID]int{}, memo: map[string]*column{}}
}

// Expect changes what runs are expected to ask for.
func (ix *Index) Expect(w *Workload) {
	capacity := ix.scale.capacity
	ix.scale = newScale(w)
	ix.scale.capacity = capacity
	ix.scale.price()
	clear(ix.memo)
	for i := range ix.slots {
		ix.slots[i].stand = nil
	}
}

// Update takes the machines of the mesh as they are now. Nodes hold pointers to
// what a view replaces and never changes: a pointer that is the same has the
// same behind it.
func (ix *Index) Update(nodes []fleet.Node) {
	for i := range ix.slots {
		ix.slots[i].seen = false
	}
	models := false
	for i := range nodes {
		models = ix.set(&nodes[i]) || models
	}
	models = ix.sweep(len(nodes)) || models
	if models {
		ix.scale.price()
		clear(ix.memo)
	}
}

// Set takes one machine as it is now.
func (ix *Index) Set(n *fleet.Node) {
	if ix.set(n) {
		ix.scale.price()
		clear(ix.memo)
	}
}

// set takes one machine, and reports whether what the mesh has of each model of
// GPU may have changed.
func (ix *Index) set(n *fleet.Node) (models bool) {
	i, ok := ix.where[n.ID]
	if !ok {
		i = len(ix.slots)
		ix.where[n.ID] = i
		ix.slots = append(ix.slots, slot{})
	}
	s := &ix.slots[i]
	s.seen = true
	if ok && same(&s.node, n) {
		return false
	}
	ix.taken += taken(s.node.Live, n.Live)
	models = s.node.Offer != n.Offer && (hasGPUs(s.node.Offer) || hasGPUs(n.Offer))
	if models {
		ix.scale.count(s.node.Offer, -1)
		ix.scale.count(n.Offer, 1)
	}
	s.node = *n
	s.node.History = nil
	s.stand = nil
	s.version++
	return models
}

// Taken returns how many runs machines have taken while the index knew them.
func (ix *Index) Taken() uint64 { return ix.taken }

// mostTaken bounds what one report of a machine adds: nobody makes others believe
// that the mesh is in a hurry by counting high.
const mostTaken = 32

func taken(before, now *fleet.Live) uint64 {
	if before == nil || now == nil || now.Taken < before.Taken { // its node was started again
		return 0
	}
	return uint64(min(now.Taken-before.Taken, mostTaken))
}

func hasGPUs(o *fleet.Offer) bool { return o != nil && len(o.GPUs) > 0 }

func same(a, b *fleet.Node) bool {
	return a.Offer == b.Offer && a.Live == b.Live && a.State == b.State && a.Path == b.Path && a.Name == b.Name && a.Owner == b.Owner && a.LiveAt.Equal(b.LiveAt)
}

// sweep forgets the machines that have left, and reports whether there were any.
func (ix *Index) sweep(n int) bool {
	if len(ix.slots) == n {
		return false
	}
	for i := range ix.slots {
		if s := &ix.slots[i]; !s.seen {
			ix.scale.count(s.node.Offer, -1)
		}
	}
	ix.slots = slices.DeleteFunc(ix.slots, func(s slot) bool { return !s.seen })
	clear(ix.where)
	for i := range ix.slots {
		ix.where[ix.slots[i].node.ID] = i
	}
	return true
}

// Candidate is a machine that fits.
type Candidate struct {
	Node  identity.ID
	Score int // higher is better

	slot int
}

// Best returns up to n machines that fit a run of a member's, the best first. Skip
// says which are not wanted; it may be nil.
func (ix *Index) Best(spec *task.Spec, from policy.Asker, now time.Time, n int, skip func(identity.ID) bool) []Candidate {
	c := ix.column(spec, from)
	var best []Candidate
	for i := range ix.slots {
		s := &ix.slots[i]
		e := &c.cells[i]
		if e.version != s.version {
			*e = ix.scale.cell(spec, from, s, now)
		}
		if !e.fits || n == len(best) && !ix.before(e.score, i, best[n-1]) {
			continue
		}
		if spec.Node != "" && !isPin(spec.Node, &s.node) || skip != nil && skip(s.node.ID) || !ix.scale.allowed(spec, from, s, now) {
			continue
		}
		best = ix.insert(best, Candidate{Node: s.node.ID, Score: e.score, slot: i}, n)
	}
	return best
}

// before reports whether a machine comes before a candidate.
func (ix *Index) before(score, slot int, c Candidate) bool {
	return score > c.Score || score == c.Score && ix.tie(slot, c.slot) < 0
}

func (ix *Index) tie(a, b int) int {
	return slices.Compare(ix.slots[a].node.ID[:], ix.slots[b].node.ID[:])
}

// insert keeps the n best candidates in order.
func (ix *Index) insert(list []Candidate, c Candidate, n int) []Candidate {
	at, _ := slices.BinarySearchFunc(list, c, func(a, b Candidate) int { return cmp.Or(cmp.Compare(b.Score, a.Score), ix.tie(a.slot, b.slot)) })
	if len(list) == n {
		list = list[:n-1]
	}
	return slices.Insert(list, at, c)
}

// cell works out what a machine is to runs that ask for what spec does.
func (sc *scale) cell(spec *task.Spec, from policy.Asker, s *slot, now time.Time) cell {
	f := sc.weigh(spec, from, &s.node, now)
	f.quiet, f.stand = true, s.stand
	f.alive()
	if !f.failed && f.open() {
		s.stand = f.stand
		f.rest()
	}
	if f.failed {
		return cell{version: s.version}
	}
	return cell{version: s.version, fits: true, score: f.total()}
}

// allowed asks the rules of a machine's owner.
func (sc *scale) allowed(spec *task.Spec, from policy.Asker, s *slot, now time.Time) bool {
	f := sc.weigh(spec, from, &s.node, now)
	f.terms(Own{})
	return len(f.reasons) == 0
}

// column returns what was worked out for runs like this one.
func (ix *Index) column(spec *task.Spec, from policy.Asker) *column {
	ix.clock++
	key := columnKey(spec, from)
	c := ix.memo[key]
	if c == nil {
		if len(ix.memo) >= max(minColumns, maxCells/max(1, len(ix.slots))) {
			ix.forget()
		}
		c = &column{}
		ix.memo[key] = c
	}
	c.used = ix.clock
	if len(c.cells) != len(ix.slots) { // machines have come; those that left have cleared the memo
		c.cells = append(c.cells, make([]cell, len(ix.slots)-len(c.cells))...)
	}
	return c
}

// forget drops the column that was used the longest ago.
func (ix *Index) forget() {
	oldest, at := "", ix.clock
	for key, c := range ix.memo {
		if c.used < at {
			oldest, at = key, c.used
		}
	}
	delete(ix.memo, oldest)
}

// columnKey has all that a cell depends on besides the machine.
func columnKey(spec *task.Spec, from policy.Asker) string {
	var b []byte
	n := spec.Needs.Held()
	var size task.Bytes
	for _, in := range spec.Inputs {
		size += in.Size
	}
	for _, v := range []uint64{uint64(n.CPU), uint64(n.Memory), uint64(n.Disk), uint64(n.GPUs), uint64(n.VRAM), uint64(n.Share), uint64(size)} {
		b = strconv.AppendUint(append(b, ' '), v, 36)
	}
	for _, list := range [][]string{n.GPUModels, n.Arch, n.OS, n.Labels, n.Engines, spec.Prefer, {spec.Driver, from.Owner, from.Node, from.Role}} {
		b = append(append(b, 1), strings.Join(list, "\x00")...)
	}
	if v := spec.Serve; v != nil {
		b = strconv.AppendUint(append(b, 2), uint64(v.Size), 36)
		for _, id := range v.On {
			b = append(b, id[:]...)
		}
	}
	return string(b)
}

// Choose returns the verdict on the machines for a run of a member's, the best
// first: on up to limit machines that fit and, where that leaves room, on those
// that do not; 0 is for all. More is how many were left out.
func (ix *Index) Choose(spec *task.Spec, from policy.Asker, now time.Time, limit int, skip func(identity.ID) bool) (list task.Ranking, more int) {
	if limit == 0 {
		limit = len(ix.slots)
	}
	for _, c := range ix.Best(spec, from, now, limit, skip) {
		list = append(list, ix.scale.judge(spec, from, &ix.slots[c.slot].node, now))
	}
	fit := len(list)
	chosen := map[identity.ID]bool{}
	for _, v := range list {
		chosen[v.Node] = true
	}
	for i := range ix.slots {
		n := &ix.slots[i].node
		if chosen[n.ID] || skip != nil && skip(n.ID) {
			continue
		}
		if fit == limit {
			more++
			continue
		}
		list = append(list, ix.scale.judge(spec, from, n, now))
	}
	slices.SortFunc(list[fit:], better)
	nearest(list)
	if len(list) > limit {
		more += len(list) - limit
		list = list[:limit]
	}
	return list, more
}
