package run

import (
	"fmt"

	"github.com/balanceai/balance/exec/egress"
	"github.com/balanceai/balance/exec/supervise"
	"github.com/balanceai/balance/exec/task"
)

// The values of a run's secrets are in the memory of this process and of the
// run's supervisor, which gives them back to a later life of this process, and
// nowhere else. Those that are exposed are in the environment of the program.

// private is what the supervisor gets of the secrets; nil for none.
func (x *live) private() *supervise.Private {
	if len(x.spec.Secrets) == 0 {
		return nil
	}
	p := &supervise.Private{Keep: map[string]string{}}
	for _, s := range x.spec.Secrets {
		if s.Expose {
			p.Env = append(p.Env, s.Name+"="+x.secrets[s.Name])
		} else {
			p.Keep[s.Name] = x.secrets[s.Name]
		}
	}
	return p
}

// kept returns the secrets that are added on the way out, where there are some.
func (x *live) kept() task.Secrets {
	if x.secrets != nil || len(x.spec.Secrets) == 0 {
		return x.secrets
	}
	kept, err := supervise.Kept(x.dir)
	if err != nil {
		x.r.cfg.Log.Warn("a supervisor does not give back what it keeps", "run", x.id, "err", err)
	}
	return kept
}

// injections says which secrets go where.
func injections(spec *task.Spec, secrets task.Secrets) ([]egress.Injection, error) {
	var out []egress.Injection
	for _, s := range spec.Secrets {
		if s.Expose {
			continue
		}
		value, ok := secrets[s.Name]
		if !ok {
			return out, fmt.Errorf("the value of secret %s is not there", s.Name)
		}
		i, err := egress.NewInjection(s.Host, s.Header, s.Prefix, value)
		if err != nil {
			return out, fmt.Errorf("secret %s: %w", s.Name, err)
		}
		out = append(out, i)
	}
	return out, nil
}

// secretURLs tells a run where to ask for the hosts that get its secrets.
func secretURLs(spec *task.Spec, env map[string]string) error {
	for _, s := range spec.Secrets {
		if s.Expose {
			continue
		}
		i, err := egress.NewInjection(s.Host, s.Header, s.Prefix, "")
		if err != nil {
			return fmt.Errorf("secret %s: %w", s.Name, err)
		}
		env[s.Name+"_URL"] = i.Base()
	}
	return nil
}
