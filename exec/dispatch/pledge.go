package dispatch

import (
	"math"
	"slices"
	"time"

	"github.com/balanceai/balance/exec/fleet"
	"github.com/balanceai/balance/exec/task"
	"github.com/balanceai/balance/mesh/identity"
)

// pledges are what machines will hold of the runs that this node has placed there a
// moment ago, until they say so themselves.
type pledges []pledge

type pledge struct {
	run  string
	node identity.ID
	held fleet.Held
	at   time.Time
}

// pledgeEnd is when a machine has certainly heard of a run, and told of it.
const pledgeEnd = 3 * time.Second

func (p *pledges) add(run string, n task.Needs, owner string, v task.Verdict, now time.Time) {
	held := fleet.Held{Runs: []fleet.RunUse{{CPU: n.CPU, Memory: n.Memory}}}
	for _, d := range v.Devices {
		held.Devices = append(held.Devices, fleet.DeviceUse{UUID: d, Share: n.Share, VRAM: n.VRAM, Owner: owner})
	}
	*p = append(*p, pledge{run, v.Node, held, now})
}

// drop forgets a run, which has ended or is placed anew.
func (p *pledges) drop(run string) {
	*p = slices.DeleteFunc(*p, func(g pledge) bool { return g.run == run })
}

// apply returns machines as they are with what they will hold, and drops what they
// have told of. It changes the list, not what its pointers lead to.
func (p *pledges) apply(nodes []fleet.Node, now time.Time) []fleet.Node {
	if len(*p) == 0 {
		return nodes
	}
	at := map[identity.ID]*fleet.Node{}
	for _, g := range *p {
		at[g.node] = nil
	}
	for i := range nodes {
		if _, ok := at[nodes[i].ID]; ok {
			at[nodes[i].ID] = &nodes[i]
		}
	}
	*p = slices.DeleteFunc(*p, func(g pledge) bool {
		n := at[g.node]
		return n == nil || n.Offer == nil || n.LiveAt.After(g.at) || now.Sub(g.at) > pledgeEnd
	})
	for _, g := range *p {
		n := at[g.node]
		live := fleet.Idle(n.Offer)
		if n.Live != nil {
			live = *n.Live
		}
		live = live.With(n.Offer, g.held)
		n.Live = &live
	}
	return nodes
}

// pace is how fast others place runs.
type pace struct {
	own   uint64 // runs that this node has placed
	seen  uint64 // that all have, with those, at the time of at
	mine  uint64 // own at that time
	at    time.Time
	rate  float64 // a second, of others; by exponential decay
	begun bool
}

// paceWindow is how much of the past counts.
const paceWindow = 10 * time.Second

// saw takes how many runs all machines have taken so far.
func (p *pace) saw(all uint64, now time.Time) {
	passed := now.Sub(p.at).Seconds()
	if !p.begun || passed < 0 {
		p.seen, p.mine, p.at, p.begun = all, p.own, now, true
		return
	}
	if passed < 0.1 {
		return
	}
	others := max(0, float64(all-p.seen)-float64(p.own-p.mine))
	keep := math.Exp(-passed / paceWindow.Seconds())
	p.rate = keep*p.rate + (1-keep)*others/passed
	p.seen, p.mine, p.at = all, p.own, now
}
