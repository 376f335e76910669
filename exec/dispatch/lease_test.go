package dispatch

import (
	"context"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/balanceai/balance/exec/fleet"
	"github.com/balanceai/balance/exec/lease"
	"github.com/balanceai/balance/exec/task"
)

// leased is a run that may be started again, after as short a lease as there is.
func leased() task.Spec {
	s := bare()
	s.Retry, s.Lease = task.RetryOnLoss, lease.Shortest
	return s
}

// granted waits until a machine holds a run by a lease.
func (l *lab) granted(m *machine, run string) {
	l.t.Helper()
	for end := time.Now().Add(30 * time.Second); ; time.Sleep(time.Millisecond) {
		m.mu.Lock()
		ok := m.runs[run] != nil && m.runs[run].held
		m.mu.Unlock()
		if ok {
			return
		}
		if time.Now().After(end) {
			l.t.Fatalf("%s has no lease", m.name)
		}
	}
}

// A machine that is gone for longer than its lease gets another attempt started
// elsewhere, not before and soon after (T35, R3).
func TestRetryAfterLease(t *testing.T) {
	l := newLab(t, func(c *Config) { c.LostAfter = 50 * time.Millisecond })
	l.hydra.script = (*machine).start
	id := l.submit(leased())
	l.granted(l.hydra, id)
	l.hydra.set(func() { l.hydra.deaf = true })
	gone := time.Now()
	got := brief(l.end(id))
	took := time.Since(gone)
	if !strings.Contains(got, "started@hydra") || !strings.Contains(got, "placed@io") || !strings.HasSuffix(got, "succeeded") {
		t.Errorf("got %s", got)
	}
	// The last stamp may have come a renewal before it went.
	if least, most := lease.Shortest-lease.Every(lease.Shortest), lease.Shortest+5*time.Second; took < least || took > most {
		t.Errorf("the next attempt after %v, want %v to %v", took, least, most)
	}
	if l.hydra.runs[id].lease.Until() > lease.Now() {
		t.Error("hydra still holds its lease")
	}
	st := l.status(id)
	if st.State != task.Succeeded || st.Attempt != 2 || st.Node != "io" || !st.Receipt {
		t.Errorf("status %+v", st)
	}
	// What the first machine says later is not the result.
	l.hydra.set(func() { l.hydra.deaf = false })
	l.hydra.finish(id, task.Finished{State: task.Succeeded, ExitCode: 0})
	entries, _ := l.hydra.ledger.Entries(t.Context(), id)
	if _, err := l.ledger.Accept(t.Context(), entries...); err != nil {
		t.Fatal(err)
	}
	if again := l.status(id); again.Node != "io" || !again.Receipt {
		t.Errorf("status %+v", again)
	}
}

func TestNeverRetried(t *testing.T) {
	l := newLab(t, func(c *Config) { c.LostAfter = 50 * time.Millisecond })
	l.hydra.script = (*machine).start
	spec := bare()
	spec.Retry = task.RetryNever
	id := l.submit(spec)
	l.watch(id, func(e *task.Event) bool { return e.Type == task.EventStarted })
	l.hydra.set(func() { l.hydra.deaf = true })
	l.watch(id, func(e *task.Event) bool { return e.State == task.Lost })
	time.Sleep(2 * lease.Shortest)
	if st := l.status(id); st.State != task.Lost || st.Attempt != 1 {
		t.Errorf("status %+v", st)
	}
	l.hydra.set(func() { l.hydra.deaf = false })
	l.hydra.finish(id, task.Finished{State: task.Succeeded})
	if got := brief(l.end(id)); !strings.HasSuffix(got, "succeeded") {
		t.Errorf("got %s", got)
	}
}

// A machine that says that it has lost the run is believed at once, and may get
// it again.
func TestRetryOnTheMachinesWord(t *testing.T) {
	for name, alone := range map[string]bool{"among others": false, "the only one": true} {
		t.Run(name, func(t *testing.T) {
			l := newLab(t, func(c *Config) {
				if all := c.View; alone {
					c.View = func() []fleet.Node { return all()[2:] }
				}
			})
			l.hydra.script = func(m *machine, run string) {
				m.start(run)
				if m.attempt(run) == 1 {
					m.finish(run, task.Finished{State: task.Failed, ExitCode: -1, Reason: "the node stopped", Lost: true})
					return
				}
				m.finish(run, task.Finished{State: task.Succeeded})
			}
			spec := leased()
			spec.Lease = time.Hour
			id := l.submit(spec)
			got := brief(l.end(id))
			if !strings.Contains(got, "attempt 1 is lost: hydra has lost it: the node stopped") || strings.Count(got, "placed@hydra") != 2 || !strings.HasSuffix(got, "succeeded") {
				t.Errorf("got %s", got)
			}
			if st := l.status(id); st.State != task.Succeeded || st.Attempt != 2 || !st.Receipt {
				t.Errorf("status %+v", st)
			}
		})
	}
}

// A run that nobody can take over stays with its machine, which may come back
// with a result.
func TestNobodyElse(t *testing.T) {
	var down atomic.Bool
	l := newLab(t, func(c *Config) {
		c.LostAfter = 50 * time.Millisecond
		all := c.View
		c.View = func() []fleet.Node {
			nodes := all()[2:]
			if down.Load() {
				nodes[0].State = fleet.Down
			}
			return nodes
		}
	})
	l.hydra.script = (*machine).start
	id := l.submit(leased())
	l.granted(l.hydra, id)
	down.Store(true)
	l.hydra.set(func() { l.hydra.deaf = true })
	l.watch(id, func(e *task.Event) bool { return e.State == task.Lost })
	time.Sleep(2 * lease.Shortest)
	if st := l.status(id); st.State != task.Lost || st.Attempt != 1 {
		t.Errorf("status %+v", st)
	}
	l.hydra.finish(id, task.Finished{State: task.Succeeded})
	l.hydra.set(func() { l.hydra.deaf = false })
	if got := brief(l.end(id)); !strings.HasSuffix(got, "succeeded") || strings.Count(got, "placed@") != 1 {
		t.Errorf("got %s", got)
	}
}

// A submitter that dies does not know what it granted last, and waits for all
// that it may have.
func TestRestartedSubmitterWaits(t *testing.T) {
	l := newLab(t, func(c *Config) { c.LostAfter = 50 * time.Millisecond })
	l.hydra.script = (*machine).start
	id := l.submit(leased())
	l.granted(l.hydra, id)
	_ = l.d.Close()
	l.hydra.set(func() { l.hydra.deaf = true })
	time.Sleep(lease.Shortest / 2)
	back := time.Now()
	l.up()
	got := brief(l.end(id))
	if took := time.Since(back); took < lease.Shortest || !strings.Contains(got, "placed@io") || !strings.HasSuffix(got, "succeeded") {
		t.Errorf("after %v: %s", took, got)
	}
	if l.io.attempt(id) != 2 || l.hydra.count(id) != 1 || l.io.count(id) != 1 {
		t.Errorf("%d and %d starts", l.hydra.count(id), l.io.count(id))
	}
}

// A run that is cancelled while its machine is lost ends with the lease.
func TestCancelOfALostLease(t *testing.T) {
	l := newLab(t, func(c *Config) { c.LostAfter = 50 * time.Millisecond })
	l.hydra.script = (*machine).start
	id := l.submit(leased())
	l.granted(l.hydra, id)
	l.hydra.set(func() { l.hydra.deaf = true })
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	if err := l.d.Cancel(ctx, id, false); err != nil {
		t.Fatal(err)
	}
	if got := brief(l.end(id)); !strings.HasSuffix(got, "cancelled") {
		t.Errorf("got %s", got)
	}
	if n := l.io.count(id); n != 0 {
		t.Errorf("started %d times elsewhere", n)
	}
}
