package dispatch

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"

	"github.com/balanceai/balance/exec/journal"
	"github.com/balanceai/balance/exec/task"
)

// Events yields the events of a run that come after number after, and with
// follow those that are still to come. The last one is of type
// [task.EventFinished]. An error of yield ends it and is returned as it is.
func (d *Dispatcher) Events(ctx context.Context, id string, after uint64, follow bool, yield func(*task.Event) error) error {
	j, err := d.journalOf(ctx, id)
	if errors.Is(err, fs.ErrNotExist) {
		return d.atMachine(ctx, id, after, yield)
	}
	if err != nil {
		return err
	}
	err = j.Read(ctx, after, follow, func(e *task.Event) error {
		e.Source, e.Part = 0, false
		return yield(e)
	})
	if errors.Is(err, journal.ErrClosed) {
		return ErrClosed
	}
	return err
}

// atMachine yields the events of a run that is over and of which this node keeps
// no journal any more, as its machine has them, with that one's numbers. Where
// nobody has them there is still the end.
func (d *Dispatcher) atMachine(ctx context.Context, id string, after uint64, yield func(*task.Event) error) error {
	st, err := d.nowhere(ctx, id)
	if err != nil {
		return err
	}
	came := false
	if !st.NodeID.IsZero() {
		err = d.cfg.Executor(st.NodeID).Follow(ctx, id, after, func(e *task.Event) error {
			came = true
			out, ok := inOurWords(e)
			switch {
			case e.Type == task.EventFinished:
				out = endEvent(st)
			case !ok:
				return nil
			}
			out.Seq, out.Run, out.Attempt, out.Node, out.Part = e.Seq, id, st.Attempt, st.Node, false
			return yield(&out)
		})
		if came || err == nil || after > 0 || ctx.Err() != nil {
			return err
		}
	}
	e := endEvent(st)
	e.Seq, e.Run, e.Attempt, e.Node = 1, id, st.Attempt, st.Node
	return yield(&e)
}

// journalOf returns the journal of a run: its driver's, or a finished one. The
// error is [fs.ErrNotExist] where that is gone.
func (d *Dispatcher) journalOf(ctx context.Context, id string) (*journal.Journal, error) {
	if r := d.active(id); r != nil {
		return r.journal, nil
	}
	st, err := d.nowhere(ctx, id)
	if err != nil {
		return nil, err
	}
	if !over(st) {
		return nil, fmt.Errorf("run %s: %w", id, ErrClosed) // without a driver only before Resume and after Close
	}
	d.past.Lock()
	defer d.past.Unlock()
	if _, err := os.Stat(d.path(id)); err != nil {
		return nil, err
	}
	j, err := journal.Open(d.path(id))
	if err != nil || j.Finished() {
		return j, err
	}
	// The last life ended after the ledger had the end and before the journal.
	e := endEvent(st)
	e.Run, e.Attempt, e.Node = id, st.Attempt, st.Node
	return j, j.Append(&e)
}

// over reports whether all of a run is in the ledger: its end, and for one that
// was on a machine the receipt.
func over(st task.Status) bool { return st.State.Final() && (st.Receipt || st.NodeID.IsZero()) }

// status adds up what the ledger has of a run of this node's.
func (d *Dispatcher) status(ctx context.Context, id string) (task.Status, error) {
	if !task.ValidID(id) {
		return task.Status{}, fmt.Errorf("run %q: %w", id, task.ErrNoRun)
	}
	entries, err := d.cfg.Ledger.Entries(ctx, id)
	if err != nil {
		return task.Status{}, err
	}
	st, err := task.Fold(id, entries)
	if err != nil || st.Submitter != d.cfg.Self {
		return task.Status{}, fmt.Errorf("run %s: %w", id, task.ErrNoRun)
	}
	return st, nil
}
