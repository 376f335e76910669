package dispatch

import (
	"context"
	"errors"
	"slices"
	"time"

	"github.com/balanceai/balance/exec/fleet"
	"github.com/balanceai/balance/exec/place"
	"github.com/balanceai/balance/exec/task"
	"github.com/balanceai/balance/mesh/identity"
	"github.com/balanceai/balance/mesh/wire"
)

// A run that no machine has room for now stands in the lines of a few machines
// that could take it later. The first one that keeps what it needs gets it. That
// it waits is in the ledger, so that a later life of this node lets it wait on;
// where it stands in line is not: it asks again, and says for how long it has.

// mostBids bounds in how many lines a run stands.
const mostBids = place.Probes

// mayWait reports whether a run that no machine takes now waits for one that could
// later.
func (r *run) mayWait(ranking task.Ranking) bool {
	return r.spec.Wait > 0 && r.movable() && r.d.cfg.Now().Before(r.deadline()) && slices.ContainsFunc(ranking, could)
}

// could reports whether a machine could take a run now or at another time.
func could(v task.Verdict) bool {
	return v.Fits || !slices.ContainsFunc(v.Reasons, func(r task.Reason) bool { return !r.Ever })
}

// bidding is a run that waits.
type bidding struct {
	*run
	open  map[identity.ID]context.CancelFunc
	later map[identity.ID]time.Time // machines that are not asked before
	claim identity.ID               // where what is freed is held back for it
	said  chan answer
}

// answer is what has become of a bid.
type answer struct {
	node identity.ID
	held *task.Event // nil: nothing is kept, because of err
	err  error
}

// await places the run as soon as a machine keeps what it needs; or nowhere when it
// has waited long enough, is not wanted any more, or no machine could take it any
// more.
func (r *run) await(ctx context.Context) error {
	r.tried = slices.DeleteFunc(r.tried, could)
	r.d.line.join(r) // before anybody hears that it waits
	defer r.d.line.leave(r)
	if err := r.insist(ctx, "note", r.noteWait); err != nil {
		return err
	}
	b := r.newBidding()
	defer b.withdraw()
	for r.placed.Wait {
		over := r.cancelled() || !r.d.cfg.Now().Before(r.deadline())
		if !over && r.d.line.bids(r) { // the others need no verdicts yet: they ask for the same
			ranking, _ := r.rank()
			over = !r.mayWait(ranking)
			b.bid(ctx, ranking)
		}
		if over {
			return r.insist(ctx, "place", r.placeAgain)
		}
		if err := b.listen(ctx); err != nil {
			return err
		}
	}
	return nil
}

func (r *run) newBidding() *bidding {
	return &bidding{run: r, open: map[identity.ID]context.CancelFunc{}, later: map[identity.ID]time.Time{}, said: make(chan answer)}
}

// noteWait tells who watches that the run waits, and why.
func (r *run) noteWait(ctx context.Context) error {
	st, err := r.d.nowhere(ctx, r.id)
	if err != nil {
		return err
	}
	return r.log(task.Event{Type: task.EventNote, State: task.Waiting, Message: "waits: " + st.Reason})
}

// bid stands in the lines of the machines that could take the run, the best ones.
func (b *bidding) bid(ctx context.Context, ranking task.Ranking) {
	now := b.d.cfg.Now()
	for _, v := range ranking {
		if len(b.open) >= mostBids {
			return
		}
		if b.open[v.Node] != nil || now.Before(b.later[v.Node]) || !could(v) {
			continue
		}
		if b.claim.IsZero() {
			b.claim = v.Node
		}
		b.ask(ctx, v.Node, true)
	}
}

// ask bids at a machine, and waits in its line if it is to.
func (b *bidding) ask(ctx context.Context, node identity.ID, wait bool) {
	bid := task.Bid{
		Run: b.id, From: b.d.cfg.Self, Spec: b.spec.Outline(),
		Wait: wait, Waited: b.d.cfg.Now().Sub(b.submitted), Claim: wait && node == b.claim,
	}
	ctx, cancel := context.WithCancel(ctx)
	b.open[node] = cancel
	b.bids.Go(func() { b.stand(ctx, node, bid, b.said) })
}

// stand waits for what becomes of a bid, and says so.
func (r *run) stand(ctx context.Context, node identity.ID, bid task.Bid, said chan<- answer) {
	say := func(a answer) error {
		select {
		case said <- a:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	held := false
	err := r.d.cfg.Executor(node).Reserve(ctx, bid, func(e *task.Event) error {
		if e.Type != task.EventHeld {
			r.hears(node, e.Reasons)
			return nil
		}
		held = true
		return say(answer{node: node, held: e})
	})
	r.hears(node, nil)
	if !held {
		_ = say(answer{node: node, err: err})
	}
}

// hears notes why the run waits at a machine; nil: it does not stand there any more.
func (r *run) hears(node identity.ID, why []task.Reason) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if why == nil {
		delete(r.words, node)
		return
	}
	if r.words == nil {
		r.words = map[identity.ID][]task.Reason{}
	}
	r.words[node] = bounded(why)
}

// heardAt returns why the run waits at a machine, as that says; nil where it does
// not.
func (r *run) heardAt(node identity.ID) []task.Reason {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.words[node]
}

// listen waits for the answer to a bid, for a time at most, and acts on it.
func (b *bidding) listen(ctx context.Context) error {
	timer := time.NewTimer(min(b.d.times.look, b.deadline().Sub(b.d.cfg.Now())))
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-b.wake:
	case <-timer.C:
	case a := <-b.said:
		return b.heard(ctx, a)
	}
	return nil
}

func (b *bidding) heard(ctx context.Context, a answer) error {
	if a.held != nil {
		return b.placeAt(ctx, a)
	}
	if end := b.open[a.node]; end != nil {
		end()
		delete(b.open, a.node)
	}
	if b.claim == a.node {
		b.claim = identity.ID{}
	}
	b.later[a.node] = b.d.cfg.Now().Add(b.d.times.look)
	if no, ok := errors.AsType[*task.Refusal](a.err); ok {
		if v := (task.Verdict{Node: a.node, Name: b.nameOf(a.node), Reasons: bounded(no.Reasons)}); !could(v) {
			b.tried = append(b.tried, v)
		}
	}
	return nil
}

// placeAt places the run on a machine that keeps what it needs.
func (b *bidding) placeAt(ctx context.Context, a answer) error {
	b.letGo = b.open[a.node]
	delete(b.open, a.node)
	b.withdraw()
	b.d.counts()
	return b.insist(ctx, "place", func(ctx context.Context) error {
		return b.placeBy(ctx, func() (task.Place, error) { return b.settle(a) })
	})
}

// withdraw ends all bids.
func (b *bidding) withdraw() {
	for _, end := range b.open {
		end()
	}
	clear(b.open)
}

// settle is the choice of the machine that keeps what the run needs.
func (b *bidding) settle(a answer) (task.Place, error) {
	ranking, more := b.rank()
	ranking = slices.DeleteFunc(ranking, func(v task.Verdict) bool { return v.Node == a.node })
	v := b.verdict(a)
	return b.place(v, slices.Insert(ranking, 0, v), more)
}

// verdict is on the machine as it says itself that it is.
func (b *bidding) verdict(a answer) task.Verdict {
	turn := task.Part{Name: "turn", Text: "was asked, and keeps what the run needs"}
	if b.placed.Wait {
		turn.Text = "keeps what the run needs, which has waited for " + task.FormatDuration(b.d.cfg.Now().Sub(b.submitted).Round(time.Second))
	}
	v := task.Verdict{Node: a.node, Name: b.nameOf(a.node), Fits: true}
	for _, n := range b.d.cfg.View() {
		if n.ID != a.node {
			continue
		}
		if live := (fleet.Live{}); wire.Unmarshal(a.held.Facts, &live) == nil {
			n.Live, n.LiveAt = &live, b.d.cfg.Now()
		}
		if own := b.d.judge(&b.spec, &n); own.Fits {
			v = own
		}
	}
	v.Parts = append(v.Parts, turn)
	return v
}

func (r *run) nameOf(id identity.ID) string {
	for _, n := range r.d.cfg.View() {
		if n.ID == id {
			return n.Name
		}
	}
	return id.Short()
}

// unhold lets go of what a machine keeps for the run, if it still does.
func (r *run) unhold() {
	if r.letGo != nil {
		r.letGo()
		r.letGo = nil
	}
}
