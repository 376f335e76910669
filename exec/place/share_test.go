package place

import (
	"slices"
	"testing"

	"github.com/balanceai/balance/exec/fleet"
	"github.com/balanceai/balance/exec/task"
)

// shared makes a device one that runs of an owner share.
func shared(device, share int, promised task.Bytes, owner string) func(*fleet.Node) {
	return func(n *fleet.Node) {
		l := &n.Live.GPUs[device]
		l.Share, l.Promised, l.Owner = share, promised, owner
	}
}

func TestShares(t *testing.T) {
	const g = task.GiB
	l4 := gpu("L4", 24*g, 24*g)
	for _, tc := range []struct {
		name  string
		needs task.Needs
		node  fleet.Node
		want  string // the reason, or the devices
	}{
		{"a part of a free one", task.Needs{Share: 250}, machine(1, l4), "GPU-0"},
		{"beside others of the owner", task.Needs{Share: 250}, machine(1, l4, shared(0, 750, 18*g, "alice")), "GPU-0"},
		{"the rather used one", task.Needs{Share: 250}, machine(1, l4, l4, shared(1, 250, 6*g, "alice")), "GPU-1"},
		{"no more than all of it", task.Needs{Share: 300}, machine(1, l4, shared(0, 750, 18*g, "alice")), "needs 30 % of 1 GPU; other runs leave 25 % at most"},
		{"never beside another owner's", task.Needs{Share: 100}, machine(1, l4, shared(0, 250, 6*g, "ben")), "needs 10 % of 1 GPU; other runs leave 0 % at most"},
		{"never beside one that has all", task.Needs{Share: 100}, machine(1, l4, hold(0)), "needs 10 % of 1 GPU; other runs leave 0 % at most"},
		{"all of one, where others share", task.Needs{GPUs: 1}, machine(1, l4, shared(0, 100, g, "alice")), "needs 1 GPU; other runs hold 1 of 1"},
		{"VRAM that is promised", task.Needs{Share: 100, VRAM: 8 * g}, machine(1, l4, shared(0, 250, 18*g, "alice")), "needs 8 GiB of VRAM on one GPU; the most free is 6 GiB of 24 GiB on L4"},
		{"its part of the VRAM, unasked", task.Needs{Share: 500}, machine(1, gpu("L4", 24*g, 10*g)), "needs 12 GiB of VRAM on one GPU; the most free is 10 GiB of 24 GiB on L4"},
		{"parts of two", task.Needs{GPUs: 2, Share: 500}, machine(1, l4, l4, l4, hold(1)), "GPU-0 GPU-2"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			reasons, devices := Check(spec(tc.needs), alice, &tc.node, Own{}, noon)
			got := devices
			for _, r := range reasons {
				got = append(got, r.Text)
				if !r.Ever {
					t.Errorf("%q is said to be for ever", r)
				}
			}
			slices.Sort(got)
			if s := join(got); s != tc.want {
				t.Errorf("got %s, want %s", s, tc.want)
			}
		})
	}
}

func join(list []string) (out string) {
	for i, s := range list {
		if i > 0 {
			out += " "
		}
		out += s
	}
	return out
}

// Runs that insist on a model find it free, although others would fit there.
func TestScarceModelsAreLeft(t *testing.T) {
	const g = task.GiB
	nodes := []fleet.Node{machine(1, gpu("Tesla T4", 16*g, 16*g)), machine(2, gpu("NVIDIA G2", 16*g, 16*g)), machine(3, gpu("NVIDIA G2", 16*g, 16*g))}
	var runs []task.Needs
	for range 30 {
		runs = append(runs, task.Needs{CPU: 1000, GPUs: 1}, task.Needs{CPU: 1000, GPUs: 1, GPUModels: []string{"T4"}})
	}
	ix := NewIndex(NewWorkload(runs))
	ix.Update(nodes)
	if best := ix.Best(spec(task.Needs{CPU: 1000, GPUs: 1}), alice, noon, 1, nil); best[0].Node != nodes[1].ID {
		t.Errorf("a run that takes any model went to %v", best)
	}
	if best := ix.Best(spec(task.Needs{CPU: 1000, GPUs: 1, GPUModels: []string{"T4"}}), alice, noon, 1, nil); best[0].Node != nodes[0].ID {
		t.Errorf("a run for a T4 went to %v", best)
	}
}
