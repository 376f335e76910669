package policy

import (
	"strings"
	"testing"

	"github.com/balanceai/balance/exec/task"
)

func TestQuota(t *testing.T) {
	terms := Terms{Offers: true, Others: []Grant{
		{Owner: "ben", CPU: task.Core, Memory: task.GiB, Queue: 3, Ledger: task.MiB, Line: 7},
		{Owner: "cleo", CPU: task.Core, Memory: task.GiB},
	}}
	for name, test := range map[string]struct {
		owner string
		kept  Kept
		want  []string
	}{
		"the owner":            {"alice", Kept{Runs: 1e6, Ledger: task.TiB}, nil},
		"ben":                  {"ben", Kept{Runs: 2, Ledger: task.MiB - 1}, nil},
		"ben with many runs":   {"ben", Kept{Runs: 3}, []string{"takes 3 runs of ben at one time, with those that wait, and has 3 (policy.yaml:7)"}},
		"ben with much of all": {"ben", Kept{Runs: 9, Ledger: 2 * task.MiB}, []string{"takes 3 runs of ben at one time, with those that wait, and has 9 (policy.yaml:7)", "keeps 1 MiB a day of what the runs of ben add to the ledger, and has 2 MiB of the last day (policy.yaml:7)"}},
		"cleo":                 {"cleo", Kept{Runs: DefaultQueue - 1, Ledger: DefaultLedger - 1}, nil},
		"cleo with many runs":  {"cleo", Kept{Runs: DefaultQueue}, []string{"takes 256 runs of cleo at one time, with those that wait, and has 256"}},
		"a stranger":           {"dora", Kept{Ledger: DefaultLedger}, []string{"keeps 64 MiB a day of what the runs of dora add to the ledger, and has 64 MiB of the last day"}},
	} {
		var got []string
		for _, r := range terms.Quota(Asker{Owner: test.owner}, "alice", test.kept) {
			if r.Rule != RuleQuota || !r.Ever {
				t.Errorf("%s: %+v", name, r)
			}
			got = append(got, r.Text)
		}
		if strings.Join(got, "; ") != strings.Join(test.want, "; ") {
			t.Errorf("%s: %q, want %q", name, got, test.want)
		}
	}
}
