package main

import (
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/zalando/go-keyring"

	"github.com/balanceai/balance/exec/agent"
	"github.com/balanceai/balance/exec/egress"
	"github.com/balanceai/balance/exec/task"
)

// submission is the body of a request to run something: a spec, and beside it
// the values of its secrets, which go no further than to the run's machine.
type submission struct {
	task.Spec

	Values map[string]string `json:"secret_values,omitempty"`

	// Custodian is the node that is to see a detached run through: a name, "none",
	// or empty for one that is always on.
	Custodian string `json:"custodian,omitempty"`
}

// keyringService is under which secrets are looked for in the system's keyring.
const keyringService = "balance"

// parseSecret reads what follows --secret: a name, of which the value is in the
// environment, or NAME=env:VAR, NAME=file:PATH, NAME=keyring:KEY. Its error does
// not repeat what may be a secret.
func parseSecret(v string) (name string, from agent.SecretSource, err error) {
	name, where, given := strings.Cut(v, "=")
	kind, at, _ := strings.Cut(where, ":")
	switch {
	case !given:
		from.Env = name
	case at == "":
	case kind == "env":
		from.Env = at
	case kind == "file":
		from.File = at
	case kind == "keyring":
		from.Keyring = at
	}
	if from == (agent.SecretSource{}) {
		err = fail("usage", "NAME, NAME=env:VAR, NAME=file:PATH or NAME=keyring:KEY", "--secret %s: say where the secret is, not what it is", name)
	}
	return name, from, err
}

// nameSecrets names a draft's secrets in its spec. Those that the manifest does
// not name the program itself gets.
func (d *draft) nameSecrets(spec *task.Spec, own map[string]agent.SecretSource) error {
	if d.from = own; d.from == nil {
		d.from = map[string]agent.SecretSource{}
	}
	d.given = map[string]bool{}
	for _, text := range d.secrets {
		name, from, err := parseSecret(text)
		if err != nil {
			return err
		}
		named := func(s task.Secret) bool { return s.Name == name }
		if !slices.ContainsFunc(spec.Secrets, named) {
			spec.Secrets = append(slices.Clone(spec.Secrets), task.Secret{Name: name, Expose: true})
		}
		d.from[name], d.given[name] = from, true
	}
	for _, s := range spec.Secrets {
		if s.Expose {
			continue
		}
		if _, err := egress.NewInjection(s.Host, s.Header, s.Prefix, ""); err != nil {
			return fail("usage", "", "secret %s: %v", s.Name, err)
		}
	}
	if err := spec.LetSecretsOut(); err != nil {
		return fail("usage", "", "%v", err)
	}
	return nil
}

// gaveAll refuses to read secrets where the manifest of another owner says that
// they are: the person names them.
func (d *draft) gaveAll(own map[string]agent.SecretSource, stranger string) error {
	for _, name := range slices.Sorted(maps.Keys(own)) {
		given := slices.ContainsFunc(d.secrets, func(s string) bool { word, _, _ := strings.Cut(s, "="); return word == name })
		if stranger != "" && !given {
			return fail("usage", "give it yourself, as --secret "+name+"=file:PATH", "the agent %s of %s wants the secret %s", d.agent, stranger, name)
		}
	}
	return nil
}

// readSecrets reads the values of a draft's secrets. Paths are relative to base.
func (d *draft) readSecrets(base string) (task.Secrets, error) {
	if len(d.from) == 0 {
		return nil, nil
	}
	values := task.Secrets{}
	for _, name := range slices.Sorted(maps.Keys(d.from)) {
		at := base
		if d.given[name] {
			at = "" // relative to where the person is
		}
		v, err := readSecret(d.from[name], at)
		if err != nil {
			return nil, fail("not_found", "give it from elsewhere, as --secret "+name+"=file:PATH", "secret %s: %v", name, err)
		}
		values[name] = v
	}
	return values, nil
}

func readSecret(from agent.SecretSource, base string) (string, error) {
	switch {
	case from.File != "":
		return readSecretFile(from.File, base)
	case from.Keyring != "":
		v, err := keyring.Get(keyringService, from.Keyring)
		if err != nil {
			return "", fmt.Errorf("%s of service %s in the keyring: %w", from.Keyring, keyringService, err)
		}
		return v, nil
	}
	v, ok := os.LookupEnv(from.Env)
	if !ok {
		return "", fmt.Errorf("there is no variable %s in the environment", from.Env)
	}
	return v, nil
}

// readSecretFile reads a file without the end of its last line.
func readSecretFile(path, base string) (string, error) {
	if rest, ok := strings.CutPrefix(path, "~/"); ok {
		home, err := os.UserHomeDir()
		if err != nil {
			return "", err
		}
		path = filepath.Join(home, rest)
	}
	if !filepath.IsAbs(path) {
		path = filepath.Join(base, path)
	}
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxSecretFile))
	if err != nil {
		return "", err
	}
	return strings.TrimSuffix(strings.TrimSuffix(string(b), "\n"), "\r"), nil
}

// maxSecretFile is longer than any secret may be.
const maxSecretFile = 1 << 20
