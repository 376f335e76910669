package task

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/balanceai/balance/mesh/identity"
	"github.com/balanceai/balance/mesh/wire"
)

// Serve says that a run answers at a port of its machine's loopback, for as long
// as it goes on. Its machine chooses the port, looks whether the run is well, and
// lets others ask it as far as they may.
type Serve struct {
	Kind    string        `cbor:"1,keyasint" json:"kind"`                       // [ServeModel] or [ServeAgent]
	Name    string        `cbor:"2,keyasint" json:"name"`                       // of the model, or of the service
	Health  string        `cbor:"3,keyasint,omitempty" json:"health,omitempty"` // path that answers 200 when all is well; empty: it is enough that something listens
	Weights wire.Hash     `cbor:"4,keyasint,omitzero" json:"weights,omitzero"`  // a kept file that its machine gets for it; zero for none
	Idle    time.Duration `cbor:"5,keyasint,omitempty" json:"idle_ns,omitempty"`
	Port    int           `cbor:"6,keyasint,omitempty" json:"port,omitempty"` // of an agent, in the mesh; 0 for the one that its machine has chosen
	Card    string        `cbor:"7,keyasint,omitempty" json:"card,omitempty"` // path of an agent's A2A card, where it has one
	To      []string      `cbor:"8,keyasint,omitempty" json:"to,omitempty"`   // owners besides its machine's own who may ask an agent
	Size    Bytes         `cbor:"9,keyasint,omitempty" json:"size,omitempty"` // of the weights
	On      []identity.ID `cbor:"10,keyasint,omitempty" json:"on,omitempty"`  // machines that keep them, as far as its submitter knows
}

// What a run serves.
const (
	ServeModel = "model" // an engine, which the gateway of its machine asks
	ServeAgent = "agent"
)

// Words of the command of a run that serves, in whose place its machine puts the
// port and the path of the weights. They are in the environment too, as
// BALANCE_PORT and BALANCE_WEIGHTS.
const (
	PortWord    = "{port}"
	WeightsWord = "{weights}"
)

// ServePrefix begins the name of the agent of a run that serves a model.
const ServePrefix = "serve/"

// Limits of what a run says of its service.
const (
	maxServeName = 200
	maxServePath = 200
	maxServeTo   = 64
	MaxServeOn   = 64
)

func (s *Spec) checkServe() error {
	v := s.Serve
	if v == nil {
		return nil
	}
	odd := func(c rune) bool { return c <= ' ' || c > '~' }
	switch {
	case v.Kind != ServeModel && v.Kind != ServeAgent:
		return fmt.Errorf("serve: unknown kind %.40q", v.Kind)
	case v.Name == "" || len(v.Name) > maxServeName || strings.ContainsFunc(v.Name, odd):
		return fmt.Errorf("serve: name %.40q", v.Name)
	case v.Idle < 0:
		return fmt.Errorf("serve: idle %v", v.Idle)
	case v.Port < 0 || v.Port > 65535:
		return fmt.Errorf("serve: port %d", v.Port)
	case len(v.On) > MaxServeOn:
		return fmt.Errorf("serve: weights on %d machines: the limit is %d", len(v.On), MaxServeOn)
	case len(v.To) > maxServeTo:
		return fmt.Errorf("serve: %d owners: the limit is %d", len(v.To), maxServeTo)
	}
	for _, p := range []string{v.Health, v.Card} {
		if p != "" && (p[0] != '/' || len(p) > maxServePath || strings.ContainsFunc(p, odd)) {
			return fmt.Errorf("serve: %.40q is no path: it begins with a slash", p)
		}
	}
	if v.Weights.IsZero() && slices.ContainsFunc(s.Command, func(w string) bool { return strings.Contains(w, WeightsWord) }) {
		return fmt.Errorf("serve: the command names weights, and there are none")
	}
	return nil
}
