package agent

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"strings"
	"time"

	"go.yaml.in/yaml/v4"

	"github.com/balanceai/balance/exec/policy"
	"github.com/balanceai/balance/exec/task"
)

// grant reads what other owners get, and reports whether it is whole.
func (r *reader) grant(n *yaml.Node) (policy.Grant, bool) {
	g := policy.Grant{Line: n.Line}
	before := len(r.problems)
	r.mapping(n, r.grantFields(&g))
	if len(r.problems) > before {
		return g, false
	}
	if g.Owner == "" {
		r.fail(n, `name a person, or "*" for everybody`, "owner is missing")
	} else if err := (policy.Terms{Others: []policy.Grant{g}}).Check(); err != nil {
		r.fail(n, "", "%v", err)
	}
	return g, len(r.problems) == before
}

func (r *reader) grantFields(g *policy.Grant) map[string]field {
	return map[string]field{
		"owner":     value(r, &g.Owner, "the name of a person", notEmpty),
		"node":      value(r, &g.Node, "the name of a machine", notEmpty),
		"role":      value(r, &g.Role, "admin or member", word(policy.RoleAdmin, policy.RoleMember)),
		"isolation": value(r, &g.Isolation, "sandbox, container or none", parseIsolation),
		"drivers": func(n *yaml.Node) {
			var list []string
			words(r, &list, "process or image", oneOf([]string{task.DriverProcess, task.DriverImage}))(n)
			g.Drivers = policy.Words(strings.Join(list, " "))
		},
		"agents": func(n *yaml.Node) {
			var list []string
			words(r, &list, "the digest of a manifest", func(s string) error { _, err := parseDigest(s); return err })(n)
			for i := range list {
				list[i], _ = parseDigest(list[i]) // what is none was reported
			}
			g.Agents = policy.Words(strings.Join(list, " "))
		},
		"cpu":       value(r, &g.CPU, "a number of cores", task.ParseCPU),
		"memory":    value(r, &g.Memory, "an amount", task.ParseBytes),
		"gpus":      value(r, &g.GPUs, "a number of devices", parseCount),
		"vram":      value(r, &g.VRAM, "an amount", task.ParseBytes),
		"runs":      value(r, &g.Runs, "a number of runs", parseCount),
		"queue":     value(r, &g.Queue, "a number of runs", parseCount),
		"ledger":    value(r, &g.Ledger, "an amount", task.ParseBytes),
		"time":      value(r, &g.Time, "a length of time", task.ParseDuration),
		"use":       r.use(g),
		"hours":     value(r, &g.Hours, "hours such as 22:00-07:00", policy.ParseHours),
		"idle":      value(r, &g.Idle, "a length of time", task.ParseDuration),
		"power":     only(r, &g.Mains, "ac"),
		"gpu":       only(r, &g.GPUFree, "unused"),
		"on_return": value(r, &g.Return, "keep, pause or stop", word(policy.Keep, policy.Pause, policy.Stop)),
		"grace":     value(r, &g.Grace, "a length of time", task.ParseDuration),
	}
}

// use reads "20h/7d": so much run time within so much time.
func (r *reader) use(g *policy.Grant) field {
	return value(r, &g.Use, "run time such as 20h/7d", func(s string) (time.Duration, error) {
		a, b, ok := strings.Cut(s, "/")
		used, err1 := task.ParseDuration(strings.TrimSpace(a))
		per, err2 := task.ParseDuration(strings.TrimSpace(b))
		if !ok || err1 != nil || err2 != nil || used == 0 || per == 0 {
			return 0, fmt.Errorf("%q is no use in a time: write it like 20h/7d", short(s))
		}
		g.Per = per
		return used, nil
	})
}

// word takes one of some words.
func word(known ...string) func(string) (string, error) {
	return func(s string) (string, error) { return s, oneOf(known)(s) }
}

// only reads a condition that can be said in one way. Without its key there is
// no such condition.
func only(r *reader, to *bool, want string) field {
	return value(r, to, want, func(s string) (bool, error) { return true, oneOf([]string{want})(s) })
}

// parseDigest reads the digest of a manifest, with or without the name of its
// hash.
func parseDigest(s string) (string, error) {
	b, err := hex.DecodeString(strings.TrimPrefix(s, "sha256:"))
	if err != nil || len(b) != sha256.Size {
		return "", fmt.Errorf("%q is no digest of a manifest: balance agents --json tells them", short(s))
	}
	return hex.EncodeToString(b), nil
}
