package fleet

import (
	"sync"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/balanceai/balance/exec/policy"
	"github.com/balanceai/balance/exec/task"
	"github.com/balanceai/balance/mesh/identity"
	"github.com/balanceai/balance/mesh/wire"
)

var hydra, juno = identity.ID{1}, identity.ID{2}

// clock is a clock that stands until it is moved.
type clock struct{ time time.Time }

func (c *clock) now() time.Time { return c.time }

func newTestView() (*View, *clock) {
	c := &clock{time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC)}
	v := NewView(c.now)
	v.SetMembers([]Node{{ID: juno, Name: "juno", Owner: "ben", State: Down}, {ID: hydra, Name: "hydra", Owner: "ada", State: Up, Self: true}})
	return v, c
}

// node finds a member in the view as it is now.
func node(t *testing.T, v *View, id identity.ID) Node {
	t.Helper()
	nodes, _ := v.Snapshot()
	for _, n := range nodes {
		if n.ID == id {
			return n
		}
	}
	t.Fatalf("no node %v", id.Short())
	return Node{}
}

func TestViewMembers(t *testing.T) {
	v, _ := newTestView()
	nodes, _ := v.Snapshot()
	if len(nodes) != 2 || nodes[0].Name != "hydra" || nodes[1].Name != "juno" || !nodes[0].Self {
		t.Fatalf("got %+v", nodes)
	}
	v.SetOffer(juno, &Offer{CPU: 4000})
	v.SetState(juno, Up)
	v.SetPath(juno, Path{Kind: PathLAN})
	v.SetMembers([]Node{{ID: juno, Name: "juno-2", Owner: "ben", State: Down, Path: Path{Kind: PathNone}}})
	got := node(t, v, juno)
	if got.Name != "juno-2" || got.Offer == nil || got.State != Up || got.Path.Kind != PathLAN {
		t.Errorf("who stays lost facts: %+v", got)
	}
	if nodes, _ := v.Snapshot(); len(nodes) != 1 {
		t.Errorf("who left is still there: %+v", nodes)
	}
	v.SetOffer(juno, nil)
	if node(t, v, juno).Offer != nil {
		t.Error("a withdrawn offer is still there")
	}
}

func TestViewAges(t *testing.T) {
	v, c := newTestView()
	start := c.time
	v.SetLive(juno, Live{Millis: 1000, Runs: 1})
	c.time = start.Add(20 * time.Second)
	if got := node(t, v, juno); !got.LiveAt.Equal(start) {
		t.Errorf("arrived at %v, want %v", got.LiveAt, start)
	}
	v.SetLive(juno, Live{Millis: 999, Runs: 9}) // overtaken on its way
	if got := node(t, v, juno); got.Live.Runs != 1 || !got.LiveAt.Equal(start) {
		t.Errorf("an older fact won: %+v of %v", got.Live, got.LiveAt)
	}
	v.SetLive(juno, Live{Millis: 1000, Runs: 2}) // the same again is news of now
	if got := node(t, v, juno); got.Live.Runs != 2 || !got.LiveAt.Equal(c.time) {
		t.Errorf("got %+v of %v", got.Live, got.LiveAt)
	}
	v.SetState(juno, Down)
	c.time = c.time.Add(time.Hour)
	if got := node(t, v, juno); got.Live == nil || c.time.Sub(got.LiveAt) != time.Hour {
		t.Errorf("who is down lost its facts or their age: %+v", got)
	}
}

func TestViewHistory(t *testing.T) {
	v, _ := newTestView()
	n := node(t, v, hydra)
	if n.Sample() != nil {
		t.Error("a sample from nowhere")
	}
	var early Node
	for i := range 3 * HistoryLen {
		v.AddSample(hydra, Sample{CPUPercent: float64(i)})
		if i == HistoryLen-2 {
			early = node(t, v, hydra)
		}
	}
	n = node(t, v, hydra)
	if len(n.History) != HistoryLen || n.Sample().CPUPercent != 3*HistoryLen-1 || n.History[0].CPUPercent != 2*HistoryLen {
		t.Errorf("%d samples from %v to %v", len(n.History), n.History[0].CPUPercent, n.Sample().CPUPercent)
	}
	for i, s := range early.History {
		if s.CPUPercent != float64(i) {
			t.Fatalf("a snapshot has changed: sample %d is %v", i, s.CPUPercent)
		}
	}
	v.AddSample(identity.ID{9}, Sample{}) // a stranger
	if nodes, _ := v.Snapshot(); len(nodes) != 2 {
		t.Error("a sample made a member")
	}
}

// The version moves and the channel closes exactly when something changes.
func TestViewChanges(t *testing.T) {
	v, _ := newTestView()
	for _, tc := range []struct {
		name   string
		do     func()
		change bool
	}{
		{"live", func() { v.SetLive(juno, Live{Millis: 5}) }, true},
		{"older live", func() { v.SetLive(juno, Live{Millis: 4}) }, false},
		{"state", func() { v.SetState(juno, Up) }, true},
		{"same state", func() { v.SetState(juno, Up) }, false},
		{"path", func() { v.SetPath(juno, Path{Kind: PathLAN, RTT: 1}) }, true},
		{"same path", func() { v.SetPath(juno, Path{Kind: PathLAN, RTT: 1}) }, false},
		{"stranger", func() { v.SetState(identity.ID{9}, Up) }, false},
	} {
		_, before := v.Snapshot()
		changed := v.Changed(before)
		tc.do()
		_, after := v.Snapshot()
		closed := false
		select {
		case <-changed:
			closed = true
		default:
		}
		if closed != tc.change || (after != before) != tc.change {
			t.Errorf("%s: version %d to %d, told: %v", tc.name, before, after, closed)
		}
		if tc.change {
			<-v.Changed(before) // at once for who asks too late
		}
	}
}

func TestViewConcurrently(t *testing.T) {
	v, _ := newTestView()
	var all sync.WaitGroup
	for i := range 4 {
		all.Go(func() {
			for j := range 200 {
				v.AddSample(hydra, Sample{CPUPercent: float64(j)})
				v.SetLive(hydra, Live{Millis: int64(i)})
				nodes, version := v.Snapshot()
				for _, s := range nodes[0].History {
					_ = s.CPUPercent
				}
				_ = v.Changed(version)
			}
		})
	}
	all.Wait()
}

// An offer with everything in it is a record that every member can read.
func TestOfferIsARecord(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		o := Offer{
			Version: 1, OS: "linux", Arch: "amd64", CPU: 8000, Memory: 64 * task.GiB, Disk: task.TiB,
			Zone: rapid.IntRange(-43200, 50400).Draw(t, "zone"), Labels: []string{"lab"}, Drivers: []string{"process"},
			Engines: []Engine{{Name: "ollama", Version: "0.12.6"}, {Name: "vllm"}},
			Terms:   policy.Terms{Offers: true, Others: []policy.Grant{{Owner: "ben", CPU: 1000, Memory: task.GiB}}},
		}
		for range rapid.IntRange(0, 72).Draw(t, "GPUs") {
			o.GPUs = append(o.GPUs, Device{UUID: "GPU-5ab2f4d1c0e96b37", Vendor: AMD, Model: "AMD Radeon RX 7900 XTX", VRAM: 24 * task.GiB, Unified: rapid.Bool().Draw(t, "unified")})
		}
		b, err := wire.Marshal(o)
		if err != nil {
			t.Fatal(err)
		}
		var back Offer
		if err := wire.Unmarshal(b, &back); err != nil {
			t.Fatal(err)
		}
		if len(back.GPUs) != len(o.GPUs) || back.Terms.Others[0] != o.Terms.Others[0] || back.Zone != o.Zone {
			t.Fatalf("got %+v", back)
		}
	})
}

func TestViewNode(t *testing.T) {
	v, _ := newTestView()
	if n, ok := v.Node(juno); !ok || n.Name != "juno" || n.Owner != "ben" {
		t.Errorf("%+v, %v", n, ok)
	}
	if n, ok := v.Node(identity.ID{3}); ok {
		t.Errorf("a stranger: %+v", n)
	}
}

func TestServiceMay(t *testing.T) {
	for _, test := range []struct {
		to    []string
		owner string
		want  bool
	}{
		{nil, "ada", true}, // the machine's own
		{nil, "ben", false},
		{nil, "", false},
		{[]string{"zoe"}, "ben", false},
		{[]string{"zoe", "ben"}, "ben", true},
		{[]string{policy.AnyOwner}, "ben", true},
	} {
		if got := (Service{To: test.to}).May(test.owner, "ada"); got != test.want {
			t.Errorf("to %q: %s may: %v", test.to, test.owner, got)
		}
	}
}
