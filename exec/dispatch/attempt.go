package dispatch

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/balanceai/balance/exec/task"
	"github.com/balanceai/balance/mesh/identity"
	"github.com/balanceai/balance/mesh/wire"
)

// choose ranks the machines that were not tried yet, and takes the best one
// that fits, if there is one.
func (r *run) choose() (task.Place, error) {
	if !r.movable() || r.spec.Wait > 0 && r.d.line.waits(r) {
		return r.nowhere()
	}
	ranking, more := r.d.take(r)
	if len(ranking.Best()) == 0 {
		return r.nowhere()
	}
	return r.place(ranking[0], r.withTried(ranking), more)
}

// nowhere is the choice of no machine.
func (r *run) nowhere() (task.Place, error) {
	ranking, more := r.rank()
	p, err := r.place(task.Verdict{}, ranking, more)
	p.Wait = r.mayWait(ranking)
	return p, err
}

// rank returns the verdicts on the machines, with the reasons of those that were
// tried.
func (r *run) rank() (task.Ranking, int) {
	ranking, more := r.d.rank(&r.spec, maxVerdicts, r.hasTried)
	return r.withTried(ranking), more
}

func (r *run) hasTried(id identity.ID) bool {
	return slices.ContainsFunc(r.tried, func(v task.Verdict) bool { return v.Node == id })
}

func (r *run) withTried(ranking task.Ranking) task.Ranking {
	return slices.Insert(ranking, len(ranking.Best()), r.tried...)
}

// movable reports whether the run may still be given to a machine.
func (r *run) movable() bool {
	return r.placed.Attempt < maxAttempts && r.secrets.Missing(&r.spec) == nil
}

// place is the record of a choice; of none, for the zero verdict. An attempt that
// waits is the same one once it has a machine.
func (r *run) place(best task.Verdict, ranking task.Ranking, more int) (task.Place, error) {
	attempt := r.placed.Attempt + 1
	if r.placed.Wait {
		attempt = r.placed.Attempt
	}
	p, err := task.NewPlace(attempt, best.Node, best.Name, ranking)
	if err != nil { // a machine has a say in how long the verdict on it is
		p, err = task.NewPlace(attempt, best.Node, best.Name, slices.DeleteFunc(ranking, tooLong))
	}
	p.More += more
	return p, err
}

// maxVerdicts bounds how many machines the reasons for a choice are written of.
const maxVerdicts = 64

// tooLong reports whether no record can hold a verdict.
func tooLong(v task.Verdict) bool {
	_, err := wire.Marshal(v)
	return err != nil
}

// submit writes the run and the first choice into the ledger, at once, with what
// another node has written about it.
func (r *run) submit(ctx context.Context, s task.Submit, given []*wire.Entry) error {
	r.d.learn(r.spec.Needs)
	r.submitted = r.d.cfg.Now()
	drafts := []task.Draft{{Topic: r.id, Kind: task.KindSubmit, Record: s}}
	if !r.isGang() && !r.d.hurried() { // else its driver chooses, or asks some machines first
		choice, err := r.choose()
		if err != nil {
			return err
		}
		r.placed = choice
		drafts = append(drafts, task.Draft{Topic: r.id, Kind: task.KindPlace, Record: choice})
	}
	entries, err := r.d.cfg.Ledger.Record(ctx, given, drafts...)
	if err == nil && !r.isGang() && entries[0].Seq == 0 { // else this node has written about it before
		r.mine = entries
	}
	return err
}

// announce tells the choice to who watches, and why it is not the last one.
func (r *run) announce(context.Context) error {
	if r.announced {
		return nil
	}
	if n := len(r.tried); n > 0 {
		if err := r.log(task.Event{Type: task.EventNote, Message: failure(r.tried[n-1])}); err != nil {
			return err
		}
	}
	err := r.log(task.Event{Type: task.EventPlaced, State: task.Placed})
	r.announced = err == nil
	return err
}

// ruleReach is the rule of the reason that this node gives where the machine
// gave none.
const ruleReach = "reach"

// failure says in a sentence why a machine did not take a run.
func failure(v task.Verdict) string {
	if len(v.Reasons) > 0 && v.Reasons[0].Rule == ruleReach {
		return v.Name + " " + v.Reasons[0].Text
	}
	return v.Name + " " + (&task.Refusal{Reasons: v.Reasons}).Error()
}

// elsewhere places the run again, after its machine did not take it.
func (r *run) elsewhere(ctx context.Context, reasons ...task.Reason) error {
	r.tried = append(r.tried, task.Verdict{Node: r.placed.Node, Name: r.placed.Name, Reasons: bounded(reasons)})
	return r.insist(ctx, "place", r.placeAgain)
}

// bounded cuts what a machine gives for reasons to what a record can hold.
func bounded(reasons []task.Reason) []task.Reason {
	out := slices.Clone(reasons[:min(len(reasons), maxReasons)])
	for i := range out {
		out[i].Rule, out[i].Text = shorten(out[i].Rule, maxReason), shorten(out[i].Text, maxReason)
	}
	return out
}

// shorten returns at most n bytes of s, and whole characters.
func shorten(s string, n int) string { return strings.ToValidUTF8(s[:min(len(s), n)], "") }

// placeAgain makes the next attempt, or none if the run is not wanted any more.
func (r *run) placeAgain(ctx context.Context) error { return r.placeBy(ctx, r.choose) }

// placeBy does so with a choice of the caller's.
func (r *run) placeBy(ctx context.Context, choose func() (task.Place, error)) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	choice, err := choose()
	if err != nil {
		return err
	}
	drafts := []task.Draft{{Topic: r.id, Kind: task.KindPlace, Record: &choice}}
	if r.cancel != goOn {
		// Only what is nowhere can be cancelled without a machine's word.
		choice.Node, choice.Name, choice.Wait = identity.ID{}, "", false
		drafts = append(drafts, task.Draft{Topic: r.id, Kind: task.KindCancel, Record: task.Cancel{Reason: cancelReason}})
	}
	if err := r.writeLocked(ctx, drafts...); err != nil {
		return err
	}
	r.mine = nil // the last machine may have been this one, and have written too
	r.placed, r.told = choice, goOn
	r.announced, r.sent, r.source, r.lost = false, false, 0, false
	r.down.Store(false)
	return nil
}

// trouble is a time without contact to the machine.
type trouble struct {
	since time.Time // zero: there is none
	delay time.Duration
}

// errUnwanted ends an attempt that was cancelled before it was sent.
var errUnwanted = errors.New("the run is cancelled")

// ask asks the machine to run the run and follows it there until it has
// finished: nil. It returns a *[task.Refusal] when the machine does not take the
// run, and [task.ErrUnreachable] when the order has certainly not reached it.
func (r *run) ask(ctx context.Context) error {
	order := task.Order{Run: r.id, Attempt: r.placed.Attempt, From: r.d.cfg.Self, Secrets: r.secrets}
	err := r.insist(ctx, "read order", func(ctx context.Context) (err error) { order.Entries, err = r.own(ctx); return err })
	if err != nil {
		return err
	}
	exec := r.d.cfg.Executor(r.placed.Node)
	r.leased = r.grant(ctx, exec)
	defer func() { r.leased.end(); r.leased = nil }()
	var t trouble
	for {
		if !r.sent && r.cancelled() {
			return errUnwanted
		}
		_ = r.tellCancel(ctx, exec) // or later: it is asked again each time
		source, begin := r.source, time.Now()
		err := r.request(ctx, exec, order, !t.since.IsZero())
		var refusal *task.Refusal
		switch {
		case r.end != nil:
			return nil
		case ctx.Err() != nil:
			return ctx.Err()
		case errors.As(err, &refusal) && r.source == 0:
			return err
		}
		if l := r.given(err); l != nil {
			return l
		}
		if err == nil {
			err = errors.New("its answer ended before the run")
		}
		switch {
		case r.source > source, r.contact && (t.since.IsZero() || time.Since(begin) > r.d.cfg.LostAfter):
			t = trouble{since: time.Now(), delay: r.d.times.retryMin}
		case t.since.IsZero():
			t = trouble{since: begin, delay: r.d.times.retryMin}
		}
		r.sent = r.sent || !errors.Is(err, task.ErrUnreachable)
		if !r.sent && (r.down.Load() || time.Since(t.since) >= r.d.times.connect) {
			return err
		}
		if err := r.bear(ctx, &t, err); err != nil {
			return err
		}
	}
}

// request sends one request and takes the events that it brings. One that is
// sent again asks for the last event once more, so that a machine where nothing
// happens shows that it is there.
func (r *run) request(ctx context.Context, exec Executor, order task.Order, again bool) error {
	r.contact = false
	take := func(e *task.Event) error { return r.take(ctx, exec, e) }
	ctx, done := r.leased.whileHeld(ctx)
	defer done()
	if r.source == 0 {
		return exec.Start(ctx, order, take)
	}
	after := r.source
	switch {
	case r.anew:
		after, r.anew = 0, false
	case again:
		after--
	}
	return exec.Follow(ctx, r.id, after, take)
}

// bear waits for the next request after err, and declares the run lost when
// there has been no contact for too long.
func (r *run) bear(ctx context.Context, t *trouble, err error) error {
	quiet := time.Since(t.since)
	gone := r.down.Load() || quiet >= r.d.cfg.LostAfter || errors.Is(err, task.ErrNoRun)
	switch {
	case r.sent && !r.contact && gone && !r.lost:
		if err := r.insist(ctx, "lose", func(ctx context.Context) error { return r.lose(ctx, err) }); err != nil {
			return err
		}
	case r.contact:
		r.d.cfg.Log.Warn("asking again", "run", r.id, "node", r.placed.Name, "err", err)
	}
	delay, most := min(t.delay, max(r.d.cfg.LostAfter-quiet, r.d.times.retryMin)), r.d.times.retryMax
	if r.lost { // one that was only started again is found soon
		delay, most = t.delay, r.d.times.lost
	}
	t.delay = min(2*t.delay, most)
	delay = r.leased.bound(delay, r.d.times.retryMax)
	r.wait(ctx, delay)
	return nil
}

// lose records that the machine is out of reach.
func (r *run) lose(ctx context.Context, why error) error {
	reason := fmt.Sprintf("%s is out of reach: %v", r.placed.Name, why)
	if !r.lost {
		record := task.LostRecord{Attempt: r.placed.Attempt, Reason: reason}
		if err := r.write(ctx, task.KindLost, record); err != nil {
			return err
		}
		r.lost = true
	}
	return r.log(task.Event{Type: task.EventNote, State: task.Lost, Message: reason + "; the run may go on there"})
}

// find records that the machine is back, with the run.
func (r *run) find(ctx context.Context) error {
	again := task.Place{Attempt: r.placed.Attempt, Node: r.placed.Node, Name: r.placed.Name}
	if err := r.write(ctx, task.KindPlace, again); err != nil {
		return err
	}
	r.lost = false
	return r.log(task.Event{Type: task.EventNote, State: task.Placed, Message: r.placed.Name + " is back"})
}
