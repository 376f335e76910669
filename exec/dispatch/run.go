package dispatch

import (
	"context"
	"errors"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/balanceai/balance/exec/journal"
	"github.com/balanceai/balance/exec/task"
	"github.com/balanceai/balance/mesh/identity"
	"github.com/balanceai/balance/mesh/wire"
)

// maxAttempts bounds how many machines are asked for one run.
const maxAttempts = 16

// run is a run with a driver.
type run struct {
	d       *Dispatcher
	id      string
	spec    task.Spec
	secrets task.Secrets // values; an earlier life has taken them with it
	journal *journal.Journal
	stop    context.CancelFunc

	wake    chan struct{} // holds a token when the driver should look again now
	down    atomic.Bool   // the machine, as far as was told
	started chan struct{} // closed when the program runs, or never will

	bids sync.WaitGroup // goroutines of its bids; the driver waits for them

	// The driver's own.
	submitted     time.Time
	tried         []task.Verdict // machines that did not take the run, and why
	letGo         func()         // of what a machine keeps for the run; nil for nothing
	announced     bool           // the choice is in the journal
	sent          bool           // the machine may have received the order
	source        uint64         // number of the last event taken from the machine
	room          room           // for the machine's events
	full          bool           // some had none
	contact       bool           // this request was answered
	storing       <-chan error   // of entries on their way into the ledger; nil: none
	anew          bool           // some have not got there: the machine is to send all once more
	lost          bool           // the ledger says so
	leased        *grant         // what the machine holds the present attempt by
	end           *ending        // the machine's account, once it has given it
	countersigned bool           // the receipt is in the ledger

	mu     sync.Mutex
	placed task.Place    // the last choice; the driver changes it
	mine   []*wire.Entry // all that this node has written about the run; nil where that has to be looked up
	cancel wish
	told   wish                          // what the machine knows of it
	words  map[identity.ID][]task.Reason // of machines in whose lines it stands: why it waits there
}

// wish is how much a user wants a run to end.
type wish int

const (
	goOn wish = iota
	cancelRun
	forceCancel
)

// newRun opens the journal of a run that is to get a driver.
func (d *Dispatcher) newRun(id string, spec task.Spec) (*run, error) {
	j, err := journal.Open(d.path(id))
	if err != nil {
		return nil, err
	}
	return &run{
		d: d, id: id, spec: spec, journal: j,
		wake: make(chan struct{}, 1), started: make(chan struct{}),
		room: newRoom(&spec),
	}, nil
}

// where returns the machine of the present attempt.
func (r *run) where() (identity.ID, string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.placed.Node, r.placed.Name
}

func (r *run) cancelled() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.cancel != goOn
}

func (r *run) poke() { poke(r.wake) }

func poke(wake chan<- struct{}) {
	select {
	case wake <- struct{}{}:
	default:
	}
}

func (r *run) nodeIs(id identity.ID, down bool) {
	if node, _ := r.where(); node == id {
		r.down.Store(down)
		r.poke()
	}
}

// drive is the driver: it brings the run to its end, and its end to the machine.
func (r *run) drive(ctx context.Context) {
	var err error
	switch {
	case r.journal.Finished():
	case r.isGang():
		err = r.bringGang(ctx)
	default:
		err = r.bring(ctx)
	}
	r.begun()
	_ = r.stored() // the next life finds out what is missing
	r.unhold()
	r.bids.Wait()
	if err == nil {
		r.settle(ctx)
	}
	_ = r.journal.Close() // what is in it is written
	if node, _ := r.where(); r.journal.Last() == 1 && r.journal.Finished() && !node.IsZero() {
		_ = journal.Remove(r.d.path(r.id)) // it was gone and has the end alone; the machine may have the rest
	}
}

// bring brings the run to its end: nil once that is in the journal.
func (r *run) bring(ctx context.Context) error {
	if r.journal.Last() > 0 {
		if err := r.insist(ctx, "recall", r.recall); err != nil {
			return err
		}
	}
	if r.countersigned { // so all that came before is in the journal
		return r.finish(ctx)
	}
	if r.placed.Attempt == 0 {
		if err := r.probe(ctx); err != nil {
			return err
		}
	}
	for r.placed.Wait || !r.placed.Node.IsZero() {
		if r.placed.Wait {
			if err := r.await(ctx); err != nil {
				return err
			}
			continue
		}
		if err := r.insist(ctx, "announce", r.announce); err != nil {
			return err
		}
		err := r.ask(ctx)
		r.unhold()
		r.d.left(r)
		var refusal *task.Refusal
		var gone *loss
		switch {
		case err == nil:
			return r.finish(ctx)
		case errors.As(err, &gone):
			err = r.again(ctx, gone)
		case errors.As(err, &refusal):
			if err := r.store(ctx, refusal.Entries, false); err != nil {
				r.d.cfg.Log.Warn("refusal is not in the ledger", "run", r.id, "node", r.placed.Name, "err", err)
			}
			err = r.elsewhere(ctx, refusal.Reasons...)
		case errors.Is(err, task.ErrUnreachable):
			err = r.elsewhere(ctx, task.Reason{Rule: ruleReach, Text: "was not reached: " + err.Error(), Ever: true})
		case errors.Is(err, errUnwanted):
			err = r.insist(ctx, "place", r.placeAgain)
		}
		if err != nil {
			return err
		}
	}
	if r.secrets.Missing(&r.spec) != nil && !r.cancelled() {
		if err := r.insist(ctx, "note", func(context.Context) error {
			return r.log(task.Event{Type: task.EventNote, Message: forgotten})
		}); err != nil {
			return err
		}
	}
	return r.insist(ctx, "end", r.endNowhere)
}

// forgotten is why a run does not get to another machine.
const forgotten = "this node was started again and has forgotten the secrets of the run, so no other machine can have it: run it again"

// insist does something that only this node can hinder, such as a full disk,
// until it succeeds.
func (r *run) insist(ctx context.Context, what string, do func(context.Context) error) error {
	for delay := r.d.times.retryMin; ; delay = min(2*delay, r.d.times.retryMax) {
		err := do(ctx)
		if err == nil {
			return nil
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		r.d.cfg.Log.Error("run cannot go on", "run", r.id, "step", what, "err", err)
		r.wait(ctx, delay)
	}
}

// wait waits until it is told to look again, for a time at most.
func (r *run) wait(ctx context.Context, d time.Duration) { pause(ctx, r.wake, d) }

func pause(ctx context.Context, wake <-chan struct{}, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
	case <-wake:
	case <-timer.C:
	}
}

func sleep(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}

// write writes about the run into the ledger.
func (r *run) write(ctx context.Context, kind string, record any) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.writeLocked(ctx, task.Draft{Topic: r.id, Kind: kind, Record: record})
}

func (r *run) writeLocked(ctx context.Context, drafts ...task.Draft) error {
	entries, err := r.d.cfg.Ledger.Append(ctx, drafts...)
	if err == nil && r.mine != nil {
		r.mine = append(r.mine, entries...)
	}
	return err
}

// own returns all that this node has written about the run, in order. A machine
// gets all of it, because its ledger takes no chain with holes.
func (r *run) own(ctx context.Context) ([]*wire.Entry, error) {
	r.mu.Lock()
	mine := slices.Clone(r.mine)
	r.mu.Unlock()
	if mine != nil {
		return mine, nil
	}
	entries, err := r.d.cfg.Ledger.Entries(ctx, r.id)
	if err != nil {
		return nil, err
	}
	return slices.DeleteFunc(entries, func(e *wire.Entry) bool { return e.Author != r.d.cfg.Self }), nil
}

// log writes an event of this node into the run's journal.
func (r *run) log(e task.Event) error {
	e.Run, e.Attempt, e.Node = r.id, r.placed.Attempt, r.placed.Name
	if e.Time.IsZero() {
		e.Time = r.d.cfg.Now()
	}
	return r.journal.Append(&e)
}
