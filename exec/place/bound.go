package place

import (
	"cmp"
	"encoding/binary"
	"math"
	"slices"
	"time"

	"github.com/balanceai/balance/exec/fleet"
	"github.com/balanceai/balance/exec/policy"
	"github.com/balanceai/balance/exec/task"
)

// A bound is what a machine could score at most. It is never below the score, and
// seldom above it where the machine fits, for much less work: what no run changes
// is worked out once for each change of the machine, into a brief; and what
// packing makes of its devices once in a decision for all machines whose devices
// look the same, which are of one profile.

// brief is what bounds need to know of a machine.
type brief struct {
	version uint64     // of the machine; grows
	profile *profile   // nil: nothing was worked out
	cpu     task.CPU   // free for runs
	memory  task.Bytes // free for runs
	disk    task.Bytes
	vram    task.Bytes    // free on the device that has the most
	loss    float64       // as [stand] has it
	queue   time.Duration // of those who wait there
	link    link
	points  int // of those parts of the score that are the same for all runs
}

// profile is what packing sees of the devices of a machine.
type profile struct {
	devices []alike
	idle    int       // thousandths that are free
	fits    []int16   // as [stand] has them
	small   []int32   // as [stand] has them
	useless []float64 // how much of idle usual runs cannot use, by the step of [Workload.step]

	// What the run would leave that was asked for last.
	asked uint64    // which one that was
	fit   bool      // it could fit
	after float64   // idle then, at least
	cost  []float64 // useless then, at least, and what the devices cost; by the step
}

// alike is devices that look the same to packing.
type alike struct {
	class *class
	free  int16 // thousandths
	left  int16 // thousandths that are not promised to runs
	count int
}

// spareProfiles is how many profiles are kept that no machine has any more.
const spareProfiles = 256

// closed is the profile of machines that take no runs.
var closed = &profile{}

// fill works out the brief of a machine.
func (b *brief) fill(sc *scale, n *fleet.Node) {
	if n.Offer == nil || !n.Offer.Terms.Offers || isDown(n) {
		b.profile = closed
		return
	}
	live := liveOf(n)
	b.cpu, b.memory, b.disk = freeCPU(n.Offer, &live), freeMemory(n.Offer, &live), live.FreeDisk
	b.queue, b.link = queueOf(&live), linkTo(n)
	b.points = powerScore(n.Offer, &live).Points + nearScore(n)
	list := sc.alike[:0]
	var class *class
	for i := range n.Offer.GPUs {
		d := deviceOf(n.Offer, &live, i, b.memory)
		if !d.held {
			b.vram = max(b.vram, d.free)
		}
		if i == 0 || keyOf(n.Offer, d.Device) != keyOf(n.Offer, &n.Offer.GPUs[i-1]) {
			class = sc.class(keyOf(n.Offer, d.Device))
		}
		list = addAlike(list, alike{class, d.thousandths(), d.left(), 1})
	}
	sc.alike = list
	b.profile = sc.profile(list)
	b.loss = b.profile.useless[sc.workload.step(int64(b.cpu))] + sc.workload.stranded(float64(b.profile.idle), int64(b.cpu))
}

// addAlike adds a device to a list, which is in order.
func addAlike(list []alike, d alike) []alike {
	i, found := slices.BinarySearchFunc(list, d, func(a, b alike) int {
		return cmp.Or(cmp.Compare(a.class.id, b.class.id), cmp.Compare(a.free, b.free), cmp.Compare(a.left, b.left))
	})
	if found {
		list[i].count++
		return list
	}
	return slices.Insert(list, i, d)
}

// left returns what of the device no run was promised, in thousandths.
func (d *device) left() int16 {
	if d.held {
		return 0
	}
	return int16(min(max(0, whole-d.share), whole))
}

// profile returns that of a machine with such devices.
func (sc *scale) profile(list []alike) *profile {
	key := sc.key[:0]
	for _, d := range list {
		for _, n := range []int{d.class.id, int(d.free), int(d.left), d.count} {
			key = binary.AppendUvarint(key, uint64(n))
		}
	}
	sc.key = key
	p := sc.profiles[string(key)]
	if p == nil {
		p = sc.workload.newProfile(list)
		sc.profiles[string(key)] = p
	}
	return p
}

// forgetProfiles drops those that no machine has, once there are many.
func (sc *scale) forgetProfiles(machines int) {
	if len(sc.profiles) > machines+spareProfiles {
		clear(sc.profiles)
	}
}

func (w *Workload) newProfile(list []alike) *profile {
	p := &profile{devices: slices.Clone(list), fits: make([]int16, len(w.shapes)), small: make([]int32, len(w.shapes))}
	for _, d := range list {
		p.idle += d.count * int(d.free)
		for i, need := range d.class.need {
			if d.free >= need {
				p.fits[i] += int16(d.count)
			} else {
				p.small[i] += int32(d.count) * int32(d.free)
			}
		}
	}
	steps := make([]float64, 2*(len(w.steps)+1))
	p.useless, p.cost = steps[:len(steps)/2], steps[len(steps)/2:]
	w.useless(p.useless, p, p.idle, nil, 0, 0)
	return p
}

// useless works out for each step how much of what is idle a run of the workload
// cannot use on average, after a part was taken of so many of the devices d; where
// d is nil, at least how much, after a part was taken of so many of any.
func (w *Workload) useless(out []float64, p *profile, idle int, d *alike, count, part int) {
	sum, at := float64(idle), 0
	for _, i := range w.bySteps {
		s := &w.shapes[i]
		for ; at <= s.step; at++ {
			out[at] = sum
		}
		fits, small := int(p.fits[i]), int(p.small[i])
		switch {
		case d == nil:
			small = max(0, small-count*part)
		case int(d.free)-part >= int(d.class.need[i]):
		case d.free >= d.class.need[i]:
			fits -= count
			small += count * (int(d.free) - part)
		default:
			small -= count * part
		}
		if fits >= s.gpus {
			sum -= s.weight * float64(idle-small)
		}
	}
	for ; at < len(out); at++ {
		out[at] = sum
	}
}

// asked is a run, as bounds see it.
type asked struct {
	scale  *scale
	column *column
	spec   *task.Spec
	needs  task.Needs // what a machine would reserve
	models []string   // as [words] has them
	owner  string
	start  time.Duration // as [startOf] has it
	inputs task.Bytes    // as [sizeOf] has them
}

func (sc *scale) ask(spec *task.Spec, from policy.Asker, c *column) *asked {
	sc.asked++
	a := &asked{scale: sc, column: c, spec: spec, needs: spec.Needs.Held(), owner: from.Owner, start: startOf(spec), inputs: sizeOf(spec)}
	a.models = allWords(a.needs.GPUModels)
	return a
}

// wrongModel is in [column.parts] what a run takes of a device that it does not
// want.
const wrongModel = -1

// slack is more than what adding in another order changes.
const slack = 1e-6

// most returns what a machine could score at most, or [unfit].
func (a *asked) most(b *brief, n *fleet.Node) int {
	need := &a.needs
	if b.profile == closed || need.CPU > b.cpu || need.Memory > b.memory || need.Disk > b.disk || need.GPUs > 0 && need.VRAM > b.vram {
		return unfit
	}
	p, w := b.profile, a.scale.workload
	if p.asked != a.scale.asked {
		p.asked, p.fit = a.scale.asked, a.pack(p)
	}
	if !p.fit {
		return unfit
	}
	left := b.cpu - need.CPU
	after := p.cost[w.step(int64(left))] + w.stranded(p.after, int64(left))
	start := a.start + b.queue + b.link.send(n, toSend(a.spec, a.inputs, n))
	score := startScore(start) + level(b.loss+slack, after, 0)*levelPoints + b.points + fitScore(left)
	if len(a.spec.Prefer) > 0 {
		score += wishScore(a.spec.Prefer, n.Offer).Points
	}
	if n.Owner == a.owner {
		score += ownerPoints
	}
	return score
}

// pack works out what the run would leave of the devices of a profile, and reports
// whether they could be enough.
func (a *asked) pack(p *profile) bool {
	w, want := a.scale.workload, a.needs.GPUs
	p.after = float64(p.idle)
	if want == 0 {
		copy(p.cost, p.useless)
		return true
	}
	could, kinds, part, price := 0, 0, 0, math.Inf(1)
	for i := range p.devices {
		d := &p.devices[i]
		n, ok := a.part(d)
		if !ok {
			continue
		}
		could += d.count
		part = max(part, n)
		price = min(price, float64(want*n)*d.class.price)
		kinds++
	}
	if could < want {
		return false
	}
	p.after -= float64(want * part)
	if want > 1 && kinds > 1 { // which ones it would get is not known
		w.useless(p.cost, p, max(0, p.idle-want*part), nil, want, part)
		for i := range p.cost {
			p.cost[i] += scarcity * price
		}
		return true
	}
	for i := range p.cost {
		p.cost[i] = math.Inf(1)
	}
	steps := a.scale.steps
	for i := range p.devices {
		d := &p.devices[i]
		n, ok := a.part(d)
		if !ok {
			continue
		}
		w.useless(steps, p, p.idle-want*n, d, want, n)
		for j, useless := range steps {
			p.cost[j] = min(p.cost[j], useless+scarcity*float64(want*n)*d.class.price)
		}
	}
	return true
}

// part returns what the run would take of such a device, in thousandths that are
// free, and whether it could.
func (a *asked) part(d *alike) (n int, ok bool) {
	share := cmp.Or(a.needs.Share, whole)
	if int(d.left) < share {
		return 0, false
	}
	c := a.column
	if missing := d.class.id + 1 - len(c.parts); missing > 0 {
		c.parts = append(c.parts, make([]int16, missing)...)
	}
	part := &c.parts[d.class.id]
	if *part == 0 {
		*part = wrongModel
		if len(a.models) == 0 || hasWords(d.class.words, a.models) {
			*part = thousandths(share, a.needs.VRAM, d.class.vram)
		}
	}
	return int(min(*part, whole, d.free)), *part != wrongModel
}
