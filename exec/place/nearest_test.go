package place

import (
	"testing"

	"pgregory.net/rapid"

	"github.com/balanceai/balance/exec/fleet"
	"github.com/balanceai/balance/exec/task"
)

func TestNearest(t *testing.T) {
	const g = task.GiB
	l4 := gpu("NVIDIA L4", 24*g, 24*g)
	down := func(n *fleet.Node) { n.State = fleet.Down }
	for _, tc := range []struct {
		name  string
		spec  *task.Spec
		nodes []fleet.Node
		want  string
	}{
		{"fits", spec(task.Needs{}), []fleet.Node{machine(1), machine(2, down)}, ""},
		{"nothing there", spec(task.Needs{}), nil, ""},
		{"two things", spec(task.Needs{CPU: 9 * task.Core, Memory: 15 * g}), []fleet.Node{machine(1)}, ""},
		{"a little less", spec(task.Needs{CPU: 9 * task.Core}), []fleet.Node{machine(1), machine(2, func(n *fleet.Node) { n.Offer.CPU = 2 * task.Core })}, "with 8 cores instead of 9 cores it would fit on node-1"},
		{"less of what is in use", spec(task.Needs{Memory: 13 * g}), []fleet.Node{machine(1)}, "with 12 GiB of memory instead of 13 GiB of memory it would fit on node-1 now; as asked, it fits there at another time"},
		{"wait", spec(task.Needs{GPUs: 1}), []fleet.Node{machine(1), machine(2, l4, hold(0))}, "it would fit on node-2 at another time: needs 1 GPU; other runs hold 1 of 1"},
		{"another model", spec(task.Needs{GPUModels: []string{"H100"}}), []fleet.Node{machine(1, l4)}, "without the condition on the model of the GPU it would fit on node-1"},
		{"VRAM", spec(task.Needs{VRAM: 30 * g}), []fleet.Node{machine(1, l4)}, "with 24 GiB of VRAM instead of 30 GiB of VRAM it would fit on node-1"},
		{"the owner's word", spec(task.Needs{}), []fleet.Node{machine(1, func(n *fleet.Node) { n.Owner = "ben" })}, "it would fit on node-1 but for one thing: its owner ben has not granted anything to alice"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if v := nearestOf(Choose(tc.spec, alice, tc.nodes, noon)); v.Nearest != tc.want {
				t.Errorf("got %q, want %q", v.Nearest, tc.want)
			}
		})
	}
}

// nearestOf returns the verdict that names a change, or none.
func nearestOf(r task.Ranking) task.Verdict {
	for _, v := range r {
		if v.Nearest != "" {
			return v
		}
	}
	return task.Verdict{}
}

// The change that is named makes the run fit.
func TestNearestIsTrue(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		nodes, s := drawNodes(t), drawSpec(t)
		c := nearestOf(Choose(s, alice, nodes, noon))
		if c.Nearest == "" {
			return
		}
		lifted, reason := *s, c.Reasons[0]
		switch reason.Rule {
		case "cpu":
			lifted.Needs.CPU = task.CPU(reason.Have)
		case "memory":
			lifted.Needs.Memory = task.Bytes(reason.Have)
		case "disk":
			lifted.Needs.Disk = task.Bytes(reason.Have)
		case "vram":
			lifted.Needs.VRAM = task.Bytes(reason.Have)
		case "gpu-share":
			lifted.Needs.Share = int(reason.Have)
		case "gpu-model":
			lifted.Needs.GPUModels = nil
		default:
			return
		}
		if reason.Have == 0 {
			return // a run always needs some
		}
		for _, v := range Choose(&lifted, alice, nodes, noon) {
			if v.Node == c.Node && !v.Fits {
				t.Fatalf("%q, and then: %v", c.Nearest, v.Reasons)
			}
		}
	})
}
