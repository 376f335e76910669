package task

import (
	"fmt"
	"math"
	"time"

	"github.com/balanceai/balance/mesh/identity"
)

// WaitForever is a [Spec.Wait] without an end.
const WaitForever = time.Duration(math.MaxInt64)

// MaxPriority bounds [Spec.Priority] on both sides of zero.
const MaxPriority = 100

func (s *Spec) checkQueue() error {
	switch {
	case s.Wait < 0:
		return fmt.Errorf("a wait of %v", s.Wait)
	case s.Priority < -MaxPriority || s.Priority > MaxPriority:
		return fmt.Errorf("priority %d: it is from %d to %d", s.Priority, -MaxPriority, MaxPriority)
	}
	return nil
}

// Outline returns what a machine has to know of the spec to say whether it could
// run it: not what is run, nor with which words.
func (s *Spec) Outline() Spec {
	out := *s
	out.Agent, out.Command, out.Env = "", []string{"-"}, nil
	return out
}

// Bid asks a machine to keep what a run needs for a moment, until the order for
// it comes.
type Bid struct {
	Run  string
	From identity.ID // who sent it, as the tunnel proves
	Spec Spec

	// Wait keeps the bid in the machine's line until its turn comes; else the
	// machine answers at once.
	Wait   bool
	Waited time.Duration // for which the run has waited already

	// Claim is said to one machine at most. A run that has waited long holds back
	// there what is freed, so that runs that need less do not take it for ever.
	Claim bool
}
