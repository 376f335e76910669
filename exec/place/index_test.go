package place

import (
	"fmt"
	"math/rand/v2"
	"reflect"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"github.com/balanceai/balance/exec/fleet"
	"github.com/balanceai/balance/exec/policy"
	"github.com/balanceai/balance/exec/task"
	"github.com/balanceai/balance/mesh/identity"
)

// An index that has seen machines change decides as one that has only seen how
// they are now, and as the full verdicts do.
func TestIndexFollows(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		nodes := drawNodes(t)
		ix := NewIndex(NewWorkload(nil))
		specs := []*task.Spec{drawSpec(t), drawSpec(t)}
		for range 4 {
			ix.Update(nodes)
			for _, s := range specs {
				best := ix.Best(s, alice, noon, 3, nil)
				list, more := ix.Choose(s, alice, noon, 0, nil)
				if want := Choose(s, alice, nodes, noon); more != 0 || !reflect.DeepEqual(list, want) {
					t.Fatalf("got %+v\nwant %+v", list, want)
				}
				for _, v := range list {
					at := slices.IndexFunc(nodes, func(n fleet.Node) bool { return n.ID == v.Node })
					if own := ix.Judge(s, alice, &nodes[at], noon); own.Score != v.Score || own.Fits != v.Fits {
						t.Fatalf("%s alone has %d, among others %d", v.Name, own.Score, v.Score)
					}
				}
				fit := list.Best()
				for i, c := range best {
					if fit[i].Node != c.Node || fit[i].Score != c.Score {
						t.Fatalf("place %d: %+v, but the verdict on %s is %d", i, c, fit[i].Name, fit[i].Score)
					}
				}
				if len(best) != min(3, len(fit)) {
					t.Fatalf("%d candidates of %d that fit", len(best), len(fit))
				}
			}
			switch n := len(nodes); {
			case n == 0 || rapid.Bool().Draw(t, "more"):
				nodes = append(nodes, drawNode(t, byte(n+8)))
			case rapid.Bool().Draw(t, "change"):
				i := rapid.IntRange(0, n-1).Draw(t, "which")
				nodes[i] = drawNode(t, nodes[i].ID[0])
			default:
				nodes = nodes[:n-1]
			}
		}
	})
}

// Placing runs one after the other, as executors count them, never promises
// more than there is.
func TestCapacityIsNeverExceeded(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		const g = task.GiB
		var nodes []fleet.Node
		for i := range byte(rapid.IntRange(1, 4).Draw(t, "machines")) {
			devices := make([]func(*fleet.Node), rapid.IntRange(0, 4).Draw(t, "devices"))
			for j := range devices {
				devices[j] = gpu(rapid.SampledFrom([]string{"L4", "T4"}).Draw(t, "model"), 24*g, 24*g)
			}
			nodes = append(nodes, machine(i+1, devices...))
		}
		ix := NewIndex(NewWorkload(nil))
		for range 30 {
			s := spec(task.Needs{CPU: task.CPU(rapid.IntRange(1, 4000).Draw(t, "cpu")), Memory: gib(t, "memory", 4)})
			if rapid.Bool().Draw(t, "wants a GPU") {
				s.Needs.GPUs = rapid.IntRange(1, 2).Draw(t, "gpus")
				s.Needs.Share = rapid.SampledFrom([]int{0, 100, 250, 500, 700}).Draw(t, "share")
			}
			ix.Update(nodes)
			best := ix.Best(s, alice, noon, 1, nil)
			if len(best) == 0 {
				continue
			}
			n := &nodes[best[0].Node[0]-1]
			reasons, devices := Check(s, alice, n, Own{}, noon)
			if reasons != nil {
				t.Fatalf("chosen, and then: %v", reasons)
			}
			give(n, s.Needs.Held(), devices)
			if l := n.Live; l.HeldCPU > n.Offer.CPU || l.HeldMemory > n.Offer.Memory {
				t.Fatalf("promised %v cores and %v", l.HeldCPU, l.HeldMemory)
			}
			for i, d := range n.Live.GPUs {
				if d.Share > whole || d.Held && d.Share > 0 || d.Promised > n.Offer.GPUs[i].VRAM {
					t.Fatalf("device %d: %+v", i, d)
				}
			}
		}
	})
}

// give holds what a run has got.
func give(n *fleet.Node, needs task.Needs, devices []string) {
	l := *n.Live
	l.GPUs = append([]fleet.LiveGPU(nil), l.GPUs...)
	l.HeldCPU += needs.CPU
	l.HeldMemory += needs.Memory
	for i := range n.Offer.GPUs {
		for _, uuid := range devices {
			switch d := &l.GPUs[i]; {
			case n.Offer.GPUs[i].UUID != uuid:
			case needs.Share == 0 && (d.Held || d.Share > 0):
				d.Held, d.Share = true, whole+1 // twice: an error that the caller sees
			case needs.Share == 0:
				d.Held = true
			default:
				d.Share += needs.Share
				d.Promised += max(needs.VRAM, n.Offer.GPUs[i].VRAM.Part(needs.Share))
				d.Owner = "alice"
			}
		}
	}
	n.Live = &l
}

// Another machine never makes a run homeless.
func TestAddingAMachineKeepsTheFit(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		nodes, s := drawNodes(t), drawSpec(t)
		before := len(Choose(s, alice, nodes, noon).Best())
		after := len(Choose(s, alice, append(nodes, drawNode(t, 99)), noon).Best())
		if after < before {
			t.Fatalf("%d machines fitted, then %d", before, after)
		}
	})
}

func TestLimitedChoice(t *testing.T) {
	ix := NewIndex(NewWorkload(nil))
	var nodes []fleet.Node
	for i := range byte(20) {
		nodes = append(nodes, machine(i+1, func(n *fleet.Node) { n.Offer.CPU = task.CPU(i) * task.Core }))
	}
	ix.Update(nodes)
	for _, tc := range []struct {
		cpu, limit, fit, list, more int
	}{{1000, 5, 5, 5, 15}, {15000, 10, 5, 10, 10}, {30000, 4, 0, 4, 16}, {1000, 0, 19, 20, 0}} {
		list, more := ix.Choose(spec(task.Needs{CPU: task.CPU(tc.cpu)}), alice, noon, tc.limit, nil)
		if len(list.Best()) != tc.fit || len(list) != tc.list || more != tc.more {
			t.Errorf("%+v: %d fit of %d, and %d more", tc, len(list.Best()), len(list), more)
		}
	}
	gone := func(id identity.ID) bool { return id[0] > 3 }
	if list, more := ix.Choose(spec(task.Needs{}), alice, noon, 0, gone); len(list) != 3 || more != 0 {
		t.Errorf("%d verdicts, %d more", len(list), more)
	}
}

// Runs that ask for the same but differ in what keeps them from a machine do not
// share what was worked out.
func TestRunsAreToldApart(t *testing.T) {
	ix := NewIndex(NewWorkload(nil))
	ix.Update([]fleet.Node{machine(1, func(n *fleet.Node) {
		n.Owner, n.Offer.Terms.Others = "ben", []policy.Grant{{Owner: "alice", Isolation: policy.IsolationNone, CPU: 8 * task.Core, Memory: 8 * task.GiB}}
	})})
	for name, change := range map[string]func(*task.Spec){
		"its secret":    func(s *task.Spec) { s.Secrets = []task.Secret{{Name: "token"}} },
		"its isolation": func(s *task.Spec) { s.Isolation = task.LevelSandbox },
	} {
		s := spec(task.Needs{})
		if len(ix.Best(s, alice, noon, 1, nil)) != 1 {
			t.Fatal("the machine takes no run at all")
		}
		if change(s); len(ix.Best(s, alice, noon, 1, nil)) != 0 {
			t.Errorf("the machine takes a run that %s keeps from it", name)
		}
	}
}

// cluster returns n machines with five devices each, some of which are in use.
func cluster(n int) []fleet.Node {
	const g = task.GiB
	r := rand.New(rand.NewPCG(1, 2))
	models := []string{"NVIDIA L4", "Tesla T4", "NVIDIA H100", "NVIDIA A10"}
	nodes := make([]fleet.Node, n)
	for i := range nodes {
		model := models[r.IntN(len(models))]
		nodes[i] = machine(1, gpu(model, 24*g, 24*g), gpu(model, 24*g, 24*g), gpu(model, 24*g, 24*g), gpu(model, 24*g, 24*g), gpu(model, 24*g, 24*g))
		nodes[i].ID = identity.ID{byte(i >> 16), byte(i >> 8), byte(i), 1}
		nodes[i].Offer.CPU, nodes[i].Offer.Memory, nodes[i].Live.FreeMemory = 64*task.Core, 512*g, 512*g
		for j := range 5 {
			if r.IntN(2) == 0 {
				give(&nodes[i], task.Needs{CPU: task.CPU(r.IntN(9000)), Memory: 8 * g, GPUs: 1, Share: []int{0, 250, 500}[r.IntN(3)]}, []string{fmt.Sprintf("GPU-%d", j)})
			}
		}
	}
	return nodes
}

// BenchmarkDecide is one decision of many. Before each, so many machines have
// changed; the shapes of runs come again, and so does what was worked out for
// them, or each is new.
func BenchmarkDecide(b *testing.B) {
	for _, n := range []int{100, 1000, 10_000, 100_000} {
		for _, bc := range []struct {
			name     string
			changed  int
			newShape bool
		}{{"one-changed", 1, false}, {"1%-changed", n / 100, false}, {"all-changed", n, false}, {"new-shape", 1, true}} {
			b.Run(fmt.Sprintf("%s/nodes=%d", bc.name, n), func(b *testing.B) { decide(b, n, bc.changed, bc.newShape) })
		}
	}
}

func decide(b *testing.B, n, changed int, newShape bool) {
	shapes := []task.Needs{{CPU: 2000}, {CPU: 4000, GPUs: 1, Share: 250}, {CPU: 4000, GPUs: 1, Share: 500}, {CPU: 8000, GPUs: 1}, {CPU: 16000, GPUs: 2}, {CPU: 4000, GPUs: 1, GPUModels: []string{"T4"}}}
	nodes := cluster(n)
	ix := NewIndex(NewWorkload(nil))
	ix.Update(nodes)
	for _, needs := range shapes {
		ix.Best(spec(needs), alice, noon, 16, nil)
	}
	r := rand.New(rand.NewPCG(3, 4))
	b.ReportAllocs()
	b.ResetTimer()
	for i := range b.N {
		b.StopTimer()
		for range changed {
			c := &nodes[r.IntN(n)]
			live := *c.Live
			live.FreeMemory -= task.Bytes(r.IntN(1000))
			c.Live = &live
			ix.Set(c)
		}
		needs := shapes[i%len(shapes)]
		if newShape {
			needs.Memory = task.GiB + task.Bytes(i)
			needs.CPU += task.CPU(r.IntN(1000))
		}
		s := spec(needs)
		b.StartTimer()
		if len(ix.Best(s, alice, noon, 16, nil)) == 0 {
			b.Fatal("nothing fits")
		}
	}
}
