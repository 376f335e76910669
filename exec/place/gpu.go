package place

import (
	"cmp"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"unicode"

	"github.com/balanceai/balance/exec/fleet"
	"github.com/balanceai/balance/exec/task"
)

// device is a GPU and what is free on it.
type device struct {
	*fleet.Device
	VRAM  task.Bytes // all of it; of a device without its own, the machine's memory
	free  task.Bytes // what the run could get
	held  bool       // by another run, as a whole
	share int        // thousandths that runs share
	owner string     // of the runs that share it

	index int // in the pool
}

// open reports whether a run of a member's could have its part of the device, as
// far as other runs let it.
func (d *device) open(share int, owner string) bool {
	if d.held || share == whole {
		return !d.held && d.share == 0
	}
	return d.share == 0 || d.owner == owner && d.share+share <= whole
}

// part is what a run takes of each device, in thousandths.
func (f *fit) part() int { return cmp.Or(f.needs.Share, whole) }

// vram is what a run takes of the memory of a device: where it does not say, its
// part of it.
func (f *fit) vram(d *device) task.Bytes {
	if f.needs.Share == 0 {
		return f.needs.VRAM
	}
	return max(f.needs.VRAM, d.VRAM.Part(f.needs.Share))
}

// gpus picks the devices for the run.
func (f *fit) gpus() {
	want := f.needs.GPUs
	if want == 0 {
		return
	}
	pool := f.keep(0, nil, func(*device) bool { return true })
	if len(pool) < want {
		f.never("gpus", uint64(want), uint64(len(pool)), "needs %s, has %d", gpuCount(want), len(pool))
		want = len(pool) // what else is wrong with those that are there?
	}
	if len(f.needs.GPUModels) > 0 {
		phrases := allWords(f.needs.GPUModels)
		right := f.keep(1, pool, func(d *device) bool { return hasWords(f.classes[d.index].words, phrases) })
		if len(right) < want {
			f.never("gpu-model", uint64(f.needs.GPUs), uint64(len(right)), "needs %s of model %s, has %s",
				gpuCount(f.needs.GPUs), either(f.needs.GPUModels), models(pool))
		} else {
			pool = right
		}
	}
	idle := f.keep(2, pool, func(d *device) bool { return d.open(f.part(), f.from.Owner) })
	if len(idle) < want {
		f.busy(idle, pool)
		if f.needs.Share > 0 {
			return // what is left of their VRAM says the same again
		}
		idle = pool
	}
	f.pick(idle, pool, want)
}

// keep returns the devices of a list, or of the pool, that are right. It uses
// one of the scratch lists.
func (f *fit) keep(scratch int, list []*device, ok func(*device) bool) []*device {
	out := f.scale.scratch[scratch][:0]
	if list == nil {
		for i := range f.pool {
			out = append(out, &f.pool[i])
		}
	}
	for _, d := range list {
		if ok(d) {
			out = append(out, d)
		}
	}
	f.scale.scratch[scratch] = out
	return out
}

// busy tells what other runs leave.
func (f *fit) busy(idle, pool []*device) {
	if f.needs.Share == 0 {
		f.later("gpus", uint64(f.needs.GPUs), uint64(len(idle)), "needs %s; other runs hold %d of %d",
			gpuCount(f.needs.GPUs), len(pool)-len(idle), len(pool))
		return
	}
	if f.silent() {
		return
	}
	most, shares := 0, make([]int, len(pool))
	for i, d := range pool {
		if !d.held && (d.share == 0 || d.owner == f.from.Owner) {
			most = max(most, whole-d.share)
		}
		shares[i] = f.shareOf(d)
	}
	f.later("gpu-share", uint64(f.needs.Share), uint64(largest(shares, f.needs.GPUs)), "needs %s of %s; other runs leave %s at most",
		percent(f.needs.Share), gpuCount(f.needs.GPUs), percent(most))
}

// shareOf returns how much of a device the run could have at most, if it asked for
// less, in thousandths.
func (f *fit) shareOf(d *device) int {
	left := f.vramOf(d)
	if !d.open(1, f.from.Owner) || f.needs.VRAM > left {
		return 0
	}
	return min(f.needs.Share, whole-d.share, int(fraction(left, d.VRAM)*whole))
}

// vramOf returns how much of the memory of a device the run could have, if it takes
// as much of the others that have none of their own.
func (f *fit) vramOf(d *device) task.Bytes {
	if d.Unified {
		return min(d.free, f.sharedVRAM()/task.Bytes(f.needs.GPUs))
	}
	return d.free
}

// largest returns the n-th largest of a list, which it sorts, or the least if there
// are fewer.
func largest[T cmp.Ordered](list []T, n int) T {
	slices.Sort(list)
	return list[max(0, len(list)-n)]
}

// percent writes thousandths.
func percent(n int) string { return strconv.FormatFloat(float64(n)/10, 'f', -1, 64) + " %" }

// pick takes want devices with the VRAM, the fullest first. Of those that could
// give a part of one it takes the one that is packed best.
func (f *fit) pick(idle, pool []*device, want int) {
	shared := f.sharedVRAM()
	choice := f.needs.Share > 0 && want == 1
	best := 0
	for _, d := range idle {
		if len(f.devices) == want && !choice {
			return
		}
		need := f.vram(d)
		if need > d.free || d.Unified && need > shared {
			continue
		}
		if !choice {
			if d.Unified {
				shared -= need
			}
			f.devices = append(f.devices, d)
			continue
		}
		if n := f.packs([]*device{d}); n > best || len(f.devices) == 0 {
			f.devices, best = append(f.devices[:0], d), n
		}
	}
	if len(f.devices) < want {
		f.noVRAM(idle, pool)
	}
}

// noVRAM tells what the devices have instead.
func (f *fit) noVRAM(idle, pool []*device) {
	if f.silent() {
		return
	}
	most := slices.MaxFunc(idle, func(a, b *device) int { return cmp.Compare(f.vramOf(a), f.vramOf(b)) })
	frees, shares := make([]task.Bytes, len(idle)), make([]int, len(idle))
	for i, d := range idle {
		if n := f.vramOf(d); d.VRAM.Part(f.needs.Share) <= n {
			frees[i] = n
		}
		shares[i] = f.shareOf(d)
	}
	var rest string
	switch {
	case len(f.devices) > 0:
		rest = fmt.Sprintf("%d of %d have that free", len(f.devices), len(idle))
	case most.VRAM == 0:
		rest = most.Model + " does not tell how much it has"
	default:
		rest = fmt.Sprintf("the most free is %v of %v on %s", f.vramOf(most), most.VRAM, most.Model)
	}
	where := "one GPU"
	if f.needs.GPUs > 1 {
		where = "each of " + gpuCount(f.needs.GPUs)
	}
	large := 0
	for _, d := range pool {
		if d.VRAM >= f.needs.VRAM {
			large++
		}
	}
	// With as much as enough devices have, there would be room.
	rule, need, have := "vram", uint64(f.vram(most)), uint64(largest(frees, f.needs.GPUs))
	if share := largest(shares, f.needs.GPUs); share > 0 {
		rule, need, have = "gpu-share", uint64(f.needs.Share), uint64(share)
	}
	f.refuse(large >= f.needs.GPUs, rule, need, have, "needs %v of VRAM on %s; %s", f.vram(most), where, rest)
}

// sharedVRAM is what the run leaves of the machine's memory for the devices that
// have none of their own: one byte does not count as both.
func (f *fit) sharedVRAM() task.Bytes { return sub(f.memory, f.needs.Memory) }

// fullest orders devices: those with memory of their own before those that
// share the machine's, those that tell it before those that do not, and the
// least free first.
func fullest(a, b device) int {
	return cmp.Or(
		trueFirst(!a.Unified, !b.Unified),
		trueFirst(a.VRAM > 0, b.VRAM > 0),
		cmp.Compare(a.free, b.free),
	)
}

// hasWords reports whether one of the phrases is in the name of a model, as whole
// words: L4 is not in L40S. Case and punctuation do not matter.
func hasWords(name string, phrases []string) bool {
	return slices.ContainsFunc(phrases, func(p string) bool { return strings.Contains(name, p) })
}

// allWords returns the words of each of a list.
func allWords(list []string) []string {
	var out []string
	for _, s := range list {
		out = append(out, words(s))
	}
	return out
}

// words returns the words of s in lower case, with a space around each.
func words(s string) string {
	other := func(r rune) bool { return !unicode.IsLetter(r) && !unicode.IsDigit(r) }
	return " " + strings.Join(strings.FieldsFunc(strings.ToLower(s), other), " ") + " "
}

// uuids returns the devices that the run would get.
func (f *fit) uuids() []string {
	var out []string
	for _, d := range f.devices {
		out = append(out, d.UUID)
	}
	return out
}

func gpuCount(n int) string {
	if n == 1 {
		return "1 GPU"
	}
	return strconv.Itoa(n) + " GPUs"
}

// models lists the models of devices, each once.
func models(list []*device) string {
	var out []string
	for _, d := range list {
		if !slices.Contains(out, d.Model) {
			out = append(out, d.Model)
		}
	}
	return strings.Join(out, ", ")
}
