package main

import (
	"iter"
	"math"
	"math/rand/v2"
	"slices"
)

// chooser decides where jobs go.
type chooser interface {
	// place returns a machine and devices of it, or -1.
	place(*job) (machine int, devices []int)
	// changed says that a machine has been given a job, or has lost one.
	changed(machine int)
}

type policyMaker func(*cluster, *arrivals) chooser

// newPolicy has the policies by name: the product's, the one of the paper, and
// those that the paper compares it with.
var newPolicy = map[string]policyMaker{
	"balance":    newProduct,
	"fgd":        newFGD,
	"best-fit":   func(c *cluster, _ *arrivals) chooser { return &lowest{c, bestFit} },
	"packing":    func(c *cluster, _ *arrivals) chooser { return &lowest{c, packing} },
	"clustering": newClustering,
	"dot":        func(c *cluster, _ *arrivals) chooser { return &lowest{c, dot} },
	"random":     func(c *cluster, _ *arrivals) chooser { return &random{c, rand.New(rand.NewPCG(1, 2))} },
}

func policyNames() iter.Seq[string] {
	return slices.Values([]string{"balance", "fgd", "best-fit", "packing", "clustering", "dot", "random"})
}

// What the largest machine of the trace has, by which the paper's baselines
// scale amounts.
const (
	allCPU = 128_000
	allGPU = 8_000
)

// lowest takes the machine with the lowest cost; machines with equal costs by
// their rank.
type lowest struct {
	c    *cluster
	cost func(c *cluster, m int, j *job) int
}

func (p *lowest) changed(int) {}

func (p *lowest) place(j *job) (int, []int) {
	best, least := -1, math.MaxInt
	for m := range p.c.machines {
		if p.c.fits(m, j) {
			if cost := p.cost(p.c, m, j); cost < least {
				best, least = m, cost
			}
		}
	}
	if best < 0 {
		return -1, nil
	}
	return best, p.c.first(best, j)
}

// bestFit leaves the least CPU and GPU.
func bestFit(c *cluster, m int, j *job) int {
	return int(100 * (0.5*float64(c.cpu[m]-j.cpu)/allCPU + 0.5*float64(c.idle(m)-j.size())/allGPU))
}

// dot takes where the least of what is asked for most is free.
func dot(c *cluster, m int, j *job) int {
	return int(100 * (float64(c.cpu[m])*float64(j.cpu)/(allCPU*allCPU) + float64(c.idle(m))*float64(j.size())/(allGPU*allGPU)) / 2)
}

// packing prefers a GPU that is in use to a free one, and that to a machine that
// is all free.
func packing(c *cluster, m int, j *job) int {
	if j.gpus == 0 {
		return 0
	}
	if f := c.free[m][c.first(m, j)[0]]; j.part() && f < 1000 {
		return f
	}
	if c.used(m) {
		return 1000 + c.idle(m)
	}
	return 100_000 + c.idle(m)
}

// clustering keeps jobs of one class together.
type clustering struct {
	lowest

	classes [][]int // of each machine, how many jobs of each class
}

func newClustering(c *cluster, _ *arrivals) chooser {
	p := &clustering{classes: make([][]int, len(c.machines))}
	for i := range p.classes {
		p.classes[i] = make([]int, 5)
	}
	p.lowest = lowest{c, p.rank}
	return p
}

// classOf is a part of a GPU, or one, two, four or eight.
func classOf(j *job) int {
	if j.part() {
		return 0
	}
	return min(4, 1+int(math.Log2(float64(j.gpus))))
}

func (p *clustering) rank(c *cluster, m int, j *job) int {
	if j.gpus == 0 {
		return 0
	}
	own, others := p.classes[m][classOf(j)], 0
	for class, n := range p.classes[m] {
		if class != classOf(j) {
			others += n
		}
	}
	group := 3
	switch {
	case own > 0 && others == 0:
		group = 0
	case own > 0:
		group = 1
	case others == 0:
		group = 2
	}
	return 100_000*group + c.idle(m)
}

func (p *clustering) place(j *job) (int, []int) {
	m, devices := p.lowest.place(j)
	if m >= 0 && j.gpus > 0 {
		p.classes[m][classOf(j)]++
	}
	return m, devices
}

// random takes any machine that fits, and any GPU of it.
type random struct {
	c *cluster
	r *rand.Rand
}

func (p *random) changed(int) {}

func (p *random) place(j *job) (int, []int) {
	best, seen := -1, 0
	for m := range p.c.machines {
		if p.c.fits(m, j) {
			if seen++; p.r.IntN(seen) == 0 {
				best = m
			}
		}
	}
	if best < 0 {
		return -1, nil
	}
	var devices []int
	for _, d := range p.r.Perm(len(p.c.free[best])) {
		if len(devices) < j.gpus && p.c.free[best][d] >= j.milli {
			devices = append(devices, d)
		}
	}
	return best, devices
}
