package wire

import (
	"errors"

	"github.com/balanceai/balance/mesh/identity"
)

// Head is the end of one chain of a topic as a node holds it. Nodes compare
// heads to find out what the other lacks.
type Head struct {
	Author  identity.ID `json:"author"`
	Segment uint64      `json:"segment"`
	Seq     uint64      `json:"seq"`            // of the last entry
	Hash    Hash        `json:"hash"`           // of the last entry
	Fork    *uint64     `json:"fork,omitempty"` // the lowest number that the author is known to have given to two entries; nil for none
}

// Reasons not to take an entry that is well formed and signed, for errors.Is.
var (
	ErrGap  = errors.New("the entry before it is not here")
	ErrFork = errors.New("its author gave one number to two entries")
)
