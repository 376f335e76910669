package main

import "slices"

// cluster is what is free.
type cluster struct {
	machines []machine
	cpu      []int
	memory   []int
	free     [][]int // of each GPU, in thousandths
	capacity int     // of all GPUs
}

func newCluster(machines []machine) *cluster {
	c := &cluster{machines: machines}
	for _, m := range machines {
		gpus := make([]int, m.gpus)
		for i := range gpus {
			gpus[i] = 1000
		}
		c.cpu, c.memory, c.free = append(c.cpu, m.cpu), append(c.memory, m.memory), append(c.free, gpus)
		c.capacity += 1000 * m.gpus
	}
	return c
}

// fits reports whether a job could be on a machine.
func (c *cluster) fits(m int, j *job) bool {
	if j.cpu > c.cpu[m] || j.memory > c.memory[m] || j.gpus > 0 && len(j.models) > 0 && !slices.Contains(j.models, c.machines[m].model) {
		return false
	}
	enough := 0
	for _, f := range c.free[m] {
		if f >= j.milli {
			enough++
		}
	}
	return enough >= j.gpus
}

// take gives a job devices of a machine.
func (c *cluster) take(m int, j *job, devices []int) {
	c.cpu[m] -= j.cpu
	c.memory[m] -= j.memory
	for _, d := range devices {
		c.free[m][d] -= j.milli
	}
}

// release takes them back.
func (c *cluster) release(m int, j *job, devices []int) {
	c.cpu[m] += j.cpu
	c.memory[m] += j.memory
	for _, d := range devices {
		c.free[m][d] += j.milli
	}
}

// first returns the first devices that have room; for a part of one, the fullest.
func (c *cluster) first(m int, j *job) []int {
	var out []int
	for d, f := range c.free[m] {
		switch {
		case f < j.milli:
		case len(out) < j.gpus:
			out = append(out, d)
		case j.part() && f < c.free[m][out[0]]:
			out[0] = d
		}
	}
	return out
}

// idle is how much of all GPUs of a machine is free.
func (c *cluster) idle(m int) (sum int) {
	for _, f := range c.free[m] {
		sum += f
	}
	return sum
}

// used reports whether a GPU of the machine is in use.
func (c *cluster) used(m int) bool { return c.idle(m) < 1000*len(c.free[m]) }
