package dispatch

import (
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/balanceai/balance/exec/fleet"
	"github.com/balanceai/balance/exec/task"
)

var (
	busy  = []task.Reason{{Rule: "cpu", Text: "needs 4 cores; 1 of 8 is free", Need: 4000, Have: 1000, Ever: true}}
	wrong = []task.Reason{{Rule: "terms", Text: "no"}}
)

func patient() task.Spec {
	s := bare()
	s.Wait = task.WaitForever
	return s
}

// full has no machine take runs now.
func (l *lab) full(reasons []task.Reason) {
	for _, m := range []*machine{l.hydra, l.io, l.juno} {
		m.set(func() { m.refusal = reasons })
	}
}

// waits waits until a run is known to wait, and returns the reason.
func (l *lab) waits(id string) string {
	l.t.Helper()
	events := l.watch(id, func(e *task.Event) bool { return e.State == task.Waiting })
	if st := l.status(id); st.State != task.Waiting || !st.Finished.IsZero() {
		l.t.Errorf("status %+v", st)
	}
	return events[len(events)-1].Message
}

// bidders waits until so many bids are made, and returns the names of the machines
// that have them.
func (l *lab) bidders(n int) []string {
	l.t.Helper()
	var out []string
	l.eventually(fmt.Sprintf("%d bids", n), func() bool {
		out = nil
		for _, m := range []*machine{l.hydra, l.io, l.juno} {
			m.mu.Lock()
			for range len(m.bids) - m.let {
				out = append(out, m.name)
			}
			m.mu.Unlock()
		}
		return len(out) == n
	})
	return out
}

// A run that no machine has room for gets the first machine that has.
func TestWait(t *testing.T) {
	l := newLab(t)
	l.full(busy)
	id := l.submit(patient())
	if got, want := l.waits(id), "waits: no machine has room for it now: hydra needs 4 cores; 1 of 8 is free; io needs"; !strings.HasPrefix(got, want) {
		t.Errorf("reason %s", got)
	}
	if got := l.bidders(3); !slices.Equal(got, []string{"hydra", "io", "juno"}) {
		t.Errorf("bids at %s", got)
	}
	bid := l.io.bids[0]
	if bid.Run != id || !bid.Wait || bid.Spec.Needs.CPU != 4*task.Core || len(bid.Spec.Env) > 0 {
		t.Errorf("bid %+v", bid)
	}
	l.io.set(func() { l.io.refusal = nil })
	events := l.end(id)
	if got := brief(events); !strings.HasSuffix(got, "placed@io started@io one two three succeeded") {
		t.Errorf("got %s", got)
	}
	l.bidders(0)
	why, err := l.d.Why(t.Context(), id)
	if err != nil || len(why) != 4 {
		t.Fatalf("why %+v, %v", why, err)
	}
	if v := why[3].Ranking[0]; why[3].Node != "io" || v.Name != "io" || !v.Fits || v.Parts[len(v.Parts)-1].Name != "turn" {
		t.Errorf("the choice: %+v", why[3])
	}
}

// Only what could be later is waited for, and only by who wants to wait.
func TestNoWait(t *testing.T) {
	l := newLab(t)
	l.full(busy)
	if got := brief(l.end(l.submit(bare()))); !strings.HasSuffix(got, "unplaced") {
		t.Errorf("who does not wait: %s", got)
	}
	l.full(wrong)
	if got := brief(l.end(l.submit(patient()))); !strings.HasSuffix(got, "unplaced") {
		t.Errorf("what never will be: %s", got)
	}
	large := patient()
	large.Needs.CPU = 1000 * task.Core
	if got := brief(l.end(l.submit(large))); got != "unplaced" {
		t.Errorf("what nobody has: %s", got)
	}
}

// A machine that finds, when it is asked, that it will never take the run is not
// waited for any more.
func TestWaitGivesUp(t *testing.T) {
	l := newLab(t)
	l.full(busy)
	id := l.submit(patient())
	l.bidders(3)
	for _, m := range []*machine{l.hydra, l.io, l.juno} {
		m.set(func() { m.refusal = wrong })
	}
	if got := brief(l.end(id)); !strings.HasSuffix(got, "unplaced") {
		t.Errorf("got %s", got)
	}
}

func TestWaitEnds(t *testing.T) {
	var later atomic.Int64
	l := newLab(t, func(c *Config) { c.Now = func() time.Time { return time.Now().Add(time.Duration(later.Load())) } })
	l.full(busy)
	spec := patient()
	spec.Wait = time.Hour
	id := l.submit(spec)
	l.waits(id)
	later.Store(int64(time.Hour))
	events := l.end(id)
	if last := events[len(events)-1]; last.State != task.Unplaced || !strings.Contains(last.Message, "needs 4 cores") {
		t.Errorf("after an hour: %+v", last)
	}
	l.bidders(0)
}

func TestCancelWaiting(t *testing.T) {
	l := newLab(t)
	l.full(busy)
	id := l.submit(patient())
	l.waits(id)
	if err := l.d.Cancel(t.Context(), id, false); err != nil {
		t.Fatal(err)
	}
	if got := brief(l.end(id)); !strings.HasSuffix(got, "cancelled") {
		t.Errorf("got %s", got)
	}
	l.bidders(0)
	if st := l.status(id); st.State != task.Cancelled {
		t.Errorf("status %+v", st)
	}
}

// A run waits on after a restart of this node, and is started once.
func TestWaitSurvives(t *testing.T) {
	l := newLab(t)
	l.full(busy)
	id := l.submit(patient())
	l.waits(id)
	for range 3 {
		_ = l.d.Close()
		l.bidders(0)
		l.up()
		l.bidders(3)
	}
	if bid := l.hydra.bids[len(l.hydra.bids)-1]; bid.Waited < time.Hour { // the ledger's clock is years behind
		t.Errorf("it has waited for %v", bid.Waited)
	}
	l.full(nil)
	if got := brief(l.end(id)); !strings.HasSuffix(got, "succeeded") {
		t.Errorf("got %s", got)
	}
	if n := l.hydra.count(id) + l.io.count(id) + l.juno.count(id); n != 1 {
		t.Errorf("%d starts", n)
	}
}

// Runs that ask for the same come one after the other, those with priority first,
// and do not all bid at once.
func TestWaitInOrder(t *testing.T) {
	l := newLab(t, func(c *Config) {
		view := c.View
		c.View = func() []fleet.Node { return view()[:1] } // io
	})
	l.io.set(func() { l.io.refusal = busy })
	var ids []string
	for i := range 5 {
		spec := patient()
		if i == 4 {
			spec.Priority = 1
		}
		ids = append(ids, l.submit(spec))
		l.waits(ids[i])
	}
	l.bidders(bidders + 1) // the urgent one too, beside those that were there
	l.io.script = func(m *machine, run string) {
		m.set(func() { m.refusal = busy })
		m.all(run)
	}
	var order []string
	for range ids {
		l.io.set(func() { l.io.refusal = nil })
		l.eventually("a start", func() bool {
			for _, id := range ids {
				if l.io.count(id) > 0 && !slices.Contains(order, id) {
					order = append(order, id)
					return true
				}
			}
			return false
		})
	}
	if len(order) != len(ids) {
		t.Errorf("order %q of %q", order, ids)
	}
	for _, id := range ids {
		l.end(id)
	}
}

// Who comes when others of its kind wait comes after them.
func TestWaitBehind(t *testing.T) {
	l := newLab(t)
	l.full(busy)
	first := l.submit(patient())
	l.waits(first)
	events := l.watch(l.submit(patient()), func(e *task.Event) bool { return e.State == task.Waiting })
	if got := brief(events); strings.Contains(got, "placed@") {
		t.Errorf("got %s", got)
	}
}
