// Package place decides where a run goes: it filters the machines, ranks those
// that fit, and says why.
//
// It is pure: facts in, verdicts out; no I/O, no clock, no chance. The order in
// which it is given the machines does not matter. [Check] is one machine's part
// of [Choose], and [Index] decides the same among many machines, fast. The submitter calls Choose on its view of the mesh to predict;
// the executor calls Check on its own facts to decide. As it is the same code,
// the two can only differ where the facts do.
//
// Every machine gets a verdict. One that does not fit gets every check that it
// fails, not the first one only, and each says what would be needed, what there
// is, and whether another time could be better. One that fits gets a score: how
// soon the run could start there; how well it packs, so that what is large or
// rare stays free for the run that needs it; and what people prefer.
package place

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/balanceai/balance/exec/fleet"
	"github.com/balanceai/balance/exec/policy"
	"github.com/balanceai/balance/exec/task"
	"github.com/balanceai/balance/mesh/identity"
)

// Choose returns the verdict on every machine for a run that comes from a
// member, the best first, where nothing is known of what runs usually ask for. now is the clock
// that [fleet.Node.LiveAt] was told by. Who decides often has an [Index].
func Choose(spec *task.Spec, from policy.Asker, nodes []fleet.Node, now time.Time) task.Ranking {
	ix := NewIndex(NewWorkload(nil))
	ix.Update(nodes)
	list, _ := ix.Choose(spec, from, now, 0, nil)
	return list
}

// Own is what only the machine itself knows of the terms for other owners.
type Own struct {
	Held     policy.Held        // what that owner's runs use
	Measured *policy.Conditions // nil: not known
}

// Check returns every reason why a machine cannot take a run now, and the GPUs
// that the run would get, by UUID.
func Check(spec *task.Spec, from policy.Asker, node *fleet.Node, own Own, now time.Time) ([]task.Reason, []string) {
	f := newScale(NewWorkload(nil)).check(spec, from, node, own, now)
	if len(f.reasons) > 0 {
		return f.reasons, nil
	}
	return nil, f.uuids()
}

func (sc *scale) judge(spec *task.Spec, from policy.Asker, node *fleet.Node, now time.Time) task.Verdict {
	v := task.Verdict{Node: node.ID, Name: node.Name, Owner: node.Owner}
	if !node.Self && node.Live != nil {
		v.AgeMS = max(0, now.Sub(node.LiveAt).Milliseconds())
	}
	f := sc.check(spec, from, node, Own{}, now)
	if len(f.reasons) > 0 {
		v.Reasons = f.reasons
		return v
	}
	v.Fits, v.Devices, v.Parts = true, f.uuids(), f.score()
	for _, p := range v.Parts {
		v.Score += p.Points
	}
	return v
}

// better orders verdicts: what fits by score; then what could fit at another
// time, and what fails fewer checks.
func better(a, b task.Verdict) int {
	return cmp.Or(
		trueFirst(a.Fits, b.Fits),
		cmp.Compare(b.Score, a.Score),
		trueFirst(ever(a), ever(b)),
		cmp.Compare(len(a.Reasons), len(b.Reasons)),
		slices.Compare(a.Node[:], b.Node[:]),
	)
}

func trueFirst(a, b bool) int {
	switch {
	case a == b:
		return 0
	case a:
		return -1
	default:
		return 1
	}
}

// ever reports whether nothing but time stands against the machine.
func ever(v task.Verdict) bool {
	return !slices.ContainsFunc(v.Reasons, func(r task.Reason) bool { return !r.Ever })
}

// Errors of [Pin].
var (
	ErrNoNode    = errors.New("no machine of that name")
	ErrAmbiguous = errors.New("more than one machine")
)

// minPrefix is how much of an id a person must type.
const minPrefix = 3

// Pin finds the machine that a person names: by its name, its id, or the start
// of its id, if no other id starts so. [task.Spec.Node] should hold the id that
// it returns, so that every machine reads the same in it.
func Pin(nodes []fleet.Node, name string) (identity.ID, error) {
	var starts []fleet.Node
	for _, n := range nodes {
		id := n.ID.String()
		if n.Name == name || id == name {
			return n.ID, nil
		}
		if len(name) >= minPrefix && strings.HasPrefix(id, name) {
			starts = append(starts, n)
		}
	}
	switch len(starts) {
	case 0:
		return identity.ID{}, fmt.Errorf("machine %q: %w", name, ErrNoNode)
	case 1:
		return starts[0].ID, nil
	}
	names := make([]string, len(starts))
	for i, n := range starts {
		names[i] = n.Name
	}
	slices.Sort(names)
	return identity.ID{}, fmt.Errorf("machine %q: %w: %s", name, ErrAmbiguous, strings.Join(names, ", "))
}
