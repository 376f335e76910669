package place

import (
	"cmp"
	"math/bits"
	"slices"
	"strings"

	"github.com/balanceai/balance/exec/task"
)

// whole is a device, in thousandths of one.
const whole = 1000

// Workload is what runs usually ask for: a histogram with few shapes, the most
// usual first. Placement leaves free what these shapes could use. It does not
// change.
type Workload struct {
	shapes  []shape
	perGPU  float64 // thousandths of a core that the runs with GPUs ask for, for each thousandth of a device
	steps   []int64 // how much CPU the shapes with GPUs ask for, the least first
	bySteps []int   // those shapes, in that order
}

// shape is what some part of all runs asks for.
type shape struct {
	weight float64 // that part; all shapes together have 1
	cpu    int64   // thousandths of a core
	gpus   int
	share  int        // of each device, in thousandths
	vram   task.Bytes // on each device
	models []string   // as [task.Needs.GPUModels]
	step   int        // of cpu, in the steps of the workload
}

// How many shapes count at least and at most, and what part of all runs is
// enough: rare shapes cost time and change nothing.
const (
	minShapes = 20
	maxShapes = 64
	mostRuns  = 0.95
)

// NewWorkload makes a histogram of what runs have asked for. Without any it
// takes what is usual: see [usual].
func NewWorkload(runs []task.Needs) *Workload {
	if len(runs) == 0 {
		runs = usual()
	}
	count := map[string]*shape{}
	for _, n := range runs {
		s := shapeOf(n)
		if old := count[s.key()]; old != nil {
			old.weight++
			continue
		}
		s.weight = 1
		count[s.key()] = &s
	}
	w := &Workload{}
	for _, s := range count {
		w.shapes = append(w.shapes, *s)
	}
	slices.SortFunc(w.shapes, func(a, b shape) int {
		return cmp.Or(cmp.Compare(b.weight, a.weight), strings.Compare(a.key(), b.key()))
	})
	w.cut(float64(len(runs)))
	w.climb()
	return w
}

// climb puts the shapes with GPUs in the order of the CPU that they ask for.
func (w *Workload) climb() {
	for i := range w.shapes {
		if s := &w.shapes[i]; s.gpus > 0 {
			w.bySteps = append(w.bySteps, i)
			w.steps = append(w.steps, s.cpu)
		}
	}
	slices.SortStableFunc(w.bySteps, func(a, b int) int { return cmp.Compare(w.shapes[a].cpu, w.shapes[b].cpu) })
	slices.Sort(w.steps)
	w.steps = slices.Compact(w.steps)
	for _, i := range w.bySteps {
		w.shapes[i].step, _ = slices.BinarySearch(w.steps, w.shapes[i].cpu)
	}
}

// step returns how many steps so much CPU is enough for.
func (w *Workload) step(cpu int64) int {
	n, exact := slices.BinarySearch(w.steps, cpu)
	if exact {
		n++
	}
	return n
}

// cut leaves the most usual shapes.
func (w *Workload) cut(runs float64) {
	var sum, cpu, gpu float64
	for i, s := range w.shapes {
		if sum >= mostRuns*runs && i >= minShapes || i == maxShapes {
			w.shapes = w.shapes[:i]
			break
		}
		sum += s.weight
	}
	for i := range w.shapes {
		s := &w.shapes[i]
		s.weight /= sum
		if s.gpus > 0 {
			cpu += s.weight * float64(s.cpu)
			gpu += s.weight * float64(s.gpus*s.share)
		}
	}
	if gpu > 0 {
		w.perGPU = cpu / gpu
	}
}

// usual is the workload that is expected where none has been seen: mostly runs
// without a GPU, and others from a quarter of a device to eight devices, with
// the CPU that usually goes with them.
func usual() []task.Needs {
	var out []task.Needs
	add := func(times int, n task.Needs) {
		for range times {
			out = append(out, n)
		}
	}
	add(3, task.Needs{CPU: 2 * task.Core})
	add(1, task.Needs{CPU: 6 * task.Core})
	add(2, task.Needs{CPU: 2 * task.Core, GPUs: 1, Share: 250})
	add(2, task.Needs{CPU: 3 * task.Core, GPUs: 1, Share: 500})
	for _, vram := range []task.Bytes{10, 20, 40, 70} {
		add(2, task.Needs{CPU: 6 * task.Core, GPUs: 1, VRAM: vram * task.GiB})
	}
	add(1, task.Needs{CPU: 16 * task.Core, GPUs: 2})
	add(1, task.Needs{CPU: 32 * task.Core, GPUs: 4})
	add(2, task.Needs{CPU: 64 * task.Core, GPUs: 8})
	return out
}

// shapeOf makes amounts coarse, so that runs which differ little have one shape.
func shapeOf(n task.Needs) shape {
	n = n.Held()
	s := shape{cpu: coarseCPU(n.CPU), gpus: n.GPUs}
	if n.GPUs == 0 {
		return s
	}
	s.share, s.vram = cmp.Or(n.Share, whole), coarseBytes(n.VRAM)
	s.models = slices.Sorted(slices.Values(n.GPUModels))
	return s
}

// most bounds amounts that anybody may have written, so that they can be added.
const most = 1 << 50

// coarseCPU rounds up to two decimal digits.
func coarseCPU(n task.CPU) int64 {
	n = min(n, most)
	step := task.CPU(1)
	for n/step >= 100 {
		step *= 10
	}
	return int64((n + step - 1) / step * step)
}

// coarseBytes rounds up to four binary digits.
func coarseBytes(n task.Bytes) task.Bytes {
	n = min(n, most)
	step := task.Bytes(1) << max(0, bits.Len64(uint64(n))-4)
	return (n + step - 1) / step * step
}

func (s *shape) key() string {
	b := make([]byte, 0, 64)
	for _, n := range []uint64{uint64(s.cpu), uint64(s.gpus), uint64(s.share), uint64(s.vram)} {
		b = append(b, byte(n>>56), byte(n>>48), byte(n>>40), byte(n>>32), byte(n>>24), byte(n>>16), byte(n>>8), byte(n))
	}
	return string(append(b, strings.Join(s.models, "\x00")...))
}

// Recent keeps what the latest runs have asked for, for [NewWorkload]. The zero
// Recent is empty.
type Recent struct {
	runs []task.Needs // a ring
	next int
	news int // runs since Add has last asked for another workload
}

// recentRuns is how many runs count: more do not make the choice better, and
// fewer follow a change sooner.
const recentRuns = 1000

// enough is how many runs tell more than what is usual.
const enough = 50

// Add takes a run, and reports whether the workload should be made anew: as soon
// as there is enough to tell, and then when half of what it is made of is new.
func (r *Recent) Add(n task.Needs) (fresh bool) {
	if len(r.runs) < recentRuns {
		r.runs = append(r.runs, n)
	} else {
		r.runs[r.next] = n
		r.next = (r.next + 1) % recentRuns
	}
	r.news++
	if fresh = len(r.runs) >= enough && r.news >= len(r.runs)/2; fresh {
		r.news = 0
	}
	return fresh
}

// Workload returns what runs are expected to ask for.
func (r *Recent) Workload() *Workload {
	if len(r.runs) < enough {
		return NewWorkload(nil)
	}
	return NewWorkload(r.runs)
}
