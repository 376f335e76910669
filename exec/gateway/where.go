package gateway

import (
	"maps"
	"slices"

	"github.com/balanceai/balance/exec/fleet"
	"github.com/balanceai/balance/exec/task"
)

// Where is a machine that has a model.
type Where struct {
	Model   string     `json:"model"`
	Node    string     `json:"node"`
	Owner   string     `json:"owner"`
	Engine  string     `json:"engine"`
	Context int        `json:"context,omitempty"` // tokens; 0 where the engine does not tell
	VRAM    task.Bytes `json:"vram,omitempty"`    // when it was last in memory; 0 where the engine does not tell
	Loaded  bool       `json:"loaded"`
	Granted bool       `json:"granted"`
	Why     string     `json:"why"` // what speaks for and against it, or why it is not granted
}

// Where lists the models of the mesh by name, and for each of them the machines
// in the order in which a new conversation of the owner would ask them.
func (g *Gateway) Where(owner string) []Where {
	c := &Caller{Owner: owner}
	nodes := g.cfg.View()
	out := []Where{}
	for _, name := range modelNames(nodes) {
		var refused []Where
		list, _ := g.candidates(c, &ask{model: name})
		rows := make([]Where, len(list))
		for _, n := range nodes {
			m, loaded, ok := n.Has(name)
			if !ok || n.State == fleet.Down {
				continue
			}
			row := Where{Model: name, Node: n.Name, Owner: n.Owner, Engine: m.Engine, Context: m.Context, VRAM: m.VRAM, Loaded: loaded}
			if row.Why = refuses(&n, c, name); row.Why != "" {
				refused = append(refused, row)
				continue
			}
			for i, o := range list {
				if o.id == n.ID {
					row.Granted, row.Loaded, row.Why = true, o.loaded, o.why
					rows[i] = row
				}
			}
		}
		for _, row := range append(rows, refused...) {
			if row.Model != "" { // it was there a moment ago
				out = append(out, row)
			}
		}
	}
	return out
}

// modelNames returns the names of all models, each once.
func modelNames(nodes []fleet.Node) []string {
	seen := map[string]bool{}
	for _, n := range nodes {
		if n.Offer == nil || n.State == fleet.Down {
			continue
		}
		for _, m := range n.Offer.Models[:min(len(n.Offer.Models), fleet.MaxModels)] {
			if fleet.ValidModel(m.Name) {
				seen[m.Name] = true
			}
		}
	}
	return slices.Sorted(maps.Keys(seen))
}
