package store

import (
	"errors"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/balanceai/balance/exec/task"
	"github.com/balanceai/balance/mesh/identity"
	"github.com/balanceai/balance/mesh/wire"
)

// testRun makes the drafts of a run's entries.
type testRun struct {
	id       string
	executor identity.ID
}

func newRun(executor identity.ID) testRun { return testRun{task.NewID(), executor} }

func (r testRun) submit() task.Draft {
	return task.Draft{Topic: r.id, Kind: task.KindSubmit, Record: task.Submit{Spec: task.Spec{Driver: task.DriverProcess, Command: []string{"true"}}}}
}

func (r testRun) place(attempt int) task.Draft {
	v := task.Verdict{Node: r.executor, Name: "hydra", Owner: "ada", Fits: true, Score: 700, Parts: []task.Part{{Name: "cpu", Text: "leaves 7 of 8 cores", Points: 700}}}
	p, err := task.NewPlace(attempt, r.executor, "hydra", task.Ranking{v, v, v})
	if err != nil {
		panic(err)
	}
	return task.Draft{Topic: r.id, Kind: task.KindPlace, Record: p}
}

func (r testRun) accepted(attempt int) task.Draft {
	return task.Draft{Topic: r.id, Kind: task.KindAccepted, Record: task.Accepted{Attempt: attempt}}
}

func (r testRun) started(attempt int) task.Draft {
	return task.Draft{Topic: r.id, Kind: task.KindStarted, Record: task.Started{Attempt: attempt}}
}

func (r testRun) finished(attempt int, state task.State) task.Draft {
	return task.Draft{Topic: r.id, Kind: task.KindFinished, Record: task.Finished{Attempt: attempt, State: state, Usage: task.Usage{WallMS: 3}}}
}

func (r testRun) receipt(attempt int, finished wire.Hash) task.Draft {
	return task.Draft{Topic: r.id, Kind: task.KindReceipt, Record: task.Receipt{Attempt: attempt, Finished: finished}}
}

func mustRun(t *testing.T, s *Store, id string) task.Status {
	t.Helper()
	st, err := s.Run(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	return st
}

// Both parties see the run go through its states, each from its own ledger.
func TestRunStates(t *testing.T) {
	submitter, executor := newStore(t, 1), newStore(t, 2)
	r := newRun(key(2).ID())
	if _, err := submitter.Run(t.Context(), r.id); !errors.Is(err, ErrNotFound) {
		t.Errorf("run that is not there: %v", err)
	}
	var last wire.Hash // of the step before
	for _, step := range []struct {
		by, other *Store
		drafts    func() []task.Draft
		want      task.State
	}{
		{submitter, executor, func() []task.Draft { return []task.Draft{r.submit(), r.place(1)} }, task.Placed},
		{executor, submitter, func() []task.Draft { return []task.Draft{r.accepted(1)} }, task.Placed},
		{executor, submitter, func() []task.Draft { return []task.Draft{r.started(1)} }, task.Running},
		{executor, submitter, func() []task.Draft { return []task.Draft{r.finished(1, task.Succeeded)} }, task.Succeeded},
		{submitter, executor, func() []task.Draft { return []task.Draft{r.receipt(1, last)} }, task.Succeeded},
	} {
		list := appendTo(t, step.by, step.drafts()...)
		last = list[len(list)-1].Hash()
		accept(t, step.other, list...)
		for _, s := range []*Store{submitter, executor} {
			st := mustRun(t, s, r.id)
			if st.State != step.want || st.Submitter != key(1).ID() {
				t.Errorf("after %s: state %s, want %s", list[0].Kind, st.State, step.want)
			}
			active, err := s.Runs(t.Context(), RunFilter{Active: true})
			if err != nil || (len(active) == 1) == step.want.Final() {
				t.Errorf("after %s: %d active runs, %v", list[0].Kind, len(active), err)
			}
		}
	}
	a, b := mustRun(t, submitter, r.id), mustRun(t, executor, r.id)
	if !reflect.DeepEqual(a, b) || !a.Receipt || *a.ExitCode != 0 || a.Usage.WallMS != 3 || a.Node != "hydra" {
		t.Errorf("the two parties differ:\n%+v\n%+v", a, b)
	}
}

// The executor's entries may come first, and what does not add up must neither
// be refused nor hide what was known.
func TestRunOddEntries(t *testing.T) {
	submitter, s := newStore(t, 1), newStore(t, 3)
	r := newRun(key(2).ID())
	wishes := appendTo(t, submitter, r.submit(), r.place(1))
	executor := newStore(t, 2)
	facts := appendTo(t, executor, r.accepted(1), r.started(1), task.Draft{Topic: r.id, Kind: task.KindFinished, Record: note{"nonsense"}})
	accept(t, s, facts[:2]...)
	if _, err := s.Run(t.Context(), r.id); !errors.Is(err, ErrNotFound) {
		t.Errorf("run without a submit: %v", err)
	}
	accept(t, s, wishes...)
	if st := mustRun(t, s, r.id); st.State != task.Running {
		t.Errorf("state %s", st.State)
	}
	accept(t, s, facts[2])
	if st := mustRun(t, s, r.id); st.State != task.Running {
		t.Errorf("after nonsense: state %s", st.State)
	}
}

func TestRuns(t *testing.T) {
	s, other := newStore(t, 1), newStore(t, 2)
	if _, err := s.FindRun(t.Context(), LastRun); !errors.Is(err, ErrNotFound) {
		t.Errorf("last of none: %v", err)
	}
	begin := time.Now().Add(-time.Minute)
	var ids []string
	for i, end := range []task.State{task.Succeeded, "", task.Failed} {
		r := newRun(key(1).ID())
		ids = append(ids, r.id)
		by := []*Store{s, s, other}[i]
		accept(t, s, appendTo(t, by, r.submit(), r.place(1))...)
		if end != "" {
			appendTo(t, s, r.started(1), r.finished(1, end))
		}
	}
	for _, test := range []struct {
		filter RunFilter
		want   []string
	}{
		{RunFilter{}, ids},
		{RunFilter{Active: true}, ids[1:2]},
		{RunFilter{Own: true}, ids[:2]},
		{RunFilter{Own: true, Active: true}, ids[1:2]},
		{RunFilter{Since: begin}, ids},
		{RunFilter{Since: time.Now().Add(time.Hour)}, ids[1:2]},
		{RunFilter{Since: begin, Own: true}, ids[:2]},
	} {
		found, err := s.Runs(t.Context(), test.filter)
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, st := range found {
			got = append(got, st.ID)
		}
		slices.Sort(got)
		if want := slices.Sorted(slices.Values(test.want)); !slices.Equal(got, want) {
			t.Errorf("%+v: %v, want %v", test.filter, got, want)
		}
	}
	if found, err := s.Runs(t.Context(), RunFilter{Limit: 2}); err != nil || len(found) != 2 {
		t.Errorf("limit 2: %d, %v", len(found), err)
	}
	if id, err := s.FindRun(t.Context(), LastRun); err != nil || !slices.Contains(ids[:2], id) {
		t.Errorf("last: %s %v", id, err)
	}
}

func TestFindRun(t *testing.T) {
	s := newStore(t, 1)
	ids := []string{"r-abcaaaaaaaaaaaaa", "r-abcbbbbbbbbbbbbb", "r-xyz2222222222222"}
	for _, id := range ids {
		appendTo(t, s, testRun{id: id}.submit())
	}
	for prefix, want := range map[string]string{
		ids[0]: ids[0], "r-abca": ids[0], "abca": ids[0], "xyz": ids[2], "R-XYZ2": ids[2], "xyz2222222222222": ids[2],
	} {
		if got, err := s.FindRun(t.Context(), prefix); err != nil || got != want {
			t.Errorf("%q: %q %v", prefix, got, err)
		}
	}
	for _, prefix := range []string{"", "r-", "ab", "r-ab", "zzz", "abc%", "ab_", "a*?", "abc'--", ids[0] + "a"} {
		if got, err := s.FindRun(t.Context(), prefix); !errors.Is(err, ErrNotFound) {
			t.Errorf("%q: %q %v", prefix, got, err)
		}
	}
	_, err := s.FindRun(t.Context(), "abc")
	if e, ok := errors.AsType[*AmbiguousError](err); !ok || !slices.Equal(e.Candidates, ids[:2]) || !strings.Contains(err.Error(), ids[1]) {
		t.Errorf("ambiguous: %v", err)
	}
}

// The projection is nothing but what the entries say: made anew, it is the same.
func TestRefold(t *testing.T) {
	path := filepath.Join(t.TempDir(), "ledger.db")
	s := openAt(t, path, 1)
	for i := range 20 {
		r := newRun(key(byte(1 + i%2)).ID())
		appendTo(t, s, r.submit(), r.place(1))
		if i%3 > 0 {
			appendTo(t, s, r.accepted(1), r.started(1))
		}
		if i%3 > 1 {
			appendTo(t, s, r.finished(1, task.Failed))
		}
	}
	before, err := s.Runs(t.Context(), RunFilter{})
	if err != nil {
		t.Fatal(err)
	}
	err = s.write(t.Context(), func(tx *tx) error {
		return errors.Join(tx.exec(`UPDATE runs SET status = '{}'`), tx.exec(`DELETE FROM runs WHERE own = 1 AND id < 'r-m'`), tx.setMeta(metaRuns, 0),
			tx.exec(`DROP INDEX runs_ended`), tx.exec(`ALTER TABLE runs DROP COLUMN ended`), tx.exec(`PRAGMA user_version = 1`)) // an older program's
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = openAt(t, path, 1)
	after, err := s.Runs(t.Context(), RunFilter{})
	if err != nil {
		t.Fatal(err)
	}
	if len(before) != 20 || !reflect.DeepEqual(before, after) {
		t.Errorf("%d runs before, %d after; or they differ", len(before), len(after))
	}
	later, err := s.Runs(t.Context(), RunFilter{Since: time.Now().Add(time.Hour)})
	if err != nil || len(later) != 17 || slices.ContainsFunc(later, func(st task.Status) bool { return st.State.Final() }) {
		t.Errorf("%d runs have not ended, %v", len(later), err)
	}
}

// A life that ends before anybody has read the projection leaves it behind the
// entries; the next life catches up.
func TestRunsAfterACrashBeforeProjection(t *testing.T) {
	path := filepath.Join(t.TempDir(), "ledger.db")
	s := openAt(t, path, 1)
	seen, unseen := newRun(key(2).ID()), newRun(key(2).ID())
	appendTo(t, s, seen.submit(), seen.place(1))
	mustRun(t, s, seen.id)
	appendTo(t, s, unseen.submit(), unseen.place(1))
	appendTo(t, s, task.Draft{Topic: seen.id, Kind: task.KindLost, Record: task.LostRecord{Attempt: 1}})

	again := openAt(t, path, 1) // the first one has not been closed
	if st := mustRun(t, again, unseen.id); st.State != task.Placed {
		t.Errorf("a run that nobody had read is %s", st.State)
	}
	if st := mustRun(t, again, seen.id); st.State != task.Lost {
		t.Errorf("a run that went on after it was read is %s", st.State)
	}
}

// What others wrote and the answer to it are stored together or not at all.
func TestRecord(t *testing.T) {
	submitter, executor := newStore(t, 1), newStore(t, 2)
	r := newRun(key(2).ID())
	wishes := appendTo(t, submitter, r.submit(), r.place(1))

	forged := *wishes[1]
	forged.Sig[0]++
	if _, err := executor.Record(t.Context(), []*wire.Entry{wishes[0], &forged}, r.accepted(1)); !errors.Is(err, wire.ErrSignature) {
		t.Errorf("a forged entry: %v", err)
	}
	if _, err := executor.Record(t.Context(), wishes[1:], r.accepted(1)); !errors.Is(err, wire.ErrGap) {
		t.Errorf("entries with a hole: %v", err)
	}
	if list, err := executor.Entries(t.Context(), r.id); err != nil || len(list) != 0 {
		t.Fatalf("what was refused left %d entries, %v", len(list), err)
	}
	for range 2 { // theirs may be there already
		own, err := executor.Record(t.Context(), wishes, r.accepted(1))
		if err != nil || len(own) != 1 || own[0].Kind != task.KindAccepted {
			t.Fatalf("Record = %v, %v", own, err)
		}
	}
	if st := mustRun(t, executor, r.id); st.State != task.Placed {
		t.Errorf("the run is %s", st.State)
	}
}
