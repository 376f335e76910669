package serve

import (
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/balanceai/balance/exec/gguf"
	"github.com/balanceai/balance/exec/task"
	"github.com/balanceai/balance/mesh/identity"
)

func TestEngineFor(t *testing.T) {
	for model, want := range map[string][2]string{
		"llama3.2:3b": {Ollama, "llama3.2:3b"}, "Qwen/Qwen3-8B": {VLLM, "Qwen/Qwen3-8B"}, "/models/Tiny Q4.GGUF": {Llama, "tiny-q4"}, "tiny.gguf": {Llama, "tiny"},
	} {
		if e, n := EngineFor(model), NameOf(model); e != want[0] || n != want[1] {
			t.Errorf("%s: %s, %s; want %v", model, e, n, want)
		}
	}
}

// What a model of eight billion parameters takes is what is known of it: 4.6 GiB
// of weights, 1 GiB for 8192 tokens, and some hundred MiB.
func TestSpecs(t *testing.T) {
	m := Model{Name: "llama", Engine: Llama, Context: 8192, Weights: [32]byte{1}, Size: 4_900_000_000, Header: gguf.Header{Architecture: "llama", Layers: 32, KeyHeads: 256, KeyLength: 128, ValueLength: 128, Embedding: 4096, Vocabulary: 128256}}
	list, err := m.Specs()
	if err != nil || len(list) != 2 {
		t.Fatal(list, err)
	}
	gpu, cpu := list[0], list[1]
	if v := gpu.Needs.VRAM; v < 58*task.GiB/10 || v > 65*task.GiB/10 || gpu.Needs.GPUs != 1 || cpu.Needs.Memory != v || cpu.Needs.GPUs != 0 {
		t.Errorf("needs %+v and %+v", gpu.Needs, cpu.Needs)
	}
	if !slices.Contains(gpu.Command, "999") || !slices.Contains(cpu.Command, "0") || !slices.Contains(gpu.Command, task.WeightsWord) {
		t.Errorf("%v; %v", gpu.Command, cpu.Command)
	}
	m.VRAM = 3 * task.GiB
	if list, _ := m.Specs(); list[0].Needs.VRAM != 3*task.GiB {
		t.Errorf("%v although a person has said how much", list[0].Needs.VRAM)
	}
	for _, m := range []Model{{Name: "q", Engine: VLLM, Source: "Qwen/Q", Context: 1000}, {Name: "l", Engine: Ollama, Source: "l:1b", Context: 1000}} {
		list, err := m.Specs()
		if err != nil || !slices.Contains(list[0].Command, m.Source) {
			t.Errorf("%+v, %v", list, err)
		}
	}
	if _, err := (Model{Name: "x", Engine: "abacus"}).Specs(); err == nil {
		t.Error("any engine")
	}
	if n := ContextFor(gguf.Header{Context: 2048}, 0); n != 2048 {
		t.Error(n)
	}
	if n := ContextFor(gguf.Header{Context: 131072}, 0); n != DefaultContext {
		t.Error(n)
	}
	if n := ContextFor(gguf.Header{Context: 2048}, 4096); n != 4096 {
		t.Error(n)
	}
}

func TestDecide(t *testing.T) {
	now := time.Now()
	at := func(s int) time.Time { return now.Add(time.Duration(s) * time.Second) }
	r := func(run string, state task.State, s int) Replica {
		return Replica{Run: run, State: state, Submitted: at(s)}
	}
	for _, tc := range []struct {
		name string
		want int
		list []Replica
		h    History
		plan Plan
	}{
		{"none yet", 1, nil, History{}, Plan{Start: true}},
		{"all there", 2, []Replica{r("a", task.Running, 0), r("b", task.Placed, 1)}, History{}, Plan{}},
		{"one is lost", 1, []Replica{r("a", task.Lost, 0)}, History{}, Plan{Start: true}},
		{"it is back", 1, []Replica{r("b", task.Running, 1), r("a", task.Running, 0)}, History{}, Plan{End: []string{"b"}}},
		{"called off", 0, []Replica{r("a", task.Running, 0), r("b", task.Lost, 0)}, History{}, Plan{End: []string{"a"}}},
		{"a moment after a failure", 1, nil, History{Failures: 1, Last: at(0)}, Plan{}},
		{"a while after it", 1, nil, History{Failures: 1, Last: at(-1)}, Plan{Start: true}},
		{"after many", 1, nil, History{Failures: 90, Last: at(-299)}, Plan{}},
		{"long after many", 1, nil, History{Failures: 90, Last: at(-300)}, Plan{Start: true}},
	} {
		if p := Decide(tc.want, tc.list, tc.h, now); !reflect.DeepEqual(p, tc.plan) {
			t.Errorf("%s: %+v, want %+v", tc.name, p, tc.plan)
		}
	}
	var h History
	for range 3 {
		h.Ended(at(0), at(5), true)
	}
	if h.Failures != 3 || h.Again() != at(5+4) {
		t.Errorf("%+v, again at %v", h, h.Again())
	}
	if h.Ended(at(0), at(61), true); h.Failures != 0 {
		t.Errorf("a replica that has worked: %+v", h)
	}
}

func TestChoose(t *testing.T) {
	fits := func(n byte) task.Verdict {
		return task.Verdict{Node: identity.ID{n}, Name: string('a' + rune(n)), Fits: true}
	}
	no := task.Verdict{Node: identity.ID{9}, Name: "small", Reasons: []task.Reason{task.Reasonf("vram", "needs more")}}
	ranking := task.Ranking{fits(1), fits(2), no}
	if n, why := Choose(ranking, nil, nil); n != (identity.ID{1}) || why != "" {
		t.Error(n, why)
	}
	if n, _ := Choose(ranking, nil, []Replica{{Node: identity.ID{1}}}); n != (identity.ID{2}) {
		t.Error(n)
	}
	if n, _ := Choose(ranking, nil, []Replica{{Node: identity.ID{1}, State: task.Lost}}); n != (identity.ID{1}) {
		t.Error(n)
	}
	if n, why := Choose(ranking, []identity.ID{{9}}, nil); !n.IsZero() || why != "small needs more" {
		t.Error(n, why)
	}
	if _, why := Choose(ranking, []identity.ID{{1}}, []Replica{{Node: identity.ID{1}}}); !strings.Contains(why, "already") {
		t.Error(why)
	}
}
