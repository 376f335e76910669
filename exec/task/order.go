package task

import (
	"errors"
	"fmt"
	"strings"

	"github.com/balanceai/balance/mesh/identity"
	"github.com/balanceai/balance/mesh/wire"
)

// Draft is an entry that the ledger is asked to sign and append.
type Draft struct {
	Topic  string
	Kind   string
	Record any // encoded by [wire.Marshal]
}

// Order asks a machine to run an attempt. It is idempotent: a machine that has
// the attempt already goes on with it.
type Order struct {
	Run     string
	Attempt int
	From    identity.ID   // who sent it, as the tunnel proves
	Entries []*wire.Entry // the submitter's submit and place
	Secrets Secrets       // values of those that the spec names; who has the attempt already needs none
}

// Refusal is a machine's answer that it does not run an attempt, as an error.
type Refusal struct {
	Reasons []Reason
	Entries []*wire.Entry // the machine's signed refusal, for the submitter's ledger
}

func (r *Refusal) Error() string {
	texts := make([]string, len(r.Reasons))
	for i, reason := range r.Reasons {
		texts[i] = reason.Text
	}
	return "refused: " + strings.Join(texts, "; ")
}

// Errors that both ends of the task protocol use, for errors.Is.
var (
	ErrNoRun       = errors.New("no such run")                     // the machine has never accepted it
	ErrUnreachable = errors.New("the machine cannot be reached")   // nothing was sent to it
	ErrBroken      = errors.New("the connection to it has broken") // it may have received the request
)

// OffsetError is a machine's answer to standard input that does not go on where
// it has got to. The sender may send again from there.
type OffsetError struct{ Offset int64 } // bytes of standard input that the machine has

func (e *OffsetError) Error() string {
	return fmt.Sprintf("standard input goes on at byte %d", e.Offset)
}
