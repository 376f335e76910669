package place

import (
	"math/rand/v2"
	"reflect"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/balanceai/balance/exec/fleet"
	"github.com/balanceai/balance/exec/policy"
	"github.com/balanceai/balance/exec/task"
	"github.com/balanceai/balance/mesh/identity"
)

// gib draws an amount of memory, small enough that limits are often met.
func gib(t *rapid.T, name string, most int) task.Bytes {
	return task.Bytes(rapid.IntRange(0, most).Draw(t, name)) * task.GiB
}

func drawNode(t *rapid.T, n byte) fleet.Node {
	node := fleet.Node{
		ID: identity.ID{n}, Name: string(rune('a' + n)), Owner: rapid.SampledFrom([]string{"alice", "ben"}).Draw(t, "owner"),
		State: rapid.SampledFrom([]string{fleet.Up, fleet.Up, fleet.Up, fleet.Suspect, fleet.Down}).Draw(t, "state"),
		Self:  n == 0,
		Path: fleet.Path{
			Kind: rapid.SampledFrom([]string{fleet.PathLAN, fleet.PathDirect, fleet.PathNone}).Draw(t, "path"),
			RTT:  time.Duration(rapid.IntRange(0, 300).Draw(t, "rtt")) * time.Millisecond,
			Rate: rapid.SampledFrom([]task.Bytes{0, 0, task.MiB, 50 * task.MiB}).Draw(t, "rate"),
		},
	}
	if rapid.IntRange(0, 15).Draw(t, "offer") == 0 {
		return node
	}
	o := &fleet.Offer{
		OS: "linux", Arch: rapid.SampledFrom([]string{"amd64", "arm64"}).Draw(t, "arch"),
		CPU: task.CPU(rapid.IntRange(0, 16).Draw(t, "cores")) * task.Core, Memory: gib(t, "memory", 32), Disk: gib(t, "disk", 32),
		Drivers: []string{task.DriverProcess}, Isolation: policy.IsolationNone, Portable: rapid.Bool().Draw(t, "portable"),
		Terms: policy.Terms{
			Offers:        rapid.IntRange(0, 9).Draw(t, "offers") > 0,
			ReserveCPU:    task.CPU(rapid.IntRange(0, 4).Draw(t, "reserve")) * task.Core,
			ReserveMemory: gib(t, "reserve memory", 4),
		},
	}
	if rapid.Bool().Draw(t, "grant") {
		o.Terms.Others = []policy.Grant{{Owner: "*", Isolation: policy.IsolationNone, CPU: 4 * task.Core, Memory: 8 * task.GiB, GPUs: 1}}
	}
	l := &fleet.Live{
		HeldCPU: task.CPU(rapid.IntRange(0, 16).Draw(t, "held")) * task.Core, HeldMemory: gib(t, "held memory", 16),
		FreeMemory: gib(t, "free memory", 32), FreeDisk: gib(t, "free disk", 32),
		Queue: rapid.SampledFrom([]int{0, 0, 3, 40}).Draw(t, "queue"),
	}
	for range rapid.IntRange(0, 3).Draw(t, "gpus") {
		o.GPUs = append(o.GPUs, fleet.Device{
			UUID: string(rune('0' + len(o.GPUs))), Model: rapid.SampledFrom([]string{"NVIDIA L4", "NVIDIA H100"}).Draw(t, "model"),
			VRAM: gib(t, "vram", 24), Unified: rapid.IntRange(0, 3).Draw(t, "unified") == 0,
		})
		l.GPUs = append(l.GPUs, fleet.LiveGPU{FreeVRAM: gib(t, "free vram", 24), Held: rapid.Bool().Draw(t, "gpu held")})
		if d := &l.GPUs[len(l.GPUs)-1]; !d.Held {
			d.Share = rapid.SampledFrom([]int{0, 0, 0, 250, 500, 1000}).Draw(t, "gpu share")
			d.Promised = o.GPUs[len(o.GPUs)-1].VRAM.Part(d.Share)
			d.Owner = rapid.SampledFrom([]string{"alice", "ben"}).Draw(t, "gpu owner")
		}
	}
	node.Offer = o
	if rapid.IntRange(0, 9).Draw(t, "live") > 0 {
		node.Live, node.LiveAt = l, noon.Add(-time.Second)
	}
	return node
}

func drawNodes(t *rapid.T) []fleet.Node {
	nodes := make([]fleet.Node, rapid.IntRange(0, 8).Draw(t, "nodes"))
	for i := range nodes {
		nodes[i] = drawNode(t, byte(i))
	}
	return nodes
}

func drawSpec(t *rapid.T) *task.Spec {
	s := spec(task.Needs{
		CPU: task.CPU(rapid.IntRange(0, 8).Draw(t, "cpu")) * task.Core, Memory: gib(t, "need memory", 8), Disk: gib(t, "need disk", 4),
		GPUs: rapid.IntRange(0, 2).Draw(t, "need gpus"), VRAM: gib(t, "need vram", 12),
	})
	if rapid.IntRange(0, 3).Draw(t, "by arch") == 0 {
		s.Needs.Arch = []string{"amd64"}
	}
	if rapid.IntRange(0, 3).Draw(t, "by model") == 0 {
		s.Needs.GPUModels = []string{"L4"}
	}
	if rapid.IntRange(0, 2).Draw(t, "shares") == 0 {
		s.Needs.Share = rapid.SampledFrom([]int{100, 250, 500, 700}).Draw(t, "need share")
	}
	if rapid.IntRange(0, 3).Draw(t, "inputs") == 0 {
		s.Inputs = []task.Input{{Size: gib(t, "size", 4)}}
	}
	if rapid.IntRange(0, 3).Draw(t, "serves") == 0 {
		s.Serve = &task.Serve{Size: gib(t, "weights", 4), On: []identity.ID{{byte(rapid.IntRange(0, 8).Draw(t, "on"))}}}
	}
	if rapid.IntRange(0, 3).Draw(t, "secret") == 0 {
		s.Secrets = []task.Secret{{Name: "token"}}
	}
	return s
}

func fits(r task.Ranking) map[identity.ID]bool {
	out := map[identity.ID]bool{}
	for _, v := range r {
		out[v.Node] = v.Fits
	}
	return out
}

func TestRankingProperties(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		nodes, s := drawNodes(t), drawSpec(t)
		r := Choose(s, alice, nodes, noon)
		if len(r) != len(nodes) {
			t.Fatalf("%d verdicts on %d machines", len(r), len(nodes))
		}
		if !slices.IsSortedFunc(r, better) {
			t.Fatal("not in order")
		}
		if best := r.Best(); slices.ContainsFunc(r[len(best):], func(v task.Verdict) bool { return v.Fits }) {
			t.Fatal("a machine that fits is after one that does not")
		}
		for _, v := range r {
			sum := 0
			for _, p := range v.Parts {
				sum += p.Points
				if p.Points < 0 || p.Text == "" {
					t.Fatalf("part %+v", p)
				}
			}
			switch {
			case v.Fits != (len(v.Reasons) == 0):
				t.Fatalf("fits %v with reasons %v", v.Fits, v.Reasons)
			case sum != v.Score || v.Score > 50_000 || v.Score < 0:
				t.Fatalf("score %d of parts %+v", v.Score, v.Parts)
			case !v.Fits && (v.Score != 0 || v.Devices != nil):
				t.Fatalf("refused, with %+v", v)
			case v.Fits && len(v.Devices) != s.Needs.Held().GPUs:
				t.Fatalf("devices %q for %+v", v.Devices, s.Needs)
			}
			reasons, devices := Check(s, alice, &nodes[v.Node[0]], Own{}, noon)
			if (reasons == nil) != v.Fits || !slices.Equal(devices, v.Devices) {
				t.Fatalf("predicted %+v, decided %v %q", v, reasons, devices)
			}
		}
	})
}

func TestOrderOfMachinesDoesNotMatter(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		nodes, s := drawNodes(t), drawSpec(t)
		want := Choose(s, alice, nodes, noon)
		r := rand.New(rand.NewPCG(rapid.Uint64().Draw(t, "seed"), 0))
		r.Shuffle(len(nodes), func(i, j int) { nodes[i], nodes[j] = nodes[j], nodes[i] })
		if got := Choose(s, alice, nodes, noon); !reflect.DeepEqual(got, want) {
			t.Fatalf("got %+v\nwant %+v", got, want)
		}
	})
}

func TestRemovingOneMachineLeavesTheOthers(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		nodes, s := drawNodes(t), drawSpec(t)
		if len(nodes) == 0 {
			return
		}
		all := fits(Choose(s, alice, nodes, noon))
		gone := rapid.IntRange(0, len(nodes)-1).Draw(t, "gone")
		delete(all, nodes[gone].ID)
		if got := fits(Choose(s, alice, slices.Delete(nodes, gone, gone+1), noon)); !reflect.DeepEqual(got, all) {
			t.Fatalf("got %v, want %v", got, all)
		}
	})
}

// More of anything never makes a machine unfit.
func TestAddingCapacityKeepsTheFit(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		node, s := drawNode(t, 1), drawSpec(t)
		before, _ := Check(s, alice, &node, Own{}, noon)
		if before != nil {
			return
		}
		o := *node.Offer
		more := rapid.IntRange(0, 6).Draw(t, "more")
		switch more {
		case 0:
			o.CPU += 1000
		case 1:
			o.Memory += task.GiB
		case 2:
			o.Terms.ReserveMemory, o.Terms.ReserveCPU = 0, 0
		case 3:
			o.GPUs = append(slices.Clone(o.GPUs), fleet.Device{UUID: "more", Model: "NVIDIA L4", VRAM: task.GiB})
		}
		node.Offer = &o
		if node.Live != nil && more > 3 {
			l := *node.Live
			l.GPUs = slices.Clone(l.GPUs)
			for i := range l.GPUs {
				l.GPUs[i].FreeVRAM += task.GiB
				l.GPUs[i].Held = false
			}
			l.HeldCPU, l.HeldMemory, l.FreeDisk = l.HeldCPU/2, l.HeldMemory/2, l.FreeDisk+1
			if l.FreeMemory > 0 { // 0 is: not measured
				l.FreeMemory += task.GiB
			}
			node.Live = &l
		}
		if after, _ := Check(s, alice, &node, Own{}, noon); after != nil {
			t.Fatalf("with more of %d: %v", more, after)
		}
	})
}

// A reason names what stands in the way: with that lifted, it is gone.
func TestLiftingAReasonRemovesIt(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		node, s := drawNode(t, 1), drawSpec(t)
		reasons, _ := Check(s, alice, &node, Own{}, noon)
		for _, r := range reasons {
			lifted, n := *s, node
			switch r.Rule {
			case "cpu":
				lifted.Needs.CPU = task.CPU(max(r.Have, 1))
			case "memory":
				lifted.Needs.Memory = task.Bytes(max(r.Have, 1))
			case "disk":
				lifted.Needs.Disk = 0
			case "arch":
				lifted.Needs.Arch = nil
			case "vram":
				lifted.Needs.VRAM, lifted.Needs.Share = 0, 0
			case "gpu-model":
				lifted.Needs.GPUModels = nil
			case "gpus":
				lifted.Needs.GPUs, lifted.Needs.Share, lifted.Needs.VRAM, lifted.Needs.GPUModels = 0, 0, 0, nil
			case "gpu-share":
				lifted.Needs.Share, lifted.Needs.GPUs = 0, 0
			case "secrets":
				lifted.Secrets = nil
			case "alive":
				n.State = fleet.Up
			default:
				continue
			}
			if r.Have == 0 && (r.Rule == "cpu" || r.Rule == "memory") {
				continue // a run always needs some
			}
			after, _ := Check(&lifted, alice, &n, Own{}, noon)
			if slices.ContainsFunc(after, func(a task.Reason) bool { return a.Rule == r.Rule }) {
				t.Fatalf("%q is still there: %v", r, after)
			}
		}
	})
}
