package dispatch

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/balanceai/balance/exec/task"
)

const cancelReason = "cancelled by its submitter"

// Cancel asks a run to end, or with force ends it. The wish is durable: a
// machine that is out of reach learns of it when it is back. It returns
// [ErrOver] for a run that has ended.
func (d *Dispatcher) Cancel(ctx context.Context, id string, force bool) error {
	if on, err := d.cancelHanding(ctx, id); on || err != nil {
		return err
	}
	return d.cancel(ctx, id, force)
}

func (d *Dispatcher) cancel(ctx context.Context, id string, force bool) error {
	r := d.active(id)
	if r == nil || r.journal.Finished() {
		st, err := d.status(ctx, id)
		switch {
		case err != nil:
			return err
		case st.OnItsWay(): // it has arrived, of which its topic does not tell yet
			return d.cfg.Custodian(st.Custodian).CancelKept(ctx, id)
		}
		return fmt.Errorf("run %s: %w", id, ErrOver)
	}
	if err := r.wants(ctx, force); err != nil {
		return fmt.Errorf("cancel run %s: %w", id, err)
	}
	node, name := r.where()
	if node.IsZero() { // a gang, whose driver ends the ranks, or a run that none has taken
		r.poke()
		return nil
	}
	err := r.tellCancel(ctx, d.cfg.Executor(node))
	// An order that is under way is there in a moment.
	for range 20 {
		if !errors.Is(err, task.ErrNoRun) {
			break
		}
		sleep(ctx, 25*time.Millisecond)
		err = r.tellCancel(ctx, d.cfg.Executor(node))
	}
	if err != nil {
		d.cfg.Log.Warn("cancel waits for the machine", "run", id, "node", name, "err", err)
	}
	r.poke()
	return nil
}

// wants records the wish in the ledger, once.
func (r *run) wants(ctx context.Context, force bool) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.cancel == goOn {
		draft := task.Draft{Topic: r.id, Kind: task.KindCancel, Record: task.Cancel{Reason: cancelReason}}
		if err := r.writeLocked(ctx, draft); err != nil {
			return err
		}
		r.cancel = cancelRun
	}
	if force {
		r.cancel = forceCancel
	}
	return nil
}

// tellCancel tells the machine what it does not know yet of the wish.
func (r *run) tellCancel(ctx context.Context, exec Executor) error {
	r.mu.Lock()
	wish, told := r.cancel, r.told
	r.mu.Unlock()
	if wish <= told {
		return nil
	}
	if err := exec.Cancel(ctx, r.id, wish == forceCancel); err != nil {
		return err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.told = max(r.told, wish)
	return nil
}
