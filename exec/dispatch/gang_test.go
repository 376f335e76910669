package dispatch

import (
	"context"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/balanceai/balance/exec/task"
)

// gangOf is a gang of so many machines.
func gangOf(n int) task.Spec {
	s := bare()
	s.Gang = &task.Gang{Nodes: n}
	return s
}

// inGang makes the lab's machines ones that hold a rank until it may start.
func (l *lab) inGang(went func(m *machine, run string)) {
	for _, m := range []*machine{l.hydra, l.juno, l.io} {
		m.script, m.went = (*machine).ready, went
	}
}

// ranksOf returns the events of a gang that are a rank's, as "rank type".
func ranksOf(events []*task.Event, kind string) (ranks []int) {
	for _, e := range events {
		if e.Type == kind && e.Rank != nil {
			ranks = append(ranks, *e.Rank)
		}
	}
	slices.Sort(ranks)
	return ranks
}

func TestGang(t *testing.T) {
	l := newLab(t)
	l.inGang((*machine).all)
	id := l.submit(gangOf(3))
	events := l.end(id)
	if got := ranksOf(events, task.EventOutput); !slices.Equal(got, []int{0, 0, 0, 1, 1, 1, 2, 2, 2}) {
		t.Errorf("output of ranks %v", got)
	}
	if got := ranksOf(events, task.EventEnded); !slices.Equal(got, []int{0, 1, 2}) {
		t.Errorf("ends of ranks %v", got)
	}
	if last := events[len(events)-1]; last.State != task.Succeeded || *last.ExitCode != 0 || last.Rank != nil {
		t.Errorf("last event %+v", last)
	}
	st := l.status(id)
	if st.State != task.Succeeded || len(st.Ranks) != 3 || st.Started.IsZero() {
		t.Errorf("status %+v", st)
	}
	for rank, run := range st.Ranks {
		if m := l.status(run); m.State != task.Succeeded || m.Gang != id || *m.Rank != rank {
			t.Errorf("rank %d: %+v", rank, m)
		}
	}
}

// No rank starts before all of them could.
func TestGangBarrier(t *testing.T) {
	l := newLab(t)
	l.inGang((*machine).all)
	hold := make(chan string, 1)
	l.io.script = func(_ *machine, run string) { hold <- run }
	id := l.submit(gangOf(3))
	late := <-hold
	time.Sleep(50 * time.Millisecond)
	if st := l.status(id); st.State != task.Placed || !st.Started.IsZero() {
		t.Errorf("status before all are there %+v", st)
	}
	for _, m := range []*machine{l.hydra, l.juno} {
		m.mu.Lock()
		for run, r := range m.runs {
			if slices.ContainsFunc(r.events, func(e *task.Event) bool { return e.Type == task.EventStarted }) {
				t.Errorf("%s started %s", m.name, run)
			}
		}
		m.mu.Unlock()
	}
	l.io.ready(late)
	if events := l.end(id); events[len(events)-1].State != task.Succeeded {
		t.Errorf("last event %+v", events[len(events)-1])
	}
}

// The first rank that fails is how the gang ends, and the end of the others.
func TestGangFails(t *testing.T) {
	l := newLab(t)
	l.inGang((*machine).start)
	l.juno.went = func(m *machine, run string) {
		m.start(run)
		m.finish(run, task.Finished{State: task.Failed, ExitCode: 7})
	}
	events := l.end(l.submit(gangOf(3)))
	last := events[len(events)-1]
	if last.State != task.Failed || *last.ExitCode != 7 || !strings.Contains(last.Message, "juno") {
		t.Errorf("last event %+v", last)
	}
	cancelled := 0
	for _, e := range events {
		if e.Type == task.EventEnded && e.State == task.Cancelled {
			cancelled++
		}
	}
	if cancelled != 2 {
		t.Errorf("%d ranks cancelled", cancelled)
	}
}

// A machine that is lost ends the others, and learns of its own end when it is
// back.
func TestGangLosesAMachine(t *testing.T) {
	l := newLab(t, func(c *Config) { c.LostAfter = 50 * time.Millisecond })
	l.inGang((*machine).start)
	id := l.submit(gangOf(3))
	l.watch(id, func(e *task.Event) bool { return e.Type == task.EventStarted && e.Node == "juno" })
	l.juno.set(func() { l.juno.deaf = true })
	events := l.end(id)
	if last := events[len(events)-1]; last.State != task.Failed || *last.ExitCode != -1 || !strings.Contains(last.Message, "lost with juno") {
		t.Errorf("last event %+v", last)
	}
	l.juno.set(func() { l.juno.deaf = false })
	l.d.NodeUp(l.juno.id())
	var run string
	for _, id := range l.status(id).Ranks {
		if st := l.status(id); st.Node == "juno" {
			run = id
		}
	}
	if events := l.end(run); events[len(events)-1].State != task.Cancelled {
		t.Errorf("the lost rank: %+v", events[len(events)-1])
	}
}

// All or nothing: a machine that refuses lets the others go, another one takes
// its place, and where there is none the reason is its.
func TestGangIsRefused(t *testing.T) {
	l := newLab(t)
	l.inGang((*machine).all)
	l.hydra.refusal = []task.Reason{{Rule: "busy", Text: "is busy"}}
	id := l.submit(gangOf(2))
	if events := l.end(id); events[len(events)-1].State != task.Succeeded {
		t.Errorf("last event %+v", events[len(events)-1])
	}
	if st := l.status(id); st.Attempt != 1 || strings.Contains(st.Node, "hydra") {
		t.Errorf("status %+v", st)
	}
	id = l.submit(gangOf(3))
	events := l.end(id)
	if last := events[len(events)-1]; last.State != task.Unplaced || !strings.Contains(last.Message, "hydra is busy") {
		t.Errorf("last event %+v", last)
	}
	for _, m := range []*machine{l.juno, l.io} {
		m.mu.Lock()
		for run, r := range m.runs {
			if !r.finished {
				t.Errorf("%s still has %s", m.name, run)
			}
		}
		m.mu.Unlock()
	}
	if events := l.end(l.submit(gangOf(4))); events[len(events)-1].State != task.Unplaced {
		t.Errorf("last event %+v", events[len(events)-1])
	}
}

// One that refuses the order for what it has kept has the gang look for others.
func TestGangIsRefusedLate(t *testing.T) {
	l := newLab(t)
	l.inGang((*machine).all)
	l.hydra.late = []task.Reason{{Rule: "busy", Text: "is busy"}}
	id := l.submit(gangOf(2))
	events := l.end(id)
	if last := events[len(events)-1]; last.State != task.Succeeded || !strings.Contains(brief(events), "hydra refused: is busy; the other ranks are let go") {
		t.Errorf("got %s", brief(events))
	}
	if st := l.status(id); st.Attempt != 2 || strings.Contains(st.Node, "hydra") {
		t.Errorf("status %+v", st)
	}
}

// A gang waits until it gets all of its machines at one time.
func TestGangWaits(t *testing.T) {
	l := newLab(t)
	l.inGang((*machine).all)
	l.hydra.refusal = busy
	spec := gangOf(3)
	spec.Wait = task.WaitForever
	id := l.submit(spec)
	if got := l.waits(id); !strings.Contains(got, "hydra needs 4 cores; 1 of 8 is free") {
		t.Errorf("reason %s", got)
	}
	_ = l.d.Close()
	l.up()
	time.Sleep(50 * time.Millisecond)
	if st := l.status(id); st.State != task.Waiting || st.Attempt != 1 {
		t.Errorf("status %+v", st)
	}
	l.hydra.set(func() { l.hydra.refusal = nil })
	events := l.end(id)
	if last := events[len(events)-1]; last.State != task.Succeeded || last.Attempt != 1 {
		t.Errorf("last event %+v", last)
	}
	l.hydra.set(func() { l.hydra.refusal = busy })
	id = l.submit(spec)
	l.waits(id)
	if err := l.d.Cancel(t.Context(), id, false); err != nil {
		t.Fatal(err)
	}
	if events := l.end(id); events[len(events)-1].State != task.Cancelled {
		t.Errorf("last event %+v", events[len(events)-1])
	}
	l.bidders(0)
}

func TestGangIsCancelled(t *testing.T) {
	l := newLab(t)
	l.inGang((*machine).start)
	id := l.submit(gangOf(3))
	l.watch(id, func(e *task.Event) bool { return e.Type == task.EventStarted })
	if err := l.d.Cancel(context.Background(), id, false); err != nil {
		t.Fatal(err)
	}
	events := l.end(id)
	if last := events[len(events)-1]; last.State != task.Cancelled {
		t.Errorf("last event %+v", last)
	}
	if got := ranksOf(events, task.EventEnded); !slices.Equal(got, []int{0, 1, 2}) {
		t.Errorf("ends of ranks %v", got)
	}
}

// A dispatcher that was stopped goes on with the gang, and shows each event once.
func TestGangResumes(t *testing.T) {
	l := newLab(t)
	l.inGang(func(m *machine, run string) { m.start(run); m.output(run, "one\n") })
	id := l.submit(gangOf(3))
	for seen := 0; seen < 3; {
		seen = 0
		l.watch(id, func(e *task.Event) bool {
			if e.Type == task.EventOutput {
				seen++
			}
			return seen == 3
		})
	}
	if err := l.d.Close(); err != nil {
		t.Fatal(err)
	}
	l.up()
	for _, m := range []*machine{l.hydra, l.juno, l.io} {
		m.mu.Lock()
		runs := slices.Collect(func(yield func(string) bool) {
			for run := range m.runs {
				if !yield(run) {
					return
				}
			}
		})
		m.mu.Unlock()
		for _, run := range runs {
			m.finish(run, task.Finished{State: task.Succeeded})
		}
	}
	events := l.end(id)
	if got := ranksOf(events, task.EventOutput); !slices.Equal(got, []int{0, 1, 2}) {
		t.Errorf("output of ranks %v", got)
	}
	if last := events[len(events)-1]; last.State != task.Succeeded {
		t.Errorf("last event %+v", last)
	}
}

// Wherever its dispatcher is killed, a gang comes to its end: each rank is started
// once, and what it says is shown once.
func TestGangKilledAtEachStep(t *testing.T) {
	for _, late := range []bool{false, true} {
		for step := 1; ; step++ {
			survived := killAt(t, gangOf(3), step, late, func(l *lab) { l.inGang((*machine).all) }, nil, func(l *lab, run, where string) {
				events := l.end(run)
				if last := events[len(events)-1]; last.State != task.Succeeded {
					t.Errorf("%s: %+v", where, last)
				}
				if got := ranksOf(events, task.EventOutput); !slices.Equal(got, []int{0, 0, 0, 1, 1, 1, 2, 2, 2}) {
					t.Errorf("%s: output of %v", where, got)
				}
				for rank, id := range l.status(run).Ranks {
					if n := l.hydra.count(id) + l.io.count(id) + l.juno.count(id); n != 1 {
						t.Errorf("%s: %d starts of rank %d", where, n, rank)
					}
				}
			})
			if survived {
				t.Logf("%d steps", step-1)
				break
			}
		}
	}
}
