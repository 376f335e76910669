package dispatch

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"sync"
	"testing"

	"github.com/balanceai/balance/exec/task"
	"github.com/balanceai/balance/mesh/identity"
	"github.com/balanceai/balance/mesh/wire"
)

var errDead = errors.New("the process is dead")

// doom kills a dispatcher at its n-th step into the world outside: from then on
// nothing that it does has an effect.
type doom struct {
	mu    sync.Mutex
	steps int  // left
	late  bool // it dies after the step has had its effect, of which it does not learn
	dead  bool
	died  chan struct{}
}

func (d *doom) step(effect func() error) error {
	d.mu.Lock()
	if d.dead {
		d.mu.Unlock()
		return errDead
	}
	d.steps--
	d.dead = d.steps == 0
	last := d.dead
	d.mu.Unlock()
	if !last {
		return effect()
	}
	if d.late {
		_ = effect()
	}
	close(d.died)
	return errDead
}

type doomedLedger struct {
	*doom
	Ledger
}

func (l doomedLedger) Append(ctx context.Context, drafts ...task.Draft) (out []*wire.Entry, err error) {
	err = l.step(func() error { out, err = l.Ledger.Append(ctx, drafts...); return err })
	return out, err
}

func (l doomedLedger) Record(ctx context.Context, theirs []*wire.Entry, drafts ...task.Draft) (out []*wire.Entry, err error) {
	err = l.step(func() error { out, err = l.Ledger.Record(ctx, theirs, drafts...); return err })
	return out, err
}

func (l doomedLedger) Accept(ctx context.Context, entries ...*wire.Entry) (out []*wire.Entry, err error) {
	err = l.step(func() error { out, err = l.Ledger.Accept(ctx, entries...); return err })
	return out, err
}

type doomedExecutor struct {
	*doom
	Executor
}

func (e doomedExecutor) Start(ctx context.Context, o task.Order, yield func(*task.Event) error) error {
	return e.step(func() error { return e.Executor.Start(ctx, o, e.yield(yield)) })
}

func (e doomedExecutor) Follow(ctx context.Context, run string, after uint64, yield func(*task.Event) error) error {
	return e.step(func() error { return e.Executor.Follow(ctx, run, after, e.yield(yield)) })
}

func (e doomedExecutor) Cancel(ctx context.Context, run string, force bool) error {
	return e.step(func() error { return e.Executor.Cancel(ctx, run, force) })
}

func (e doomedExecutor) Go(ctx context.Context, run string) error {
	return e.step(func() error { return e.Executor.Go(ctx, run) })
}

func (e doomedExecutor) Settle(ctx context.Context, run string, entries []*wire.Entry) error {
	return e.step(func() error { return e.Executor.Settle(ctx, run, entries) })
}

func (e doomedExecutor) Stdin(context.Context, string, int64, io.Reader) error { return errDead }

func (e doomedExecutor) yield(next func(*task.Event) error) func(*task.Event) error {
	return func(ev *task.Event) error { return e.step(func() error { return next(ev) }) }
}

// The submitter's process is killed at each step of a run, before the step has
// its effect and after it, and started again. Nothing is lost, nothing happens
// twice.
func TestKilledAtEachStep(t *testing.T) {
	for _, tc := range []struct {
		name  string
		setup func(l *lab)
		act   func(t *testing.T, l *lab, run string) // beside the run
		want  string
		on    func(l *lab) *machine
	}{
		{"run", func(*lab) {}, nil, allOfIt, func(l *lab) *machine { return l.hydra }},
		{
			"refused first",
			func(l *lab) { l.hydra.refusal = []task.Reason{{Rule: "terms", Text: "no"}} }, nil,
			"placed@hydra (hydra refused: no) placed@io started@io one two three succeeded",
			func(l *lab) *machine { return l.io },
		},
		{
			"broken streams", func(l *lab) { l.hydra.breaks = 2 }, nil,
			allOfIt, func(l *lab) *machine { return l.hydra },
		},
		{
			"cancelled",
			func(l *lab) { l.hydra.script = (*machine).start },
			func(t *testing.T, l *lab, run string) {
				begun := errors.New("begun")
				err := l.d.Events(t.Context(), run, 0, true, func(e *task.Event) error {
					if e.Type == task.EventStarted {
						return begun
					}
					return nil
				})
				if !errors.Is(err, begun) {
					return // killed before
				}
				if err := l.d.Cancel(t.Context(), run, false); err != nil && !errors.Is(err, ErrOver) && !errors.Is(err, errDead) {
					t.Error(err)
				}
			},
			"placed@hydra started@hydra cancelled", func(l *lab) *machine { return l.hydra },
		},
		{
			"refused by all",
			func(l *lab) {
				for _, m := range []*machine{l.hydra, l.io, l.juno} {
					m.refusal = []task.Reason{{Rule: "terms", Text: "no"}}
				}
			}, nil,
			"placed@hydra (hydra refused: no) placed@io (io refused: no) placed@juno unplaced", nil,
		},
	} {
		t.Run(tc.name, func(t *testing.T) {
			for _, late := range []bool{false, true} {
				for step := 1; ; step++ {
					survived := killAt(t, bare(), step, late, tc.setup, tc.act, func(l *lab, run, where string) {
						if got := brief(l.end(run)); got != tc.want {
							t.Errorf("%s: got %s", where, got)
						}
						if tc.on == nil {
							return
						}
						m := tc.on(l)
						if n := l.hydra.count(run) + l.io.count(run) + l.juno.count(run); n != 1 || m.count(run) != 1 {
							t.Errorf("%s: %d starts", where, n)
						}
						l.eventually("settled, "+where, func() bool { return settled(m, run) })
						kinds := l.ledger.kinds(run)
						for _, kind := range []string{task.KindSubmit, task.KindAccepted, task.KindStarted, task.KindFinished, task.KindReceipt} {
							if count(kinds, kind) != 1 {
								t.Errorf("%s: ledger %q", where, kinds)
							}
						}
						theirs := m.ledger.kinds(run)
						kinds = slices.DeleteFunc(kinds, func(k string) bool { return k == task.KindRefused }) // another's
						if slices.Sort(theirs); !slices.Equal(theirs, slices.Sorted(slices.Values(kinds))) {
							t.Errorf("%s: ledger %q there, %q here", where, theirs, kinds)
						}
					})
					if survived {
						t.Logf("%d steps", step-1)
						break
					}
				}
			}
		})
	}
}

// killAt runs a run, kills its dispatcher at a step, starts another one, and
// checks what came of it. It reports whether the run ended before the step.
func killAt(t *testing.T, spec task.Spec, step int, late bool, setup func(*lab), act func(*testing.T, *lab, string), check func(l *lab, run, where string)) (survived bool) {
	t.Helper()
	l := newLab(t)
	setup(l)
	_ = l.d.Close()

	healthy := l.cfg
	death := &doom{steps: step, late: late, died: make(chan struct{})}
	l.cfg.Ledger = doomedLedger{death, l.ledger}
	l.cfg.Executor = func(id identity.ID) Executor { return doomedExecutor{death, l.byID[id]} }
	l.up()
	run, err := l.d.Submit(t.Context(), spec)
	if errors.Is(err, errDead) { // did it get into the ledger?
		l.ledger.mu.Lock()
		for topic := range l.ledger.topics {
			run = topic
		}
		l.ledger.mu.Unlock()
		if run == "" {
			return false
		}
	} else if err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() {
		if act != nil {
			act(t, l, run)
		}
		ended <- l.d.Events(t.Context(), run, 0, true, func(*task.Event) error { return nil })
	}()
	select {
	case <-death.died:
		_ = l.d.Close()
		if err := <-ended; err == nil {
			t.Log("it died after the last event")
		}
	case err := <-ended:
		if survived = err == nil; survived {
			l.eventually("driver ends or dies", func() bool {
				select {
				case <-death.died:
					survived = false
					return true
				default:
					return l.d.active(run) == nil
				}
			})
		}
		_ = l.d.Close()
	}

	os.Remove(l.d.unsettled(run)) // which the dead cannot have written
	l.cfg = healthy
	l.up()
	if act != nil {
		act(t, l, run) // the wish may have died with who had it
	}
	check(l, run, fmt.Sprintf("killed at step %d, late %v", step, late))
	_ = l.d.Close()
	return survived
}
