package policy

import (
	"slices"
	"time"

	"github.com/balanceai/balance/exec/task"
)

// ModelGrant is a model of a machine that one other owner may ask. It is flat, as
// offers nest no deeper: an owner has a grant for each model.
type ModelGrant struct {
	Owner    string `cbor:"1,keyasint" json:"owner"`                        // exact name, or "*" for every member
	Model    string `cbor:"2,keyasint,omitempty" json:"model,omitempty"`    // exact name; empty for all of them
	Requests int    `cbor:"3,keyasint,omitempty" json:"requests,omitempty"` // of the owner at one time; 0: [DefaultRequests]

	// Tokens is how many the machine's engines read and write for the owner within
	// Per; 0 for no limit. What was begun before is finished.
	Tokens task.Tokens   `cbor:"4,keyasint,omitempty" json:"tokens,omitempty"`
	Per    time.Duration `cbor:"5,keyasint,omitempty" json:"per_ns,omitempty"`
}

// LongestPer bounds the time of a limit on tokens.
const LongestPer = 31 * 24 * time.Hour

// DefaultRequests is how many requests of one other owner the engines of a
// machine answer at one time.
const DefaultRequests = 4

// ModelQuestion is a request that asks for a model of a machine.
type ModelQuestion struct {
	Owner   string // who asks
	Machine string // the machine's owner
	Model   string
	Asked   int // requests of that owner that the machine is answering

	// Used is how many tokens the machine's engines have read and written for that
	// owner in the last time; nil for none.
	Used func(within time.Duration) task.Tokens
}

// RuleTokens is the rule of the reason against somebody who has used up what was
// granted.
const RuleTokens = "tokens"

// AskModel returns every rule that forbids the request; none means that it is
// allowed.
func (t Terms) AskModel(q ModelQuestion) []task.Reason {
	if !t.Offers {
		return []task.Reason{task.Reasonf("terms", "offers nothing to the mesh")}
	}
	if q.Owner != "" && q.Owner == q.Machine {
		return nil
	}
	owner := t.modelOwner(q.Owner)
	if owner == "" {
		return []task.Reason{task.Reasonf("models", "its owner %s has not granted its models to %s", q.Machine, q.Owner)}
	}
	at := slices.IndexFunc(t.Models, func(g ModelGrant) bool { return g.Owner == owner && (g.Model == "" || g.Model == q.Model) })
	if at < 0 {
		return []task.Reason{task.Reasonf("models", "its owner %s has granted other models to %s, not %s", q.Machine, q.Owner, q.Model)}
	}
	g := t.Models[at]
	if most := g.requests(); q.Asked >= most {
		r := task.Reasonf("models", "answers %d requests of %s at one time, and is doing so", most, q.Owner)
		r.Ever, r.Need, r.Have = true, uint64(q.Asked)+1, uint64(most)
		return []task.Reason{r}
	}
	if g.Tokens > 0 && q.Used != nil {
		if used := q.Used(g.Per); used >= g.Tokens {
			r := task.Reasonf(RuleTokens, "grants %s %v tokens in %s, and has given %v", q.Owner, g.Tokens, task.FormatDuration(g.Per), used)
			r.Ever, r.Need, r.Have = true, uint64(used)+1, uint64(g.Tokens)
			return []task.Reason{r}
		}
	}
	return nil
}

func (g ModelGrant) requests() int {
	if g.Requests > 0 {
		return g.Requests
	}
	return DefaultRequests
}

// modelOwner returns which grants count for an owner: those with the exact name
// before those for everybody. It is empty where there are none.
func (t Terms) modelOwner(owner string) (all string) {
	for _, g := range t.Models {
		switch {
		case owner == "":
			return ""
		case g.Owner == owner:
			return owner
		case g.Owner == AnyOwner:
			all = AnyOwner
		}
	}
	return all
}
