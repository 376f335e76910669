package policy

import (
	"cmp"
	"fmt"

	"github.com/balanceai/balance/exec/task"
)

// Quotas of an owner whose grant does not say others, or who has none: asking
// takes room too.
const (
	DefaultQueue  = 256
	DefaultLedger = 64 * task.MiB
)

// RuleQuota is the rule of reasons that [Terms.Quota] gives.
const RuleQuota = "quota"

// Kept is what a machine keeps for an owner.
type Kept struct {
	Runs   int        // that go on, or wait for their turn
	Ledger task.Bytes // that came into the ledger for its runs in the last day
}

// Quota returns why an owner may not have a machine keep one more run. The
// machine's own owner always may.
func (t Terms) Quota(from Asker, machine string, k Kept) (reasons []task.Reason) {
	if from.Owner == machine {
		return nil
	}
	g, _ := t.Grant(from)
	refuse := func(need, have uint64, format string, args ...any) {
		reasons = append(reasons, task.Reason{Rule: RuleQuota, Text: fmt.Sprintf(format, args...) + g.at(), Need: need, Have: have, Ever: true})
	}
	if most := cmp.Or(g.Queue, DefaultQueue); k.Runs >= most {
		refuse(1, 0, "takes %d runs of %s at one time, with those that wait, and has %d", most, from.Owner, k.Runs)
	}
	if most := cmp.Or(g.Ledger, DefaultLedger); k.Ledger >= most {
		refuse(uint64(k.Ledger), uint64(most), "keeps %v a day of what the runs of %s add to the ledger, and has %v of the last day", most, from.Owner, k.Ledger)
	}
	return reasons
}
