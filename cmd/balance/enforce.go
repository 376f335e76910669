package main

import (
	"context"
	"time"

	"github.com/balanceai/balance/exec/policy"
	"github.com/balanceai/balance/exec/run"
)

// enforcePeriod is how often the rules are held against the runs that are going.
const enforcePeriod = time.Second

// enforce holds the owner's rules against the runs of this machine until ctx
// ends: they may change, hours end, and the owner comes back.
func (f *facts) enforce(ctx context.Context, runner *run.Runner) error {
	tick := time.NewTicker(enforcePeriod)
	defer tick.Stop()
	said := map[string]bool{} // runs whose end is in the log
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		held := runner.Held()
		if len(held) == 0 {
			clear(said)
			continue
		}
		offer, _ := f.current()
		seen := f.presence(offer.Terms, f.held(held))
		for _, u := range held {
			o := f.order(offer.Terms, u, held, seen)
			if o.Do == policy.Pause && u.Serves || offer.Terms.Duty != "" && u.Serves {
				// What stands still would hold its memory, and have those wait who ask it.
				o = policy.Order{Do: policy.Stop, Reason: "its owner wants the machine back", Grace: policy.DefaultGrace}
			}
			if o.Do == policy.Stop && !said[u.Run] {
				said[u.Run] = true
				f.log.Info("a run is stopped by the owner's rules", "run", u.Run, "reason", o.Reason)
			}
			if err := carryOut(runner, u.Run, o); err != nil {
				f.log.Error("hold a run to the owner's rules", "run", u.Run, "error", err)
			}
		}
	}
}

// order says what is to be done to a run.
func (f *facts) order(terms policy.Terms, u run.Use, held []run.Use, seen *policy.Conditions) policy.Order {
	from, ok := f.who.now().Members[u.From]
	if !ok {
		return policy.Order{Do: policy.Stop, Reason: "its submitter is no member of the mesh any more", Grace: policy.DefaultGrace}
	}
	now := time.Now()
	return terms.Going(policy.Question{
		From: asker(from), Machine: f.who.me().Owner, Now: now, Held: f.use(held, from.Owner), Measured: seen,
	}, now.Sub(u.Since))
}

// carryOut does what is to be done. What is done already is not done again.
func carryOut(runner *run.Runner, id string, o policy.Order) error {
	switch o.Do {
	case policy.Stop:
		runner.Stop(id, o.Reason, o.Grace)
		return nil
	case policy.Pause:
		return runner.Pause(id, o.Reason)
	}
	return runner.Resume(id)
}
