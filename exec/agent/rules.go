package agent

import (
	"errors"
	"fmt"
	"io/fs"

	"go.yaml.in/yaml/v4"

	"github.com/balanceai/balance/exec/policy"
	"github.com/balanceai/balance/exec/task"
)

// DefaultRules is what a new node starts with: everything to the machine's own
// owner, nothing to others. A file that is missing means the same.
const DefaultRules = `# What this machine gives to the mesh, and on which terms.
# The node reads this file again when it changes.

offer: all            # all | nothing: a thin client, which runs nothing

# For whom this machine passes on traffic when two members do not reach each
# other; it cannot read it: own (where one of the two is yours) | all | nothing
relay: own
#relay_rate: 10MiB    # a second, of each member that sends

# Words that a run can ask for: balance run --label quiet
#labels: [lab, quiet]

# Kept for you.
#reserve: {cpu: 1, memory: 2GiB}

# Your own runs may use the rest. Other people of the mesh may use what you
# write here, and nothing without it.
#others:
#  - owner: ben        # or "*" for everybody
#    isolation: none   # there is no sandbox yet: ben's programs run as you
#    cpu: 4            # of all his runs together
#    memory: 8GiB
#    gpus: 1
#    time: 2h          # the longest run
#    hours: 22:00-07:00

# Model servers of this machine: those that listen where they usually do are
# found, and yours to use from all your machines. Others need your word.
#models:
#  find: true
#  engines: [http://127.0.0.1:9000/v1]
#  others:
#    - owner: ben
#      models: [llama3.2]   # all if left out
#      requests: 4          # at one time
`

// Rules are the owner's decisions about a machine.
type Rules struct {
	Terms  policy.Terms
	Labels []string
	Models ModelRules
}

// LoadRules reads the rules at path. Where there is no file, they are the
// default. Mistakes in it are an [*Errors].
func LoadRules(path string) (Rules, error) {
	data, err := readFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return ParseRules(path, []byte(DefaultRules))
	}
	if err != nil {
		return Rules{}, fmt.Errorf("read rules: %w", err)
	}
	return ParseRules(path, data)
}

// ParseRules reads the bytes of rules. name is the path of their file, which
// errors begin with.
func ParseRules(name string, data []byte) (Rules, error) {
	rules := Rules{Terms: policy.Terms{Offers: true, Relay: policy.RelayOwn}, Models: ModelRules{Find: true}}
	r := &reader{}
	if root := r.parse(data); root != nil {
		r.rules(root, &rules)
	}
	if err := r.err(name); err != nil {
		return Rules{}, err
	}
	return rules, nil
}

func (r *reader) rules(root *yaml.Node, to *Rules) {
	r.mapping(root, map[string]field{
		"offer":      value(r, &to.Terms.Offers, "all or nothing", parseOffer),
		"relay":      value(r, &to.Terms.Relay, "own, all or nothing", parseRelay),
		"relay_rate": value(r, &to.Terms.RelayRate, "an amount of bytes a second", task.ParseBytes),
		"models":     func(n *yaml.Node) { r.models(n, to) },
		"labels":     words(r, &to.Labels, "a label", checkLabel),
		"reserve": func(n *yaml.Node) {
			r.mapping(n, map[string]field{
				"cpu":    value(r, &to.Terms.ReserveCPU, "a number of cores", task.ParseCPU),
				"memory": value(r, &to.Terms.ReserveMemory, "an amount", task.ParseBytes),
			})
		},
		"others": func(n *yaml.Node) {
			seen := map[string]bool{}
			for _, item := range r.items(n) {
				g, ok := r.grant(item)
				if ok && seen[g.Owner] {
					r.fail(item, "", "owner %s is there twice", g.Owner)
				}
				seen[g.Owner] = true
				to.Terms.Others = append(to.Terms.Others, g)
			}
		},
	})
}

func parseRelay(s string) (string, error) {
	switch s {
	case policy.RelayOwn, policy.RelayAll:
		return s, nil
	case "nothing":
		return "", nil
	}
	return "", fmt.Errorf("%q is none of own, all and nothing", s)
}

// grant reads what one other owner gets, and reports whether it is whole.
func (r *reader) grant(n *yaml.Node) (policy.Grant, bool) {
	var g policy.Grant
	before := len(r.problems)
	r.mapping(n, map[string]field{
		"owner":     value(r, &g.Owner, "the name of a person", notEmpty),
		"isolation": value(r, &g.Isolation, "none", text),
		"cpu":       value(r, &g.CPU, "a number of cores", task.ParseCPU),
		"memory":    value(r, &g.Memory, "an amount", task.ParseBytes),
		"gpus":      value(r, &g.GPUs, "a number of devices", parseCount),
		"time":      value(r, &g.Time, "a length of time", task.ParseDuration),
		"hours": func(n *yaml.Node) {
			hours, ok := r.scalar(n, "hours such as 22:00-07:00")
			if !ok {
				return
			}
			var err error
			if g.From, g.To, err = policy.ParseHours(hours); err != nil {
				r.fail(n, "", "%v", err)
			}
		},
	})
	if len(r.problems) > before {
		return g, false
	}
	switch {
	case g.Owner == "":
		r.fail(n, `name a person, or "*" for everybody`, "owner is missing")
	case g.Isolation != policy.IsolationNone:
		r.fail(n, "if that is what you want, add isolation: none", "this version has no sandbox: the programs of %s run as you, with your files", who(g.Owner))
	default:
		if err := (policy.Terms{Others: []policy.Grant{g}}).Check(); err != nil {
			r.fail(n, "", "%v", err)
		}
	}
	return g, len(r.problems) == before
}

// who names an owner in a sentence.
func who(owner string) string {
	if owner == policy.AnyOwner {
		return "everybody in the mesh"
	}
	return short(owner)
}

func parseOffer(s string) (bool, error) {
	if s != "all" && s != "nothing" {
		return false, fmt.Errorf("%q is neither all nor nothing", short(s))
	}
	return s == "all", nil
}
