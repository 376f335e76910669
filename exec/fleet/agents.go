package fleet

import (
	"slices"

	"github.com/balanceai/balance/exec/policy"
	"github.com/balanceai/balance/exec/task"
	"github.com/balanceai/balance/mesh/wire"
)

// Agent is an agent that the owner of a machine has installed there, and gives
// to others.
type Agent struct {
	Name   string     `cbor:"1,keyasint" json:"name"`
	Digest wire.Hash  `cbor:"2,keyasint" json:"digest"` // SHA-256 of its manifest
	Tree   wire.Hash  `cbor:"3,keyasint" json:"tree"`   // of its folder; see package blob
	Size   task.Bytes `cbor:"4,keyasint" json:"size"`   // of all its files
	About  string     `cbor:"5,keyasint,omitempty" json:"description,omitempty"`
	To     []string   `cbor:"6,keyasint,omitempty" json:"to,omitempty"` // owners besides the machine's own; [policy.AnyOwner] for all
}

// Limits of what one machine says of its agents, which others store.
const (
	MaxAgents = 64
	MaxAbout  = 120 // bytes of a description
)

// May reports whether machines of an owner may have an agent of a machine whose
// owner is given.
func (a Agent) May(owner, machine string) bool {
	return owner == machine || slices.Contains(a.To, owner) || slices.Contains(a.To, policy.AnyOwner)
}
