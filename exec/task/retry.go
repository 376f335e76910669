package task

import (
	"cmp"
	"fmt"
	"time"

	"github.com/balanceai/balance/exec/lease"
)

// Retry says when a run is started again.
type Retry string

// When a run is started again. The empty one is RetryNever.
const (
	RetryNever  Retry = "never"   // not once a machine may have it: it is lost until the machine is back
	RetryOnLoss Retry = "on-loss" // when its machine has lost it, or can have it no more
)

// ParseRetry reads what a person writes.
func ParseRetry(s string) (Retry, error) {
	switch r := Retry(s); r {
	case RetryNever, RetryOnLoss:
		return r, nil
	}
	return "", fmt.Errorf("%q is neither never nor on-loss", s)
}

// LeaseLength returns for how long a machine may go on with the run without
// hearing of who dispatches it; 0 where nobody else will ever start it, so that
// it may for ever.
func (s *Spec) LeaseLength() time.Duration {
	if s.Retry != RetryOnLoss {
		return 0
	}
	return cmp.Or(s.Lease, lease.Default)
}

func (s *Spec) checkRetry() error {
	switch {
	case s.Retry != "" && s.Retry != RetryNever && s.Retry != RetryOnLoss:
		return fmt.Errorf("retry: %.40q is neither never nor on-loss", string(s.Retry))
	case s.Lease != 0 && s.Retry != RetryOnLoss:
		return fmt.Errorf("a lease of %s for a run that is never started again: say retry on-loss too", FormatDuration(s.Lease))
	case s.Lease != 0 && (s.Lease < lease.Shortest || s.Lease > lease.Longest):
		return fmt.Errorf("a lease of %s: it is from %s to %s", FormatDuration(s.Lease), FormatDuration(lease.Shortest), FormatDuration(lease.Longest))
	}
	return nil
}
