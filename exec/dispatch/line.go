package dispatch

import (
	"cmp"
	"fmt"
	"slices"
	"sync"
	"time"
)

// line is where this node's own runs wait before they stand in the lines of
// machines. Of those that ask for the same the first ones bid; the others come
// after them anyhow.
type line struct {
	mu    sync.Mutex
	kinds map[string][]*run // in the order of their turns
}

// bidders is how many runs of one kind bid at a time: one that is about to be
// placed, and one that gets what is freed meanwhile.
const bidders = 2

// kindOf is the same for runs that ask for the same.
func kindOf(r *run) string {
	s := &r.spec
	return fmt.Sprint(s.Needs, s.Driver, s.Image, s.Isolation, s.Network, s.Limits, s.Node, s.Inputs)
}

// join puts a run into the line, which tells it to look when its turn may have come.
func (l *line) join(r *run) {
	l.mu.Lock()
	defer l.mu.Unlock()
	kind := kindOf(r)
	list := append(l.kinds[kind], r)
	slices.SortStableFunc(list, func(a, b *run) int {
		return cmp.Or(cmp.Compare(b.spec.Priority, a.spec.Priority), a.submitted.Compare(b.submitted), cmp.Compare(a.id, b.id))
	})
	l.kinds[kind] = list
}

// leave takes a run out of the line, and wakes the one that comes after it.
func (l *line) leave(r *run) {
	l.mu.Lock()
	defer l.mu.Unlock()
	kind := kindOf(r)
	list := slices.DeleteFunc(l.kinds[kind], func(o *run) bool { return o == r })
	if len(list) == 0 {
		delete(l.kinds, kind)
		return
	}
	l.kinds[kind] = list
	for _, o := range list[:min(len(list), bidders)] {
		o.poke()
	}
}

// bids reports whether a run is one of those that bid.
func (l *line) bids(r *run) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	list := l.kinds[kindOf(r)]
	return slices.Contains(list[:min(len(list), bidders)], r)
}

// waits reports whether runs like this one are in the line, so that it comes after
// them.
func (l *line) waits(r *run) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	list := l.kinds[kindOf(r)]
	return len(list) > 0 && !slices.Contains(list, r)
}

// deadline is until when a run waits for a machine.
func (r *run) deadline() time.Time { return r.submitted.Add(r.spec.Wait) }
