package place

import (
	"cmp"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/balanceai/balance/exec/fleet"
	"github.com/balanceai/balance/exec/policy"
	"github.com/balanceai/balance/exec/task"
	"github.com/balanceai/balance/mesh/identity"
)

// Index decides among many machines. It looks closely at a few alone: what the
// others could score at most is told by bounds, which are cheap because machines
// whose devices look the same share the work. What it has worked out about a
// machine it keeps, for runs that ask for the same, until the machine changes.
// What it keeps does not grow with the runs that it has placed. It must not be
// used by two goroutines at once.
type Index struct {
	scale  *scale
	slots  []slot
	briefs []brief // of each slot
	where  map[identity.ID]int
	memo   map[string]*column
	clock  uint64 // counts decisions
	taken  uint64 // runs that machines have taken, as far as was seen
}

// slot is a machine.
type slot struct {
	node  fleet.Node
	stand *stand // nil: to be worked out
	seen  bool   // in the last Update
}

// column has what was worked out for runs that ask for the same.
type column struct {
	cells []cell
	parts []int16 // that such a run takes of a device of each class; see [asked.part]
	used  uint64  // clock of the last use
}

// cell is what a machine is to such runs, but for the rules of its owner, which
// look at the clock.
type cell struct {
	version uint64 // of the machine; 0: nothing was worked out
	score   int    // [unfit], or at most this; just this where it is exact
	exact   bool
}

// unfit is the score of a machine that does not fit.
const unfit = -1

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
		ix.briefs[i].profile = nil
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
		models = ix.set(&nodes[i], i) || models
	}
	models = ix.sweep(len(nodes)) || models
	if models {
		ix.scale.price()
		clear(ix.memo)
	}
}

// Set takes one machine as it is now.
func (ix *Index) Set(n *fleet.Node) {
	if ix.set(n, 0) {
		ix.scale.price()
		clear(ix.memo)
	}
}

// set takes one machine, which may be in a slot that is named, and reports whether
// what the mesh has of each model of GPU may have changed.
func (ix *Index) set(n *fleet.Node, maybe int) (models bool) {
	i, ok := maybe, true
	if maybe >= len(ix.slots) || ix.slots[maybe].node.ID != n.ID {
		i, ok = ix.where[n.ID]
	}
	if !ok {
		i = len(ix.slots)
		ix.where[n.ID] = i
		ix.slots, ix.briefs = append(ix.slots, slot{}), append(ix.briefs, brief{})
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
	ix.briefs[i] = brief{version: ix.briefs[i].version + 1}
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
	kept := 0
	for i := range ix.slots {
		s := &ix.slots[i]
		if !s.seen {
			ix.scale.count(s.node.Offer, -1)
			continue
		}
		ix.slots[kept], ix.briefs[kept] = *s, ix.briefs[i]
		kept++
	}
	clear(ix.slots[kept:])
	clear(ix.briefs[kept:])
	ix.slots, ix.briefs = ix.slots[:kept], ix.briefs[:kept]
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
	ix.bound(spec, from, c)
	wanted := func(i int) bool {
		s := &ix.slots[i]
		return (spec.Node == "" || isPin(spec.Node, &s.node)) && (skip == nil || !skip(s.node.ID)) && ix.scale.allowed(spec, from, s, now)
	}
	look := func(i int) bool {
		if e := &c.cells[i]; !e.exact {
			e.score, e.exact = ix.scale.look(spec, from, &ix.slots[i], now), true
		}
		return c.cells[i].score != unfit
	}
	// Those with the highest bounds are looked at first. Most often they are the
	// best; and what does not reach the last of them need not be looked at.
	first := ix.top(c, n, unfit, wanted)
	exact, floor := true, math.MaxInt
	for _, f := range first {
		exact = exact && c.cells[f.slot].exact
		look(f.slot)
		floor = min(floor, c.cells[f.slot].score)
	}
	if exact {
		return first
	}
	if len(first) < n {
		floor = unfit
	}
	return ix.top(c, n, floor, func(i int) bool { return wanted(i) && look(i) })
}

// top returns the n machines with the highest scores in a column, if they are no
// less than a floor and take wants them. It may correct the score of the machine
// that it is asked about.
func (ix *Index) top(c *column, n, floor int, take func(slot int) bool) []Candidate {
	var best []Candidate
	for i := range c.cells {
		e := &c.cells[i]
		worse := func() bool {
			return e.score < max(floor, 0) || len(best) == n && !ix.before(e.score, i, best[n-1])
		}
		if !worse() && take(i) && !worse() {
			best = ix.insert(best, Candidate{Node: ix.slots[i].node.ID, Score: e.score, slot: i}, n)
		}
	}
	return best
}

// bound works out anew what machines that have changed could score at most.
func (ix *Index) bound(spec *task.Spec, from policy.Asker, c *column) {
	ix.scale.forgetProfiles(len(ix.slots))
	a := ix.scale.ask(spec, from, c)
	for i := range c.cells {
		e, b := &c.cells[i], &ix.briefs[i]
		if e.version == b.version {
			continue
		}
		if b.profile == nil {
			b.fill(ix.scale, &ix.slots[i].node)
		}
		*e = cell{version: b.version, score: a.most(b, &ix.slots[i].node)}
	}
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

// look works out what a machine scores for runs that ask for what spec does.
func (sc *scale) look(spec *task.Spec, from policy.Asker, s *slot, now time.Time) int {
	f := sc.weigh(spec, from, &s.node, now)
	f.quiet, f.stand = true, s.stand
	for _, check := range cheapFirst {
		if check(f); f.failed {
			return unfit
		}
	}
	s.stand = f.stand
	return f.total()
}

// cheapFirst are the checks whose outcome lasts until the machine changes.
var cheapFirst = []func(*fit){(*fit).alive, (*fit).told, (*fit).granted, (*fit).secrets, (*fit).kind, (*fit).open, (*fit).amounts, (*fit).gpus}

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
		c = &column{}
		if len(ix.memo) >= max(minColumns, maxCells/max(1, len(ix.slots))) {
			c = ix.forget()
		}
		ix.memo[key] = c
	}
	c.used = ix.clock
	if more := len(ix.slots) - len(c.cells); more > 0 { // machines have come; those that left have cleared the memo
		c.cells = append(c.cells, make([]cell, more)...)
	}
	return c
}

// forget drops the column that was used the longest ago, and returns its memory.
func (ix *Index) forget() *column {
	oldest, at := "", ix.clock
	for key, c := range ix.memo {
		if c.used < at {
			oldest, at = key, c.used
		}
	}
	c := ix.memo[oldest]
	delete(ix.memo, oldest)
	clear(c.cells)
	return &column{cells: c.cells, parts: c.parts[:0]}
}

// columnKey has all that a cell depends on besides the machine.
func columnKey(spec *task.Spec, from policy.Asker) string {
	var b []byte
	n := spec.Needs.Held()
	for _, v := range []uint64{uint64(n.CPU), uint64(n.Memory), uint64(n.Disk), uint64(n.GPUs), uint64(n.VRAM), uint64(n.Share), uint64(sizeOf(spec))} {
		b = strconv.AppendUint(append(b, ' '), v, 36)
	}
	for _, list := range [][]string{n.GPUModels, n.Arch, n.OS, n.Labels, n.Engines, spec.Prefer, {spec.Driver, spec.Image, spec.Isolation, ownSecret(spec), from.Owner, from.Node, from.Role}} {
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

// Judge returns the verdict on a machine as it is now, whatever the index knows of
// it: it can be compared with those of [Index.Choose].
func (ix *Index) Judge(spec *task.Spec, from policy.Asker, n *fleet.Node, now time.Time) task.Verdict {
	return ix.scale.judge(spec, from, n, now)
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
