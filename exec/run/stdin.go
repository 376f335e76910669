package run

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/balanceai/balance/exec/supervise"
	"github.com/balanceai/balance/exec/task"
)

// Stdin passes in to the program as its standard input, no faster than the
// program reads, and closes that when in ends with io.EOF. offset says which
// byte of the whole input comes first. What the program has already is left
// out; where something is missing before offset, a [*task.OffsetError] says
// where to go on. The newest upload counts; older ones end.
//
// What a program no longer reads is dropped.
func (r *Runner) Stdin(ctx context.Context, run string, offset int64, in io.Reader) error {
	x, err := r.begun(ctx, run)
	if x == nil {
		return err
	}
	if !x.spec.Stdin {
		return fmt.Errorf("standard input of %s: the run takes none", run)
	}
	if err := upload(ctx, x.dir, offset, in); err != nil {
		return fmt.Errorf("standard input of %s: %w", run, err)
	}
	return nil
}

// Resize tells a run the size of its terminal. It is no error that it has ended.
func (r *Runner) Resize(ctx context.Context, run string, size task.Terminal) error {
	x, err := r.begun(ctx, run)
	if x == nil {
		return err
	}
	if x.spec.TTY == nil {
		return fmt.Errorf("size of the terminal of %s: the run has none", run)
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.watch == nil {
		return nil
	}
	if err := x.watch.Resize(supervise.Size(size)); err != nil {
		x.r.cfg.Log.Debug("a supervisor whose run gets a size is gone", "run", x.id, "err", err)
	}
	return nil
}

// begun waits until the program of a run was started, and returns the run, or
// nil where it has ended.
func (r *Runner) begun(ctx context.Context, run string) (*live, error) {
	x, err := r.going(ctx, run)
	if errors.Is(err, task.ErrNoRun) {
		_, err := r.journal(ctx, run)
		return nil, err // nil: the run has ended
	}
	if err != nil {
		return nil, err
	}
	select {
	case <-x.begun:
		return x, nil
	case <-x.over:
		return nil, nil //nolint:nilnil // it has ended
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// upload passes in to the supervisor of the run in a folder.
func upload(ctx context.Context, dir string, offset int64, in io.Reader) error {
	u, err := supervise.Input(dir)
	if errors.Is(err, supervise.ErrGone) {
		return nil
	}
	if err != nil {
		return err
	}
	defer func() { _ = u.Close() }()
	if offset > u.Begin {
		return &task.OffsetError{Offset: u.Begin}
	}
	defer context.AfterFunc(ctx, func() { _ = u.Close() })()
	buf := make([]byte, supervise.Chunk)
	for {
		n, err := in.Read(buf)
		fresh := buf[min(max(u.Begin-offset, 0), int64(n)):n]
		offset += int64(n)
		if len(fresh) > 0 {
			if done, err := u.Send(fresh); done || err != nil {
				return unlessOver(ctx, err)
			}
		}
		if errors.Is(err, io.EOF) {
			return unlessOver(ctx, u.End())
		}
		if err != nil {
			return err
		}
	}
}

// unlessOver prefers the reason why ctx ended to what that has caused.
func unlessOver(ctx context.Context, err error) error {
	if err != nil && ctx.Err() != nil {
		return ctx.Err()
	}
	return err
}
