package run

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/balanceai/balance/exec/lease"
	"github.com/balanceai/balance/exec/task"
)

func leased(s task.Spec) task.Spec {
	s.Retry, s.Lease = task.RetryOnLoss, 2*lease.Shortest
	return s
}

// renew takes a stamp, and gives it back: the lease is granted.
func (l *lab) renew(o task.Order) {
	l.t.Helper()
	var stamp uint64
	eventually(l.t, "the run to be accepted", func() (ok bool) {
		var err error
		stamp, err = l.Renew(l.t.Context(), o.Run, o.Attempt, 0)
		return err == nil
	})
	if _, err := l.Renew(l.t.Context(), o.Run, o.Attempt, stamp); err != nil {
		l.t.Fatal(err)
	}
}

// A machine starts nothing until its lease is granted, goes on while it is
// renewed, and kills the run when it has run out: everything that it has started.
func TestLeaseRunsOut(t *testing.T) {
	l := newLab(t)
	file := filepath.Join(t.TempDir(), "beats")
	o := order(leased(spec("sh", "-c", "trap '' TERM; (while :; do echo x >> "+file+"; sleep 0.02; done) & wait; wait")))
	w := l.start(o)
	w.until("its promise", func(r *result) bool { return slices.Contains(r.kinds(), task.KindAccepted) })
	time.Sleep(lease.Shortest / 2)
	if _, err := os.Stat(file); err == nil {
		t.Error("it was started without a lease")
	}
	l.renew(o)
	w.until("its start", func(r *result) bool { _, err := os.Stat(file); return err == nil })
	var stamp uint64
	for begin := time.Now(); time.Since(begin) < 3*lease.Shortest; time.Sleep(50 * time.Millisecond) {
		var err error
		if stamp, err = l.Renew(t.Context(), o.Run, 1, stamp); err != nil {
			t.Fatalf("after %v: %v", time.Since(begin), err)
		}
	}
	last := time.Now()
	r := w.end()
	took := time.Since(last)
	if !r.account.Lost || r.account.State != task.Failed || !strings.Contains(r.account.Reason, "its lease ran out") {
		t.Errorf("account %+v", r.account)
	}
	if took > 2*lease.Shortest+lease.Margin(2*lease.Shortest)+time.Second {
		t.Errorf("it ended %v after the last renewal", took)
	}
	before, _ := os.ReadFile(file)
	time.Sleep(200 * time.Millisecond)
	if after, _ := os.ReadFile(file); len(after) != len(before) {
		t.Error("something of it goes on")
	}
	if _, err := l.Renew(t.Context(), o.Run, 1, stamp); !errors.Is(err, task.ErrNoRun) {
		t.Errorf("renewed after its end: %v", err)
	}
}

// A run that nobody grants a lease is never started, and is not awaited for ever.
func TestLeaseNeverGranted(t *testing.T) {
	l := newLab(t)
	r := l.run(order(leased(spec("echo", "started"))))
	if !r.account.Lost || r.account.ExitCode != unseen || r.stdout.Len() > 0 {
		t.Errorf("account %+v, output %q", r.account, r.stdout.String())
	}
}

// A newer attempt kills the older one and takes its place; an older one is
// refused, and its renewals are nobody's.
func TestNewerAttempt(t *testing.T) {
	l := newLab(t)
	s := leased(spec("sh", "-c", "echo attempt $BALANCE_ATTEMPT; exec sleep 100"))
	first := order(s)
	place := func(o task.Order) task.Order {
		o.Attempt++
		o.Entries = append(slices.Clone(o.Entries), sign(userKey, o.Entries, task.Draft{Topic: o.Run, Kind: task.KindPlace, Record: task.Place{Attempt: o.Attempt, Node: nodeKey.ID()}}))
		return o
	}
	second := place(first)
	w := l.start(first)
	l.renew(first)
	w.untilOutput("attempt 1")
	w2 := l.start(second)
	if r := w.end(); !r.account.Lost || r.account.Attempt != 1 || !strings.Contains(r.account.Reason, "attempt 2 has taken its place") {
		t.Errorf("account of the first %+v", r.account)
	}
	l.renew(second)
	w2.untilOutput("attempt 2")
	if r := refusal(t, l.Start(t.Context(), first, nothing)); r.Reasons[0].Rule != "attempt" {
		t.Errorf("the first again: %v", r.Reasons)
	}
	if _, err := l.Renew(t.Context(), first.Run, 1, 0); !errors.Is(err, task.ErrNoRun) {
		t.Errorf("the first's renewal: %v", err)
	}
	if err := l.Cancel(t.Context(), first.Run, true); err != nil {
		t.Fatal(err)
	}
	if r := w2.end(); r.account.Attempt != 2 || r.account.Lost || r.account.State != task.Cancelled {
		t.Errorf("account of the second %+v", r.account)
	}
}

// A lease runs out without the node too: the run's supervisor kills it, and the
// next node says so.
func TestLeaseRunsOutWithoutTheNode(t *testing.T) {
	l := newLab(t)
	file := filepath.Join(t.TempDir(), "beats")
	o := order(leased(spec("sh", "-c", "trap '' TERM; (while :; do echo x >> "+file+"; sleep 0.02; done) & wait; wait")))
	w := l.start(o)
	l.renew(o)
	w.until("its start", func(*result) bool { _, err := os.Stat(file); return err == nil })
	_ = l.Close()
	<-w.done
	closed := time.Now()
	size := int64(-1)
	eventually(t, "the run to be killed", func() bool {
		before := size
		info, err := os.Stat(file)
		if err != nil {
			t.Fatal(err)
		}
		size = info.Size()
		time.Sleep(200 * time.Millisecond)
		return size == before
	})
	if took := time.Since(closed); took > 2*lease.Shortest+lease.Margin(2*lease.Shortest)+2*time.Second {
		t.Errorf("it went on for %v", took)
	}
	l.open()
	if r := l.run(o); !r.account.Lost || !strings.Contains(r.account.Reason, "its lease ran out") {
		t.Errorf("account %+v", r.account)
	}
}

// The next node takes up the lease where the last one has left it.
func TestLeaseOverARestart(t *testing.T) {
	l := newLab(t)
	o := order(leased(spec("sleep", "100")))
	w := l.start(o)
	l.renew(o)
	w.until("its start", func(r *result) bool { return slices.Contains(r.kinds(), task.KindStarted) })
	_ = l.Close()
	<-w.done
	l.open()
	w = l.start(o)
	var stamp uint64
	for begin := time.Now(); time.Since(begin) < 3*lease.Shortest; time.Sleep(50 * time.Millisecond) {
		var err error
		if stamp, err = l.Renew(t.Context(), o.Run, 1, stamp); err != nil {
			t.Fatalf("after %v: %v", time.Since(begin), err)
		}
	}
	if err := l.Cancel(t.Context(), o.Run, true); err != nil {
		t.Fatal(err)
	}
	if r := w.end(); r.account.State != task.Cancelled || r.account.Lost {
		t.Errorf("account %+v", r.account)
	}
}
