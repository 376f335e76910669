package run

import (
	"context"
	"errors"
	"fmt"
	"os"

	"github.com/balanceai/balance/exec/journal"
	"github.com/balanceai/balance/exec/task"
	"github.com/balanceai/balance/mesh/identity"
	"github.com/balanceai/balance/mesh/wire"
)

// past is what the ledger has of a run.
type past struct {
	submitter identity.ID   // of the accepted attempt
	spec      task.Spec     // of it
	own       []*wire.Entry // this machine's
	refused   map[int][]task.Reason
	accepted  *task.Accepted
	finished  *task.Finished // of the accepted attempt
}

func (r *Runner) past(ctx context.Context, run string) (past, error) {
	entries, err := r.cfg.Ledger.Entries(ctx, run)
	if err != nil {
		return past{}, fmt.Errorf("read the ledger of %s: %w", run, err)
	}
	p := past{refused: map[int][]task.Reason{}}
	for _, e := range entries {
		if e.Author == r.cfg.Self {
			err = p.add(e)
		}
		if err != nil {
			return past{}, fmt.Errorf("read the ledger of %s: %w", run, err)
		}
	}
	for _, e := range entries {
		if p.accepted != nil && e.Hash() == p.accepted.Submit {
			var s task.Submit
			if err := wire.Unmarshal(e.Payload, &s); err != nil {
				return past{}, fmt.Errorf("read the ledger of %s: %w", run, err)
			}
			p.submitter, p.spec = e.Author, s.Spec
		}
	}
	return p, nil
}

// add takes an entry of this machine.
func (p *past) add(e *wire.Entry) error {
	switch e.Kind {
	case task.KindRefused:
		var f task.Refused
		if err := wire.Unmarshal(e.Payload, &f); err != nil {
			return err
		}
		p.refused[f.Attempt] = f.Reasons
	case task.KindAccepted:
		p.accepted = &task.Accepted{}
		if err := wire.Unmarshal(e.Payload, p.accepted); err != nil {
			return err
		}
	case task.KindFinished:
		p.finished = &task.Finished{}
		if err := wire.Unmarshal(e.Payload, p.finished); err != nil {
			return err
		}
	case task.KindStarted:
	default:
		return nil // this machine is the submitter too
	}
	p.own = append(p.own, e)
	return nil
}

// recover ends the runs of an earlier life.
func (r *Runner) recover(ctx context.Context) error {
	folders, err := os.ReadDir(r.cfg.Dir)
	if err != nil {
		return err
	}
	var open []string
	for _, f := range folders {
		if !task.ValidID(f.Name()) {
			continue
		}
		if over, err := journal.Ended(r.journalPath(f.Name())); err != nil || !over {
			open = append(open, f.Name())
		}
	}
	if len(open) == 0 {
		return nil
	}
	if err := r.control.killLeft(open); err != nil {
		r.cfg.Log.Error("cannot kill what earlier runs have left", "err", err)
	}
	for _, run := range open {
		_, err := r.revive(ctx, run)
		if errors.Is(err, task.ErrNoRun) { // never promised
			err = os.RemoveAll(r.folder(run))
		}
		if err != nil { // the others still get their end
			r.cfg.Log.Error("cannot end a run of an earlier life", "run", run, "err", err)
		}
	}
	return nil
}

// gap is left in the numbers of events before the end that is written for an
// earlier life, so that it counts as new for whoever saw events that a power
// cut has taken from the journal.
const gap = 1 << 32

// revive returns the journal of a run that does not go on any more, and writes
// the end of it as far as an earlier life has not.
func (r *Runner) revive(ctx context.Context, run string) (*journal.Journal, error) {
	p, err := r.past(ctx, run)
	if err != nil {
		return nil, err
	}
	if p.accepted == nil {
		return nil, task.ErrNoRun
	}
	r.mu.Lock()
	if r.closed {
		r.mu.Unlock()
		return nil, errStopping
	}
	if r.runs[run] != nil { // somebody else does it
		r.mu.Unlock()
		return r.journal(ctx, run)
	}
	x, _ := newLive(r, run)
	x.attempt, x.from, x.spec = p.accepted.Attempt, p.submitter, p.spec
	r.runs[run] = x
	r.wg.Add(1)
	r.mu.Unlock()
	x.err = x.reopen()
	close(x.ready)
	if x.err != nil || x.journal.Finished() {
		r.drop(x)
		r.wg.Done()
		return x.journal, x.err
	}
	x.journal.Skip(gap)
	x.tell(p.own...)
	go func() {
		defer r.wg.Done()
		x.conclude(p.finished)
	}()
	return x.journal, nil
}

// reopen opens the journal of a run, whose folder a power cut may have taken.
func (x *live) reopen() error {
	if err := os.MkdirAll(x.work(), 0o700); err != nil {
		return err
	}
	var err error
	x.journal, err = journal.Open(x.r.journalPath(x.id))
	return err
}

// conclude ends a run of an earlier life. fin is its end in the ledger, if that
// was written.
func (x *live) conclude(fin *task.Finished) {
	if fin != nil {
		x.announce(*fin)
		x.r.drop(x)
		return
	}
	last, err := x.remembered()
	if err != nil {
		if !errors.Is(err, os.ErrNotExist) {
			x.r.cfg.Log.Warn("cannot read how a run ended", "run", x.id, "err", err)
		}
		last = task.Finished{Attempt: x.attempt, State: task.Failed, ExitCode: unseen, Reason: nodeStopped}
	}
	x.finish(last)
}
