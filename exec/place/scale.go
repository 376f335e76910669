package place

import (
	"cmp"
	"slices"

	"github.com/balanceai/balance/exec/fleet"
	"github.com/balanceai/balance/exec/task"
)

// scale is what machines are measured by: the workload, and what their devices
// are to it.
type scale struct {
	workload *Workload
	classes  map[classKey]*class
	capacity map[classKey]int // thousandths of devices that the mesh has of each

	profiles map[string]*profile // of what [scale.profile] makes of the devices
	asked    uint64              // counts the runs that bounds were asked for

	scratch [3][]*device // for one check at a time
	alike   []alike      // for one bound at a time
	key     []byte
	steps   []float64
}

type classKey struct {
	model string
	vram  task.Bytes
}

func newScale(w *Workload) *scale {
	return &scale{workload: w, classes: map[classKey]*class{}, capacity: map[classKey]int{}, profiles: map[string]*profile{}, steps: make([]float64, len(w.steps)+1)}
}

func (sc *scale) class(k classKey) *class {
	c := sc.classes[k]
	if c == nil {
		c = sc.workload.newClass(k.model, k.vram)
		c.id = len(sc.classes)
		sc.classes[k] = c
	}
	return c
}

// count adds the devices of an offer to what the mesh has, or takes them away.
func (sc *scale) count(o *fleet.Offer, sign int) {
	if o == nil || !o.Terms.Offers {
		return
	}
	for i := range o.GPUs {
		sc.capacity[keyOf(o, &o.GPUs[i])] += sign * whole
	}
}

func keyOf(o *fleet.Offer, d *fleet.Device) classKey {
	vram := d.VRAM
	if d.Unified && vram == 0 {
		vram = o.Memory
	}
	return classKey{d.Model, vram}
}

// price sets what devices of each model cost: how much of their capacity the
// usual runs will take that insist on some models, in proportion to how much of
// all capacity usual runs take.
func (sc *scale) price() {
	all, demand := 0, 0.0
	keys := make([]classKey, 0, len(sc.capacity))
	for k, n := range sc.capacity {
		if n > 0 {
			keys = append(keys, k)
			all += n
		}
	}
	slices.SortFunc(keys, func(a, b classKey) int { return cmp.Or(cmp.Compare(a.model, b.model), cmp.Compare(a.vram, b.vram)) })
	asked := make([]float64, len(keys))
	for i := range sc.workload.shapes {
		s := &sc.workload.shapes[i]
		size := s.weight * float64(s.gpus*s.share)
		demand += size
		if len(s.models) > 0 {
			sc.spread(keys, i, size, asked)
		}
	}
	for i, k := range keys {
		sc.class(k).price = asked[i] / demand * float64(all) / float64(sc.capacity[k])
	}
}

// spread adds what a shape asks for to the models that it could take, in
// proportion to their capacity.
func (sc *scale) spread(keys []classKey, shape int, size float64, asked []float64) {
	sum := 0
	for _, k := range keys {
		if sc.class(k).need[shape] <= whole {
			sum += sc.capacity[k]
		}
	}
	for i, k := range keys {
		if sc.class(k).need[shape] <= whole {
			asked[i] += size * float64(sc.capacity[k]) / float64(sum)
		}
	}
}
