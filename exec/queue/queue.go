// Package queue says whose turn it is at a machine.
//
// Between owners the one comes first that has had the least of the machine
// lately. What one has had is measured in machine-seconds: for each run the
// largest of its shares of the machine's CPU, memory and GPUs, times how long it
// held them ("Dominant Resource Fairness", Ghodsi and others, NSDI 2011), of
// which half is forgotten every ten minutes. Among the runs of one owner the
// higher priority comes first, then who has waited longest.
//
// It is pure: no I/O, no clock.
package queue

import (
	"cmp"
	"math"
	"slices"
	"time"
)

const (
	halfLife = 10 * time.Minute
	least    = time.Second // that a run counts for, or many short ones would count for nothing
	smallest = 0.001       // share, likewise
)

// Held is what a run holds, or waits for.
type Held struct {
	Owner string
	Share float64 // of the machine: 0 to 1
	Since time.Time
}

// Waiter is a run that waits for a machine.
type Waiter struct {
	Held     // Since is when it began to wait
	Run      string
	Priority int
}

// Usage adds up what owners have had of a machine. The zero value is ready for
// use.
type Usage struct {
	had map[string]float64 // machine-seconds, as they count at the time of at
	at  time.Time
}

// Add takes what a run has held until now.
func (u *Usage) Add(h Held, now time.Time) {
	u.forget(now)
	u.had[h.Owner] += h.cost(now)
}

// cost is what a run has had until now, in machine-seconds.
func (h *Held) cost(now time.Time) float64 {
	return max(h.Share, smallest) * max(now.Sub(h.Since), least).Seconds()
}

// forget lets what was added weigh less, by the time since then.
func (u *Usage) forget(now time.Time) {
	if u.had == nil {
		u.had = map[string]float64{}
	}
	if passed := now.Sub(u.at); passed > 0 && !u.at.IsZero() {
		keep := math.Exp2(-passed.Seconds() / halfLife.Seconds())
		for owner, had := range u.had {
			if had *= keep; had < smallest {
				delete(u.had, owner)
				continue
			}
			u.had[owner] = had
		}
	}
	u.at = now
}

// Order returns the waiters in the order of their turns, as indices. going is
// what runs hold now.
func (u *Usage) Order(going []Held, waiters []Waiter, now time.Time) []int {
	u.forget(now)
	had := map[string]float64{}
	for _, h := range going {
		had[h.Owner] += h.cost(now)
	}
	lines := map[string][]int{}
	for i, w := range waiters {
		lines[w.Owner] = append(lines[w.Owner], i)
	}
	for owner, line := range lines {
		had[owner] += u.had[owner]
		slices.SortFunc(line, func(a, b int) int { return waiters[a].compare(&waiters[b]) })
	}
	out := make([]int, 0, len(waiters))
	for len(lines) > 0 {
		next, first := "", true
		for owner, line := range lines {
			if first || cmp.Or(cmp.Compare(had[owner], had[next]), waiters[line[0]].Since.Compare(waiters[lines[next][0]].Since), cmp.Compare(owner, next)) < 0 {
				next, first = owner, false
			}
		}
		i := lines[next][0]
		out = append(out, i)
		had[next] += max(waiters[i].Share, smallest) * least.Seconds()
		if lines[next] = lines[next][1:]; len(lines[next]) == 0 {
			delete(lines, next)
		}
	}
	return out
}

// compare orders waiters of one owner.
func (w *Waiter) compare(v *Waiter) int {
	return cmp.Or(cmp.Compare(v.Priority, w.Priority), w.Since.Compare(v.Since), cmp.Compare(w.Run, v.Run))
}
