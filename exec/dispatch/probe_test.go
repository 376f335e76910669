package dispatch

import (
	"math"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/balanceai/balance/exec/fleet"
	"github.com/balanceai/balance/exec/task"
	"github.com/balanceai/balance/mesh/identity"
)

// Runs that are placed at the same time do not all go to the machine that was the
// best before.
func TestPledges(t *testing.T) {
	l := newLab(t)
	for _, m := range []*machine{l.hydra, l.io, l.juno} {
		m.script = (*machine).start // and goes on
	}
	var ids []string
	for range 11 {
		ids = append(ids, l.submit(bare()))
	}
	where := map[string]int{}
	for _, id := range ids {
		events := l.watch(id, func(e *task.Event) bool { return e.Type == task.EventStarted })
		if len(events) != 2 {
			t.Errorf("moved on: %s", brief(events))
		}
		where[events[0].Node]++
	}
	if where["hydra"] != 2 || where["io"] != 4 || where["juno"] != 5 {
		t.Errorf("runs at %v", where)
	}
	for _, id := range ids {
		if err := l.d.Cancel(t.Context(), id, true); err != nil {
			t.Fatal(err)
		}
		l.end(id)
	}
	l.hydra.script = nil
	if got := brief(l.end(l.submit(bare()))); !strings.HasPrefix(got, "placed@hydra") {
		t.Errorf("after their end: %s", got)
	}
}

// Where others place many runs, some machines are asked first, and what the others
// keep is let go.
func TestProbe(t *testing.T) {
	l := newLab(t)
	if l.d.hurried() {
		t.Error("hurried among nobody")
	}
	others := func() {
		l.d.ranking.Lock()
		defer l.d.ranking.Unlock()
		l.d.pace = pace{rate: 5, begun: true, at: time.Now()}
	}
	others()
	id := l.submit(bare())
	if got := brief(l.end(id)); got != "placed@hydra started@hydra one two three succeeded" {
		t.Errorf("got %s", got)
	}
	for _, m := range []*machine{l.hydra, l.io, l.juno} {
		if len(m.bids) != 1 || m.bids[0].Wait || m.bids[0].Run != id {
			t.Errorf("%s was asked %+v", m.name, m.bids)
		}
	}
	l.bidders(0)
	why, err := l.d.Why(t.Context(), id)
	if err != nil || len(why) != 1 || why[0].Node != "hydra" {
		t.Fatalf("why %+v, %v", why, err)
	}
	if v := why[0].Ranking[0]; v.Name != "hydra" || !strings.Contains(v.Parts[len(v.Parts)-1].Text, "was asked") {
		t.Errorf("the choice: %+v", v)
	}

	// Who says no, or nothing, is passed over.
	others()
	l.hydra.set(func() { l.hydra.refusal = wrong })
	l.io.set(func() { l.io.deaf = true })
	id = l.submit(bare())
	if got := brief(l.end(id)); !strings.Contains(got, "placed@juno started@juno") || strings.Contains(got, "placed@hydra") {
		t.Errorf("got %s", got)
	}

	// When all say no, it waits or ends as ever.
	others()
	l.io.set(func() { l.io.deaf = false })
	l.full(busy)
	if got := brief(l.end(l.submit(bare()))); !strings.HasSuffix(got, "unplaced") {
		t.Errorf("got %s", got)
	}
	others()
	id = l.submit(patient())
	l.waits(id)
	l.full(nil)
	if got := brief(l.end(id)); !strings.HasSuffix(got, "succeeded") {
		t.Errorf("got %s", got)
	}
}

// When those that were asked have all become full, others are asked before one is
// told to take the run.
func TestProbeAgain(t *testing.T) {
	last := newMachine(8, "last")
	list := []*machine{newMachine(2, "a"), newMachine(3, "b"), newMachine(4, "c"), newMachine(5, "d"), newMachine(6, "e"), newMachine(7, "f"), last}
	byID := map[identity.ID]Executor{}
	for _, m := range list {
		byID[m.id()] = m
		if m != last {
			m.refusal = busy
		}
	}
	l := newLab(t, func(cfg *Config) {
		cfg.Executor = func(id identity.ID) Executor { return byID[id] }
		cfg.View = func() []fleet.Node {
			var nodes []fleet.Node
			for i, m := range list {
				nodes = append(nodes, m.node(task.CPU(8*(i+1))))
			}
			return nodes
		}
	})
	l.d.ranking.Lock()
	l.d.pace = pace{rate: 5, begun: true, at: time.Now()}
	l.d.ranking.Unlock()
	if got := brief(l.end(l.submit(bare()))); strings.Count(got, "placed@") != 1 || !strings.Contains(got, "placed@last started@last") {
		t.Errorf("got %s", got)
	}
}

func TestPace(t *testing.T) {
	var p pace
	now := time.Now()
	all := uint64(1000)
	for range 600 { // a minute: ten a second, of which four are own
		p.saw(all, now)
		now = now.Add(100 * time.Millisecond)
		all++
		if all%5 < 2 {
			p.own++
		}
	}
	if math.Abs(p.rate-6) > 0.5 {
		t.Errorf("%.2f a second, want 6", p.rate)
	}
	for range 600 {
		p.saw(all, now)
		now = now.Add(100 * time.Millisecond)
	}
	if p.rate > 0.1 {
		t.Errorf("%.2f a second when nothing happens", p.rate)
	}
}

// Who submits the moment that a machine comes up gets it.
func TestOfferOnItsWay(t *testing.T) {
	var said atomic.Bool
	l := newLab(t, func(c *Config) {
		all := c.View
		c.View = func() []fleet.Node {
			nodes := all()
			if !said.Load() {
				for i := range nodes {
					nodes[i].Offer = nil
				}
			}
			return nodes
		}
	})
	l.d.times.offer = 10 * time.Second
	time.AfterFunc(50*time.Millisecond, func() { said.Store(true) })
	events := l.end(l.submit(bare()))
	if last := events[len(events)-1]; last.State != task.Succeeded {
		t.Errorf("%s: %s", last.State, last.Message)
	}
}
