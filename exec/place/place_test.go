package place

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/balanceai/balance/exec/fleet"
	"github.com/balanceai/balance/exec/policy"
	"github.com/balanceai/balance/exec/task"
	"github.com/balanceai/balance/mesh/identity"
	"github.com/balanceai/balance/mesh/wire"
)

// noon is the submitter's clock in these tests.
var noon = time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC)

// machine returns a node of alice's with 8 cores, 16 GiB and nothing held.
// alice is who sends the runs of these tests.
var alice = policy.Asker{Owner: "alice"}

func machine(n byte, change ...func(*fleet.Node)) fleet.Node {
	node := fleet.Node{
		ID: identity.ID{n}, Name: fmt.Sprintf("node-%d", n), Owner: "alice", State: fleet.Up,
		Path: fleet.Path{Kind: fleet.PathLAN, RTT: time.Millisecond},
		Offer: &fleet.Offer{
			Version: 1, OS: "linux", Arch: "amd64", CPU: 8 * task.Core, Memory: 16 * task.GiB, Disk: 100 * task.GiB,
			Drivers: []string{task.DriverProcess}, Terms: policy.Terms{Offers: true}, Isolation: policy.IsolationNone,
			Labels: []string{"lab"}, Engines: []fleet.Engine{{Name: "ollama"}},
		},
		Live:   &fleet.Live{FreeMemory: 12 * task.GiB, FreeDisk: 40 * task.GiB},
		LiveAt: noon.Add(-2 * time.Second),
	}
	for _, f := range change {
		f(&node)
	}
	return node
}

// gpu adds a device with so much VRAM, of which so much is free.
func gpu(model string, vram, free task.Bytes) func(*fleet.Node) {
	return func(n *fleet.Node) {
		uuid := fmt.Sprintf("GPU-%d", len(n.Offer.GPUs))
		n.Offer.GPUs = append(n.Offer.GPUs, fleet.Device{UUID: uuid, Vendor: fleet.NVIDIA, Model: model, VRAM: vram})
		n.Live.GPUs = append(n.Live.GPUs, fleet.LiveGPU{FreeVRAM: free})
	}
}

func hold(device int) func(*fleet.Node) {
	return func(n *fleet.Node) { n.Live.GPUs[device].Held = true }
}

func unified(device int) func(*fleet.Node) {
	return func(n *fleet.Node) { n.Offer.GPUs[device].Unified = true }
}

func spec(needs task.Needs) *task.Spec {
	return &task.Spec{Driver: task.DriverProcess, Command: []string{"true"}, Needs: needs}
}

// Every sentence that refuses a machine, with its numbers.
func TestReasons(t *testing.T) {
	others := func(g policy.Grant) func(*fleet.Node) {
		return func(n *fleet.Node) { n.Owner, n.Offer.Terms.Others = "ben", []policy.Grant{g} }
	}
	reserve := func(n *fleet.Node) {
		n.Offer.Terms.ReserveCPU, n.Offer.Terms.ReserveMemory = task.Core, 4*task.GiB
	}
	for _, tc := range []struct {
		name string
		spec *task.Spec
		node fleet.Node
		want []task.Reason
	}{
		{
			"down", spec(task.Needs{}),
			machine(1, func(n *fleet.Node) { n.State, n.LiveAt = fleet.Down, noon.Add(-92*time.Second) }),
			[]task.Reason{{Rule: "alive", Text: "is down, last heard of 1m32s ago", Ever: true}},
		},
		{
			"never seen", spec(task.Needs{}),
			machine(1, func(n *fleet.Node) { n.State, n.LiveAt, n.Live = fleet.Down, time.Time{}, nil }),
			[]task.Reason{{Rule: "alive", Text: "is down; nothing was heard of it since this node started", Ever: true}},
		},
		{
			"no offer", spec(task.Needs{}),
			machine(1, func(n *fleet.Node) { n.Offer = nil }),
			[]task.Reason{{Rule: "offer", Text: "has not said yet what it offers", Ever: true}},
		},
		{
			"thin client", spec(task.Needs{}),
			machine(1, func(n *fleet.Node) { n.Offer.Terms = policy.Terms{} }),
			[]task.Reason{{Rule: "terms", Text: "offers nothing to the mesh"}},
		},
		{
			"pinned to another", &task.Spec{Driver: task.DriverProcess, Node: "hydra"},
			machine(1),
			[]task.Reason{{Rule: "node", Text: "the run is for another machine only"}},
		},
		{
			"another owner's", spec(task.Needs{}),
			machine(1, func(n *fleet.Node) { n.Owner = "ben" }),
			[]task.Reason{{Rule: "terms", Text: "its owner ben has not granted anything to alice"}},
		},
		{
			"another owner's hours, in the machine's zone", spec(task.Needs{}),
			machine(1, others(policy.Grant{Owner: "alice", Isolation: policy.IsolationNone, CPU: 8000, Memory: task.GiB, Hours: "22:00-07:00"}),
				func(n *fleet.Node) { n.Offer.Zone = 2 * 3600 }),
			[]task.Reason{{Rule: "terms", Text: "is open to alice at these hours: 22:00-07:00", Ever: true}},
		},
		{
			"driver, os, arch, labels, engines",
			&task.Spec{Driver: task.DriverImage, Needs: task.Needs{
				OS: []string{"darwin"}, Arch: []string{"arm64", "riscv64"}, Labels: []string{"quiet", "lab", "home"}, Engines: []string{"vllm", "ollama"},
			}},
			machine(1),
			[]task.Reason{
				{Rule: "driver", Text: "has no container runtime: it runs programs, not images"},
				{Rule: "os", Text: "linux is not darwin"},
				{Rule: "arch", Text: "amd64 is not arm64 or riscv64"},
				{Rule: "labels", Text: "does not have the label quiet, home"},
				{Rule: "engines", Text: "does not have vllm"},
			},
		},
		{
			"cpu, memory and disk held by others", spec(task.Needs{CPU: 4 * task.Core, Memory: 8 * task.GiB, Disk: 50 * task.GiB}),
			machine(1, func(n *fleet.Node) { n.Live.HeldCPU, n.Live.HeldMemory = 6500, 12*task.GiB }),
			[]task.Reason{
				{Rule: "cpu", Text: "needs 4 cores; 1.5 of 8 are free", Need: 4000, Have: 1500, Ever: true},
				{Rule: "memory", Text: "needs 8 GiB of memory; 4 GiB of 16 GiB are free", Need: 8 << 30, Have: 4 << 30, Ever: true},
				{Rule: "disk", Text: "needs 50 GiB of disk; 40 GiB of 100 GiB are free", Need: 50 << 30, Have: 40 << 30, Ever: true},
			},
		},
		{
			"memory used by other programs", spec(task.Needs{Memory: 8 * task.GiB}),
			machine(1, func(n *fleet.Node) { n.Live.FreeMemory = 3174 * task.MiB }),
			[]task.Reason{{Rule: "memory", Text: "needs 8 GiB of memory; 3.1 GiB of 16 GiB are free", Need: 8 << 30, Have: 3174 << 20, Ever: true}},
		},
		{
			"never enough, for the owner keeps some", spec(task.Needs{CPU: 8 * task.Core, Memory: 14 * task.GiB, Disk: 200 * task.GiB}),
			machine(1, reserve),
			[]task.Reason{
				{Rule: "cpu", Text: "needs 8 cores; 7 of 8 are free, its owner keeps 1", Need: 8000, Have: 7000},
				{Rule: "memory", Text: "needs 14 GiB of memory; 12 GiB of 16 GiB are free, its owner keeps 4 GiB", Need: 14 << 30, Have: 12 << 30},
				{Rule: "disk", Text: "needs 200 GiB of disk; 40 GiB of 100 GiB are free", Need: 200 << 30, Have: 40 << 30},
			},
		},
		{
			"no GPU", spec(task.Needs{VRAM: 24 * task.GiB}),
			machine(1),
			[]task.Reason{{Rule: "gpus", Text: "needs 1 GPU, has 0", Need: 1}},
		},
		{
			"too few GPUs, of the wrong model, too small", spec(task.Needs{GPUs: 3, VRAM: 40 * task.GiB, GPUModels: []string{"H100", "a100"}}),
			machine(1, gpu("NVIDIA L4", 24*task.GiB, 24*task.GiB), gpu("NVIDIA L4", 24*task.GiB, 20*task.GiB)),
			[]task.Reason{
				{Rule: "gpus", Text: "needs 3 GPUs, has 2", Need: 3, Have: 2},
				{Rule: "gpu-model", Text: "needs 3 GPUs of model H100 or a100, has NVIDIA L4", Need: 3},
				{Rule: "vram", Text: "needs 40 GiB of VRAM on each of 3 GPUs; the most free is 24 GiB of 24 GiB on NVIDIA L4", Need: 40 << 30, Have: 20 << 30},
			},
		},
		{
			"GPUs held", spec(task.Needs{GPUs: 2}),
			machine(1, gpu("NVIDIA L4", 24*task.GiB, 24*task.GiB), gpu("NVIDIA L4", 24*task.GiB, 24*task.GiB), hold(0)),
			[]task.Reason{{Rule: "gpus", Text: "needs 2 GPUs; other runs hold 1 of 2", Need: 2, Have: 1, Ever: true}},
		},
		{
			"VRAM used by other programs", spec(task.Needs{VRAM: 24 * task.GiB}),
			machine(1, gpu("NVIDIA L4", 24*task.GiB, 8294*task.MiB), gpu("NVIDIA T4", 16*task.GiB, 2*task.GiB)),
			[]task.Reason{{Rule: "vram", Text: "needs 24 GiB of VRAM on one GPU; the most free is 8.1 GiB of 24 GiB on NVIDIA L4", Need: 24 << 30, Have: 8294 << 20, Ever: true}},
		},
		{
			"the device with the VRAM is held", spec(task.Needs{VRAM: 40 * task.GiB}),
			machine(1, gpu("NVIDIA H100", 80*task.GiB, 80*task.GiB), gpu("NVIDIA L4", 24*task.GiB, 24*task.GiB), hold(0)),
			[]task.Reason{{Rule: "vram", Text: "needs 40 GiB of VRAM on one GPU; the most free is 24 GiB of 24 GiB on NVIDIA L4", Need: 40 << 30, Have: 24 << 30, Ever: true}},
		},
		{
			"some of the GPUs", spec(task.Needs{GPUs: 2, VRAM: 20 * task.GiB}),
			machine(1, gpu("NVIDIA L4", 24*task.GiB, 24*task.GiB), gpu("NVIDIA L4", 24*task.GiB, 4*task.GiB), gpu("NVIDIA T4", 16*task.GiB, 16*task.GiB)),
			[]task.Reason{{Rule: "vram", Text: "needs 20 GiB of VRAM on each of 2 GPUs; 1 of 3 have that free", Need: 20 << 30, Have: 16 << 30, Ever: true}},
		},
		{
			"VRAM not told", spec(task.Needs{VRAM: task.GiB}),
			machine(1, gpu("Intel Arc", 0, 0)),
			[]task.Reason{{Rule: "vram", Text: "needs 1 GiB of VRAM on one GPU; Intel Arc does not tell how much it has", Need: 1 << 30}},
		},
		{
			"one byte is not memory and VRAM", spec(task.Needs{Memory: 4 * task.GiB, VRAM: 10 * task.GiB}),
			machine(1, gpu("Apple M3 Max", 0, 0), unified(0)),
			[]task.Reason{{Rule: "vram", Text: "needs 10 GiB of VRAM on one GPU; the most free is 8 GiB of 16 GiB on Apple M3 Max", Need: 10 << 30, Have: 8 << 30, Ever: true}},
		},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got, devices := Check(tc.spec, alice, &tc.node, Own{}, noon)
			if !slices.Equal(got, tc.want) || devices != nil {
				t.Errorf("got %d reasons and devices %q:\n%+v\nwant\n%+v", len(got), devices, got, tc.want)
			}
		})
	}
}

func TestSentencesAreBounded(t *testing.T) {
	n := machine(1, gpu(strings.Repeat("né", 10_000), task.GiB, task.GiB), func(n *fleet.Node) { n.Offer.OS = strings.Repeat("x", 50_000) })
	reasons, _ := Check(spec(task.Needs{OS: []string{"linux"}, GPUModels: []string{"L4"}, VRAM: 2 * task.GiB}), alice, &n, Own{}, noon)
	if len(reasons) != 3 {
		t.Fatalf("%d reasons", len(reasons))
	}
	for _, r := range reasons {
		if len(r.Text) > longest+len("…") || !utf8.ValidString(r.Text) {
			t.Errorf("%d bytes: %.100s", len(r.Text), r.Text)
		}
	}
}

func TestCheckCountsWhatTheOwnerHolds(t *testing.T) {
	n := machine(1, func(n *fleet.Node) {
		n.Owner = "ben"
		n.Offer.Terms.Others = []policy.Grant{{Owner: "alice", Isolation: policy.IsolationNone, CPU: 2000, Memory: 4 * task.GiB}}
	})
	s := spec(task.Needs{CPU: 1500, Memory: task.GiB})
	if reasons, _ := Check(s, alice, &n, Own{}, noon); reasons != nil {
		t.Fatalf("alice holds nothing: %v", reasons)
	}
	reasons, _ := Check(s, alice, &n, Own{Held: policy.Held{CPU: 1000}}, noon)
	if len(reasons) != 1 || !reasons[0].Ever || reasons[0].Rule != "terms" {
		t.Errorf("alice holds a core: %+v", reasons)
	}
}

func TestDevices(t *testing.T) {
	const g = task.GiB
	for _, tc := range []struct {
		name  string
		needs task.Needs
		node  fleet.Node
		want  []string
	}{
		{"fullest that fits", task.Needs{VRAM: 10 * g}, machine(1, gpu("L4", 24*g, 24*g), gpu("L4", 24*g, 12*g), gpu("L4", 24*g, 4*g)), []string{"GPU-1"}},
		{"not held", task.Needs{VRAM: 10 * g}, machine(1, gpu("L4", 24*g, 24*g), gpu("L4", 24*g, 12*g), hold(1)), []string{"GPU-0"}},
		{"of the model", task.Needs{GPUs: 1, GPUModels: []string{"rtx-4090"}}, machine(1, gpu("NVIDIA L4", 24*g, g), gpu("NVIDIA GeForce RTX 4090", 24*g, 20*g)), []string{"GPU-1"}},
		{"L4 is not L40S", task.Needs{GPUModels: []string{"L4"}}, machine(1, gpu("NVIDIA L40S", 48*g, g), gpu("NVIDIA L4", 24*g, 20*g)), []string{"GPU-1"}},
		{"two", task.Needs{GPUs: 2, VRAM: 10 * g}, machine(1, gpu("L4", 24*g, 24*g), gpu("L4", 24*g, 4*g), gpu("L4", 24*g, 12*g)), []string{"GPU-2", "GPU-0"}},
		{"own memory before shared", task.Needs{GPUs: 1}, machine(1, gpu("Intel Iris", 0, 0), unified(0), gpu("L4", 24*g, 24*g)), []string{"GPU-1"}},
		{"shared memory", task.Needs{VRAM: 8 * g}, machine(1, gpu("Apple M3", 0, 0), unified(0)), []string{"GPU-0"}},
		{"no live facts: counts as free", task.Needs{VRAM: 24 * g}, machine(1, gpu("L4", 24*g, 0), func(n *fleet.Node) { n.Live = nil }), []string{"GPU-0"}},
		{"no GPU asked", task.Needs{}, machine(1, gpu("L4", 24*g, 24*g)), nil},
	} {
		t.Run(tc.name, func(t *testing.T) {
			reasons, got := Check(spec(tc.needs), alice, &tc.node, Own{}, noon)
			if reasons != nil || !slices.Equal(got, tc.want) {
				t.Errorf("got %q %v, want %q", got, reasons, tc.want)
			}
		})
	}
}

// The machine's memory is measured with the runs on it, and what they hold is
// not taken off once more.
func TestMemoryCountsOnce(t *testing.T) {
	n := machine(1, func(n *fleet.Node) {
		n.Offer.Terms.ReserveMemory = 2 * task.GiB
		n.Live.HeldMemory, n.Live.FreeMemory = 8*task.GiB, 7*task.GiB // runs use the 8, the owner's programs 1
	})
	if reasons, _ := Check(spec(task.Needs{Memory: 6 * task.GiB}), alice, &n, Own{}, noon); reasons != nil {
		t.Errorf("6 of 16-2-8 GiB: %v", reasons)
	}
	if reasons, _ := Check(spec(task.Needs{Memory: 6*task.GiB + 1}), alice, &n, Own{}, noon); reasons == nil {
		t.Error("the owner's reserve was given away")
	}
}

func names(r task.Ranking) string {
	var out []string
	for _, v := range r {
		out = append(out, strings.TrimPrefix(v.Name, "node-"))
	}
	return strings.Join(out, " ")
}

func TestChooseOrder(t *testing.T) {
	const g = task.GiB
	cores := func(n task.CPU) func(*fleet.Node) { return func(m *fleet.Node) { m.Offer.CPU = n * task.Core } }
	rtt := func(d time.Duration) func(*fleet.Node) { return func(m *fleet.Node) { m.Path.RTT = d } }
	for _, tc := range []struct {
		name  string
		needs task.Needs
		nodes []fleet.Node
		want  string
	}{
		{"tightest CPU", task.Needs{CPU: 4000}, []fleet.Node{machine(1, cores(64)), machine(2, cores(8)), machine(3, cores(4))}, "3 2 1"},
		{"CPU work leaves GPUs alone", task.Needs{CPU: 4000}, []fleet.Node{machine(1, cores(4), gpu("L4", 24*g, 24*g)), machine(2, cores(64))}, "2 1"},
		{"a busy GPU is not wasted", task.Needs{CPU: 4000}, []fleet.Node{machine(1, gpu("L4", 24*g, 24*g)), machine(2, gpu("L4", 24*g, 24*g), hold(0))}, "2 1"},
		{"smallest GPU that fits", task.Needs{VRAM: 20 * g}, []fleet.Node{machine(1, gpu("H100", 80*g, 80*g)), machine(2, gpu("L4", 24*g, 24*g)), machine(3, gpu("T4", 16*g, 16*g))}, "2 1 3"},
		{"fewest GPUs left", task.Needs{GPUs: 1}, []fleet.Node{machine(1, cores(32), gpu("L4", 24*g, 24*g), gpu("L4", 24*g, 24*g)), machine(2, cores(32), gpu("L4", 24*g, 24*g))}, "2 1"},
		{"nearest", task.Needs{}, []fleet.Node{machine(1, rtt(80*time.Millisecond)), machine(2, rtt(0)), machine(3, rtt(time.Millisecond))}, "3 1 2"},
		{
			"own before another's",
			task.Needs{},
			[]fleet.Node{machine(1, func(n *fleet.Node) {
				n.Owner = "ben"
				n.Offer.Terms.Others = []policy.Grant{{Owner: "*", Isolation: policy.IsolationNone, CPU: 8000, Memory: 16 * g}}
			}), machine(2)},
			"2 1",
		},
		{"a tie goes to the lower id", task.Needs{}, []fleet.Node{machine(3), machine(1), machine(2)}, "1 2 3"},
		{
			"not now before never, fewer reasons first",
			task.Needs{CPU: 20 * task.Core, Labels: []string{"x"}},
			[]fleet.Node{machine(1), machine(2, cores(64)), machine(3, cores(64), func(n *fleet.Node) {
				n.State, n.Offer.Labels = fleet.Down, []string{"x"}
			})},
			"3 2 1",
		},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if got := names(Choose(spec(tc.needs), alice, tc.nodes, noon)); got != tc.want {
				t.Errorf("got %s, want %s", got, tc.want)
			}
		})
	}
}

// One ranking in full, as people read it.
func TestVerdict(t *testing.T) {
	const g = task.GiB
	self := machine(3, func(n *fleet.Node) { n.Self, n.State = true, "" })
	nodes := []fleet.Node{
		machine(1, gpu("NVIDIA L4", 24*g, 24*g)),
		machine(2, func(n *fleet.Node) { n.Path = fleet.Path{Kind: fleet.PathNone} }),
		self,
		machine(4, func(n *fleet.Node) { n.State = fleet.Suspect }),
		machine(5, func(n *fleet.Node) { n.Path.RTT = 0 }),
	}
	var got strings.Builder
	for _, v := range Choose(spec(task.Needs{CPU: 2000, Memory: 4 * g}), alice, nodes, noon) {
		fmt.Fprintf(&got, "%s %d (%d ms)\n", v.Name, v.Score, v.AgeMS)
		for _, p := range v.Parts {
			fmt.Fprintf(&got, "  %d %s: %s\n", p.Points, p.Name, p.Text)
		}
	}
	want := `node-3 43390 (0 ms)
  36000 start: starts in about 0.1 s or less
  5000 packing: has no GPU to leave idle
  1000 owner: belongs to the same owner
  800 power: is no laptop
  500 path: is this machine
  90 cpu: leaves 6 of 8 cores
node-2 42890 (2000 ms)
  36000 start: starts in about 0.1 s or less
  5000 packing: has no GPU to leave idle
  1000 owner: belongs to the same owner
  800 power: is no laptop
  0 path: no path is known
  90 cpu: leaves 6 of 8 cores
node-5 42890 (2000 ms)
  36000 start: starts in about 0.1 s or less
  5000 packing: has no GPU to leave idle
  1000 owner: belongs to the same owner
  800 power: is no laptop
  0 path: lan path, round trip not measured
  90 cpu: leaves 6 of 8 cores
node-1 42290 (2000 ms)
  36000 start: starts in about 0.1 s or less
  4000 packing: leaves 1 GPU idle, 60 % of it useless to a usual run
  1000 owner: belongs to the same owner
  800 power: is no laptop
  400 path: lan path, round trip 1ms
  90 cpu: leaves 6 of 8 cores
node-4 18890 (2000 ms)
  12000 start: starts in about 10.0 s
  5000 packing: has no GPU to leave idle
  1000 owner: belongs to the same owner
  800 power: is no laptop
  0 path: has not answered lately
  90 cpu: leaves 6 of 8 cores
`
	if got.String() != want {
		t.Errorf("got\n%s\nwant\n%s", got.String(), want)
	}
	v := Choose(spec(task.Needs{VRAM: 10 * g}), alice, nodes[:1], noon)[0]
	if p := v.Parts[1]; p.Text != "leaves 14 GiB of 24 GiB of VRAM, leaves no GPU idle" || !slices.Equal(v.Devices, []string{"GPU-0"}) {
		t.Errorf("%+v %q", p, v.Devices)
	}
}

// A run goes where it can start twice as soon, by what the way there has carried;
// and rather not to a laptop, least of all to one on its battery.
func TestPreferences(t *testing.T) {
	input := spec(task.Needs{})
	input.Inputs = []task.Input{{Path: "in", Size: 100 * task.GiB, Kind: task.KindFile}}
	carries := func(rate task.Bytes) func(*fleet.Node) { return func(n *fleet.Node) { n.Path.Rate = rate } }
	laptop := func(battery bool) func(*fleet.Node) {
		return func(n *fleet.Node) { n.Offer.Portable, n.Live.OnBattery = true, battery }
	}
	serves := spec(task.Needs{})
	serves.Serve = &task.Serve{Kind: task.ServeModel, Name: "m", Weights: wire.Hash{1}, Size: 10 * task.GiB, On: []identity.ID{machine(2).ID}}
	line := func(n *fleet.Node) { n.Live.Queue = 40 }
	for name, tc := range map[string]struct {
		spec  *task.Spec
		nodes []fleet.Node
		want  string
		part  string
	}{
		"no line":    {spec(task.Needs{}), []fleet.Node{machine(1, line), machine(2)}, "node-2 node-1", "starts in about 0.1 s or less"},
		"in line":    {spec(task.Needs{}), []fleet.Node{machine(1, line)}, "node-1", "starts in about 40.0 s, as others wait there"},
		"weights":    {serves, []fleet.Node{machine(1), machine(2)}, "node-2 node-1", "starts in about 0.1 s or less"},
		"no weights": {serves, []fleet.Node{machine(1)}, "node-1", "with 10 GiB to send"},
		"a fast way": {input, []fleet.Node{machine(1, carries(50*task.MiB)), machine(2, carries(10*task.GiB))}, "node-2 node-1", "with 100 GiB to send on the local network at the measured 10 GiB/s"},
		"no laptop":  {spec(task.Needs{}), []fleet.Node{machine(1, laptop(true)), machine(2, laptop(false)), machine(3)}, "node-3 node-2 node-1", "is no laptop"},
		"plugged in": {spec(task.Needs{}), []fleet.Node{machine(1, laptop(true)), machine(2, laptop(false))}, "node-2 node-1", "is a laptop, plugged in"},
	} {
		ranking := Choose(tc.spec, alice, tc.nodes, noon)
		var names, parts []string
		for _, v := range ranking {
			names = append(names, v.Name)
		}
		for _, p := range ranking[0].Parts {
			parts = append(parts, p.Text)
		}
		if got := strings.Join(names, " "); got != tc.want || !strings.Contains(strings.Join(parts, "; "), tc.part) {
			t.Errorf("%s: %s, because %s", name, got, parts)
		}
	}
}

func TestPin(t *testing.T) {
	a, b := machine(1), machine(2)
	a.ID, b.ID = identity.ID{0xff, 0, 1}, identity.ID{0xff, 0, 2}
	b.Name = a.ID.String()[:4] // a name that is the start of another's id
	nodes := []fleet.Node{a, b}
	for _, tc := range []struct {
		name string
		want identity.ID
		err  error
	}{
		{"node-1", a.ID, nil},
		{a.ID.String(), a.ID, nil},
		{a.ID.String()[:20], a.ID, nil},
		{b.Name, b.ID, nil},
		{a.ID.String()[:3], identity.ID{}, ErrAmbiguous},
		{a.ID.String()[:2], identity.ID{}, ErrNoNode},
		{"hydra", identity.ID{}, ErrNoNode},
		{"", identity.ID{}, ErrNoNode},
	} {
		got, err := Pin(nodes, tc.name)
		if got != tc.want || !errors.Is(err, tc.err) {
			t.Errorf("%q: %s %v, want %s %v", tc.name, got.Short(), err, tc.want.Short(), tc.err)
		}
	}
	s := &task.Spec{Driver: task.DriverProcess, Node: a.ID.String()}
	if r := Choose(s, alice, nodes, noon); !r[0].Fits || r[0].Node != a.ID || r[1].Fits {
		t.Errorf("pinned by id: %+v", r)
	}
}

func BenchmarkChoose(b *testing.B) {
	const g = task.GiB
	nodes := make([]fleet.Node, 1000)
	for i := range nodes {
		nodes[i] = machine(byte(i), gpu("NVIDIA L4", 24*g, task.Bytes(i%24)*g), gpu("NVIDIA H100", 80*g, 80*g))
		nodes[i].ID = identity.ID{byte(i >> 8), byte(i)}
	}
	for _, bc := range []struct {
		name  string
		needs task.Needs
	}{{"cpu", task.Needs{CPU: 2000}}, {"gpu", task.Needs{VRAM: 20 * g}}, {"refused", task.Needs{VRAM: 200 * g, CPU: 64000}}} {
		s := spec(bc.needs)
		b.Run(bc.name+"/1000", func(b *testing.B) {
			for b.Loop() {
				Choose(s, alice, nodes, noon)
			}
		})
	}
}
