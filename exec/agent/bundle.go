package agent

import (
	"fmt"
	"maps"
	"path/filepath"
	"slices"

	"github.com/balanceai/balance/exec/task"
)

// A bundle is an agent as it is installed on a machine and given to others: the
// folder of its manifest with the inputs that the manifest names, and nothing
// else.

// Bundle returns the paths of the inputs, below the manifest's folder. An agent
// that takes files from elsewhere cannot be installed.
func (m *Manifest) Bundle() ([]string, error) {
	out := []string{}
	for _, s := range m.sources {
		path := filepath.ToSlash(filepath.Clean(s.From))
		if err := task.CheckPath(path); err != nil {
			return nil, fmt.Errorf("agent %s: input %s is not in the folder of its manifest: an agent that is installed has all its files there", m.Name, s.From)
		}
		out = append(out, path)
	}
	return out, nil
}

// Sources returns the inputs as the manifest names them, below its folder.
func (m *Manifest) Sources() []Source { return slices.Clone(m.sources) }

// Check reports why a spec is not a run of this agent, as it is installed here
// with its inputs: whoever allows an agent allows what its manifest says and no
// more. Arguments may follow its command. Needs and limits are asked elsewhere.
func (m *Manifest) Check(s *task.Spec, inputs []task.Input) error {
	own := m.spec
	values, err := m.values(m.given(s.Env))
	if err != nil {
		return fmt.Errorf("is no run of the agent %s that is installed here: %w", m.Name, err)
	}
	own.Command, own.Env = m.told(values)
	for _, part := range []struct {
		same bool
		what string
	}{
		{s.Manifest == m.Digest, "manifest"},
		{s.Driver == own.Driver && s.Image == own.Image, "driver or image"},
		{len(s.Command) >= len(own.Command) && slices.Equal(s.Command[:len(own.Command)], own.Command), "command"},
		{maps.Equal(s.Env, own.Env), "environment"},
		{slices.Equal(s.Models, own.Models), "list of models"},
		{len(s.Inputs) == len(inputs) && within(s.Inputs, inputs), "list of inputs"},
		{within(s.Network, own.Network), "network"},
		{within(s.Secrets, own.Secrets), "list of secrets"},
		{own.Isolation == "" || own.Isolation == s.Isolation, "isolation"},
		{sameService(s.Serve, own.Serve), "service"},
		{s.Gang == nil && s.Member == nil || own.Gang != nil, "gang"},
	} {
		if !part.same {
			return fmt.Errorf("is no run of the agent %s that is installed here: its %s is another one", m.Name, part.what)
		}
	}
	return nil
}

func within[T comparable](list, most []T) bool {
	return !slices.ContainsFunc(list, func(v T) bool { return !slices.Contains(most, v) })
}

// sameService compares what is served.
func sameService(a, b *task.Serve) bool {
	if a == nil || b == nil {
		return a == b
	}
	return a.Kind == b.Kind && a.Health == b.Health && a.Card == b.Card && a.Port == b.Port && slices.Equal(a.To, b.To) && a.Weights == b.Weights
}
