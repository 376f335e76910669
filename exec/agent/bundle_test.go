package agent

import (
	"slices"
	"strings"
	"testing"

	"github.com/balanceai/balance/exec/task"
)

const bundled = `
name: greeter
command: [sh, greet.sh]
process: {}
env: {TONE: kind}
inputs: [greet.sh, {from: words/list.txt, to: list.txt}]
network: {allow: [example.org]}
models: [tiny]
`

func TestBundle(t *testing.T) {
	m, err := Parse("/agents/greeter/agent.yaml", []byte(bundled))
	if err != nil {
		t.Fatal(err)
	}
	files, err := m.Bundle()
	if err != nil {
		t.Fatal(err)
	}
	same(t, files, []string{"greet.sh", "words/list.txt"})
	for _, from := range []string{"../elsewhere", "/etc/passwd"} {
		m, err := Parse("/a/agent.yaml", []byte("command: [true]\nprocess: {}\ninputs: [{from: "+from+", to: x}]\n"))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := m.Bundle(); err == nil || !strings.Contains(err.Error(), from) {
			t.Errorf("%s: %v", from, err)
		}
	}
}

// What an owner has allowed by its digest is the agent, not a command in its
// name.
func TestCheck(t *testing.T) {
	m, err := Parse("/agents/greeter/agent.yaml", []byte(bundled))
	if err != nil {
		t.Fatal(err)
	}
	inputs := []task.Input{{Path: "greet.sh", Tree: [32]byte{1}, Kind: task.KindFile}, {Path: "list.txt", Tree: [32]byte{2}, Kind: task.KindFile}}
	spec := func() task.Spec {
		s, _, err := m.Spec([]string{"world"}, nil)
		if err != nil {
			t.Fatal(err)
		}
		s.Inputs = slices.Clone(inputs)
		return s
	}
	s := spec()
	if err := m.Check(&s, inputs); err != nil {
		t.Fatal(err)
	}
	for name, change := range map[string]func(*task.Spec){
		"manifest":    func(s *task.Spec) { s.Manifest[0]++ },
		"command":     func(s *task.Spec) { s.Command = []string{"sh", "-c", "id"} },
		"environment": func(s *task.Spec) { s.Env["LD_PRELOAD"] = "./x.so" },
		"inputs":      func(s *task.Spec) { s.Inputs[0].Tree = [32]byte{3} },
		"more inputs": func(s *task.Spec) { s.Inputs = append(s.Inputs, task.Input{Path: "x", Kind: task.KindFile}) },
		"network":     func(s *task.Spec) { s.Network = append(s.Network, "evil.example") },
		"secrets":     func(s *task.Spec) { s.Secrets = []task.Secret{{Name: "LD_PRELOAD", Expose: true}} },
		"models":      func(s *task.Spec) { s.Models = nil },
		"image":       func(s *task.Spec) { s.Driver, s.Image = task.DriverImage, "x" },
		"a gang":      func(s *task.Spec) { s.Gang = &task.Gang{Nodes: 2} },
	} {
		s := spec()
		change(&s)
		if m.Check(&s, inputs) == nil {
			t.Errorf("%s: passes for the agent", name)
		}
	}
}
