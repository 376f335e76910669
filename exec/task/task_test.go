package task

import (
	"reflect"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/balanceai/balance/mesh/identity"
)

func TestCheckPath(t *testing.T) {
	for _, p := range []string{"a", "a/b/c.txt", "a b", "é", "..a", "a..", "...", "a/..b", ".hidden", "-rf", "CON", "a\nb", strings.Repeat("a", 4096)} {
		if err := CheckPath(p); err != nil {
			t.Errorf("%.40q: %v", p, err)
		}
	}
	for _, p := range []string{
		"", ".", "..", "/", "/etc/passwd", "../x", "a/../b", "a/../../b", "./a", "a/.", "a/..", "a//b", "a/", "//a", "../", "/..",
		"a\x00b", "\x00", `a\b`, `..\x`, `\\server\share`, "C:", "C:x", "C:/x", "a:stream", strings.Repeat("a", 4097),
	} {
		if CheckPath(p) == nil {
			t.Errorf("%.40q: no error", p)
		}
	}
}

// What passes stays in its folder, whatever the name.
func FuzzCheckPath(f *testing.F) {
	for _, s := range []string{"a/b", "../a", "a//b", `a\b`, "a/../..", "\xff/..", "a/./b"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, p string) {
		if CheckPath(p) != nil {
			return
		}
		for part := range strings.SplitSeq(p, "/") {
			if part == "" || part == "." || part == ".." || strings.ContainsAny(part, "\\:\x00") {
				t.Fatalf("%q passed", p)
			}
		}
	})
}

// fullSpec has every field set, and nests as deep as a spec can.
func fullSpec() Spec {
	return Spec{
		Agent: "text-report", Manifest: [32]byte{1}, Driver: DriverImage, Image: "docker.io/library/busybox", Command: []string{"sh", "-c", "true"},
		Env: map[string]string{"A": "1", "B": "2"},
		Needs: Needs{
			CPU: 1500, Memory: 3 * GiB, Disk: GiB, GPUs: 2, VRAM: 24 * GiB, GPUModels: []string{"L4"}, Arch: []string{"amd64"}, OS: []string{"linux"},
			Labels: []string{"lab"}, Engines: []string{"ollama"}, Share: 250,
		},
		Inputs:  []Input{{Path: "in", Tree: [32]byte{2}, Size: 5, Kind: KindFolder}, {Path: "x/y", Tree: [32]byte{3}, Kind: KindFile}},
		Outputs: []string{"out", "report.md"}, Node: "hydra", Stdin: true, Detached: true,
		Limits:  Limits{Time: time.Hour, Output: MiB, Memory: GiB, CPU: Core, PIDs: 100, Disk: TiB},
		Secrets: []Secret{{Name: "KEY", Expose: true}, {Name: "TOKEN", Host: "api.example.org", Header: "X-Key", Prefix: "Key ", Others: true}},
		Prefer:  []string{"quiet"}, Isolation: LevelSandbox, Network: []string{"example.org"},
		TTY: &Terminal{Rows: 24, Cols: 80}, Open: true, Retry: RetryOnLoss, Lease: time.Minute, Wait: time.Hour, Priority: -5,
		Models: []Model{{Name: "llm", Model: "llama3.2", EndpointVar: "AT", ModelVar: "WHICH"}},
		Gang:   &Gang{Nodes: 2, Port: 29500},
		Serve:  &Serve{Kind: ServeModel, Name: "llama3.2:3b", Health: "/health", Weights: [32]byte{4}, Idle: time.Hour, Port: 8000, Card: "/card", To: []string{"ben"}},
		Member: &Member{Gang: "r-aaaaaaaaaaaaaaaa", Rank: 1, Runs: []string{"r-bbbbbbbbbbbbbbbb", "r-cccccccccccccccc"}, Nodes: []identity.ID{{1}, {2}}, Port: 29500},
	}
}

func TestSpecCheck(t *testing.T) {
	s := fullSpec()
	for i := range reflect.ValueOf(s).NumField() { // so that the tests of the encoding cover it
		if reflect.ValueOf(s).Field(i).IsZero() {
			t.Errorf("%s is not set", reflect.TypeOf(s).Field(i).Name)
		}
	}
	if err := s.Check(); err != nil {
		t.Fatal(err)
	}
	for name, change := range map[string]func(*Spec){
		"gang of none":       func(s *Spec) { s.Gang.Nodes = 0 },
		"vast gang":          func(s *Spec) { s.Gang.Nodes = MaxGang + 1 },
		"port of a gang":     func(s *Spec) { s.Gang.Port = 1 << 16 },
		"rank of no gang":    func(s *Spec) { s.Member.Gang = "x" },
		"rank beyond":        func(s *Spec) { s.Member.Rank = 2 },
		"rank below":         func(s *Spec) { s.Member.Rank = -1 },
		"ranks without runs": func(s *Spec) { s.Member.Runs = s.Member.Runs[:1] },
		"rank of no run":     func(s *Spec) { s.Member.Runs[0] = "../x" },
		"port of a rank":     func(s *Spec) { s.Member.Port = -1 },
		"secret twice":       func(s *Spec) { s.Secrets[1].Name = "KEY" },
		"secret in env":      func(s *Spec) { s.Secrets[0].Name = "A" },
		"secret without end": func(s *Spec) { s.Secrets[0].Expose = false },
		"secret for itself":  func(s *Spec) { s.Secrets[1].Header = "Proxy-Authorization" },
		"secret, no way out": func(s *Spec) { s.Isolation = "" },
		"no command":         func(s *Spec) { s.Command = nil },
		"negative wait":      func(s *Spec) { s.Wait = -1 },
		"high priority":      func(s *Spec) { s.Priority = MaxPriority + 1 },
		"low priority":       func(s *Spec) { s.Priority = -MaxPriority - 1 },
		"serves what":        func(s *Spec) { s.Serve.Kind = "web" },
		"serves nameless":    func(s *Spec) { s.Serve.Name = "" },
		"serves oddly":       func(s *Spec) { s.Serve.Name = "a b" },
		"serves at no path":  func(s *Spec) { s.Serve.Health = "health" },
		"serves at no port":  func(s *Spec) { s.Serve.Port = 1 << 16 },
		"weights of nothing": func(s *Spec) { s.Serve.Weights, s.Command = [32]byte{}, []string{"x", WeightsWord} },
		"odd retry":          func(s *Spec) { s.Retry = "always" },
		"lease for nothing":  func(s *Spec) { s.Retry = RetryNever },
		"short lease":        func(s *Spec) { s.Lease = time.Millisecond },
		"endless lease":      func(s *Spec) { s.Lease = 1 << 62 },
		"negative lease":     func(s *Spec) { s.Lease = -time.Minute },
		"empty command":      func(s *Spec) { s.Command = []string{""} },
		"NUL in an argument": func(s *Spec) { s.Command = append(s.Command, "a\x00b") },
		"no driver":          func(s *Spec) { s.Driver = "" },
		"odd isolation":      func(s *Spec) { s.Isolation = "none" },
		"few processes":      func(s *Spec) { s.Limits.PIDs = MinPIDs - 1 },
		"unnamed model":      func(s *Spec) { s.Models[0].Model = "" },
		"model twice":        func(s *Spec) { s.Models = append(s.Models, s.Models[0]) },
		"odd model variable": func(s *Spec) { s.Models[0].ModelVar = "A=B" },
		"odd driver":         func(s *Spec) { s.Driver = "wasm" },
		"no image":           func(s *Spec) { s.Image = "" },
		"image unnamed":      func(s *Spec) { s.Image = "-v" },
		"image elsewhere":    func(s *Spec) { s.Image = "a/../../containers" },
		"image, no driver":   func(s *Spec) { s.Driver = DriverProcess },
		"image of odd signs": func(s *Spec) { s.Image = "a?b" },
		"negative GPUs":      func(s *Spec) { s.Needs.GPUs = -1 },
		"many GPUs":          func(s *Spec) { s.Needs.GPUs = 1 << 20 },
		"negative time":      func(s *Spec) { s.Limits.Time = -1 },
		"empty variable":     func(s *Spec) { s.Env = map[string]string{"": "x"} },
		"= in a variable":    func(s *Spec) { s.Env = map[string]string{"A=B": "x"} },
		"NUL in a variable":  func(s *Spec) { s.Env = map[string]string{"A": "\x00"} },
		"input leaves":       func(s *Spec) { s.Inputs[0].Path = "../x" },
		"input kind":         func(s *Spec) { s.Inputs[0].Kind = "link" },
		"input twice":        func(s *Spec) { s.Inputs[1].Path = s.Inputs[0].Path },
		"output leaves":      func(s *Spec) { s.Outputs = []string{"/etc"} },
	} {
		s := fullSpec()
		change(&s)
		if s.Check() == nil {
			t.Errorf("%s: no error", name)
		}
	}
}

func TestHeld(t *testing.T) {
	for _, tc := range []struct{ needs, want Needs }{
		{Needs{}, Needs{CPU: DefaultCPU, Memory: DefaultMemory}},
		{Needs{CPU: 2000, Memory: GiB}, Needs{CPU: 2000, Memory: GiB}},
		{Needs{CPU: 1, Memory: 1, VRAM: GiB}, Needs{CPU: 1, Memory: 1, VRAM: GiB, GPUs: 1}},
		{Needs{CPU: 1, Memory: 1, GPUs: 4, VRAM: GiB}, Needs{CPU: 1, Memory: 1, GPUs: 4, VRAM: GiB}},
		{Needs{CPU: 1, Memory: 1, GPUModels: []string{"L4"}}, Needs{CPU: 1, Memory: 1, GPUs: 1, GPUModels: []string{"L4"}}},
	} {
		if got := tc.needs.Held(); !reflect.DeepEqual(got, tc.want) || !reflect.DeepEqual(got.Held(), got) {
			t.Errorf("%+v holds %+v, want %+v", tc.needs, got, tc.want)
		}
	}
}

func TestIDs(t *testing.T) {
	seen := map[string]bool{}
	for range 1000 {
		id := NewID()
		if !ValidID(id) || seen[id] {
			t.Fatalf("id %q", id)
		}
		seen[id] = true
	}
	for _, id := range []string{"", "r-", "mesh", "r-aaaaaaaaaaaaaaa", "r-aaaaaaaaaaaaaaaaa", "r-aaaaaaaaaaaaaaa1", "r-AAAAAAAAAAAAAAAA", "r-../../../../../", "x-aaaaaaaaaaaaaaaa", "r-aaaaaaaaaaaaaaaé"} {
		if ValidID(id) {
			t.Errorf("%q is valid", id)
		}
	}
}

func TestEventOutput(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		b := rapid.SliceOf(rapid.Byte()).Draw(t, "output")
		var e Event
		e.SetOutput(b)
		if string(e.Output()) != string(b) || e.Data != "" && e.Binary != nil {
			t.Fatalf("%q became %+v", b, e)
		}
	})
}

func TestBest(t *testing.T) {
	fit, unfit := Verdict{Fits: true}, Verdict{}
	for _, tc := range []struct {
		ranking Ranking
		want    int
	}{{nil, 0}, {Ranking{unfit}, 0}, {Ranking{fit}, 1}, {Ranking{fit, fit, unfit, unfit}, 2}} {
		if got := len(tc.ranking.Best()); got != tc.want {
			t.Errorf("%d of %d fit, want %d", got, len(tc.ranking), tc.want)
		}
	}
}

func TestLead(t *testing.T) {
	part := func(name string, points int) Part { return Part{Name: name, Points: points} }
	a := Verdict{Name: "a", Fits: true, Score: 30, Parts: []Part{part("start", 20), part("path", 10)}}
	b := Verdict{Name: "b", Fits: true, Score: 17, Parts: []Part{part("start", 20), part("path", 0), part("x", -3)}}
	c := Verdict{Name: "c"}
	for want, r := range map[string]Ranking{
		"":                                 {a, c},
		"a comes before b by 13: path +10": {a, b, c},
		"b and b are equal; the lower id comes first": {b, b},
	} {
		if got := r.Lead(); got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
}
