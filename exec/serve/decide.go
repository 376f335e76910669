package serve

import (
	"slices"
	"time"

	"github.com/balanceai/balance/exec/task"
	"github.com/balanceai/balance/mesh/identity"
)

// Replica is a run that serves a model and has not ended.
type Replica struct {
	Run       string      `json:"run"`
	Node      identity.ID `json:"-"` // zero: none yet
	State     task.State  `json:"state"`
	Submitted time.Time   `json:"-"`
}

// History is how earlier replicas of a model ended.
type History struct {
	Failures int       // one after the other, each soon after its start
	Last     time.Time // end of the newest
}

// Steady is how long a replica goes on before it counts as one that works.
const Steady = time.Minute

// Back-off after replicas that have failed.
const (
	firstPause = time.Second
	lastPause  = 5 * time.Minute
)

// Ended takes the end of a replica into a history: one that its machine has put
// to rest, or that was called off, has not failed.
func (h *History) Ended(started, at time.Time, failed bool) {
	switch {
	case !failed, !started.IsZero() && at.Sub(started) >= Steady:
		h.Failures = 0
	default:
		h.Failures++
	}
	h.Last = at
}

// Again is when the next replica may be started.
func (h History) Again() time.Time {
	if h.Failures == 0 {
		return time.Time{}
	}
	pause := lastPause
	if n := h.Failures - 1; n < 16 {
		pause = min(lastPause, firstPause<<n)
	}
	return h.Last.Add(pause)
}

// Plan is what is to be done now for a model.
type Plan struct {
	Start bool     // one more replica
	End   []string // replicas that are too many
}

// Decide compares the replicas that there are with how many there should be. One
// whose machine is lost does not count: another one takes its place, and when the
// machine is back, what is too many ends, the newest first.
func Decide(want int, list []Replica, h History, now time.Time) Plan {
	live := slices.DeleteFunc(slices.Clone(list), func(r Replica) bool { return r.State == task.Lost })
	slices.SortStableFunc(live, func(a, b Replica) int { return a.Submitted.Compare(b.Submitted) })
	var p Plan
	for len(live) > want {
		last := len(live) - 1
		p.End = append(p.End, live[last].Run)
		live = live[:last]
	}
	p.Start = len(live) < want && !now.Before(h.Again())
	return p
}

// Choose returns the machine for one more replica: the best that fits, is one of
// those that a person has named, if any, and has none yet. Otherwise why says for
// the first one what is in the way.
func Choose(ranking task.Ranking, named []identity.ID, list []Replica) (node identity.ID, why string) {
	for _, v := range ranking {
		switch {
		case len(named) > 0 && !slices.Contains(named, v.Node):
			continue
		case slices.ContainsFunc(list, func(r Replica) bool { return r.Node == v.Node && r.State != task.Lost }):
			if why == "" {
				why = v.Name + " has a replica already"
			}
		case v.Fits:
			return v.Node, ""
		case len(v.Reasons) > 0 && why == "":
			why = v.Name + " " + v.Reasons[0].Text
		}
	}
	if why == "" {
		why = "there is no machine"
	}
	return identity.ID{}, why
}
