package agent

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/balanceai/balance/exec/policy"
	"github.com/balanceai/balance/exec/task"
)

var update = flag.Bool("update", false, "write the golden files")

func read(t *testing.T, name string) []byte {
	t.Helper()
	data, err := os.ReadFile(filepath.Join("testdata", name))
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// golden compares what was got with a file of testdata.
func golden(t *testing.T, name, got string) {
	t.Helper()
	if *update {
		if err := os.WriteFile(filepath.Join("testdata", name), []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if want := string(read(t, name)); got != want {
		t.Errorf("%s: got\n%s\nwant\n%s", name, got, want)
	}
}

func same(t *testing.T, got, want any) {
	t.Helper()
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got\n%+v\nwant\n%+v", got, want)
	}
}

func TestManifest(t *testing.T) {
	data := read(t, "full.yaml")
	m, err := Parse("/home/ada/eval/agent.yaml", data)
	if err != nil {
		t.Fatal(err)
	}
	if m.Name != "evaluate-model" || m.Description != "Runs the evaluation suite\non one device.\n" || m.Digest != sha256.Sum256(data) {
		t.Errorf("got %+v", m)
	}
	spec, sources, err := m.Spec([]string{"--quick", "two words"}, nil)
	if err != nil {
		t.Fatal(err)
	}
	same(t, spec, task.Spec{
		Agent:    "evaluate-model",
		Manifest: sha256.Sum256(data),
		Driver:   task.DriverProcess,
		Command:  []string{"python3", "eval.py", "--seed", "7", "true", "--quick", "two words"},
		Env:      map[string]string{"PYTHONUNBUFFERED": "1", "MODE": "no"},
		Needs: task.Needs{
			CPU: 1500, Memory: 24 * task.GiB, Disk: 1e11, GPUs: 2, VRAM: 40 * task.GiB,
			GPUModels: []string{"H100", "A100"}, Arch: []string{"amd64"}, OS: []string{"linux"},
			Labels: []string{"lab", "site=berlin"}, Engines: []string{"ollama"},
		},
		Outputs: []string{"report.md", "out/plots"},
		Limits:  task.Limits{Time: 24 * time.Hour, Output: 64 * task.MiB},
		Node:    "hydra",
		Stdin:   true,
		Retry:   task.RetryOnLoss,
		Lease:   90 * time.Second,
	})
	if !m.Idempotent {
		t.Error("it is idempotent")
	}
	same(t, sources, []Source{
		{"/home/ada/eval/eval.py", "eval.py"},
		{"/home/ada/eval/suites/small", "suites/small"},
		{"/home/ada/shared/texts", "data/texts"},
		{"/srv/models/index.json", "index.json"},
	})
}

func TestSecretsInManifest(t *testing.T) {
	const head = "command: [a]\nprocess: {}\nsecrets:\n"
	m, err := Parse("a/agent.yaml", []byte(head+"  B: {file: key, host: api.example.org, prefix: 'Bearer '}\n  A: {expose: true, to: others}\n"))
	if err != nil {
		t.Fatal(err)
	}
	spec, _, err := m.Spec(nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	same(t, spec.Secrets, []task.Secret{{Name: "A", Expose: true, Others: true}, {Name: "B", Host: "api.example.org", Header: "Authorization", Prefix: "Bearer "}})
	same(t, m.Secrets(), map[string]SecretSource{"A": {Env: "A"}, "B": {File: "key"}})
	if spec.Isolation != task.LevelSandbox || !slices.Contains(spec.Network, "api.example.org") {
		t.Errorf("it cannot get out: %+v", spec)
	}
	for text, want := range map[string]string{
		"  A: {}\n":                                    "say which host gets it",
		"  A: {env: X, file: y, expose: true}\n":       "secrets.A: more than one of env, file and keyring",
		"  A: {expose: true, host: a.example}\n":       "either the program gets it",
		"  A: {host: a.example, header: Host}\n":       "are none",
		"  A: {host: a.example}\nisolation: process\n": "only a sandbox has",
		"  BALANCE_RUN: {expose: true}\n":              "no name of a secret",
		"  A: {expose: true}\nenv: {A: b}\n":           "variable of env too",
		"  A: {value: abc}\n":                          "unknown key \"value\"",
		"  A: {expose: true, to: everybody}\n":         "\"everybody\" is not known",
		"  A: abc\n":                                   "want keys with values",
	} {
		if _, err := Parse("a/agent.yaml", []byte(head+text)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %s", text, err, want)
		}
	}
}

func TestRetryInManifest(t *testing.T) {
	for text, want := range map[string]string{
		"retry: always\n":              `"always" is neither never nor on-loss`,
		"lease: 10m\n":                 "never started again",
		"retry: never\nlease: 10m\n":   "never started again",
		"retry: on-loss\nlease: 5ms\n": "a lease of 5ms: it is from 1s to 720h",
		"retry: on-loss\n":             "",
		"idempotent: true\n":           "",
	} {
		_, err := Parse("a/agent.yaml", []byte("command: [a]\nprocess: {}\n"+text))
		if want == "" && err != nil || want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
			t.Errorf("%q: %v, want %s", text, err, want)
		}
	}
}

// A spec belongs to who asked for it.
func TestSpecIsACopy(t *testing.T) {
	m, err := Parse("a/agent.yaml", []byte("command: [a, b]\nprocess: {}\nenv: {X: 1}\ninputs: [in]\noutputs: [out]\n"))
	if err != nil {
		t.Fatal(err)
	}
	one, sources, err := m.Spec([]string{"c"}, nil)
	if err != nil {
		t.Fatal(err)
	}
	one.Command[0], one.Env["X"], one.Outputs[0], sources[0].To = "changed", "changed", "changed", "changed"
	two, again, err := m.Spec([]string{"d"}, nil)
	if err != nil {
		t.Fatal(err)
	}
	same(t, two.Command, []string{"a", "b", "d"})
	same(t, two.Env, map[string]string{"X": "1"})
	same(t, two.Outputs, []string{"out"})
	same(t, again, []Source{{"a/in", "in"}})
	if _, _, err := m.Spec([]string{"nul\x00"}, nil); err == nil {
		t.Error("an argument with a NUL byte passed")
	}
}

func TestManifestName(t *testing.T) {
	for file, want := range map[string]string{
		"/x/log-triage/agent.yaml": "log-triage",
		"/x/two words/agent.yaml":  "agent",
		"/agent.yaml":              "agent",
	} {
		m, err := Parse(file, []byte("command: [true]\nimage: alpine:3"))
		if err != nil {
			t.Fatal(err)
		}
		if m.Name != want {
			t.Errorf("%s: name %q, want %q", file, m.Name, want)
		}
		if spec, _, err := m.Spec(nil, nil); err != nil || spec.Driver != task.DriverImage || spec.Image != "alpine:3" {
			t.Errorf("%s: %+v, %v", file, spec, err)
		}
	}
}

func TestLoad(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "hello")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if _, err := Load(dir); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("no manifest: %v", err)
	}
	file := filepath.Join(dir, FileName)
	if err := os.WriteFile(file, []byte("command: [echo]\nprocess: {}\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{dir, file} {
		if m, err := Load(path); err != nil || m.Name != "hello" || m.File != file {
			t.Errorf("%s: %+v, %v", path, m, err)
		}
	}
	if err := os.WriteFile(file, bytes.Repeat([]byte("#\n"), maxFile), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := Load(dir); err == nil || !strings.Contains(err.Error(), "limit is 262144") {
		t.Errorf("a huge file: %v", err)
	}
}

// Every kind of mistake, all told at once.
func TestMistakes(t *testing.T) {
	_, err := Parse("agent.yaml", read(t, "mistakes.yaml"))
	var e *Errors
	if !errors.As(err, &e) {
		t.Fatalf("got %v", err)
	}
	golden(t, "mistakes.txt", err.Error()+"\n")
	_, err = ParseRules("policy.yaml", read(t, "mistakes-rules.yaml"))
	if !errors.As(err, &e) {
		t.Fatalf("got %v", err)
	}
	golden(t, "mistakes-rules.txt", err.Error()+"\n")
}

// Mistakes after which the rest of the file cannot be read.
func TestMistakesOfForm(t *testing.T) {
	bomb := "a: &a [x, x, x, x, x, x, x, x, x]\n"
	for c := 'b'; c < 'j'; c++ {
		bomb += string(c) + ": &" + string(c) + " [" + strings.TrimSuffix(strings.Repeat("*"+string(c-1)+", ", 9), ", ") + "]\n"
	}
	for _, tc := range []struct{ name, text, want string }{
		{"empty", "", "a:1:1: the file is empty"},
		{"comment", "# nothing\n", "a:1:1: the file is empty"},
		{"not UTF-8", "name: x\n# caf\xe9\n", "a:2:6: the file is not UTF-8: save the file as UTF-8"},
		{"UTF-16", "\xff\xfen\x00", "a:1:1: the file is not UTF-8: save the file as UTF-8"},
		{"control", "name: \x1b[2J", "a:1:7: control character U+001B"},
		{"tabs", "needs:\n\tcpu: 1\n", "a:2:1: not valid YAML: while scanning for the next token: found character that cannot start any token: indent with spaces, not with tabs"},
		{"open bracket", "command: [a\nname: b", "a:2:5: not valid YAML: while parsing a flow sequence: did not find expected ',' or ']'"},
		{"colons", "a: b: c", "a:1:5: not valid YAML: mapping values are not allowed in this context"},
		{"two documents", "command: [a]\nprocess: {}\n---\nname: b\n", "a:3:1: a second document: the file holds one: remove the line of dashes and what follows"},
		{"broken second document", "command: [a]\n---\n[", "a:4:1: not valid YAML"},
		{"deep", strings.Repeat("[", 200), "a:1:9: not valid YAML: while increasing flow level: exceeded max depth of 8"},
		{"alias", "name: &n x\ndescription: *n\n", "a:1:7: anchor &n: remove it\na:2:14: alias *n: write the value out"},
		{"bomb", bomb, "a:1:4: anchor &a: remove it"},
		{"tag", "name: !!binary aGk=\n", "a:1:7: tag !!binary: remove it"},
		{"merge", "<<: {name: x}\n", "unknown key \"<<\""},
		{"list", "- command\n", "a:1:1: want keys with values, not a list"},
		{"text", "command\n", "a:1:1: want keys with values, not \"command\""},
		{"odd keys", "? [x]\n: 1\n", "a:1:3: a key is a word, not a list"},
		{"huge", strings.Repeat(" ", maxFile+1), "a:1:1: the file has 262145 bytes: the limit is 262144"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			_, err := Parse("a", []byte(tc.text))
			if err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("got  %v\nwant %s", err, tc.want)
			}
		})
	}
}

// Whatever is in a file, it is read in a moment, and its mistakes fit on a page
// or two.
func TestLargestFiles(t *testing.T) {
	for name, unit := range map[string]string{
		"unknown keys": "x%d: 1\n", "inputs": "- i%d\n", "comments": "#%d\n", "duplicates": "a: 1 # %d\n",
	} {
		t.Run(name, func(t *testing.T) {
			var b strings.Builder
			if name == "inputs" {
				b.WriteString("inputs:\n")
			}
			for i := 0; b.Len() < maxFile-20; i++ {
				fmt.Fprintf(&b, unit, i)
			}
			start := time.Now()
			_, err := Parse("a", []byte(b.String()))
			if took := time.Since(start); took > 30*time.Second {
				t.Errorf("took %v", took)
			}
			if err == nil || len(err.Error()) > 64<<10 {
				t.Errorf("got %.200s", err)
			}
		})
	}
}

func TestEscapes(t *testing.T) {
	for name, text := range map[string]string{
		"argument": `command: [a, "\0"]`,
		"variable": "command: [a]\nenv: {A: \"\\0\"}",
	} {
		if _, err := Parse("a", []byte(text+"\nprocess: {}\n")); err == nil {
			t.Errorf("%s: a NUL byte passed", name)
		}
	}
}

func TestDidYouMean(t *testing.T) {
	known := []string{"command", "env", "name", "needs", "inputs", "outputs"}
	for word, want := range map[string]string{
		"comand": "command", "Command": "command", "commnad": "command", "need": "needs", "nmae": "name",
		"input": "inputs", "comm": "command", "ouputs": "outputs", "colour": "", "": "", "x": "", strings.Repeat("name", 50): "",
	} {
		if got := didYouMean(word, known); got != "" && got != "did you mean "+want+"?" || got == "" && want != "" {
			t.Errorf("%q: %q, want %q", word, got, want)
		}
	}
}

func TestRules(t *testing.T) {
	rules, err := ParseRules("policy.yaml", []byte(`
offer: all
relay: all
relay_rate: 10MiB
labels: [lab, quiet]
reserve: {cpu: 1, memory: 2GiB}
others:
  - owner: ben
    isolation: none
    cpu: 4
    memory: 8GiB
    gpus: 1
    time: 2h
    hours: mon-fri 22:00-07:00, sat-sun
    node: bens-pc
    role: member
    drivers: [process, image]
    vram: 16GiB
    runs: 2
    queue: 50
    ledger: 10MiB
    use: 20h/7d
    idle: 10m
    power: ac
    gpu: unused
    on_return: stop
    grace: 20s
  - {owner: "*", isolation: none, cpu: 500m, memory: 1GiB}
`))
	if err != nil {
		t.Fatal(err)
	}
	same(t, rules, Rules{
		Terms: policy.Terms{
			Offers: true, ReserveCPU: 1000, ReserveMemory: 2 * task.GiB,
			Others: []policy.Grant{
				{
					Owner: "ben", Isolation: "none", CPU: 4000, Memory: 8 * task.GiB, GPUs: 1, VRAM: 16 * task.GiB, Time: 2 * time.Hour,
					Node: "bens-pc", Role: "member", Drivers: "process image", Runs: 2, Queue: 50, Ledger: 10 * task.MiB, Use: 20 * time.Hour, Per: 7 * 24 * time.Hour, Hours: "mon-fri 22:00-07:00, sat-sun",
					Idle: 10 * time.Minute, Mains: true, GPUFree: true, Return: "stop", Grace: 20 * time.Second, Line: 8,
				},
				{Owner: "*", Isolation: "none", CPU: 500, Memory: task.GiB, Line: 28},
			},
			Relay: policy.RelayAll, RelayRate: 10 * task.MiB,
		},
		Labels: []string{"lab", "quiet"},
		Models: ModelRules{Find: true},
	})
	if rules, err := ParseRules("policy.yaml", []byte("offer: nothing\nrelay: nothing")); err != nil || rules.Terms.Offers || rules.Terms.Relay != "" {
		t.Errorf("nothing: %+v, %v", rules, err)
	}
	if _, err := ParseRules("policy.yaml", []byte("relay: some")); err == nil {
		t.Error("relay: some: no error")
	}
}

// Without a file, and with the one that a new node gets, its owner may use
// everything and nobody else anything.
func TestDefaultRules(t *testing.T) {
	want := Rules{Terms: policy.Terms{Offers: true, Relay: policy.RelayOwn}, Models: ModelRules{Find: true}}
	rules, err := LoadRules(filepath.Join(t.TempDir(), "policy.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	same(t, rules, want)

	// What is commented out is right as well.
	all := strings.NewReplacer("\n#labels", "\nlabels", "\n#reserve", "\nreserve", "\n#others", "\nothers", "\n#models", "\nmodels", "\n#  ", "\n  ").Replace(DefaultRules)
	rules, err = ParseRules("policy.yaml", []byte(all))
	if err != nil {
		t.Fatal(err)
	}
	if len(rules.Labels) != 2 || rules.Terms.ReserveCPU != 1000 || len(rules.Terms.Others) != 1 || rules.Terms.Others[0].Grace != 10*time.Second {
		t.Errorf("got %+v", rules)
	}
	if _, err := LoadRules(t.TempDir()); err == nil {
		t.Error("a folder passed for rules")
	}

	// A file of the former name is not passed over.
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "rules.yaml"), []byte("offer: nothing"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := LoadRules(filepath.Join(dir, "policy.yaml")); err == nil || !strings.Contains(err.Error(), "mv ") {
		t.Errorf("rules of the former name: %v", err)
	}
}

func FuzzParse(f *testing.F) {
	for _, name := range []string{"full.yaml", "mistakes.yaml"} {
		data, err := os.ReadFile(filepath.Join("testdata", name))
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data)
	}
	f.Add([]byte("command: [a]\nprocess: {}\nsecrets: {A: {file: k, host: a.example, prefix: 'B '}, B: {expose: true, to: others}}"))
	f.Add([]byte(told))
	f.Add([]byte("a: &a [*a, *a]\nb: !!str\n---\n..."))
	f.Fuzz(func(t *testing.T, data []byte) {
		m, err := Parse("x/agent.yaml", data)
		if err != nil {
			check(t, err)
			return
		}
		given := map[string]string{}
		for _, p := range m.Parameters() {
			given[p.Name] = map[string]string{TypeInteger: "1", TypeNumber: "1", TypeBoolean: "true"}[p.Type]
			if len(p.Choices) > 0 {
				given[p.Name] = p.Choices[0]
			}
		}
		spec, sources, err := m.Spec([]string{"arg"}, given)
		if err != nil {
			t.Fatalf("the manifest passed, but not its spec: %v", err)
		}
		for _, in := range sources {
			spec.Inputs = append(spec.Inputs, task.Input{Path: in.To, Kind: task.KindFile})
		}
		if err := spec.Check(); err != nil {
			t.Fatalf("the manifest passed, but not its inputs: %v", err)
		}
	})
}

func FuzzParseRules(f *testing.F) {
	f.Add([]byte(DefaultRules))
	data, err := os.ReadFile("testdata/mistakes-rules.yaml")
	if err != nil {
		f.Fatal(err)
	}
	f.Add(data)
	f.Add([]byte("others:\n- {owner: ben, isolation: none, cpu: 1, memory: 1G, hours: 22:00-07:00}"))
	f.Fuzz(func(t *testing.T, data []byte) {
		rules, err := ParseRules("policy.yaml", data)
		if err != nil {
			check(t, err)
			return
		}
		if err := rules.Terms.Check(); err != nil {
			t.Fatalf("the rules passed, but not their terms: %v", err)
		}
	})
}

// check holds what every error promises: a place in the file, in order.
func check(t *testing.T, err error) {
	t.Helper()
	var e *Errors
	if !errors.As(err, &e) || len(e.Problems) == 0 {
		t.Fatalf("got %v", err)
	}
	last := 1
	for _, p := range e.Problems {
		if p.Line < last || p.Column < 1 || p.Text == "" {
			t.Fatalf("problem %+v after line %d", p, last)
		}
		last = p.Line
	}
}
