package place

import (
	"slices"

	"github.com/balanceai/balance/exec/fleet"
	"github.com/balanceai/balance/exec/task"
)

// stand is how a machine stands, whatever run asks for it. It is worked out once
// for each change of the machine.
type stand struct {
	live   fleet.Live
	cpu    task.CPU   // free for runs
	memory task.Bytes // free for runs
	pool   []device   // all that the machine has, the fullest first

	// What packing sees: thousandths that are free of each device of pool, and
	// for each shape of the workload how many devices fit it and how much is
	// free on the others.
	free    []int16
	classes []*class
	idle    int // the sum of free
	fits    []int16
	small   []int32
	loss    float64
}

// tolerated is how much of a device other programs may use without making it
// less than whole to packing: a desktop always uses some.
const tolerated = whole / 5

// newStand works out how a machine stands that has said what it offers.
func (sc *scale) newStand(node *fleet.Node) *stand {
	o := node.Offer
	s := &stand{live: liveOf(node)}
	s.cpu = freeCPU(o, &s.live)
	s.memory = freeMemory(o, &s.live)
	s.pool = s.devices(o)
	slices.SortStableFunc(s.pool, fullest)
	n, shapes := len(s.pool), sc.workload.shapes
	s.free, s.classes = make([]int16, n), make([]*class, n)
	for i := range s.pool {
		d := &s.pool[i]
		d.index = i
		s.classes[i] = sc.class(keyOf(o, d.Device))
		s.free[i] = d.thousandths()
		s.idle += int(s.free[i])
	}
	s.fits, s.small = make([]int16, len(shapes)), make([]int32, len(shapes))
	for i := range shapes {
		for j, free := range s.free {
			if free >= s.classes[j].need[i] {
				s.fits[i]++
			} else {
				s.small[i] += int32(free)
			}
		}
	}
	s.loss = sc.workload.lost(s, int64(s.cpu), nil)
	return s
}

// devices joins what the machine offers with what is free of it.
func (s *stand) devices(o *fleet.Offer) []device {
	out := make([]device, len(o.GPUs))
	for i := range o.GPUs {
		out[i] = deviceOf(o, &s.live, i, s.memory)
	}
	return out
}

// deviceOf joins what a device is with what is free of it, on a machine with so
// much memory free. It counts as free if the live facts say nothing about it.
func deviceOf(o *fleet.Offer, live *fleet.Live, i int, memory task.Bytes) device {
	d := &o.GPUs[i]
	out := device{Device: d, VRAM: d.VRAM, free: d.VRAM}
	if i < len(live.GPUs) {
		l := &live.GPUs[i]
		out.held, out.share, out.owner = l.Held, l.Share, l.Owner
		out.free = l.FreeVRAM
		if l.Share > 0 { // what is promised may not be in use yet
			out.free = min(l.FreeVRAM, sub(d.VRAM, l.Promised))
		}
	}
	if d.Unified && d.VRAM == 0 { // the driver does not tell a part of its own
		out.VRAM, out.free = o.Memory, memory
	}
	return out
}

// thousandths returns how much of the device is free, as packing sees it.
func (d *device) thousandths() int16 {
	if d.held {
		return 0
	}
	free := whole - d.share
	if used := whole - int(fraction(d.free, d.VRAM)*whole); used-d.share > tolerated {
		free = min(free, whole-used)
	}
	return int16(max(0, free))
}

// claim is what a run takes of a device.
type claim struct {
	device int   // of the pool
	part   int16 // in thousandths of it
}

// claims returns what the run would take of some devices.
func (f *fit) claims(devices []*device) []claim {
	out := f.buffer[:0]
	for _, d := range devices {
		out = append(out, claim{d.index, min(thousandths(f.part(), f.needs.VRAM, d.VRAM), whole, f.free[d.index])})
	}
	f.buffer = out
	return out
}

// packs returns the level of giving some devices to the run.
func (f *fit) packs(devices []*device) int {
	claims := f.claims(devices)
	pay := 0.0
	for _, c := range claims {
		pay += float64(c.part) * f.classes[c.device].price
	}
	return level(f.loss, f.scale.workload.lost(f.stand, int64(f.cpu)-int64(f.needs.CPU), claims), pay)
}
