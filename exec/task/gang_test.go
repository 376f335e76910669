package task

import (
	"testing"

	"github.com/balanceai/balance/mesh/identity"
)

// A gang is on no machine: what its submitter writes counts, and a wish to end
// it is not its end.
func TestFoldGang(t *testing.T) {
	b := &book{t: t}
	spec := Spec{Driver: DriverProcess, Command: []string{"true"}, Gang: &Gang{Nodes: 2}}
	ranks := []Rank{{Run: "r-bbbbbbbbbbbbbbbb", Node: identity.ID{1}, Name: "b"}, {Run: "r-cccccccccccccccc", Node: identity.ID{2}, Name: "c"}}
	expect := func(state State) Status {
		t.Helper()
		st := b.fold()
		if st.State != state {
			t.Fatalf("state %s, want %s", st.State, state)
		}
		return st
	}
	b.write(submitter, KindSubmit, Submit{Spec: spec})
	expect(Submitted)
	b.write(submitter, KindPlace, Place{Attempt: 1, Ranks: ranks, Name: "b, c"})
	if st := expect(Placed); len(st.Ranks) != 2 || st.Ranks[1] != ranks[1].Run {
		t.Errorf("ranks %v", st.Ranks)
	}
	b.write(stranger, KindFinished, Finished{Attempt: 1, State: Succeeded})
	b.write(submitter, KindStarted, Started{Attempt: 1})
	expect(Running)
	b.write(submitter, KindCancel, Cancel{Reason: "enough"})
	expect(Running)
	b.write(submitter, KindFinished, Finished{Attempt: 1, State: Failed, ExitCode: 3})
	if st := expect(Failed); *st.ExitCode != 3 {
		t.Errorf("exit code %d", *st.ExitCode)
	}
}

func TestCheckGang(t *testing.T) {
	gang := func() Spec {
		return Spec{Driver: DriverProcess, Command: []string{"true"}, Gang: &Gang{Nodes: 2}}
	}
	if s := gang(); s.CheckGang() != nil || s.Check() != nil {
		t.Errorf("%v, %v", s.CheckGang(), s.Check())
	}
	for name, change := range map[string]func(*Spec){
		"rank":    func(s *Spec) { s.Member = &Member{} },
		"stdin":   func(s *Spec) { s.Stdin = true },
		"retry":   func(s *Spec) { s.Retry = RetryOnLoss },
		"sandbox": func(s *Spec) { s.Isolation = LevelSandbox },
		"node":    func(s *Spec) { s.Node = "hydra" },
	} {
		s := gang()
		change(&s)
		if s.CheckGang() == nil {
			t.Errorf("%s: no error", name)
		}
	}
}
