package task

import (
	"errors"
	"fmt"

	"github.com/balanceai/balance/mesh/identity"
	"github.com/balanceai/balance/mesh/wire"
)

// Handing brings a run into the custody of another node.
type Handing struct {
	Run     string
	From    identity.ID
	Entries []*wire.Entry // the [Hand]
	Secrets Secrets
}

// Check looks at what a node has to know before it takes a run, and returns the
// hash of the giver's entry, and what is to be run. Signatures are left to the
// ledger.
func (h *Handing) Check(self identity.ID) (wire.Hash, Spec, error) {
	if !ValidID(h.Run) {
		return wire.Hash{}, Spec{}, fmt.Errorf("run id %.64q", h.Run)
	}
	if len(h.Entries) != 1 {
		return wire.Hash{}, Spec{}, fmt.Errorf("%d entries, not one", len(h.Entries))
	}
	e := h.Entries[0]
	if e.Topic != h.Run || e.Author != h.From || e.Kind != KindHand {
		return wire.Hash{}, Spec{}, errors.New("an entry of another run, author or kind")
	}
	var r Hand
	if err := wire.Unmarshal(e.Payload, &r); err != nil {
		return wire.Hash{}, Spec{}, err
	}
	if r.To != self || h.From == self {
		return wire.Hash{}, Spec{}, errors.New("it was given to another node")
	}
	return e.Hash(), r.Spec, r.Spec.Check()
}
