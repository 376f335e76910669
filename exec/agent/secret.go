package agent

import (
	"maps"
	"slices"
	"strings"

	"go.yaml.in/yaml/v4"

	"github.com/balanceai/balance/exec/task"
)

// SecretSource is where the value of a secret is, on the machine of who submits:
// one of these.
type SecretSource struct {
	Env     string // variable of the environment
	File    string // path
	Keyring string // name in the system's keyring
}

// Secrets returns where the values of the manifest's secrets are, by name.
func (m *Manifest) Secrets() map[string]SecretSource { return maps.Clone(m.secrets) }

func (r *reader) secrets(m *Manifest) field {
	return func(n *yaml.Node) {
		fields := map[string]field{}
		m.secrets = map[string]SecretSource{}
		if n.Kind == yaml.MappingNode {
			for i := 0; i+1 < len(n.Content); i += 2 {
				name := n.Content[i].Value
				fields[name] = func(v *yaml.Node) { r.secret(v, name, m) }
			}
		}
		r.mapping(n, fields)
		slices.SortFunc(m.spec.Secrets, func(a, b task.Secret) int { return strings.Compare(a.Name, b.Name) })
	}
}

func (r *reader) secret(n *yaml.Node, name string, m *Manifest) {
	s, from := task.Secret{Name: name}, SecretSource{}
	r.mapping(n, map[string]field{
		"env":     value(r, &from.Env, "the name of a variable", notEmpty),
		"file":    value(r, &from.File, "a path", notEmpty),
		"keyring": value(r, &from.Keyring, "a name in the keyring", notEmpty),
		"expose":  value(r, &s.Expose, "true or false", parseBool),
		"host":    value(r, &s.Host, "a host", notEmpty),
		"header":  value(r, &s.Header, "the name of a header", notEmpty),
		"prefix":  value(r, &s.Prefix, "a text", text),
		"to":      value(r, &s.Others, "own or others", parseTo),
	})
	switch from {
	case SecretSource{}:
		from.Env = name
	case SecretSource{Env: from.Env}, SecretSource{File: from.File}, SecretSource{Keyring: from.Keyring}:
	default:
		r.fail(n, "choose one", "more than one of env, file and keyring")
	}
	if s.Host != "" && s.Header == "" {
		s.Header = task.DefaultHeader
	}
	m.spec.Secrets, m.secrets[name] = append(m.spec.Secrets, s), from
}

func parseTo(s string) (bool, error) {
	return s == "others", oneOf([]string{"own", "others"})(s)
}
