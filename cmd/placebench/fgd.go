package main

import (
	"fmt"
	"math"
	"slices"
	"strings"
)

// fgd is the paper's policy, as its authors' program has it: the score is cut to
// an integer from 0 to 100, and ties go by rank. It knows the whole trace's
// distribution of jobs.
type fgd struct {
	c      *cluster
	kinds  []kind
	before []float64 // fragmentation of each machine
	memo   map[string][]memo
	ages   []int
}

// kind is a kind of jobs, and what part of all it is.
type kind struct {
	job

	weight float64
}

type memo struct {
	age    int // of the machine, plus one
	score  float64
	device int
}

func newFGD(c *cluster, a *arrivals) chooser {
	p := &fgd{c: c, kinds: kindsOf(a.all), before: make([]float64, len(c.machines)), ages: make([]int, len(c.machines)), memo: map[string][]memo{}}
	for m := range c.machines {
		p.changed(m)
	}
	return p
}

func keyOf(j *job) string { return fmt.Sprint(j.cpu, j.gpus, j.milli, j.models) }

// kindsOf returns the most usual kinds that 95 % of jobs are of.
func kindsOf(jobs []job) []kind {
	index := map[string]int{}
	var out []kind
	for _, j := range jobs {
		i, ok := index[keyOf(&j)]
		if !ok {
			i = len(out)
			index[keyOf(&j)] = i
			out = append(out, kind{job: j})
		}
		out[i].weight++
	}
	slices.SortStableFunc(out, func(a, b kind) int { return int(b.weight - a.weight) })
	sum := 0.0
	for i := range out {
		if sum >= 0.95*float64(len(jobs)) {
			out = out[:i]
			break
		}
		sum += out[i].weight
	}
	for i := range out {
		out[i].weight /= sum
	}
	return out
}

func (p *fgd) changed(m int) {
	p.ages[m]++
	p.before[m] = p.fragmentation(m, p.c.cpu[m], p.c.free[m])
}

// fragmentation is how much of a machine's idle GPUs the average job cannot use.
func (p *fgd) fragmentation(m, cpu int, free []int) (sum float64) {
	idle := 0
	for _, f := range free {
		idle += f
	}
	for i := range p.kinds {
		k := &p.kinds[i]
		bad := idle
		if k.gpus > 0 && cpu >= k.cpu && (len(k.models) == 0 || slices.Contains(k.models, p.c.machines[m].model)) {
			enough, small := 0, 0
			for _, f := range free {
				if f >= k.milli {
					enough++
				} else {
					small += f
				}
			}
			if enough >= k.gpus {
				bad = small
			}
		}
		sum += k.weight * float64(bad)
	}
	return sum
}

func (p *fgd) place(j *job) (int, []int) {
	key := keyOf(j) + strings.Repeat(" ", 1) + fmt.Sprint(j.memory)
	known := p.memo[key]
	if known == nil {
		known = make([]memo, len(p.c.machines))
		p.memo[key] = known
	}
	best := -1
	for m := range p.c.machines {
		k := &known[m]
		if k.age != p.ages[m] {
			*k = p.look(m, j)
			k.age = p.ages[m]
		}
		if k.score >= 0 && (best < 0 || k.score > known[best].score) {
			best = m
		}
	}
	switch {
	case best < 0:
		return -1, nil
	case j.part():
		return best, []int{known[best].device}
	}
	return best, p.c.first(best, j)
}

// look scores a machine; less than zero where the job does not fit.
func (p *fgd) look(m int, j *job) memo {
	if !p.c.fits(m, j) {
		return memo{score: -1}
	}
	score := func(devices []int) float64 {
		free := slices.Clone(p.c.free[m])
		for _, d := range devices {
			free[d] -= j.milli
		}
		delta := p.before[m] - p.fragmentation(m, p.c.cpu[m]-j.cpu, free)
		return math.Trunc(100 / (1 + math.Exp(-delta/1000)))
	}
	if !j.part() {
		return memo{score: score(p.c.first(m, j))}
	}
	best := memo{score: -1}
	for d, f := range p.c.free[m] {
		if f >= j.milli {
			if s := score([]int{d}); s > best.score {
				best = memo{score: s, device: d}
			}
		}
	}
	return best
}
