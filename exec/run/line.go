package run

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/balanceai/balance/exec/queue"
	"github.com/balanceai/balance/exec/task"
	"github.com/balanceai/balance/mesh/identity"
)

// Those who wait for this machine stand in a line, in the order of package queue.
// When something is freed the machine keeps it for whose turn it is, until the
// order comes; the line is in memory, as who waits asks again.

// Bounds of the line.
const (
	keepFor    = 5 * time.Second // until the order is there
	lookPeriod = time.Second
	probed     = time.Second // what is let go sooner was a question, and costs nothing
	maxWaiting = 1024
	maxEach    = 64 // of one member
)

// line is who waits for the machine, and what is kept for those whose turn has
// come. The Runner's lock guards it.
type line struct {
	waiting []*bidder
	kept    map[string]*bidder // by run
	usage   queue.Usage
	waited  time.Duration // about, those whose turn has come lately
}

// bidder is a run that waits for a part of the machine, or has it kept.
type bidder struct {
	task.Bid
	place queue.Waiter
	grant Grant
	use   Use           // once it fits
	facts []byte        // likewise: what is free besides
	why   []task.Reason // it waits, or cannot be here any more
	never bool          // the latter
	came  time.Time     // into the line
	turn  chan struct{} // closed when its part is kept
	over  chan struct{} // closed when it is forgotten: the order is there, or it can never be here
}

// forget takes a bidder out of the line, and lets go of what is kept for it.
func (l *line) forget(b *bidder) {
	if b == nil || l.kept[b.Run] != b && !slices.Contains(l.waiting, b) {
		return
	}
	if l.kept[b.Run] == b {
		delete(l.kept, b.Run)
	}
	l.waiting = slices.DeleteFunc(l.waiting, func(w *bidder) bool { return w == b })
	close(b.over)
}

// of returns the bidder of a run; nil for none.
func (l *line) of(run string) *bidder {
	if b := l.kept[run]; b != nil {
		return b
	}
	for _, b := range l.waiting {
		if b.Run == run {
			return b
		}
	}
	return nil
}

// Reserve keeps what a run needs of this machine until the order for the run
// comes, ctx ends or five seconds are over. It yields a [task.EventHeld] when it
// does, and returns when it does not any more; before that it yields notes of why
// the run waits. A *[task.Refusal] tells why the run cannot be here: at all, for a
// bid that waits, else now.
func (r *Runner) Reserve(ctx context.Context, bid task.Bid, yield func(*task.Event) error) error {
	if err := bid.Spec.Check(); err != nil || !task.ValidID(bid.Run) {
		return invalid(fmt.Errorf("run %.64q: %w", bid.Run, err))
	}
	b, err := r.enter(bid)
	if err != nil {
		return err
	}
	defer r.quit(b)
	if err := r.await(ctx, b, yield); err != nil {
		return err
	}
	if err := yield(&task.Event{Seq: 1, Type: task.EventHeld, Run: b.Run, Node: r.cfg.Name, Time: r.cfg.Now(), Facts: b.facts}); err != nil {
		return err
	}
	select {
	case <-b.over:
	case <-ctx.Done():
	case <-time.After(keepFor):
	case <-r.closing:
	}
	return nil
}

// errAnew ends a bid that its run has made once more.
var errAnew = fmt.Errorf("%w: it has bid again", task.ErrBroken)

// await waits until it is a bidder's turn, and tells why it is not yet.
func (r *Runner) await(ctx context.Context, b *bidder, yield func(*task.Event) error) error {
	look := time.NewTicker(lookPeriod)
	defer look.Stop()
	var told []task.Reason
	for {
		select {
		case <-b.turn:
			return nil
		default:
		}
		r.mu.Lock()
		why, never := b.why, b.never
		r.mu.Unlock()
		if never {
			return refused(why...)
		}
		if !slices.Equal(why, told) {
			if err := yield(&task.Event{Seq: 1, Type: task.EventNote, Run: b.Run, Node: r.cfg.Name, Time: r.cfg.Now(), Reasons: why}); err != nil {
				return err
			}
			told = why
		}
		select {
		case <-b.turn:
			return nil
		case <-b.over:
			r.mu.Lock()
			never := b.never
			r.mu.Unlock()
			if !never {
				return errAnew
			}
		case <-look.C:
		case <-ctx.Done():
			return ctx.Err()
		case <-r.closing:
			return errStopping
		}
	}
}

// enter puts a bid into the line, unless it is answered at once.
func (r *Runner) enter(bid task.Bid) (*bidder, error) {
	cannot := r.cannot(&bid.Spec)
	r.mu.Lock()
	defer r.mu.Unlock()
	b := &bidder{Bid: bid, turn: make(chan struct{}), over: make(chan struct{})}
	b.place = r.place(&bid)
	old := r.line.of(b.Run)
	if old != nil && old.From == b.From { // whose connection has broken
		r.line.forget(old)
		old = nil
	}
	each := 0
	for _, w := range r.line.waiting {
		if w.From == b.From {
			each++
		}
	}
	own := r.weight(b.From, b.Spec.Needs.Held()).Own
	switch {
	case r.closed:
		return nil, errStopping
	case r.runs[b.Run] != nil || old != nil:
		return nil, refused(task.Reason{Rule: "queue", Text: "has the run already", Ever: true})
	case bid.Wait && (each >= maxEach || !own && len(r.line.waiting) >= maxWaiting):
		return nil, refused(task.Reason{Rule: "queue", Text: fmt.Sprintf("has a full line: %d runs wait, %d of them from there", len(r.line.waiting), each), Ever: true})
	}
	reasons := append(r.fits(b, 0), cannot...)
	if len(reasons) == 0 {
		reasons = r.yields(b, r.ahead(b))
	}
	switch {
	case len(reasons) == 0:
		r.keep(b)
	case never(reasons), !bid.Wait, slices.ContainsFunc(reasons, overQuota):
		return nil, refused(reasons...)
	default:
		b.why, b.came = reasons, r.cfg.Now()
		r.line.waiting = append(r.line.waiting, b)
		r.changed()
	}
	return b, nil
}

// Queue estimates how long a run would wait here for its turn: as long as those
// did whose turn came lately, or whoever waits now; 0 where nobody waits.
func (r *Runner) Queue() time.Duration {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.line.waiting) == 0 {
		return 0
	}
	long := r.line.waited
	for _, b := range r.line.waiting {
		long = max(long, r.cfg.Now().Sub(b.came))
	}
	return long
}

// never reports whether time alone does not remove the reasons.
func never(reasons []task.Reason) bool {
	return slices.ContainsFunc(reasons, func(r task.Reason) bool { return !r.Ever })
}

func refused(reasons ...task.Reason) error { return &task.Refusal{Reasons: reasons} }

// quit takes a bidder out of the line, whatever has become of it.
func (r *Runner) quit(b *bidder) {
	r.mu.Lock()
	defer r.mu.Unlock()
	kept := r.line.kept[b.Run] == b
	r.line.forget(b)
	if kept {
		if now := r.cfg.Now(); now.Sub(b.use.Since) >= probed { // or who never comes for it would keep it from others for nothing
			r.line.usage.Add(r.counts(b.use), now)
		}
		r.serve()
		r.changed()
	}
}

// keep reserves for a bidder what [Runner.fits] has found. The caller holds the
// lock, as those of all that follows do.
func (r *Runner) keep(b *bidder) {
	if r.cfg.Facts != nil {
		b.facts = r.cfg.Facts(r.heldLocked())
	}
	if !b.came.IsZero() {
		r.line.waited += (r.cfg.Now().Sub(b.came) - r.line.waited) / 4
	}
	r.line.kept[b.Run] = b
	r.line.waiting = slices.DeleteFunc(r.line.waiting, func(w *bidder) bool { return w == b })
	close(b.turn)
	r.changed()
}

// release takes back what a run has held, and gives it to those who wait.
func (r *Runner) release(x *live) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if x.use.Run == "" {
		return
	}
	r.line.usage.Add(r.counts(x.use), r.cfg.Now())
	x.use = Use{}
	r.serve()
	r.changed()
}

// lookOn looks each second at what no run of this machine has freed: other
// programs end, and the owner's rules and hours change.
func (r *Runner) lookOn() {
	tick := time.NewTicker(lookPeriod)
	defer tick.Stop()
	for {
		select {
		case <-r.closing:
			return
		case <-tick.C:
			r.mu.Lock()
			if len(r.line.waiting) > 0 {
				r.serve()
			}
			r.mu.Unlock()
		}
	}
}

// serve keeps what is free for those whose turn it is, and tells the others why they
// wait.
func (r *Runner) serve() {
	asked := map[string][]task.Reason{} // by kind, of those that do not fit
	turns := r.order(r.line.waiting)
	before := 0
	for i, b := range turns {
		kind := b.kind()
		reasons := asked[kind]
		if reasons == nil {
			if reasons = r.fits(b, 0); len(reasons) == 0 {
				reasons = r.yields(b, turns[:i])
			}
		}
		switch {
		case len(reasons) == 0:
			r.keep(b)
			continue
		case never(reasons):
			b.why, b.never = reasons, true
			r.line.forget(b)
			continue
		}
		asked[kind] = reasons
		b.why = reasons
		if before > 0 {
			b.why = append(slices.Clone(reasons), comeFirst(before))
		}
		before++
	}
}

func comeFirst(n int) task.Reason {
	text := "another run that waits there comes first"
	if n > 1 {
		text = fmt.Sprintf("%d runs that wait there come first", n)
	}
	return task.Reason{Rule: "queue", Text: text, Ever: true}
}

// kind is the same for runs of one member that ask for the same, so that none
// fits where one does not.
func (b *bidder) kind() string {
	return fmt.Sprint(b.From, b.Spec.Needs, b.Spec.Driver, b.Spec.Image, b.Spec.Isolation, b.Spec.Network, b.Spec.Limits, b.Spec.Member)
}

// order returns bidders in the order of their turns.
func (r *Runner) order(list []*bidder) []*bidder {
	places := make([]queue.Waiter, len(list))
	for i, b := range list {
		places[i] = b.place
	}
	var going []queue.Held
	for _, u := range r.heldLocked() {
		going = append(going, r.counts(u))
	}
	out := make([]*bidder, len(list))
	for i, at := range r.line.usage.Order(going, places, r.cfg.Now()) {
		out[i] = list[at]
	}
	return out
}

// ahead returns those in the line whose turn is before that of one who is not.
func (r *Runner) ahead(b *bidder) []*bidder {
	turns := r.order(append(slices.Clone(r.line.waiting), b))
	return turns[:slices.Index(turns, b)]
}

// yields returns why a run that would fit has to leave what it needs to one of
// those ahead, which has waited long for more.
//
// That one has a claim from when its patience was over. What is accepted from
// then on has to leave room for it, as if all that was there before had ended:
// when that has, the one that waits has its place, however many others come.
func (r *Runner) yields(b *bidder, ahead []*bidder) []task.Reason {
	now := r.cfg.Now()
	for _, c := range ahead {
		since := c.place.Since.Add(r.cfg.Patience)
		if !c.Claim || since.After(now) || len(r.bare(c, nil)) > 0 {
			continue
		}
		held := []Use{b.use}
		for _, u := range r.heldLocked() {
			if u.Since.After(since) {
				held = append(held, u)
			}
		}
		if len(r.bare(c, held)) == 0 {
			return nil
		}
		return []task.Reason{{Rule: "queue", Text: "keeps what is free for a run that has waited for more since " + c.place.Since.Format(time.TimeOnly), Ever: true}}
	}
	return nil
}

// bare returns why a bidder could not be here if nothing were but some runs.
func (r *Runner) bare(b *bidder, held []Use) []task.Reason {
	_, reasons := r.cfg.Admit(Ask{Run: b.Run, From: b.From, Spec: &b.Spec, Held: held, Bare: true})
	return reasons
}

func (r *Runner) weight(from identity.ID, n task.Needs) Weight {
	if r.cfg.Weigh == nil {
		return Weight{Own: true}
	}
	return r.cfg.Weigh(from, n)
}

// counts is what a run holds, as the line counts it.
func (r *Runner) counts(u Use) queue.Held {
	w := r.weight(u.From, u.Needs)
	return queue.Held{Owner: w.Owner, Share: w.Share, Since: u.Since}
}

// place is where a bid stands. The priority counts where the machine has the same
// owner.
func (r *Runner) place(b *task.Bid) queue.Waiter {
	w := r.weight(b.From, b.Spec.Needs.Held())
	out := queue.Waiter{Run: b.Run, Held: queue.Held{Owner: w.Owner, Share: w.Share, Since: r.cfg.Now().Add(-max(0, b.Waited))}}
	if w.Own {
		out.Priority = b.Spec.Priority
	}
	return out
}

func (r *Runner) changed() {
	if r.cfg.Changed != nil {
		r.cfg.Changed()
	}
}
