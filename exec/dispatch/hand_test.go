package dispatch

import (
	"context"
	"errors"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/balanceai/balance/exec/task"
	"github.com/balanceai/balance/mesh/identity"
	"github.com/balanceai/balance/mesh/wire"
)

// link is the way to another dispatcher, as bad as a test makes it.
type link struct {
	to *lab

	mu     sync.Mutex
	before error // nothing is sent
	after  error // it is, and no answer comes
	calls  int
}

func (k *link) set(before, after error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.before, k.after = before, after
}

func (k *link) count() int {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.calls
}

func (k *link) pass(f func() error) error {
	k.mu.Lock()
	k.calls++
	before, after := k.before, k.after
	k.mu.Unlock()
	if before != nil {
		return before
	}
	if err := f(); err != nil {
		return err
	}
	return after
}

func (k *link) Keep(ctx context.Context, h task.Handing) error {
	return k.pass(func() error { return k.to.d.Keep(ctx, h) })
}

func (k *link) CancelKept(ctx context.Context, run string) error {
	return k.pass(func() error { return k.to.d.CancelKept(ctx, run) })
}

// inCustody returns a dispatcher and the one that keeps its runs.
func inCustody(t *testing.T) (giver, keeper *lab, way *link) {
	ledger := newLedger(9)
	keeper = newLab(t, func(c *Config) { c.Ledger, c.Runs, c.Self = ledger, ledger.runs, ledger.key.ID() })
	keeper.ledger = ledger
	way = &link{to: keeper}
	giver = newLab(t, func(c *Config) { c.Custodian = func(identity.ID) Custodian { return way } })
	return giver, keeper, way
}

func (l *lab) hand(to *lab, spec task.Spec) (id string, back error) {
	l.t.Helper()
	id, back, err := l.d.Hand(l.t.Context(), spec, nil, to.cfg.Self)
	if err != nil {
		l.t.Fatal(err)
	}
	return id, back
}

func entriesOf(l *lab, id string) []*wire.Entry {
	entries, err := l.ledger.Entries(l.t.Context(), id)
	if err != nil {
		l.t.Fatal(err)
	}
	return entries
}

// whole is the topic of a run as it is once the two have told each other.
func whole(t *testing.T, id string, labs ...*lab) task.Status {
	t.Helper()
	all := newLedger(99)
	for _, l := range labs {
		if _, err := all.Accept(t.Context(), entriesOf(l, id)...); err != nil {
			t.Fatal(err)
		}
	}
	st, err := task.Fold(id, all.topics[id])
	if err != nil {
		t.Fatal(err)
	}
	return st
}

func TestHand(t *testing.T) {
	giver, keeper, _ := inCustody(t)
	id, back := giver.hand(keeper, bare())
	if back != nil {
		t.Fatal(back)
	}
	if got := brief(keeper.end(id)); got != "placed@hydra started@hydra one two three succeeded" {
		t.Errorf("the custodian saw %s", got)
	}
	if st := whole(t, id, giver, keeper); st.State != task.Succeeded || st.Submitter != keeper.cfg.Self || st.For != giver.cfg.Self {
		t.Errorf("%+v", st)
	}
	if giver.hydra.count(id)+giver.io.count(id)+giver.juno.count(id) > 0 {
		t.Error("its giver has dispatched it too")
	}
	if err := keeper.d.Keep(t.Context(), task.Handing{Run: id, From: giver.cfg.Self, Entries: entriesOf(giver, id)}); err != nil {
		t.Errorf("given again: %v", err)
	}
	if n := keeper.hydra.count(id); n != 1 {
		t.Errorf("started %d times", n)
	}
	err := keeper.d.Keep(t.Context(), task.Handing{Run: id, From: giver.hydra.id(), Entries: entriesOf(giver, id)})
	if refusal := (*task.Refusal)(nil); !errors.As(err, &refusal) {
		t.Errorf("given by somebody else: %v", err)
	}
}

func TestHandIsTakenBack(t *testing.T) {
	for name, tc := range map[string]struct {
		spoil func(keeper *lab, way *link)
		why   string
	}{
		"out of reach":           {func(_ *lab, way *link) { way.set(task.ErrUnreachable, nil) }, task.ErrUnreachable.Error()},
		"refused":                {func(_ *lab, way *link) { way.set(notKept("no"), nil) }, "into custody: no"},
		"its inputs do not come": {func(keeper *lab, _ *link) { keeper.fetch = errors.New("gone") }, "input data: gone"},
	} {
		t.Run(name, func(t *testing.T) {
			giver, keeper, way := inCustody(t)
			tc.spoil(keeper, way)
			spec := bare()
			spec.Inputs = []task.Input{{Path: "data", Kind: task.KindFile, Tree: [32]byte{7}, Size: 1}}
			id, back := giver.hand(keeper, spec)
			if back == nil || !strings.Contains(back.Error(), tc.why) {
				t.Fatalf("taken back because of %v", back)
			}
			if got := brief(giver.end(id)); got != "placed@hydra started@hydra one two three succeeded" {
				t.Errorf("the giver saw %s", got)
			}
			if st := giver.status(id); st.InCustody() {
				t.Errorf("%+v", st)
			}
			if len(entriesOf(keeper, id)) > 0 {
				t.Error("the other node knows of it")
			}
		})
	}
}

// Where it is not known whether the custodian has it, nobody takes it back, also
// not after a restart.
func TestHandInDoubt(t *testing.T) {
	for _, kept := range []bool{true, false} {
		giver, keeper, way := inCustody(t)
		if kept {
			way.set(nil, task.ErrBroken)
		} else {
			way.set(task.ErrBroken, nil)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
		id, back, err := giver.d.Hand(ctx, bare(), nil, keeper.cfg.Self)
		cancel()
		if err != nil || back != nil {
			t.Fatal(back, err)
		}
		giver.eventually("it is asked again", func() bool { return way.count() > 1 })
		if err := giver.d.Close(); err != nil {
			t.Fatal(err)
		}
		way.set(task.ErrUnreachable, nil)
		giver.up()
		n := way.count()
		giver.eventually("it is asked again", func() bool { return way.count() > n+1 })
		if st := giver.status(id); !st.OnItsWay() {
			t.Errorf("%+v", st)
		}
		way.set(nil, nil)
		giver.d.NodeUp(keeper.cfg.Self)
		keeper.eventually("it has it", func() bool { return keeper.has(id) })
		keeper.end(id)
		if n := keeper.hydra.count(id) + giver.hydra.count(id); n != 1 {
			t.Errorf("started %d times", n)
		}
	}
}

// has reports whether this node dispatches a run, or did.
func (l *lab) has(id string) bool {
	if l.d.active(id) != nil {
		return true
	}
	st, err := l.d.status(l.t.Context(), id)
	return err == nil && over(st)
}

// A run that has just arrived is cancelled where it is, though its topic does not
// say so here yet.
func TestCancelAfterHand(t *testing.T) {
	giver, keeper, _ := inCustody(t)
	keeper.hydra.script = (*machine).start // and goes on
	id, back := giver.hand(keeper, bare())
	if back != nil {
		t.Fatal(back)
	}
	keeper.eventually("it runs", func() bool { return keeper.status(id).State == task.Running })
	if err := giver.d.Cancel(t.Context(), id, false); err != nil {
		t.Fatal(err)
	}
	events := keeper.end(id)
	if last := events[len(events)-1]; last.State != task.Cancelled {
		t.Errorf("%s", last.State)
	}
}

// What is cancelled on its way is cancelled where it comes to.
func TestHandCancelled(t *testing.T) {
	for _, comes := range []bool{true, false} {
		giver, keeper, way := inCustody(t)
		for _, l := range []*lab{giver, keeper} {
			l.hydra.script = func(*machine, string) {} // it is cancelled before it starts
		}
		way.set(task.ErrBroken, nil)
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
		id, _, err := giver.d.Hand(ctx, bare(), nil, keeper.cfg.Self)
		cancel()
		if err != nil {
			t.Fatal(err)
		}
		if err := giver.d.Cancel(t.Context(), id, false); err != nil {
			t.Fatal(err)
		}
		at := keeper
		if comes {
			way.set(nil, nil)
		} else {
			at = giver
			way.set(notKept("no"), nil)
		}
		at.eventually("somebody has it", func() bool { return at.has(id) })
		events := at.end(id)
		if last := events[len(events)-1]; last.State != task.Cancelled {
			t.Errorf("it comes: %t: %s", comes, last.State)
		}
	}
}
