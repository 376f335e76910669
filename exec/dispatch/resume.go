package dispatch

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/balanceai/balance/exec/task"
	"github.com/balanceai/balance/mesh/wire"
)

// sureSettled is how many of the newest receipts are handed over again after a
// start: the last life may have ended between a receipt and its delivery.
const sureSettled = 64

// Resume takes up this node's runs of an earlier life that are not over, or
// whose machine may not have the receipt. It is called once, before Submit. A
// run that cannot be taken up does not keep the others from it.
func (d *Dispatcher) Resume(ctx context.Context) error {
	list, err := d.cfg.Runs(ctx)
	if err != nil {
		return fmt.Errorf("resume runs: %w", err)
	}
	ids, err := d.unsettledRuns()
	if err != nil {
		return fmt.Errorf("resume runs: %w", err)
	}
	slices.SortFunc(list, func(a, b task.Status) int { return b.Finished.Compare(a.Finished) })
	var errs []error
	newest := 0
	for _, st := range list {
		switch {
		case st.Submitter != d.cfg.Self:
		case st.OnItsWay():
			if err := d.handAgain(ctx, st); err != nil {
				errs = append(errs, fmt.Errorf("resume run %s: %w", st.ID, err))
			}
		case !over(st):
			ids = append(ids, st.ID)
		case st.Receipt && newest < sureSettled:
			newest++
			ids = append(ids, st.ID)
		}
	}
	slices.Sort(ids)
	for _, id := range slices.Compact(ids) {
		if err := d.revive(ctx, id); err != nil {
			errs = append(errs, fmt.Errorf("resume run %s: %w", id, err))
		}
	}
	return errors.Join(errs...)
}

// revive makes a driver for a run from what the ledger has.
func (d *Dispatcher) revive(ctx context.Context, id string) error {
	entries, err := d.cfg.Ledger.Entries(ctx, id)
	if err != nil {
		return err
	}
	r, err := d.newRun(id, task.Spec{})
	if err != nil {
		return err
	}
	if err := r.remember(ctx, entries); err != nil {
		return errors.Join(err, r.journal.Close())
	}
	d.drive(r)
	return nil
}

// remember takes back what this node has decided about the run, and decides
// what it has not.
func (r *run) remember(ctx context.Context, entries []*wire.Entry) error {
	for _, e := range entries {
		if e.Author != r.d.cfg.Self {
			continue
		}
		if err := r.rememberEntry(e); err != nil {
			return err
		}
	}
	if len(r.spec.Command) == 0 {
		return task.ErrNoRun
	}
	r.room = newRoom(&r.spec)
	if r.isGang() {
		return nil
	}
	r.sent = r.placed.Attempt > 0 // for all that is known
	if !r.countersigned {
		return nil
	}
	var err error
	r.end, err = r.account(entries)
	return err
}

func (r *run) rememberEntry(e *wire.Entry) error {
	switch e.Kind {
	case task.KindSubmit:
		var s task.Submit
		if err := wire.Unmarshal(e.Payload, &s); err != nil {
			return err
		}
		r.spec, r.submitted = s.Spec, e.Time()
	case task.KindPlace:
		return r.rememberPlace(e)
	case task.KindCancel:
		r.cancel = cancelRun
	case task.KindLost:
		r.lost = true
	case task.KindReceipt:
		r.countersigned = true
	}
	return nil
}

func (r *run) rememberPlace(e *wire.Entry) error {
	var p task.Place
	if err := wire.Unmarshal(e.Payload, &p); err != nil {
		return err
	}
	if r.placed.Attempt > 0 && p.Attempt > r.placed.Attempt {
		ranking, err := p.Ranking()
		if err != nil {
			return err
		}
		for _, v := range ranking {
			if v.Node == r.placed.Node {
				r.tried = append(r.tried, v)
			}
		}
	}
	r.placed, r.lost = p, false
	return nil
}

// recall takes back what the journal has of the present attempt.
func (r *run) recall(ctx context.Context) error {
	return r.journal.Read(ctx, 0, false, func(e *task.Event) error {
		r.room.take(e)
		if e.Attempt != r.placed.Attempt {
			return nil
		}
		r.announced = r.announced || e.Type == task.EventPlaced
		r.source = max(r.source, e.Source)
		if e.Type == task.EventStarted {
			r.begun()
		}
		return nil
	})
}
