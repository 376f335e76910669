package run

import (
	"fmt"
	"time"

	"github.com/balanceai/balance/exec/task"
	"github.com/balanceai/balance/mesh/identity"
	"github.com/balanceai/balance/mesh/wire"
)

// Kept is what this machine keeps for a member: runs that go on here or stand in the
// line, and what came into the ledger for its runs in the last day, in this life.
type Kept struct {
	Runs   int
	Ledger task.Bytes
}

// growth is how much the ledger has grown for members: of each hour of the last
// day.
type growth struct {
	hours map[identity.ID]*[hours]task.Bytes
	at    int64 // the newest hour, since 1970
}

const hours = 24

// add counts what has been added for a member.
func (g *growth) add(from identity.ID, n task.Bytes, now time.Time) {
	g.turn(now)
	if g.hours == nil {
		g.hours = map[identity.ID]*[hours]task.Bytes{}
	}
	if g.hours[from] == nil {
		g.hours[from] = new([hours]task.Bytes)
	}
	g.hours[from][g.at%hours] += n
}

// of returns what has been added for a member.
func (g *growth) of(from identity.ID, now time.Time) (sum task.Bytes) {
	g.turn(now)
	if g.hours[from] != nil {
		for _, n := range g.hours[from] {
			sum += n
		}
	}
	return sum
}

// turn forgets the hours that are a day ago.
func (g *growth) turn(now time.Time) {
	hour := now.Unix() / int64(time.Hour/time.Second)
	for g.at = max(g.at, hour-hours); g.at < hour; {
		g.at++
		for id, n := range g.hours {
			n[g.at%hours] = 0
			if *n == [hours]task.Bytes{} {
				delete(g.hours, id)
			}
		}
	}
}

// grew counts entries that the ledger has taken for a member's run.
func (r *Runner) grew(from identity.ID, entries ...*wire.Entry) {
	var sum task.Bytes
	for _, e := range entries {
		sum += task.Bytes(len(e.Encode()))
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.growth.add(from, sum, r.cfg.Now())
}

// quota returns why nothing more is kept for a member than is already, besides a
// run. The caller holds the lock.
func (r *Runner) quota(from identity.ID, run string) []task.Reason {
	if r.cfg.Quota == nil {
		return nil
	}
	runs := map[identity.ID]int{}
	for _, x := range r.runs {
		if x.id != run {
			runs[x.from]++
		}
	}
	for _, b := range r.line.waiting {
		if b.Run != run {
			runs[b.From]++
		}
	}
	for _, b := range r.line.kept {
		if b.Run != run && r.runs[b.Run] == nil {
			runs[b.From]++
		}
	}
	now := r.cfg.Now()
	return r.cfg.Quota(from, func(id identity.ID) Kept { return Kept{Runs: runs[id], Ledger: r.growth.of(id, now)} })
}

// settleable refuses a member's entries about a run that has ended here where far
// more came than its quota. A run that was taken within that can be settled.
func (r *Runner) settleable(from identity.ID) error {
	if r.cfg.Quota == nil {
		return nil
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	now := r.cfg.Now()
	if no := r.cfg.Quota(from, func(id identity.ID) Kept { return Kept{Ledger: r.growth.of(id, now) / 2} }); len(no) > 0 {
		return fmt.Errorf("twice the quota: %s", no[0].Text)
	}
	return nil
}
