package run

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/balanceai/balance/exec/task"
	"github.com/balanceai/balance/mesh/identity"
)

// cores has the lab's machine have so many cores for runs, and each member an
// owner of its own.
func (l *lab) cores(n task.CPU) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.admit = func(a Ask) (Grant, []task.Reason) {
		need := a.Spec.Needs.Held().CPU
		if need > n {
			return Grant{}, []task.Reason{task.Reasonf("cpu", "has %v cores", n)}
		}
		for _, u := range a.Held {
			need += u.Needs.CPU
		}
		if need > n {
			return Grant{}, []task.Reason{{Rule: "cpu", Text: fmt.Sprintf("has %v cores, %v are asked for", n, need), Ever: true}}
		}
		return Grant{}, nil
	}
}

// sized returns a spec of a run that holds some cores until it is cancelled.
func sized(cores task.CPU) task.Spec {
	s := spec("sleep", "1000")
	s.Needs.CPU = cores
	return s
}

// bids is a number of bids at one machine.
type bids struct {
	l *lab

	mu   sync.Mutex
	held []string          // the names of those that had their turn, in that order
	why  map[string]string // they wait
	err  map[string]error
	end  map[string]context.CancelFunc
	all  sync.WaitGroup

	heard int // of held, by wait
}

func (l *lab) bids() *bids {
	b := &bids{l: l, why: map[string]string{}, err: map[string]error{}, end: map[string]context.CancelFunc{}}
	l.t.Cleanup(func() {
		for _, end := range b.end {
			end()
		}
		b.all.Wait()
	})
	return b
}

// add makes a bid, and waits until it is in the line or has been answered.
func (b *bids) add(name string, bid task.Bid) {
	b.l.t.Helper()
	bid.Run = task.NewID()
	if bid.From.IsZero() {
		bid.From = userKey.ID()
	}
	ctx, end := context.WithCancel(context.Background())
	b.end[name] = end
	b.all.Go(func() {
		err := b.l.Reserve(ctx, bid, func(e *task.Event) error {
			b.mu.Lock()
			defer b.mu.Unlock()
			if e.Type == task.EventNote {
				b.why[name] = (&task.Refusal{Reasons: e.Reasons}).Error()
				return nil
			}
			b.held = append(b.held, name)
			return nil
		})
		b.mu.Lock()
		defer b.mu.Unlock()
		b.err[name] = err
	})
	eventually(b.l.t, name+" stands in line", func() bool {
		b.l.Runner.mu.Lock()
		in := b.l.line.of(bid.Run) != nil
		b.l.Runner.mu.Unlock()
		b.mu.Lock()
		defer b.mu.Unlock()
		_, answered := b.err[name]
		return in || answered
	})
}

// wait waits for turns. Those that come at the same time, since the last wait, are
// heard in any order.
func (b *bids) wait(want ...string) {
	b.l.t.Helper()
	var got []string
	eventually(b.l.t, fmt.Sprintf("the turns of %v", want), func() bool {
		b.mu.Lock()
		defer b.mu.Unlock()
		got = slices.Clone(b.held)
		return len(got) >= len(want)
	})
	news := func(turns []string) []string { return slices.Sorted(slices.Values(turns[b.heard:])) }
	if !slices.Equal(news(got), news(want)) {
		b.l.t.Fatalf("turns of %v, want %v", got, want)
	}
	b.heard = len(want)
}

// leave ends a bid, and with it what is kept for it.
func (b *bids) leave(name string) {
	b.l.t.Helper()
	b.end[name]()
	eventually(b.l.t, "the end of "+name, func() bool {
		b.mu.Lock()
		defer b.mu.Unlock()
		_, ok := b.err[name]
		return ok
	})
}

// What is kept for a run is nobody else's, and becomes the run's.
func TestReserve(t *testing.T) {
	l := newLab(t)
	l.cores(2 * task.Core)
	o := order(sized(2 * task.Core))
	kept := make(chan error, 1)
	over := make(chan error, 1)
	go func() {
		over <- l.Reserve(t.Context(), task.Bid{Run: o.Run, From: o.From, Spec: sized(2 * task.Core)}, func(*task.Event) error {
			kept <- nil
			return nil
		})
	}()
	if err := <-kept; err != nil {
		t.Fatal(err)
	}
	var no *task.Refusal
	if err := l.Start(t.Context(), order(sized(task.Core)), nil); !errors.As(err, &no) {
		t.Errorf("another order: %v", err)
	}
	if err := l.Reserve(t.Context(), task.Bid{Run: task.NewID(), From: o.From, Spec: sized(task.Core)}, nil); !errors.As(err, &no) {
		t.Errorf("another bid: %v", err)
	}
	started := errors.New("started")
	err := l.Start(t.Context(), o, func(e *task.Event) error {
		if e.Type == task.EventStarted {
			return started
		}
		return nil
	})
	if !errors.Is(err, started) {
		t.Fatal(err)
	}
	if err := <-over; err != nil {
		t.Errorf("what was kept for the run, once it is there: %v", err)
	}
	if held := l.Held(); len(held) != 1 || held[0].Run != o.Run {
		t.Errorf("held: %+v", held)
	}
}

// What nobody comes for is free again.
func TestReserveEnds(t *testing.T) {
	l := newLab(t)
	l.cores(task.Core)
	begin := time.Now()
	if err := l.Reserve(t.Context(), task.Bid{Run: task.NewID(), From: userKey.ID(), Spec: sized(task.Core)}, func(*task.Event) error { return nil }); err != nil {
		t.Fatal(err)
	}
	if took := time.Since(begin); took < keepFor {
		t.Errorf("kept for %v", took)
	}
	if held := l.Held(); len(held) > 0 {
		t.Errorf("held: %+v", held)
	}
}

// The line moves when a run ends, at once.
func TestLineMoves(t *testing.T) {
	l := newLab(t)
	l.cores(2 * task.Core)
	first := order(sized(2 * task.Core))
	done := make(chan error, 1)
	started := make(chan struct{})
	go func() {
		done <- l.Start(t.Context(), first, func(e *task.Event) error {
			if e.Type == task.EventStarted {
				close(started)
			}
			return nil
		})
	}()
	<-started
	b := l.bids()
	b.add("one", task.Bid{Spec: sized(task.Core), Wait: true})
	b.add("never", task.Bid{Spec: sized(3 * task.Core), Wait: true})
	b.add("two", task.Bid{Spec: sized(task.Core), Wait: true})
	b.add("three", task.Bid{Spec: sized(task.Core), Wait: true})
	eventually(t, "it says how long others wait", func() bool { return l.Queue() > 10*time.Millisecond })
	var no *task.Refusal
	if b.leave("never"); !errors.As(b.err["never"], &no) || no.Reasons[0].Ever {
		t.Errorf("a bid for more than there is: %v", b.err["never"])
	}
	if err := l.Cancel(t.Context(), first.Run, true); err != nil {
		t.Fatal(err)
	}
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	b.wait("one", "two")
	eventually(t, "a reason", func() bool {
		b.mu.Lock()
		defer b.mu.Unlock()
		return b.why["three"] == "refused: has 2 cores, 3 are asked for"
	})
	b.leave("one")
	b.wait("one", "two", "three")
	if q := l.Queue(); q != 0 {
		t.Errorf("nobody waits, for %v", q)
	}
}

// Owners take turns, however many runs one of them has in line; on the owner's own
// machine the priority of a run counts.
func TestLineFair(t *testing.T) {
	l := newLab(t)
	l.Runner.cfg.Weigh = func(from identity.ID, n task.Needs) Weight {
		return Weight{Owner: from.String(), Own: from == userKey.ID(), Share: 1}
	}
	l.cores(task.Core)
	b := l.bids()
	b.add("first", task.Bid{Spec: sized(task.Core)})
	for _, n := range []string{"a1", "a2", "a3"} {
		b.add(n, task.Bid{Spec: sized(task.Core), Wait: true, Waited: time.Minute})
	}
	urgent := sized(task.Core)
	urgent.Priority = 10
	b.add("urgent", task.Bid{Spec: urgent, Wait: true})
	other := nodeKey.ID()
	b.add("b1", task.Bid{From: other, Spec: urgent, Wait: true})
	b.add("b2", task.Bid{From: other, Spec: sized(task.Core), Wait: true, Waited: time.Minute})
	want := []string{"first", "b2", "urgent", "b1", "a1", "a2", "a3"}
	for i, n := range want[:len(want)-1] {
		b.wait(want[:i+1]...)
		from := userKey.ID()
		if strings.HasPrefix(n, "b") {
			from = other
		}
		l.charge(from)
		b.leave(n)
	}
	b.wait(want...)
}

// charge accounts for a run as if it had been here.
func (l *lab) charge(from identity.ID) {
	l.Runner.mu.Lock()
	defer l.Runner.mu.Unlock()
	now := l.Runner.cfg.Now()
	l.line.usage.Add(l.counts(Use{From: from, Since: now}), now)
}

// What somebody has kept for nothing counts as had, so that it is the others' turn.
func TestLineIdle(t *testing.T) {
	l := newLab(t)
	l.Runner.cfg.Weigh = func(from identity.ID, _ task.Needs) Weight { return Weight{Owner: from.String(), Share: 1} }
	l.cores(task.Core)
	b := l.bids()
	other := nodeKey.ID()
	b.add("idle", task.Bid{Spec: sized(task.Core)})
	b.add("again", task.Bid{Spec: sized(task.Core), Wait: true, Waited: time.Hour})
	b.add("other", task.Bid{From: other, Spec: sized(task.Core), Wait: true})
	time.Sleep(probed)
	b.leave("idle")
	b.wait("idle", "other")
}

// A run that needs much has its turn, however many others come that need less.
func TestLineWide(t *testing.T) {
	l := newLab(t)
	l.cores(4 * task.Core)
	l.Runner.cfg.Patience = 500 * time.Millisecond
	b := l.bids()
	for i := range 4 {
		b.add(fmt.Sprint("before", i), task.Bid{Spec: sized(task.Core)})
	}
	b.add("wide", task.Bid{Spec: sized(3 * task.Core), Wait: true, Claim: true})
	b.leave("before0")
	b.add("early", task.Bid{Spec: sized(task.Core), Wait: true})
	b.wait("before0", "before1", "before2", "before3", "early") // nobody is patient yet
	time.Sleep(l.Runner.cfg.Patience)
	b.leave("before1")
	b.add("beside", task.Bid{Spec: sized(task.Core), Wait: true}) // fits beside the wide one
	b.leave("before2")
	b.add("late", task.Bid{Spec: sized(task.Core), Wait: true})
	b.wait("before0", "before1", "before2", "before3", "early", "beside")
	b.leave("before3")
	b.leave("early")
	b.wait("before0", "before1", "before2", "before3", "early", "beside", "wide")
	b.leave("wide")
	b.wait("before0", "before1", "before2", "before3", "early", "beside", "wide", "late")
}

// Who could be here when they came, and cannot any more, are told so: they are
// waiting for nothing.
func TestLineNever(t *testing.T) {
	l := newLab(t)
	l.cores(2 * task.Core)
	b := l.bids()
	b.add("first", task.Bid{Spec: sized(2 * task.Core)})
	b.add("large", task.Bid{Spec: sized(2 * task.Core), Wait: true})
	b.add("small", task.Bid{Spec: sized(task.Core), Wait: true})
	l.cores(task.Core)
	eventually(t, "the end of the large one", func() bool {
		b.mu.Lock()
		defer b.mu.Unlock()
		return b.err["large"] != nil
	})
	var no *task.Refusal
	if !errors.As(b.err["large"], &no) || no.Reasons[0].Ever {
		t.Errorf("the large one: %v", b.err["large"])
	}
	b.leave("first")
	b.wait("first", "small")
}

// Nobody fills the line for all others, and nobody's run is taken for another's.
func TestLineBounds(t *testing.T) {
	l := newLab(t)
	l.cores(task.Core)
	b := l.bids()
	b.add("first", task.Bid{Spec: sized(task.Core)})
	for i := range maxEach + 1 {
		b.add(fmt.Sprint(i), task.Bid{Spec: sized(task.Core), Wait: true})
	}
	var no *task.Refusal
	if b.leave(fmt.Sprint(maxEach)); !errors.As(b.err[fmt.Sprint(maxEach)], &no) || !no.Reasons[0].Ever {
		t.Errorf("one bid too many: %v", b.err[fmt.Sprint(maxEach)])
	}
	b.add("other", task.Bid{From: nodeKey.ID(), Spec: sized(task.Core), Wait: true})
	l.Runner.mu.Lock()
	theirs := l.line.waiting[0].Run
	l.Runner.mu.Unlock()
	if err := l.Reserve(t.Context(), task.Bid{Run: theirs, From: nodeKey.ID(), Spec: sized(task.Core), Wait: true}, nil); !errors.As(err, &no) {
		t.Errorf("a bid for somebody else's run: %v", err)
	}
}
