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
	VRAM task.Bytes // all of it; of a device without its own, the machine's memory
	free task.Bytes // what the run could get
	held bool       // by another run: a device serves one run at a time
}

// gpus picks the devices for the run.
func (f *fit) gpus() {
	f.pool = f.allDevices()
	pool, want := f.pool, f.needs.GPUs
	if want == 0 {
		return
	}
	if len(pool) < want {
		f.never("gpus", uint64(want), uint64(len(pool)), "needs %s, has %d", gpuCount(want), len(pool))
		want = len(pool) // what else is wrong with those that are there?
	}
	if len(f.needs.GPUModels) > 0 {
		right := keep(pool, func(d device) bool { return isModel(d.Model, f.needs.GPUModels) })
		if len(right) < want {
			f.never("gpu-model", uint64(f.needs.GPUs), uint64(len(right)), "needs %s of model %s, has %s",
				gpuCount(f.needs.GPUs), either(f.needs.GPUModels), models(pool))
		} else {
			pool = right
		}
	}
	idle := keep(pool, func(d device) bool { return !d.held })
	if len(idle) < want {
		f.later("gpus", uint64(f.needs.GPUs), uint64(len(idle)), "needs %s; other runs hold %d of %d",
			gpuCount(f.needs.GPUs), len(pool)-len(idle), len(pool))
		idle = pool
	}
	f.pick(idle, pool, want)
}

// pick takes want devices with the VRAM, the fullest first.
func (f *fit) pick(idle, pool []device, want int) {
	slices.SortStableFunc(idle, fullest)
	need, shared := f.needs.VRAM, f.sharedVRAM()
	for _, d := range idle {
		if len(f.devices) == want {
			return
		}
		if need > d.free || d.Unified && need > shared {
			continue
		}
		if d.Unified {
			shared -= need
		}
		f.devices = append(f.devices, d)
	}
	if len(f.devices) < want {
		f.noVRAM(idle, pool)
	}
}

// noVRAM tells what the devices have instead.
func (f *fit) noVRAM(idle, pool []device) {
	most := slices.MaxFunc(idle, func(a, b device) int { return cmp.Compare(a.free, b.free) })
	var rest string
	switch {
	case len(f.devices) > 0:
		rest = fmt.Sprintf("%d of %d have that free", len(f.devices), len(idle))
	case most.VRAM == 0:
		rest = most.Model + " does not tell how much it has"
	default:
		rest = fmt.Sprintf("the most free is %v of %v on %s", most.free, most.VRAM, most.Model)
	}
	where := "one GPU"
	if f.needs.GPUs > 1 {
		where = "each of " + gpuCount(f.needs.GPUs)
	}
	large := keep(pool, func(d device) bool { return d.VRAM >= f.needs.VRAM })
	f.refuse(len(large) >= f.needs.GPUs, "vram", uint64(f.needs.VRAM), uint64(most.free),
		"needs %v of VRAM on %s; %s", f.needs.VRAM, where, rest)
}

// allDevices joins the devices that the machine offers with what is free of
// them. One about which the live facts say nothing counts as free.
func (f *fit) allDevices() []device {
	if len(f.offer.GPUs) == 0 {
		return nil
	}
	out := make([]device, len(f.offer.GPUs))
	for i := range f.offer.GPUs {
		d := &f.offer.GPUs[i]
		out[i] = device{Device: d, VRAM: d.VRAM, free: d.VRAM}
		if i < len(f.live.GPUs) {
			out[i].free, out[i].held = f.live.GPUs[i].FreeVRAM, f.live.GPUs[i].Held
		}
		if d.Unified {
			out[i].unify(f.offer.Memory, f.sharedVRAM())
		}
	}
	return out
}

// sharedVRAM is what the run leaves of the machine's memory for the devices that
// have none of their own: one byte does not count as both.
func (f *fit) sharedVRAM() task.Bytes { return sub(f.memory, f.needs.Memory) }

// unify bounds a device's memory by the machine's, whose part it is.
func (d *device) unify(memory, shared task.Bytes) {
	if d.VRAM == 0 { // the driver does not tell a part of its own
		d.VRAM, d.free = memory, shared
	}
	d.free = min(d.free, shared)
}

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

func keep(list []device, ok func(device) bool) []device {
	var out []device
	for _, d := range list {
		if ok(d) {
			out = append(out, d)
		}
	}
	return out
}

// isModel reports whether one of the phrases is in the name of a model, as
// whole words: L4 is not in L40S. Case and punctuation do not matter.
func isModel(model string, phrases []string) bool {
	name := words(model)
	return slices.ContainsFunc(phrases, func(p string) bool { return strings.Contains(name, words(p)) })
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
func models(list []device) string {
	var out []string
	for _, d := range list {
		if !slices.Contains(out, d.Model) {
			out = append(out, d.Model)
		}
	}
	return strings.Join(out, ", ")
}
