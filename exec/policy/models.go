package policy

import (
	"slices"

	"github.com/balanceai/balance/exec/task"
)

// ModelGrant is which models of a machine one other owner may ask.
type ModelGrant struct {
	Owner    string   `cbor:"1,keyasint" json:"owner"`                        // exact name, or "*" for every member
	Models   []string `cbor:"2,keyasint,omitempty" json:"models,omitempty"`   // exact names; all of them where there are none
	Requests int      `cbor:"3,keyasint,omitempty" json:"requests,omitempty"` // at one time; 0: [DefaultRequests]
}

// DefaultRequests is how many requests of one other owner the engines of a
// machine answer at one time.
const DefaultRequests = 4

// ModelQuestion is a request that asks for a model of a machine.
type ModelQuestion struct {
	Owner   string // who asks
	Machine string // the machine's owner
	Model   string
	Asked   int // requests of that owner that the machine is answering
}

// AskModel returns every rule that forbids the request; none means that it is
// allowed.
func (t Terms) AskModel(q ModelQuestion) []task.Reason {
	if !t.Offers {
		return []task.Reason{task.Reasonf("terms", "offers nothing to the mesh")}
	}
	if q.Owner != "" && q.Owner == q.Machine {
		return nil
	}
	g, ok := t.modelGrant(q.Owner)
	switch {
	case !ok:
		return []task.Reason{task.Reasonf("models", "its owner %s has not granted its models to %s", q.Machine, q.Owner)}
	case len(g.Models) > 0 && !slices.Contains(g.Models, q.Model):
		return []task.Reason{task.Reasonf("models", "its owner %s has granted other models to %s, not %s", q.Machine, q.Owner, q.Model)}
	}
	if most := g.requests(); q.Asked >= most {
		r := task.Reasonf("models", "answers %d requests of %s at one time, and is doing so", most, q.Owner)
		r.Ever, r.Need, r.Have = true, uint64(q.Asked)+1, uint64(most)
		return []task.Reason{r}
	}
	return nil
}

func (g ModelGrant) requests() int {
	if g.Requests > 0 {
		return g.Requests
	}
	return DefaultRequests
}

// modelGrant finds the grant for an owner: the one with the exact name before
// the one for everybody.
func (t Terms) modelGrant(owner string) (all ModelGrant, ok bool) {
	for _, g := range t.Models {
		switch g.Owner {
		case owner:
			return g, true
		case AnyOwner:
			all, ok = g, true
		}
	}
	return all, ok && owner != ""
}
