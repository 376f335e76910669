package dispatch

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/balanceai/balance/exec/lease"
	"github.com/balanceai/balance/exec/task"
)

// loss is the end of an attempt that its machine has lost, or has no lease for
// any more, so that another one may take its place.
type loss struct {
	reason string
	told   bool // by the machine
}

func (l *loss) Error() string { return l.reason }

// grant is the lease of the present attempt, while it is renewed. Nil where
// there is none.
type grant struct {
	giver   *lease.Giver
	kick    chan struct{} // holds a token when the machine has shown that it is there
	stamped atomic.Bool   // it has given a stamp
	stop    func()        // and waits: from then on nothing is granted
}

// grant begins to renew the lease of the present attempt.
func (r *run) grant(ctx context.Context, exec Executor) *grant {
	length := r.spec.LeaseLength()
	if length == 0 {
		return nil
	}
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan struct{})
	g := &grant{giver: lease.NewGiver(length, lease.Now()), kick: make(chan struct{}, 1)}
	g.stop = func() { cancel(); <-done }
	first := lease.Every(length)
	if r.sent {
		first = 0 // an earlier life may have let it come close to its end
	}
	id, attempt, pause := r.id, r.placed.Attempt, min(lease.Every(length)/4, r.d.times.retryMax)
	go func() {
		defer close(done)
		for delay := first; g.due(ctx, delay); {
			seen := g.giver.Seen()
			next, err := exec.Renew(ctx, id, attempt, seen)
			switch {
			case err != nil || next == 0:
				delay = pause
				continue
			case seen == 0:
				delay = 0 // it waits for that
			default:
				delay = lease.Every(length)
			}
			g.giver.Came(lease.Now(), next)
			g.stamped.Store(true)
		}
	}()
	return g
}

// due waits until the next renewal, and reports whether there is to be one.
func (g *grant) due(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
	case <-g.kick:
	case <-timer.C:
	}
	return ctx.Err() == nil
}

// heard tells that the machine has the attempt, so that its lease can be
// granted.
func (g *grant) heard() {
	if g == nil || g.stamped.Load() {
		return
	}
	select {
	case g.kick <- struct{}{}:
	default:
	}
}

// end stops renewing.
func (g *grant) end() {
	if g != nil {
		g.stop()
	}
}

// left returns for how long at most the machine may still have the run.
func (g *grant) left() time.Duration { return g.giver.Free() - lease.Now() }

// bound cuts a wait short: when the lease ends another machine may take the run,
// and after that as soon as one can, which is looked at now and then.
func (g *grant) bound(wait, now time.Duration) time.Duration {
	switch {
	case g == nil:
		return wait
	case g.left() > 0:
		return min(wait, g.left())
	}
	return min(wait, now)
}

// whileHeld returns a context that ends when the machine cannot hold the run any
// more, so that nobody waits for the answer of one that is silent. Once that is so,
// the machine has all the time that others have.
func (g *grant) whileHeld(ctx context.Context) (_ context.Context, done func()) {
	if g == nil || g.left() <= 0 {
		return ctx, func() {}
	}
	ctx, cancel := context.WithCancel(ctx)
	var watch sync.WaitGroup
	watch.Go(func() {
		for left := g.left(); left > 0 && ctx.Err() == nil; left = g.left() {
			sleep(ctx, left)
		}
		cancel()
	})
	return ctx, func() { cancel(); watch.Wait() }
}

// given returns how the present attempt was lost for good: its machine says so,
// in err, or cannot hold it any more. Nil where neither is, or where there is no
// other machine for it now: then the one that had it may still come back with a
// result.
func (r *run) given(err error) *loss {
	var l *loss
	switch {
	case errors.As(err, &l):
	case r.leased == nil || r.leased.left() > 0:
		return nil
	default:
		r.leased.end()
		if r.leased.left() > 0 { // one more was under way
			return nil
		}
		l = &loss{reason: fmt.Sprintf("%s was not heard of for longer than its lease of %s", r.placed.Name, task.FormatDuration(r.spec.LeaseLength()))}
	}
	if r.placed.Attempt >= maxAttempts {
		return nil
	}
	r.forget(l)
	if others, _ := r.rank(); (len(others.Best()) == 0 || !r.movable()) && !r.cancelled() {
		return nil
	}
	return l
}

// forget lets every machine be asked anew but the one that is lost without a
// word, where another one fits.
func (r *run) forget(l *loss) {
	r.tried = nil
	if !l.told {
		r.tried = []task.Verdict{{Node: r.placed.Node, Name: r.placed.Name, Reasons: bounded([]task.Reason{{Rule: ruleReach, Text: l.reason, Ever: true}})}}
	}
}

// again makes the next attempt after a loss.
func (r *run) again(ctx context.Context, l *loss) error {
	from := r.placed
	err := r.insist(ctx, "note", func(ctx context.Context) error {
		if r.lost {
			return nil
		}
		if err := r.write(ctx, task.KindLost, task.LostRecord{Attempt: from.Attempt, Reason: l.reason}); err != nil {
			return err
		}
		r.lost = true
		return nil
	})
	if err == nil {
		err = r.insist(ctx, "place", r.placeAgain)
	}
	if err != nil || r.placed.Node.IsZero() {
		return err
	}
	return r.insist(ctx, "note", func(context.Context) error {
		return r.log(task.Event{Type: task.EventNote, Message: fmt.Sprintf("attempt %d on %s, as attempt %d is lost: %s", r.placed.Attempt, r.placed.Name, from.Attempt, l.reason)})
	})
}

// retries reports whether the end of an attempt is not that of the run.
func (r *run) retries(end *ending) bool {
	return end.Lost && r.spec.Retry == task.RetryOnLoss && r.placed.Attempt < maxAttempts && !r.cancelled()
}
