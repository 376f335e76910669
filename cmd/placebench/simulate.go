package main

import (
	"container/heap"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/balanceai/balance/exec/fleet"
	"github.com/balanceai/balance/exec/place"
	"github.com/balanceai/balance/mesh/identity"
)

// A simulation has many dispatchers, each of which decides by itself on a view
// that is some seconds old, but for what machines have answered it. They submit
// one run after the other, one a second on average, so that N of them place about
// N runs a second. A message takes 20 ms. A machine takes a run
// if it fits there at that moment, and picks the devices itself; a refusal tells
// what is free there.
const (
	pauseMean = time.Second
	message   = 20 * time.Millisecond
	maxTries  = 16
	passes    = 6
)

// outcome is how a simulation has gone.
type outcome struct {
	alloc    float64 // % of all GPUs: at 100 % arrived, or where runs depart on average over time
	refusals float64 // of each run that was placed before 90 % had come
}

func simulations(w io.Writer, o *options, trace string, machines []machine, runs []job) error {
	central := measure("balance", o.seeds, machines, runs).Alloc100
	if o.churn {
		central = 0
		for _, seed := range o.seeds {
			central += newSimulation(arrivalsOf(machines, runs, seed), 1, 0, seed, true).run().alloc / float64(len(o.seeds))
		}
	}
	if _, err := fmt.Fprintf(w, "%s: %d machines, %d seeds; one that sees all: %.2f %%\n%-12s %-6s %10s %8s %9s\n",
		trace, len(machines), len(o.seeds), central, "dispatchers", "age", "λS/nodes", "alloc %", "refusals"); err != nil {
		return err
	}
	for _, n := range o.dispatchers {
		for _, age := range o.stale {
			var alloc, refusals []float64
			for _, seed := range o.seeds {
				s := newSimulation(arrivalsOf(machines, runs, seed), n, age, seed, o.churn)
				out := s.run()
				alloc, refusals = append(alloc, out.alloc), append(refusals, out.refusals)
			}
			a, _ := meanOf(alloc)
			r, _ := meanOf(refusals)
			share := 100 * float64(n) * age.Seconds() / float64(len(machines))
			if _, err := fmt.Fprintf(w, "%-12d %-6v %8.1f %% %8.2f %9.3f\n", n, age, share, a, r); err != nil {
				return err
			}
		}
	}
	return nil
}

// simulation is one.
type simulation struct {
	a     arrivals
	c     *cluster
	age   time.Duration
	churn bool
	rate  float64 // placements a second in all
	r     *rand.Rand
	now   time.Duration
	queue events
	next  int // job that comes next
	total int // jobs; where runs depart, several times those of the trace, until as many depart as come

	fresh   []fleet.Node  // as the machines are
	history []change      // what others will see later
	views   []*dispatcher // of each dispatcher

	arrived, used      int
	placed, refused    int
	sum                float64
	count              int
	area               float64 // of use over time, in the second half
	areaFrom, areaLast time.Duration
}

// change is a machine as it was from a moment on.
type change struct {
	at      time.Duration
	machine int
	live    *fleet.Live
}

// dispatcher has a view of its own.
type dispatcher struct {
	index  *place.Index
	nodes  []fleet.Node
	seen   int // changes of the history that have come
	own    map[int]time.Duration
	recent place.Recent
	due    time.Duration // when its next job comes, if the one before is done by then
}

// event is something that happens.
type event struct {
	at time.Duration
	do func()
}

type events []event

func (e events) Len() int           { return len(e) }
func (e events) Less(i, j int) bool { return e[i].at < e[j].at }
func (e events) Swap(i, j int)      { e[i], e[j] = e[j], e[i] }
func (e *events) Push(x any)        { *e = append(*e, x.(event)) }
func (e *events) Pop() any {
	old := *e
	x := old[len(old)-1]
	*e = old[:len(old)-1]
	return x
}

func newSimulation(a arrivals, dispatchers int, age time.Duration, seed int64, churn bool) *simulation {
	s := &simulation{a: a, c: newCluster(a.machines), age: age, churn: churn, rate: float64(dispatchers) / pauseMean.Seconds(), r: rand.New(rand.NewPCG(uint64(seed), 7))}
	s.total = len(a.jobs)
	if churn {
		s.total *= passes
	}
	s.fresh = nodesOf(s.c)
	for range dispatchers {
		d := &dispatcher{index: place.NewIndex(place.NewWorkload(nil)), nodes: slices.Clone(s.fresh), own: map[int]time.Duration{}}
		d.index.Update(d.nodes)
		s.views = append(s.views, d)
		s.awaitNext(d)
	}
	return s
}

func (s *simulation) after(d time.Duration, do func()) { heap.Push(&s.queue, event{s.now + d, do}) }

// run goes on until all runs have come.
func (s *simulation) run() outcome {
	for len(s.queue) > 0 {
		e := heap.Pop(&s.queue).(event)
		s.now = e.at
		e.do()
	}
	out := outcome{refusals: float64(s.refused) / float64(max(1, s.placed))}
	if s.churn {
		out.alloc = 100 * s.area / float64(s.c.capacity) / (s.areaLast - s.areaFrom).Seconds()
	} else {
		out.alloc = s.sum / float64(max(1, s.count))
	}
	return out
}

// submit takes the next job, as a dispatcher sees the machines.
func (s *simulation) submit(d *dispatcher) {
	if s.next == s.total {
		return
	}
	j := &s.a.jobs[s.next%len(s.a.jobs)]
	s.next++
	s.arrived += j.size()
	if d.recent.Add(specOf(j).Needs) {
		d.index.Expect(d.recent.Workload())
	}
	s.try(d, j, attempt{refused: map[int]bool{}})
}

// see brings a view up to what is as old as views are.
func (s *simulation) see(d *dispatcher) {
	for ; d.seen < len(s.history) && s.history[d.seen].at <= s.now-s.age; d.seen++ {
		if c := s.history[d.seen]; d.own[c.machine] < c.at {
			d.tell(c.machine, c.live)
		}
	}
}

func (d *dispatcher) tell(m int, l *fleet.Live) {
	d.nodes[m].Live = l
	d.index.Set(&d.nodes[m])
}

// attempt is how often machines were asked for a job, and which have refused it.
type attempt struct {
	tries   int
	refused map[int]bool
}

// try asks a few of the best machines how they are, and the best of those to
// take the job.
func (s *simulation) try(d *dispatcher, j *job, a attempt) {
	s.see(d)
	spec := specOf(j)
	skip := func(id identity.ID) bool { return a.refused[rankOf(id)] }
	n := len(s.c.machines)
	window := d.index.Best(spec, benchFrom, benchTime, place.Window(s.rate, s.age, n), skip)
	if len(window) == 0 || a.tries == maxTries {
		s.done(d)
		return
	}
	a.tries++
	s.r.Shuffle(len(window), func(i, k int) { window[i], window[k] = window[k], window[i] })
	window = window[:min(len(window), place.ProbesFor(s.rate, s.age, n))]
	s.after(2*message, func() { // asked, and answered
		for _, c := range window {
			m := rankOf(c.Node)
			d.own[m] = s.now
			d.tell(m, s.fresh[m].Live)
		}
		best := d.index.Best(spec, benchFrom, benchTime, 1, func(id identity.ID) bool {
			return !slices.ContainsFunc(window, func(c place.Candidate) bool { return c.Node == id })
		})
		if len(best) == 0 { // which the view knows now
			s.try(d, j, a)
			return
		}
		m := rankOf(best[0].Node)
		s.after(message, func() { s.order(d, j, m, a) })
	})
}

// order has a machine take a job, or refuse it.
func (s *simulation) order(d *dispatcher, j *job, m int, a attempt) {
	if !s.c.fits(m, j) {
		if s.counts() {
			s.refused++
		}
		a.refused[m] = true
		s.after(message, func() {
			d.own[m] = s.now
			d.tell(m, s.fresh[m].Live)
			s.try(d, j, a)
		})
		return
	}
	devices := admit(specOf(j), &s.fresh[m])
	s.take(m, j, devices, 1)
	if s.counts() {
		s.placed++
	}
	if s.churn {
		s.after(s.length(), func() { s.take(m, j, devices, -1) })
	}
	s.after(message, func() {
		d.own[m] = s.now
		d.tell(m, s.fresh[m].Live)
		s.done(d)
	})
}

// counts reports whether what happens now is counted: before there is little left,
// or, where runs depart, once as many do as come.
func (s *simulation) counts() bool {
	if s.churn {
		return s.next > s.total/2
	}
	return s.arrived < s.c.capacity*9/10
}

// length of a run, where runs depart: so that they ask for 110 % of all GPUs.
func (s *simulation) length() time.Duration {
	size := 0
	for i := range s.a.jobs {
		size += s.a.jobs[i].size()
	}
	mean := 1.1 * float64(s.c.capacity) / (float64(size) / float64(len(s.a.jobs))) / s.rate
	return time.Duration(s.r.ExpFloat64() * mean * float64(time.Second))
}

// take gives a job its devices, or takes them back.
func (s *simulation) take(m int, j *job, devices []int, sign int) {
	s.sample()
	if sign > 0 {
		s.c.take(m, j, devices)
	} else {
		s.c.release(m, j, devices)
	}
	s.used += sign * j.size()
	live := liveOf(s.c, m)
	s.fresh[m].Live = live
	s.history = append(s.history, change{s.now, m, live})
	if sign < 0 { // what is freed is told at once
		at := s.now
		s.after(message, func() {
			for _, d := range s.views {
				if d.own[m] < at {
					d.own[m] = at
					d.tell(m, live)
				}
			}
		})
	}
}

// sample counts what is in use.
func (s *simulation) sample() {
	if s.next > s.total/2 && s.next < s.total {
		if s.areaLast == 0 {
			s.areaFrom, s.areaLast = s.now, s.now
		}
		s.area += float64(s.used) * (s.now - s.areaLast).Seconds()
		s.areaLast = s.now
	}
}

// done lets the dispatcher go on with its next job.
func (s *simulation) done(d *dispatcher) {
	if math.RoundToEven(100*float64(s.arrived)/float64(s.c.capacity)) == 100 {
		s.sum += 100 * float64(s.used) / float64(s.c.capacity)
		s.count++
	}
	s.awaitNext(d)
}

// awaitNext has a dispatcher submit its next job when it is due: what is asked for
// in a time must not depend on how long it takes to find a place.
func (s *simulation) awaitNext(d *dispatcher) {
	d.due += time.Duration(s.r.ExpFloat64() * float64(pauseMean))
	s.after(max(0, d.due-s.now), func() { s.submit(d) })
}
