package dispatch

import (
	"context"
	"math/rand/v2"
	"time"

	"github.com/balanceai/balance/exec/place"
	"github.com/balanceai/balance/exec/task"
)

// Where others place many runs at the same time, what is known of the machines is
// wrong too often. A run is then not sent to the best machine at once: a few are
// asked first, and each keeps what the run needs while its answer is compared with
// the others'.

// viewAge is how old what is known of a machine is in the worst case that matters:
// what changes is told at once, and gossip takes about a second to be everywhere.
const viewAge = time.Second

// fewOthers is how many runs others may place within that time before machines are
// asked: where there are fewer, one run in ten at most would meet another one.
const fewOthers = 0.1

// mostRounds is how often a few machines are asked for one run, where all that were
// asked have just become full.
const mostRounds = 4

// hurried reports whether others place so many runs that machines are asked.
func (d *Dispatcher) hurried() bool {
	d.ranking.Lock()
	defer d.ranking.Unlock()
	return d.pace.rate*viewAge.Seconds() >= fewOthers
}

// targets draws the machines that are asked, from those that fit.
func (d *Dispatcher) targets(fit task.Ranking) task.Ranking {
	d.ranking.Lock()
	rate := d.pace.rate
	d.ranking.Unlock()
	window := fit[:place.Window(rate, viewAge, len(fit))]
	rand.Shuffle(len(window), func(i, j int) { window[i], window[j] = window[j], window[i] })
	return window[:min(len(window), place.ProbesFor(rate, viewAge, len(fit)))]
}

// probe places a run that has not been anywhere on the best of some machines as
// they are now.
func (r *run) probe(ctx context.Context) error {
	if r.cancelled() || !r.movable() || r.spec.Wait > 0 && r.d.line.waits(r) {
		return r.insist(ctx, "place", r.placeAgain)
	}
	b := r.newBidding()
	defer b.withdraw()
	for range mostRounds {
		ranking, _ := r.rank()
		targets := r.d.targets(ranking.Best())
		if len(targets) < 2 { // nothing to choose from
			break
		}
		for _, v := range targets {
			b.ask(ctx, v.Node, false)
		}
		if best := b.bestAnswer(ctx); best != nil {
			return b.placeAt(ctx, *best)
		}
		if len(b.open) > 0 { // who has not answered is not asked again
			break
		}
	}
	return r.insist(ctx, "place", r.placeAgain)
}

// bestAnswer waits for the answers, and returns that of the machine which suits
// the run best of those that keep what it needs.
func (b *bidding) bestAnswer(ctx context.Context) *answer {
	timer := time.NewTimer(b.d.times.probe)
	defer timer.Stop()
	var best *answer
	score := 0
	for waiting := len(b.open); waiting > 0; waiting-- {
		select {
		case <-ctx.Done():
			return nil
		case <-timer.C:
			return best
		case a := <-b.said:
			if a.held == nil {
				b.failed(a)
				continue
			}
			if v := b.verdict(a); best == nil || v.Score > score {
				best, score = &a, v.Score
			}
		}
	}
	return best
}

// failed notes what a machine answers that does not take the run.
func (b *bidding) failed(a answer) {
	if end := b.open[a.node]; end != nil {
		end()
		delete(b.open, a.node)
	}
	b.tried = append(b.tried, unheard(a.node, b.nameOf(a.node), a.err))
}
