package agent

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

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
#    isolation: sandbox # or none: ben's programs run as you, with your files
#    cpu: 4            # of all his runs together
#    memory: 8GiB
#    gpus: 1
#    runs: 2           # at one time
#    queue: 50         # likewise, with those that wait for their turn
#    ledger: 10MiB     # a day, that they add to the ledger here
#    time: 2h          # the longest run
#    use: 20h/7d       # of run time in the last seven days
#    hours: mon-fri 19:00-07:00, sat-sun
#    idle: 10m         # only when nobody has touched the machine for so long
#    power: ac         # only while it does not live on its battery
#    gpu: unused       # only while no other program uses a GPU
#    on_return: pause  # when you are back, or the power is gone: pause | stop | keep
#    grace: 10s        # to end in, when stopped

# Model servers of this machine: those that listen where they usually do are
# found, and yours to use from all your machines. Others need your word.
#models:
#  find: true
#  engines: [http://127.0.0.1:9000/v1]
#  others:
#    - owner: ben
#      models: [llama3.2]   # all if left out
#      requests: 4          # at one time
#      tokens: 200k/1d      # read and written in the last day; no limit if left out
`

// Rules are the owner's decisions about a machine.
type Rules struct {
	Terms  policy.Terms
	Labels []string
	Models ModelRules
}

// formerName is what the file was called once.
const formerName = "rules.yaml"

// LoadRules reads the rules at path. Where there is no file, they are the
// default. Mistakes in it are an [*Errors].
func LoadRules(path string) (Rules, error) {
	data, err := readFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		former := filepath.Join(filepath.Dir(path), formerName)
		if _, err := os.Stat(former); err == nil {
			return Rules{}, fmt.Errorf("read rules: %s: the file is called %s now, and nobody may guess which counts: move it with: mv %s %s", former, policy.FileName, former, path)
		}
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
			seen := map[policy.Asker]bool{}
			for _, item := range r.items(n) {
				g, ok := r.grant(item)
				key := policy.Asker{Owner: g.Owner, Node: g.Node, Role: g.Role}
				if ok && seen[key] {
					r.fail(item, "", "%s is there twice", g.Who())
				}
				seen[key] = true
				to.Terms.Others = append(to.Terms.Others, g)
			}
		},
	})
}

func parseIsolation(s string) (string, error) {
	return s, oneOf([]string{policy.IsolationSandbox, policy.IsolationContainer, policy.IsolationNone})(s)
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

func parseOffer(s string) (bool, error) {
	if s != "all" && s != "nothing" {
		return false, fmt.Errorf("%q is neither all nor nothing", short(s))
	}
	return s == "all", nil
}
