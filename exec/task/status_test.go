package task

import (
	"fmt"
	"reflect"
	"testing"

	"pgregory.net/rapid"

	"github.com/balanceai/balance/mesh/identity"
	"github.com/balanceai/balance/mesh/wire"
)

const run1 = "r-aaaaaaaaaaaaaaaa"

var keys = [4]identity.Key{
	identity.KeyFromSeed([32]byte{1}), identity.KeyFromSeed([32]byte{2}), identity.KeyFromSeed([32]byte{3}), identity.KeyFromSeed([32]byte{4}),
}

// Who writes in these tests.
const (
	submitter = iota
	first     // executor of attempt 1
	second    // executor of attempt 2
	stranger
)

// book is the topic of a run.
type book struct {
	t interface { // *testing.T or *rapid.T
		Helper()
		Fatal(args ...any)
	}
	entries []*wire.Entry
	seq     [len(keys)]uint64
	prev    [len(keys)]wire.Hash
	clock   int64
}

func (b *book) write(author int, kind string, record any) {
	b.t.Helper()
	payload, err := wire.Marshal(record)
	if err != nil {
		b.t.Fatal(err)
	}
	b.clock++
	e, err := wire.NewEntry(keys[author], identity.MeshID{1}, wire.Body{
		Topic: run1, Segment: 1, Seq: b.seq[author], Prev: b.prev[author], Kind: kind, Millis: b.clock, Payload: payload,
	})
	if err != nil {
		b.t.Fatal(err)
	}
	b.entries = append(b.entries, e)
	b.seq[author], b.prev[author] = e.Seq+1, e.Hash()
}

func (b *book) submit() { b.write(submitter, KindSubmit, Submit{Spec: fullSpec()}) }

func (b *book) place(attempt, on int) {
	b.write(submitter, KindPlace, Place{Attempt: attempt, Node: keys[on].ID(), Name: fmt.Sprintf("node-%d", on)})
}

func (b *book) nowhere(attempt int) { b.write(submitter, KindPlace, Place{Attempt: attempt}) }

func (b *book) wait(attempt int) { b.write(submitter, KindPlace, Place{Attempt: attempt, Wait: true}) }

func (b *book) finish(by, attempt int, state State, code int) {
	b.write(by, KindFinished, Finished{Attempt: attempt, State: state, ExitCode: code, Reason: "because", Outputs: wire.Hash{9}})
}

func (b *book) fold() Status {
	b.t.Helper()
	st, err := Fold(run1, b.entries)
	if err != nil {
		b.t.Fatal(err)
	}
	return st
}

func TestFold(t *testing.T) {
	for _, tc := range []struct {
		name  string
		write func(b *book)
		want  string // state, node, attempt, exit code, receipt
	}{
		{"submitted", func(b *book) {}, "submitted  0 - false"},
		{"placed", func(b *book) { b.place(1, first) }, "placed node-1 1 - false"},
		{"given away by a stranger later", func(b *book) {
			b.place(1, first)
			b.write(stranger, KindSubmit, Submit{Spec: fullSpec(), For: keys[submitter].ID()})
		}, "placed node-1 1 - false"},
		{"waiting", func(b *book) { b.wait(1) }, "waiting  1 - false"},
		{"has waited", func(b *book) { b.wait(1); b.place(1, first) }, "placed node-1 1 - false"},
		{"has waited in vain", func(b *book) { b.wait(1); b.nowhere(1) }, "unplaced  1 - false"},
		{"was cancelled while it waited", func(b *book) { b.wait(1); b.write(submitter, KindCancel, Cancel{}) }, "cancelled  1 - false"},
		{"accepted is still placed", func(b *book) { b.place(1, first); b.write(first, KindAccepted, Accepted{Attempt: 1}) }, "placed node-1 1 - false"},
		{"running", func(b *book) { b.place(1, first); b.write(first, KindStarted, Started{Attempt: 1}) }, "running node-1 1 - false"},
		{"succeeded", func(b *book) { b.place(1, first); b.finish(first, 1, Succeeded, 0) }, "succeeded node-1 1 0 false"},
		{"receipt", func(b *book) {
			b.place(1, first)
			b.finish(first, 1, Failed, 7)
			b.write(submitter, KindReceipt, Receipt{Attempt: 1, Finished: b.entries[len(b.entries)-1].Hash()})
		}, "failed node-1 1 7 true"},
		{"receipt for something else", func(b *book) {
			b.place(1, first)
			b.finish(first, 1, Failed, 7)
			b.write(submitter, KindReceipt, Receipt{Attempt: 1, Finished: wire.Hash{1}})
		}, "failed node-1 1 7 false"},
		{"unplaced", func(b *book) { b.nowhere(1) }, "unplaced  1 - false"},
		{"refused, then elsewhere", func(b *book) {
			b.place(1, first)
			b.write(first, KindRefused, Refused{Attempt: 1})
			b.place(2, second)
			b.write(second, KindStarted, Started{Attempt: 2})
		}, "running node-2 2 - false"},
		{"refused by all", func(b *book) { b.place(1, first); b.nowhere(2) }, "unplaced  2 - false"},
		{"lost", func(b *book) {
			b.place(1, first)
			b.write(first, KindStarted, Started{Attempt: 1})
			b.write(submitter, KindLost, LostRecord{Attempt: 1})
		}, "lost node-1 1 - false"},
		{"lost and found", func(b *book) {
			b.place(1, first)
			b.write(first, KindStarted, Started{Attempt: 1})
			b.write(submitter, KindLost, LostRecord{Attempt: 1})
			b.place(1, first)
		}, "running node-1 1 - false"},
		{"the truth wins over lost", func(b *book) {
			b.place(1, first)
			b.write(submitter, KindLost, LostRecord{Attempt: 1})
			b.finish(first, 1, Succeeded, 0)
		}, "succeeded node-1 1 0 false"},
		{"cancelled before placement", func(b *book) { b.write(submitter, KindCancel, Cancel{}) }, "cancelled  0 - false"},
		{"a wish to cancel is no end", func(b *book) { b.place(1, first); b.write(submitter, KindCancel, Cancel{}) }, "placed node-1 1 - false"},
		{"cancelled by the executor", func(b *book) {
			b.place(1, first)
			b.write(submitter, KindCancel, Cancel{})
			b.finish(first, 1, Cancelled, 143)
		}, "cancelled node-1 1 143 false"},
		{"cancelled between machines", func(b *book) {
			b.place(1, first)
			b.nowhere(2)
			b.write(submitter, KindCancel, Cancel{})
		}, "cancelled  2 - false"},
		{"an earlier attempt's end", func(b *book) { b.place(1, first); b.place(2, first); b.finish(first, 1, Succeeded, 0) }, "placed node-1 2 - false"},
		{"an executor does not say unplaced", func(b *book) { b.place(1, first); b.finish(first, 1, Unplaced, 0) }, "placed node-1 1 - false"},
		{"nor an invented state", func(b *book) { b.place(1, first); b.finish(first, 1, "splendid", 0) }, "placed node-1 1 - false"},
		{"own machine", func(b *book) { b.place(1, submitter); b.finish(submitter, 1, Succeeded, 0) }, "succeeded node-0 1 0 false"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			b := &book{t: t}
			b.submit()
			tc.write(b)
			st, code := b.fold(), "-"
			if st.ExitCode != nil {
				code = fmt.Sprint(*st.ExitCode)
			}
			if got := fmt.Sprintf("%s %s %d %s %v", st.State, st.Node, st.Attempt, code, st.Receipt); got != tc.want {
				t.Errorf("got %q, want %q", got, tc.want)
			}
			if st.Submitter != keys[submitter].ID() || st.Agent != "text-report" || st.State.Final() && st.Finished.IsZero() {
				t.Errorf("status %+v", st)
			}
		})
	}
	if _, err := Fold(run1, nil); err == nil {
		t.Error("a run that nobody submitted has a status")
	}
	if _, err := Fold(run1, []*wire.Entry{{Body: wire.Body{Kind: KindSubmit, Payload: []byte{0xff}}}}); err == nil {
		t.Error("garbage was submitted")
	}
}

// drawEntry writes an entry that an author may or may not write.
func drawEntry(t *rapid.T, b *book, author int) {
	attempt := rapid.IntRange(1, 3).Draw(t, "attempt")
	switch rapid.IntRange(0, 7).Draw(t, "kind") {
	case 0:
		node := rapid.IntRange(0, 3).Draw(t, "node")
		p := Place{Attempt: attempt, Node: keys[node].ID(), Name: fmt.Sprint(node)}
		if node == 3 && rapid.Bool().Draw(t, "wait") {
			p = Place{Attempt: attempt, Wait: true}
		}
		b.write(author, KindPlace, p)
	case 1:
		b.write(author, KindCancel, Cancel{Reason: "x"})
	case 2:
		b.write(author, KindLost, LostRecord{Attempt: attempt})
	case 3:
		b.write(author, KindReceipt, Receipt{Attempt: attempt})
	case 4:
		b.write(author, KindAccepted, Accepted{Attempt: attempt})
	case 5:
		b.write(author, KindRefused, Refused{Attempt: attempt})
	case 6:
		b.write(author, KindStarted, Started{Attempt: attempt})
	case 7:
		b.finish(author, attempt, rapid.SampledFrom([]State{Succeeded, Failed, Cancelled, Unplaced, Lost, Running}).Draw(t, "state"), attempt)
	}
}

func drawBook(t *rapid.T) *book {
	b := &book{t: t}
	b.submit()
	for range rapid.IntRange(0, 12).Draw(t, "entries") {
		drawEntry(t, b, rapid.SampledFrom([]int{submitter, submitter, first, second, stranger}).Draw(t, "author"))
	}
	return b
}

// How the authors' chains interleave does not matter.
func TestFoldOrder(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		b := drawBook(t)
		want := b.fold()
		chains := map[identity.ID][]*wire.Entry{}
		for _, e := range b.entries {
			chains[e.Author] = append(chains[e.Author], e)
		}
		b.entries = nil
		for len(chains) > 0 {
			var authors []identity.ID
			for _, k := range keys {
				if len(chains[k.ID()]) > 0 {
					authors = append(authors, k.ID())
				}
			}
			if len(authors) == 0 {
				break
			}
			a := rapid.SampledFrom(authors).Draw(t, "next")
			b.entries = append(b.entries, chains[a][0])
			chains[a] = chains[a][1:]
		}
		if got := b.fold(); !reflect.DeepEqual(got, want) {
			t.Fatalf("got %+v\nwant %+v", got, want)
		}
	})
}

// What the wrong author writes counts for nothing: without the entries of
// everybody but the submitter and the executor, the status is the same.
func TestFoldWrongAuthors(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		b := drawBook(t)
		want := b.fold()
		var kept []*wire.Entry
		for _, e := range b.entries {
			wish := e.Kind == KindSubmit || e.Kind == KindPlace || e.Kind == KindCancel || e.Kind == KindLost || e.Kind == KindReceipt
			if wish && e.Author == want.Submitter || !wish && e.Author == want.NodeID {
				kept = append(kept, e)
			}
		}
		b.entries = kept
		if got := b.fold(); !reflect.DeepEqual(got, want) {
			t.Fatalf("got %+v\nwant %+v", got, want)
		}
	})
}

// Only the machine of the current attempt ends a run that is on a machine.
func TestFoldStates(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		b := drawBook(t)
		st := b.fold()
		switch st.State {
		case Submitted, Waiting, Placed, Running, Succeeded, Failed, Cancelled, Unplaced, Lost:
		default:
			t.Fatalf("state %q", st.State)
		}
		if st.State.Final() && !st.NodeID.IsZero() && st.Usage == nil {
			t.Fatalf("ended without an account: %+v", st)
		}
	})
}

// A run in custody is dispatched by who was given it, or by who has given it and
// was not heard, and by nobody else.
func TestFoldCustody(t *testing.T) {
	giver, keeper := stranger, submitter // whose wishes the book writes
	of := func(n int) identity.ID { return keys[n].ID() }
	for name, tc := range map[string]struct {
		write func(b *book)
		want  Status
	}{
		"on its way": {func(b *book) {}, Status{State: Submitted, Submitter: of(giver), For: of(giver), Custodian: of(keeper)}},
		"what its giver wishes meanwhile ends nothing": {
			func(b *book) { b.write(giver, KindCancel, Cancel{}) },
			Status{State: Submitted, Submitter: of(giver), For: of(giver), Custodian: of(keeper)},
		},
		"taken": {func(b *book) {
			b.write(keeper, KindSubmit, Submit{Spec: fullSpec(), For: of(giver)})
			b.place(1, first)
			b.write(giver, KindCancel, Cancel{})
		}, Status{State: Placed, Submitter: of(keeper), For: of(giver), Custodian: of(keeper)}},
		"taken for somebody else": {
			func(b *book) { b.write(keeper, KindSubmit, Submit{Spec: fullSpec(), For: of(second)}) },
			Status{State: Submitted, Submitter: of(giver), For: of(giver), Custodian: of(keeper)},
		},
		"taken by somebody else": {
			func(b *book) { b.write(second, KindSubmit, Submit{Spec: fullSpec(), For: of(giver)}) },
			Status{State: Submitted, Submitter: of(giver), For: of(giver), Custodian: of(keeper)},
		},
		"taken back": {
			func(b *book) { b.write(giver, KindSubmit, Submit{Spec: fullSpec()}) },
			Status{State: Submitted, Submitter: of(giver)},
		},
	} {
		t.Run(name, func(t *testing.T) {
			b := &book{t: t}
			b.write(giver, KindHand, Hand{To: of(keeper), Spec: fullSpec()})
			tc.write(b)
			got := b.fold()
			if got.State != tc.want.State || got.Submitter != tc.want.Submitter || got.For != tc.want.For || got.Custodian != tc.want.Custodian {
				t.Errorf("%s by %s, for %s, given to %s", got.State, got.Submitter.Short(), got.For.Short(), got.Custodian.Short())
			}
		})
	}
	b := &book{t: t}
	b.write(keeper, KindSubmit, Submit{Spec: fullSpec(), For: of(giver)})
	if got := b.fold(); got.For != of(giver) || got.Custodian != of(keeper) || got.OnItsWay() {
		t.Errorf("where the giver's entry is not: %+v", got)
	}
}
