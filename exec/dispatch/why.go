package dispatch

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/balanceai/balance/exec/task"
	"github.com/balanceai/balance/mesh/identity"
	"github.com/balanceai/balance/mesh/wire"
)

// Attempt is one choice of a machine for a run, as the ledger has it.
type Attempt struct {
	Attempt int           `json:"attempt"`
	Node    string        `json:"node"` // empty where none fits
	NodeID  identity.ID   `json:"node_id,omitzero"`
	Waits   bool          `json:"waits,omitempty"` // for a machine, with the verdicts of now
	Ranking task.Ranking  `json:"ranking"`
	More    int           `json:"more,omitempty"`    // machines left out of the ranking, the worst
	Refusal []task.Reason `json:"refusal,omitempty"` // why the machine did not take the run
	Lost    string        `json:"lost,omitempty"`    // how the machine was lost with it
}

// Why returns the choices that were made for a run, in order.
func (d *Dispatcher) Why(ctx context.Context, id string) ([]Attempt, error) {
	entries, err := d.cfg.Ledger.Entries(ctx, id)
	if err != nil {
		return nil, err
	}
	out, err := attempts(id, entries)
	if n := len(out); err == nil && n > 0 && out[n-1].Waits {
		err = d.refresh(id, entries, &out[n-1])
	}
	return out, err
}

// attempts reads the choices from the entries of a run.
func attempts(id string, entries []*wire.Entry) ([]Attempt, error) {
	st, err := task.Fold(id, entries)
	if err != nil {
		return nil, fmt.Errorf("run %s: %w", id, task.ErrNoRun)
	}
	var out []Attempt
	for _, e := range entries {
		switch {
		case e.Author != st.Submitter:
		case e.Kind == task.KindPlace:
			out, err = addAttempt(out, e)
		case e.Kind == task.KindLost:
			err = addLoss(out, e)
		}
		if err != nil {
			return nil, fmt.Errorf("run %s: %w", id, err)
		}
	}
	return out, nil
}

// refresh puts the verdicts of now in the place of those with which a run began to
// wait: those of the machines in whose lines it stands, else what is seen from here.
func (d *Dispatcher) refresh(id string, entries []*wire.Entry, a *Attempt) error {
	var s task.Submit
	for _, e := range entries {
		if e.Kind == task.KindSubmit {
			if err := wire.Unmarshal(e.Payload, &s); err != nil {
				return err
			}
		}
	}
	a.Ranking, a.More = d.rank(&s.Spec, maxVerdicts, nil)
	r := d.active(id)
	if r == nil {
		return nil
	}
	for i, v := range a.Ranking {
		if why := r.heardAt(v.Node); why != nil {
			a.Ranking[i] = task.Verdict{Node: v.Node, Name: v.Name, Owner: v.Owner, Reasons: why}
		}
	}
	slices.SortStableFunc(a.Ranking, func(v, w task.Verdict) int { return cmp.Compare(w.Score, v.Score) }) // those that fit, still first
	return nil
}

func addLoss(list []Attempt, e *wire.Entry) error {
	var l task.LostRecord
	if err := wire.Unmarshal(e.Payload, &l); err != nil {
		return err
	}
	if n := len(list); n > 0 && list[n-1].Attempt == l.Attempt {
		list[n-1].Lost = l.Reason
	}
	return nil
}

func addAttempt(list []Attempt, e *wire.Entry) ([]Attempt, error) {
	var p task.Place
	if err := wire.Unmarshal(e.Payload, &p); err != nil {
		return nil, err
	}
	if n := len(list); n > 0 && list[n-1].Attempt == p.Attempt {
		if !list[n-1].NodeID.IsZero() {
			list[n-1].Lost = "" // it was found
			return list, nil
		}
		list = list[:n-1] // it has waited
	}
	ranking, err := p.Ranking()
	if err != nil {
		return nil, err
	}
	if n := len(list); n > 0 && list[n-1].Lost == "" { // the next choice says why this one failed
		for _, v := range ranking {
			if v.Node == list[n-1].NodeID {
				list[n-1].Refusal = v.Reasons
			}
		}
	}
	return append(list, Attempt{Attempt: p.Attempt, Node: p.Name, NodeID: p.Node, Waits: p.Wait, Ranking: ranking, More: p.More}), nil
}

// nowhere is the status of a run of this node's, with the reasons where no
// machine takes it.
func (d *Dispatcher) nowhere(ctx context.Context, id string) (task.Status, error) {
	st, err := d.status(ctx, id)
	if err != nil || st.State != task.Unplaced && st.State != task.Waiting {
		return st, err
	}
	entries, err := d.cfg.Ledger.Entries(ctx, id)
	if err != nil {
		return task.Status{}, err
	}
	tries, err := attempts(id, entries)
	if err != nil {
		return task.Status{}, err
	}
	st.Reason += ": " + sentence(tries[len(tries)-1])
	return st, nil
}

// mostNamed bounds how many machines a sentence names.
const mostNamed = 8

// sentence says why no machine takes a run.
func sentence(a Attempt) string {
	if len(a.Ranking) == 0 {
		return "the mesh has no machine"
	}
	var parts []string
	for _, v := range a.Ranking[:min(len(a.Ranking), mostNamed)] {
		texts := make([]string, len(v.Reasons))
		for i, r := range v.Reasons {
			texts[i] = r.Text
		}
		if v.Fits {
			texts = []string{"fits, and was not asked any more"}
		}
		parts = append(parts, v.Name+" "+strings.Join(texts, ", "))
	}
	for _, v := range a.Ranking {
		if v.Nearest != "" {
			parts = append(parts, "nearest: "+v.Nearest)
		}
	}
	if more := len(a.Ranking) + a.More - min(len(a.Ranking), mostNamed); more > 0 {
		parts = append(parts, fmt.Sprintf("and %d more", more))
	}
	return strings.Join(parts, "; ")
}
