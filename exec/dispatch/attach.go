package dispatch

import (
	"context"
	"fmt"
	"io"

	"github.com/balanceai/balance/exec/task"
)

// Now returns what a run is, and the number of its newest event, for whoever
// wants what comes from now on.
func (d *Dispatcher) Now(ctx context.Context, id string) (task.Spec, uint64, error) {
	r, err := d.going(ctx, id)
	if err != nil {
		return task.Spec{}, 0, err
	}
	return r.spec, r.journal.Last(), nil
}

// Resize tells a run the size of its terminal.
func (d *Dispatcher) Resize(ctx context.Context, id string, size task.Terminal) error {
	r, err := d.begun(ctx, id)
	if err != nil {
		return err
	}
	node, _ := r.where()
	if err := d.cfg.Executor(node).Resize(ctx, id, size); err != nil {
		return fmt.Errorf("size of the terminal of run %s: %w", id, err)
	}
	return nil
}

// Files writes a file or folder of a run's work folder to w, as a tar archive.
func (d *Dispatcher) Files(ctx context.Context, id, path string, w io.Writer) error {
	st, err := d.status(ctx, id)
	if err != nil {
		return err
	}
	if st.NodeID.IsZero() {
		return fmt.Errorf("run %s is on no machine", id)
	}
	if err := d.cfg.Executor(st.NodeID).Files(ctx, id, path, w); err != nil {
		return fmt.Errorf("%s of run %s: %w", path, id, err)
	}
	return nil
}

// going returns a run that is not over, else [ErrOver].
func (d *Dispatcher) going(ctx context.Context, id string) (*run, error) {
	r := d.active(id)
	if r == nil || r.journal.Finished() {
		st, err := d.status(ctx, id)
		if err == nil && r == nil && !over(st) {
			err = ErrClosed // without a driver only before Resume and after Close
		}
		if err != nil {
			return nil, err
		}
		return nil, fmt.Errorf("run %s: %w", id, ErrOver)
	}
	return r, nil
}

// begun returns a run that is not over once its program runs.
func (d *Dispatcher) begun(ctx context.Context, id string) (*run, error) {
	r, err := d.going(ctx, id)
	if err != nil {
		return nil, err
	}
	select {
	case <-r.started:
		return r, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}
