package tui

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"math"
	"sync"
	"time"

	"github.com/balanceai/balance/exec/fleet"
	"github.com/balanceai/balance/exec/task"
	"github.com/balanceai/balance/mesh/identity"
)

// The fixtures: a mesh of ten machines of every kind, at one moment.

var testNow = time.Date(2026, 11, 23, 14, 30, 0, 0, time.UTC)

func testID(name string) identity.ID { return identity.ID(sha256.Sum256([]byte(name))) }

func wave(i, seed int, low, high float64) float64 {
	x := math.Sin(float64(i)/7+float64(seed)) + 0.4*math.Sin(float64(i)/2.3+float64(3*seed))
	return low + (high-low)*min(max((x+1.4)/2.8, 0), 1)
}

// spec is one machine of a fixture.
type spec struct {
	name, owner, cpu string
	cores, memory    int // memory in GiB
	gpus             []string
	vram             float64 // of each, in GiB
	low, high        float64 // busy, percent
	vramUse          float64 // share
	state            string
	path             fleet.Path
	silent           bool // no samples
}

func (s spec) node(seed int) fleet.Node {
	n := fleet.Node{
		ID: testID(s.name), Name: s.name, Owner: s.owner, State: s.state, Path: s.path,
		Address: fmt.Sprintf("fd7a:115c:a1e0::%x:%x", 0x1a2b+seed, 0x9c00+seed*7),
		LiveAt:  testNow.Add(-2 * time.Second),
	}
	o := &fleet.Offer{
		Version: 1, OS: "linux", Arch: "amd64", CPUModel: s.cpu,
		CPU: task.CPU(s.cores) * task.Core, Memory: task.Bytes(s.memory) * task.GiB, Disk: 2 * task.TiB, Program: "0.1.0",
	}
	vram := task.Bytes(s.vram * float64(task.GiB))
	for i, model := range s.gpus {
		o.GPUs = append(o.GPUs, fleet.Device{UUID: fmt.Sprintf("GPU-%s-%d", s.name, i), Vendor: fleet.NVIDIA, Model: model, VRAM: vram, Driver: "575.57"})
	}
	n.Offer = o
	n.Live = &fleet.Live{FreeMemory: o.Memory / 2, FreeDisk: 1300 * task.GiB, CPUPercent: int(s.low)}
	for range s.gpus {
		n.Live.GPUs = append(n.Live.GPUs, fleet.LiveGPU{FreeVRAM: vram / 2, Percent: fleet.Unknown})
	}
	if s.silent {
		return n
	}
	for i := range fleet.HistoryLen {
		smp := fleet.Sample{
			Time: testNow.Add(time.Duration(i-fleet.HistoryLen) * time.Second), CPUPercent: wave(i, seed+5, 3, 45),
			MemoryUsed: task.Bytes(float64(o.Memory) * wave(i, seed+9, 0.2, 0.4)), Memory: o.Memory,
		}
		for g := range s.gpus {
			smp.GPUs = append(smp.GPUs, fleet.SampleGPU{
				UUID: o.GPUs[g].UUID, Percent: wave(i, seed+g*4, s.low, s.high), VRAM: vram,
				VRAMUsed: task.Bytes(float64(vram) * s.vramUse * (1 - 0.1*float64(g))), Temperature: 52 + float64(seed+g*3), Power: 120 + 20*float64(g+seed),
			})
		}
		n.History = append(n.History, smp)
	}
	return n
}

const testTerms = `{"offers": true, "reserve_cpu_milli": 2000, "reserve_memory": 4294967296, "others": [
	{"owner": "bob", "cpu_milli": 4000, "memory": 17179869184, "gpus": 1, "time_ns": 7200000000000, "hours": "22:00-07:30", "isolation": "none"},
	{"owner": "*", "cpu_milli": 1000, "memory": 2147483648}]}`

// testMesh is a mesh with a machine of every kind.
func testMesh() Mesh {
	lan := func(ms float64) fleet.Path {
		return fleet.Path{Kind: fleet.PathLAN, Addr: "192.168.1.17:41641", RTT: time.Duration(ms * float64(time.Millisecond))}
	}
	specs := []spec{
		{name: "athena", owner: "ada", cpu: "AMD EPYC 9354", cores: 64, memory: 512, gpus: []string{"NVIDIA H100 80GB HBM3", "NVIDIA H100 80GB HBM3"}, vram: 79.6, low: 30, high: 99, vramUse: 0.86, path: lan(1.2)},
		{name: "boreas", owner: "ada", cpu: "AMD Ryzen 9 7950X", cores: 32, memory: 64, gpus: []string{"NVIDIA GeForce RTX 4090"}, vram: 24, low: 2, high: 40, vramUse: 0.41, path: lan(0.4)},
		{name: "cetus", owner: "bob", cpu: "Apple M3 Max", cores: 16, memory: 64, gpus: []string{"Apple M3 Max"}, vram: 64, low: 5, high: 70, vramUse: 0.3, path: lan(3.7)},
		{name: "draco", owner: "lab", cpu: "Intel Xeon Platinum 8358", cores: 64, memory: 1024, gpus: []string{"NVIDIA A100-SXM4-40GB", "NVIDIA A100-SXM4-40GB", "NVIDIA A100-SXM4-40GB", "NVIDIA A100-SXM4-40GB"}, vram: 40, low: 0, high: 60, vramUse: 0.7, path: fleet.Path{Kind: fleet.PathDirect, Addr: "203.0.113.9:41641", RTT: 12900 * time.Microsecond}},
		{name: "fornax", owner: "ada", cpu: "AMD EPYC 7302P", cores: 32, memory: 128, path: lan(0.9)},
		{name: "gemini", owner: "bob", cpu: "Intel Core i5-12400F", cores: 12, memory: 32, gpus: []string{"NVIDIA GeForce RTX 3060"}, vram: 12, low: 90, high: 100, vramUse: 0.95, path: lan(6.7)},
		{name: "hydra", owner: "lab", cpu: "AMD EPYC 9654", cores: 192, memory: 768, gpus: []string{"AMD Instinct MI300X"}, vram: 192, low: 40, high: 85, vramUse: 0.6, state: fleet.Suspect, path: fleet.Path{Kind: fleet.PathDirect, Addr: "203.0.113.10:41641", RTT: 22 * time.Millisecond}},
		{name: "io", owner: "bob", cpu: "AMD Ryzen 7 5800X", cores: 16, memory: 32, gpus: []string{"NVIDIA GeForce RTX 4090"}, vram: 24, state: fleet.Down, silent: true},
		{name: "juno", owner: "ada", cpu: "Intel Core Ultra 7 155H", cores: 22, memory: 32},
		{name: "kallisto", owner: "lab", cpu: "AMD EPYC 7302P", cores: 32, memory: 256, gpus: []string{"NVIDIA L4"}, vram: 24, low: 7, silent: true, path: fleet.Path{Kind: fleet.PathDirect, Addr: "198.51.100.3:41641", RTT: 140 * time.Millisecond}},
	}
	m := Mesh{Name: "lab-prod", Self: testID("juno")}
	for i, s := range specs {
		if s.state == "" {
			s.state = fleet.Up
		}
		m.Nodes = append(m.Nodes, s.node(i))
	}
	nodes := m.Nodes
	o := nodes[0].Offer
	o.Labels, o.Engines = []string{"fast-disk", "eu"}, []fleet.Engine{{Name: "ollama", Version: "0.9.2"}, {Name: "vllm", Version: "0.11"}}
	if err := json.Unmarshal([]byte(testTerms), &o.Terms); err != nil {
		panic(err)
	}
	last := &nodes[0].History[fleet.HistoryLen-1]
	last.Runs = []fleet.RunUse{
		{ID: "r-7k3fqzab2cdefghi", Owner: "ada", CPU: 4 * task.Core, Memory: 16 * task.GiB, GPUs: 1, Since: testNow.Add(-12*time.Minute - 4*time.Second)},
		{ID: "r-m4a7zzab2cdefghi", Owner: "bob", CPU: task.Core, Memory: 2 * task.GiB, Since: testNow.Add(-40 * time.Second)},
	}
	nodes[7].LiveAt = testNow.Add(-4 * time.Minute)
	nodes[6].LiveAt = testNow.Add(-12 * time.Second)
	nodes[8].Self, nodes[8].Path = true, fleet.Path{Kind: fleet.PathSelf}
	nodes[9].LiveAt = testNow.Add(-30 * time.Second)
	return m
}

// testRuns are runs in every state.
func testRuns() []task.Status {
	ago := func(d time.Duration) time.Time { return testNow.Add(-d) }
	return []task.Status{
		{ID: "r-7k3fqzab2cdefghi", State: task.Running, Node: "athena", NodeID: testID("athena"), Submitter: testID("juno"), Attempt: 1, Agent: "fix-flaky", Command: []string{"go", "test", "./..."}, Submitted: ago(12*time.Minute + 5*time.Second), Started: ago(12*time.Minute + 4*time.Second)},
		{ID: "r-9zqaaaab2cdefghi", State: task.Placed, Node: "draco", NodeID: testID("draco"), Submitter: testID("juno"), Attempt: 2, Command: []string{"python3", "train.py", "--lr", "3e-4"}, Submitted: ago(4 * time.Second)},
		{ID: "r-1abcaaab2cdefghi", State: task.Succeeded, Node: "boreas", NodeID: testID("boreas"), Submitter: testID("juno"), Attempt: 1, Agent: "word-report", Command: []string{"report", "notes"}, Submitted: ago(time.Hour), Started: ago(time.Hour), Finished: ago(time.Hour - 95*time.Second), ExitCode: new(0), Receipt: true, Usage: &task.Usage{WallMS: 95000, CPUMS: 180250, MaxRSS: 812 * task.MiB, Output: 41 * task.KiB}},
		{ID: "r-5efgaaab2cdefghi", State: task.Failed, Node: "gemini", NodeID: testID("gemini"), Submitter: testID("juno"), Attempt: 1, Command: []string{"sh", "-c", "exit 3"}, Submitted: ago(3 * time.Hour), Started: ago(3 * time.Hour), Finished: ago(3*time.Hour - time.Second), ExitCode: new(3)},
		{ID: "r-6hijaaab2cdefghi", State: task.Unplaced, Submitter: testID("juno"), Attempt: 1, Command: []string{"llama-server", "-m", "70b.gguf"}, Submitted: ago(26 * time.Hour), Finished: ago(26 * time.Hour), Reason: "no machine fits"},
		{ID: "r-2klmaaab2cdefghi", State: task.Lost, Node: "io", NodeID: testID("io"), Submitter: testID("juno"), Attempt: 1, Command: []string{"make", "-j16", "world"}, Submitted: ago(27 * time.Hour), Started: ago(27 * time.Hour), Reason: "the machine cannot be reached"},
		{ID: "r-3nopaaab2cdefghi", State: task.Cancelled, Node: "athena", NodeID: testID("athena"), Submitter: testID("juno"), Attempt: 1, Command: []string{"sleep", "1000"}, Submitted: ago(50 * time.Hour), Started: ago(50 * time.Hour), Finished: ago(49 * time.Hour), ExitCode: new(143), Reason: "stopped by its submitter"},
	}
}

// testRanking is what placement says when one GPU with 24 GiB is asked for.
func testRanking() task.Ranking {
	return task.Ranking{
		{Node: testID("athena"), Name: "athena", Owner: "ada", Fits: true, Score: 912, Devices: []string{"GPU-athena-1"}, Parts: []task.Part{
			{Name: "vram", Text: "leaves 11 of 79.6 GiB on the GPU", Points: 430}, {Name: "cpu", Text: "58 of 64 cores are free", Points: 280}, {Name: "path", Text: "1.2 ms away on the LAN", Points: 202},
		}},
		{Node: testID("draco"), Name: "draco", Owner: "lab", Fits: true, Score: 640, AgeMS: 12000, Devices: []string{"GPU-draco-0"}, Parts: []task.Part{
			{Name: "vram", Text: "leaves 4 of 40 GiB on the GPU", Points: 240}, {Name: "cpu", Text: "60 of 64 cores are free", Points: 280}, {Name: "path", Text: "12.9 ms away", Points: 120},
		}},
		{Node: testID("boreas"), Name: "boreas", Owner: "ada", Reasons: []task.Reason{{Rule: "vram", Text: "needs 24 GiB of VRAM on one GPU, 14.2 GiB are free", Ever: true}}},
		{Node: testID("cetus"), Name: "cetus", Owner: "bob", Reasons: []task.Reason{{Rule: "terms", Text: "its owner bob has not granted anything to ada"}}},
		{Node: testID("fornax"), Name: "fornax", Owner: "ada", Reasons: []task.Reason{{Rule: "gpus", Text: "needs 1 GPU, it has none"}}},
		{Node: testID("io"), Name: "io", Owner: "bob", Reasons: []task.Reason{{Rule: "state", Text: "is down since 4 min", Ever: true}, {Rule: "terms", Text: "its owner bob has not granted anything to ada"}}},
		{Node: testID("juno"), Name: "juno", Owner: "ada", Reasons: []task.Reason{{Rule: "terms", Text: "offers nothing to the mesh"}}},
	}
}

func testWhy() []Attempt {
	return []Attempt{
		{Attempt: 1, Node: "draco", Ranking: testRanking(), Refusal: []task.Reason{{Rule: "gpus", Text: "grants ada 1 GPUs in all, 1 are in use, the run needs 1", Ever: true}}},
		{Attempt: 2, Node: "athena", Ranking: testRanking()},
	}
}

// testEvents are what a run of tests writes.
func testEvents(run string) []task.Event {
	start := testNow.Add(-12*time.Minute - 4*time.Second)
	out := []task.Event{
		{Type: task.EventPlaced, Node: "draco", Attempt: 1, State: task.Placed},
		{Type: task.EventNote, Message: "draco refused: grants ada 1 GPUs in all, 1 are in use, the run needs 1"},
		{Type: task.EventPlaced, Node: "athena", Attempt: 2, State: task.Placed},
		{Type: task.EventStarted, Node: "athena", Attempt: 2, State: task.Running},
	}
	for i := range 40 {
		out = append(out, task.Event{Type: task.EventOutput, Stream: task.Stdout, Data: fmt.Sprintf("ok  \tgithub.com/example/service/pkg%02d\t%d.%03ds\n", i, i%7, i*37%1000)})
		if i%9 == 4 {
			out = append(out, task.Event{Type: task.EventOutput, Stream: task.Stderr, Data: "warning: \x1b[31mflaky test\x1b[0m retried: TestReconnect/slow_link took longer than expected and was run again with more time than the one before it had\n"})
		}
	}
	for i := range out {
		out[i].Seq, out[i].Run = uint64(i+1), run
		out[i].Time = start.Add(time.Duration(i) * 9 * time.Second)
	}
	return out
}

func testLedger() []Entry {
	var out []Entry
	add := func(ago time.Duration, topic, author, kind string, seq uint64, summary string) {
		h := sha256.Sum256([]byte(topic + author + kind + fmt.Sprint(seq)))
		out = append(out, Entry{Topic: topic, Author: testID(author), Kind: kind, Seq: seq, Time: testNow.Add(-ago), Summary: summary, Hash: hex.EncodeToString(h[:])})
	}
	add(12*time.Minute+4*time.Second, "r-7k3fqzab2cdefghi", "athena", "started", 2, "attempt 2")
	add(12*time.Minute+5*time.Second, "r-7k3fqzab2cdefghi", "athena", "accepted", 1, "attempt 2, 1 GPU reserved")
	add(12*time.Minute+5*time.Second, "r-7k3fqzab2cdefghi", "juno", "place", 3, "attempt 2 on athena")
	add(12*time.Minute+5*time.Second, "r-7k3fqzab2cdefghi", "draco", "refused", 1, "grants ada 1 GPUs in all, 1 are in use, the run needs 1")
	add(12*time.Minute+6*time.Second, "r-7k3fqzab2cdefghi", "juno", "place", 2, "attempt 1 on draco")
	add(12*time.Minute+6*time.Second, "r-7k3fqzab2cdefghi", "juno", "submit", 1, "fix-flaky: go test ./...")
	add(time.Hour, "mesh", "athena", "offer", 7, "64 cores, 512 GiB, 2 GPUs")
	add(2*time.Hour, "mesh", "kallisto", "wgbind", 1, "binds its WireGuard key")
	add(2*time.Hour, "mesh", "juno", "admit", 9, "kallisto, owner lab")
	add(2*time.Hour+time.Minute, "mesh", "juno", "invite", 8, "for owner lab, 1 h")
	return out
}

func testAgents() []Agent {
	return []Agent{
		{Name: "fix-flaky", Path: "examples/fix-flaky", Description: "runs the tests until a flaky one shows, and reports it"},
		{Name: "word-report", Path: "examples/word-report", Description: "counts the words of a folder of text"},
	}
}

// fakeNode is a backend that says what it was told to say.
type fakeNode struct {
	mu        sync.Mutex
	mesh      Mesh
	pictures  chan Mesh // further pictures
	gone      error     // what every call returns
	runs      []task.Status
	events    []task.Event
	more      chan task.Event // follows after events
	why       []Attempt
	ranking   task.Ranking
	agents    []Agent
	ledger    []Entry
	drafts    []Draft // planned
	submitted []Draft
	cancelled []string
}

func newFakeNode() *fakeNode {
	return &fakeNode{
		mesh: testMesh(), pictures: make(chan Mesh), runs: testRuns(), more: make(chan task.Event),
		events: testEvents("r-7k3fqzab2cdefghi"), why: testWhy(), ranking: testRanking(), agents: testAgents(), ledger: testLedger(),
	}
}

func (f *fakeNode) set(change func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	change()
}

func (f *fakeNode) Watch(ctx context.Context, show func(Mesh)) error {
	f.mu.Lock()
	mesh, gone := f.mesh, f.gone
	f.mu.Unlock()
	if gone != nil {
		return gone
	}
	show(mesh)
	t := time.NewTicker(100 * time.Millisecond)
	defer t.Stop()
	for {
		select {
		case <-t.C:
		case m := <-f.pictures:
			show(m)
		case <-ctx.Done():
			return ctx.Err()
		}
		f.mu.Lock()
		gone = f.gone
		f.mu.Unlock()
		if gone != nil {
			return gone
		}
	}
}

func (f *fakeNode) Runs(context.Context, int) ([]task.Status, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.runs, f.gone
}

func (f *fakeNode) Events(ctx context.Context, run string, after uint64, show func(task.Event)) error {
	f.mu.Lock()
	events, gone := f.events, f.gone
	f.mu.Unlock()
	if gone != nil {
		return gone
	}
	for _, e := range events {
		if e.Seq > after && e.Run == run {
			show(e)
		}
	}
	for {
		select {
		case e := <-f.more:
			show(e)
			if e.State.Final() {
				return nil
			}
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func (f *fakeNode) Why(context.Context, string) ([]Attempt, error) { return f.why, f.gone }

func (f *fakeNode) Plan(_ context.Context, d Draft) (task.Ranking, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.drafts = append(f.drafts, d)
	return f.ranking, f.gone
}

func (f *fakeNode) Submit(_ context.Context, d Draft) (string, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.submitted = append(f.submitted, d)
	return f.runs[0].ID, f.gone
}

func (f *fakeNode) Cancel(_ context.Context, run string, force bool) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.cancelled = append(f.cancelled, fmt.Sprint(run, " ", force))
	return f.gone
}

func (f *fakeNode) Agents(context.Context) ([]Agent, error) { return f.agents, f.gone }

func (f *fakeNode) Ledger(_ context.Context, topic string, limit int) ([]Entry, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	var out []Entry
	for _, e := range f.ledger {
		if (topic == "" || e.Topic == topic) && len(out) < limit {
			out = append(out, e)
		}
	}
	return out, f.gone
}
