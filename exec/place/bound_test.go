package place

import (
	"testing"

	"pgregory.net/rapid"

	"github.com/balanceai/balance/exec/fleet"
	"github.com/balanceai/balance/exec/task"
)

// No machine scores more than its bound says.
func TestBoundsHold(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var runs []task.Needs
		for range rapid.IntRange(0, 5).Draw(t, "runs") {
			runs = append(runs, drawSpec(t).Needs)
		}
		ix := NewIndex(NewWorkload(runs))
		ix.Update(drawNodes(t))
		for range 3 {
			s := drawSpec(t)
			c := ix.column(s, alice)
			ix.bound(s, alice, c)
			for i := range ix.slots {
				bound, score := c.cells[i].score, ix.scale.look(s, alice, &ix.slots[i], noon)
				if score > bound {
					t.Fatalf("%+v on %+v: at most %d, and then %d", s.Needs, ix.slots[i].node, bound, score)
				}
			}
		}
	})
}

// Bounds that are too high make no choice wrong, but slow: nearly all are just
// right.
func TestBoundsAreClose(t *testing.T) {
	ix := NewIndex(NewWorkload(nil))
	ix.Update(cluster(300))
	for _, needs := range []task.Needs{{CPU: 2000}, {CPU: 4000, GPUs: 1, Share: 250}, {CPU: 8000, GPUs: 1, VRAM: 20 * task.GiB}, {CPU: 16000, GPUs: 2}, {CPU: 4000, GPUs: 1, GPUModels: []string{"T4"}}} {
		s := spec(needs)
		c := ix.column(s, alice)
		ix.bound(s, alice, c)
		high, fit := 0, 0
		for i := range ix.slots {
			score := ix.scale.look(s, alice, &ix.slots[i], noon)
			if score != c.cells[i].score {
				high++
			}
			if score != unfit {
				fit++
			}
		}
		if fit == 0 || high > fit/20 {
			t.Errorf("%+v: %d bounds of %d are too high", needs, high, fit)
		}
	}
}

// What is the same to packing is worked out once, and forgotten when no machine
// has it any more.
func TestProfiles(t *testing.T) {
	ix := NewIndex(NewWorkload(nil))
	nodes := []fleet.Node{machine(1, gpu("L4", task.GiB, task.GiB)), machine(2, gpu("L4", task.GiB, task.GiB))}
	decide := func() {
		ix.Update(nodes)
		ix.Best(spec(task.Needs{GPUs: 1}), alice, noon, 1, nil)
	}
	if decide(); len(ix.scale.profiles) != 1 {
		t.Errorf("%d profiles of machines that are alike", len(ix.scale.profiles))
	}
	for i := range 2 * spareProfiles {
		live := *nodes[0].Live
		live.GPUs = []fleet.LiveGPU{{FreeVRAM: task.GiB, Share: 1 + i, Owner: "alice"}}
		nodes[0].Live = &live
		decide()
	}
	if n := len(ix.scale.profiles); n > spareProfiles+len(nodes)+1 {
		t.Errorf("%d profiles are kept", n)
	}
}
