package place

import (
	"math"

	"github.com/balanceai/balance/exec/task"
)

// Packing asks of each machine that fits: how much of what is free now would no
// usual run be able to use any more, after this one? The less, the better. What
// is lost has three terms, each in thousandths of a device:
//
//   - Fragmentation: what is free but useless to a run drawn from the workload,
//     because a device has too little left, or the machine too few devices or
//     too little CPU. It is the gradient of this measure that counts, as in
//     "Beware of Fragmentation: Scheduling GPU-Sharing Workloads with
//     Fragmentation Gradient Descent" (Weng et al., USENIX ATC 2023).
//   - Stranding: devices that will be left without CPU if the machine goes on
//     filling with usual runs, which fragmentation sees only when it is there.
//   - Scarcity: devices of a model that other runs insist on, in proportion to
//     how much of that model's capacity they will ask for.
//
// Losses that differ by less than a dead band are equal, as in the authors' own
// program: small differences are noise, and following them costs more than it
// gives. Then the machine with the least CPU left over comes first.
const (
	scarcity = 0.5 // of the price of a device, to its size
	band     = 500 // thousandths of a device; a level is a twenty-fifth of it where losses are small
	levels   = 100
)

// class is what devices of one model and size are to the shapes of a workload.
type class struct {
	id    int    // counts from 0
	words string // of the model, as [words] has them
	vram  task.Bytes
	need  []int16 // thousandths that a run of a shape takes of one; more than whole: it cannot
	price float64 // how much of the capacity of this model other runs insist on; 1 is all of it
}

// impossible is more than any device has.
const impossible = whole + 1

// thousandths returns how much of a device with so much VRAM a share and an
// amount of VRAM are: the larger part counts.
func thousandths(share int, need, vram task.Bytes) int16 {
	switch {
	case need > vram && vram > 0:
		return impossible
	case share == whole || need == 0 || vram == 0:
		return int16(share)
	}
	return int16(max(share, int(math.Ceil(whole*float64(need)/float64(vram)))))
}

// newClass holds devices against the shapes.
func (w *Workload) newClass(model string, vram task.Bytes) *class {
	c := &class{words: words(model), vram: vram, need: make([]int16, len(w.shapes))}
	for i := range w.shapes {
		s := &w.shapes[i]
		if s.gpus == 0 {
			continue
		}
		c.need[i] = thousandths(s.share, s.vram, vram)
		if len(s.models) > 0 && !hasWords(c.words, allWords(s.models)) {
			c.need[i] = impossible
		}
	}
	return c
}

// lost returns what of a machine is useless to usual runs, or will be, with so
// much CPU free and after some claims.
func (w *Workload) lost(s *stand, cpu int64, claims []claim) float64 {
	idle, useless := w.fragmented(s, cpu, claims)
	if idle == 0 {
		return 0
	}
	return useless + w.stranded(float64(idle), cpu)
}

// stranded returns how much of what is idle will be left without CPU.
func (w *Workload) stranded(idle float64, cpu int64) float64 {
	return max(0, idle-float64(cpu)/max(1, w.perGPU))
}

// fragmented returns how much of all devices is idle, and how much of that a run
// of the workload cannot use, on average. A run that does not fit can use
// nothing; another one only the devices that have enough left for it.
func (w *Workload) fragmented(s *stand, cpu int64, claims []claim) (idle int, useless float64) {
	idle = s.idle
	for _, c := range claims {
		idle -= int(c.part)
	}
	for i := range w.shapes {
		sh := &w.shapes[i]
		bad := idle
		if sh.gpus > 0 && cpu >= sh.cpu {
			if fits, small := s.with(i, claims); fits >= sh.gpus {
				bad = small
			}
		}
		useless += sh.weight * float64(bad)
	}
	return idle, useless
}

// with returns how many devices fit shape i after some claims, and how much is
// free on the others.
func (s *stand) with(i int, claims []claim) (fits, small int) {
	fits, small = int(s.fits[i]), int(s.small[i])
	for _, c := range claims {
		need, before := s.classes[c.device].need[i], s.free[c.device]
		after := before - c.part
		switch {
		case after >= need:
		case before >= need:
			fits--
			small += int(after)
		default:
			small -= int(c.part)
		}
	}
	return fits, small
}

// level returns how good it is to go from one loss to another, and to pay for
// devices: from 0 to [levels], half of that where nothing changes.
func level(before, after, pay float64) int {
	return int(levels / (1 + math.Exp(-(before-after-scarcity*pay)/band)))
}
