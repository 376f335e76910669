package run

import (
	"context"
	"fmt"
	"time"

	"github.com/balanceai/balance/exec/lease"
	"github.com/balanceai/balance/exec/task"
)

// Renew tells a machine that who dispatches a run is still there, and has seen
// the stamp that this returned last. It returns the next one; see package lease.
// A run without a lease needs no renewal: it gives 0.
func (r *Runner) Renew(ctx context.Context, run string, attempt int, seen uint64) (uint64, error) {
	x, err := r.going(ctx, run)
	if err != nil {
		return 0, err
	}
	switch {
	case x.attempt != attempt:
		return 0, task.ErrNoRun
	case x.lease == nil:
		return 0, nil
	}
	next, err := x.lease.Renew(lease.Now(), seen)
	if err != nil {
		return 0, err
	}
	return next, x.granted()
}

// granted lets the run start, once its lease is granted, and tells its supervisor
// until when that is.
func (x *live) granted() error {
	x.leasing.Lock()
	defer x.leasing.Unlock()
	until := x.lease.Until()
	if until == 0 || until == x.until {
		return nil
	}
	if err := lease.Write(x.dir, until); err != nil {
		return fmt.Errorf("lease of %s: %w", x.id, err)
	}
	x.until = until
	if !isClosed(x.held) {
		close(x.held)
	}
	return nil
}

// await waits until the run's lease is granted. From then on its supervisor ends
// the run when it has run out.
func (x *live) await(ctx context.Context) error {
	if x.lease == nil || isClosed(x.held) {
		return nil
	}
	x.report() // so that its submitter knows to grant it
	length := x.spec.LeaseLength()
	select {
	case <-x.held:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-time.After(length):
		return lostEnd("nobody has granted its lease of %s, so it was not started", task.FormatDuration(length))
	}
}

// takeUp goes on with the lease that an earlier life of this program held. One
// that has started nothing holds none.
func (x *live) takeUp(then step) error {
	length := x.spec.LeaseLength()
	if length == 0 || then == conclude {
		return nil
	}
	until, err := lease.Read(x.dir)
	if then == begin || err != nil { // without it the supervisor ends the run
		x.lease = lease.NewHolder(length)
		return lease.Forget(x.dir)
	}
	x.lease, x.until = lease.Resume(length, until), until
	close(x.held)
	return nil
}

// lostEnd is an end by which this machine loses the run.
func lostEnd(format string, args ...any) *end {
	return &end{state: task.Failed, reason: fmt.Sprintf(format, args...), lost: true}
}

func lapsed(spec *task.Spec) *end {
	length := spec.LeaseLength()
	return lostEnd("its lease ran out: nothing was heard of its submitter for %s, who may start it again elsewhere", task.FormatDuration(length))
}

// fence makes way for a newer attempt. The older one is over, whatever it does:
// nobody takes its result.
func (x *live) fence(newer int) { x.stop(lostEnd("attempt %d has taken its place", newer), true) }
