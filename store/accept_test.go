package store

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"github.com/balanceai/balance/mesh/identity"
	"github.com/balanceai/balance/mesh/wire"
)

func accept(t testing.TB, s *Store, list ...*wire.Entry) []*wire.Entry {
	t.Helper()
	fresh, err := s.Accept(t.Context(), list...)
	if err != nil {
		t.Fatal(err)
	}
	return fresh
}

func TestAccept(t *testing.T) {
	s := newStore(t, 1)
	c := forge(t, 2, "mesh", 5, "a", "b", "c", "d")
	var told int
	s.OnCommit(func(fresh []*wire.Entry) { told += len(fresh) })

	if fresh := accept(t, s, c[2], c[0], c[1], c[0]); len(fresh) != 3 {
		t.Errorf("%d of 3 entries in disorder are fresh", len(fresh))
	}
	if fresh := accept(t, s, c[1]); len(fresh) != 0 {
		t.Errorf("a known entry is fresh")
	}
	if fresh := accept(t, s, c...); len(fresh) != 1 || fresh[0].Hash() != c[3].Hash() {
		t.Errorf("%d fresh of one new", len(fresh))
	}
	if fresh := accept(t, s); len(fresh) != 0 {
		t.Errorf("%d fresh of none", len(fresh))
	}
	if told != 4 {
		t.Errorf("told of %d entries, want 4", told)
	}
	mustVerify(t, s, 5)
}

func TestAcceptRefuses(t *testing.T) {
	s := newStore(t, 1)
	c := forge(t, 2, "mesh", 5, "a", "b", "c")
	good := forge(t, 3, "mesh", 5, "a")
	_, otherMesh := genesis(t)
	foreign, err := wire.NewEntry(key(2), identity.MeshID{9}, c[0].Body)
	if err != nil {
		t.Fatal(err)
	}
	changed := func(e *wire.Entry, change func(*wire.Entry)) *wire.Entry {
		n := &wire.Entry{Raw: slices.Clone(e.Raw), Sig: e.Sig, Body: e.Body}
		change(n)
		return n
	}
	reopen := func(e *wire.Entry, change func(*wire.Body)) *wire.Entry {
		b := e.Body
		change(&b)
		n, err := wire.OpenEntry(marshal(t, &b), e.Sig)
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	for name, test := range map[string]struct {
		list []*wire.Entry
		want error
	}{
		"without its start":     {c[1:], wire.ErrGap},
		"alone without a start": {c[1:2], wire.ErrGap},
		"a flipped signature":   {[]*wire.Entry{changed(c[0], func(e *wire.Entry) { e.Sig[0] ^= 1 }), c[1]}, wire.ErrSignature},
		"of another mesh":       {[]*wire.Entry{foreign}, wire.ErrSignature},
		"another payload":       {[]*wire.Entry{reopen(c[0], func(b *wire.Body) { b.Payload = []byte{0xa0} })}, wire.ErrSignature},
		"another author":        {[]*wire.Entry{reopen(c[0], func(b *wire.Body) { b.Author = key(3).ID() })}, wire.ErrSignature},
		"another topic":         {[]*wire.Entry{reopen(c[0], func(b *wire.Body) { b.Topic = "r-aaaaaaaaaaaaaaaa" })}, wire.ErrSignature},
		"another kind":          {[]*wire.Entry{reopen(c[0], func(b *wire.Body) { b.Kind = "admit" })}, wire.ErrSignature},
		"a forged later one":    {[]*wire.Entry{reopen(c[2], func(b *wire.Body) { b.Millis++ })}, wire.ErrSignature},
		"a second genesis":      {[]*wire.Entry{reopen(otherMesh, func(b *wire.Body) { b.Author = key(2).ID() })}, wire.ErrSignature},
	} {
		fresh, err := s.Accept(t.Context(), test.list...)
		if !errors.Is(err, test.want) || len(fresh) != 0 {
			t.Errorf("%s: %d fresh, %v", name, len(fresh), err)
		}
	}
	if list, err := s.List(t.Context(), "", 99); err != nil || len(list) != 1 {
		t.Fatalf("%d entries are stored, %v", len(list), err)
	}

	// A bad chain does not keep a good one out, nor its own good beginning.
	fresh, err := s.Accept(t.Context(), c[0], changed(c[1], func(e *wire.Entry) { e.Sig[9] ^= 1 }), c[2], good[0])
	if !errors.Is(err, wire.ErrSignature) || len(fresh) != 2 {
		t.Errorf("%d of 2 good entries are taken, %v", len(fresh), err)
	}
	fresh, err = s.Accept(t.Context(), c[2], forge(t, 3, "mesh", 6, "b")[0])
	if !errors.Is(err, wire.ErrGap) || len(fresh) != 1 {
		t.Errorf("%d of 1 good entry is taken, %v", len(fresh), err)
	}
	mustVerify(t, s, 4)
}

func TestFork(t *testing.T) {
	s := newStore(t, 1)
	one := forge(t, 2, "mesh", 5, "a", "b", "c", "d")
	two := forge(t, 2, "mesh", 5, "a", "b", "x", "y")
	three := forge(t, 2, "mesh", 5, "a", "z")
	accept(t, s, one[:3]...)

	for range 2 { // the second time it is known
		fresh, err := s.Accept(t.Context(), two...)
		if !errors.Is(err, wire.ErrFork) || len(fresh) != 0 {
			t.Errorf("fork: %d fresh, %v", len(fresh), err)
		}
		evidence, err := s.Forks(t.Context(), "mesh")
		if err != nil || len(evidence) != 1 || evidence[0].Hash() != two[2].Hash() {
			t.Fatalf("evidence: %v %v", evidence, err)
		}
	}
	accept(t, s, two[2]) // the evidence itself is known by now
	accept(t, s, one[2])
	for name, e := range map[string]*wire.Entry{"its own branch": one[3], "the other": two[3]} {
		if fresh, err := s.Accept(t.Context(), e); !errors.Is(err, wire.ErrFork) || len(fresh) != 0 {
			t.Errorf("after a fork %s goes on: %v", name, err)
		}
	}
	if _, err := s.Accept(t.Context(), three...); !errors.Is(err, wire.ErrFork) {
		t.Errorf("third branch: %v", err)
	}
	evidence, err := s.Forks(t.Context(), "mesh")
	if err != nil || len(evidence) != 1 || evidence[0].Hash() != three[1].Hash() {
		t.Errorf("the lowest number is not the one kept: %v %v", evidence, err)
	}
	heads, err := s.Heads(t.Context(), "mesh")
	if err != nil || len(heads) != 2 || !slices.ContainsFunc(heads, func(h wire.Head) bool { return h.Fork != nil && *h.Fork == 1 && h.Seq == 2 }) {
		t.Errorf("heads: %+v %v", heads, err)
	}
	mustVerify(t, s, 4)

	// Evidence that is not signed is none.
	forged := *two[1]
	forged.Raw = slices.Clone(forged.Raw)
	forged.Raw[len(forged.Raw)-1] ^= 1
	other := newStore(t, 1)
	accept(t, other, one...)
	if _, err := other.Accept(t.Context(), &forged); !errors.Is(err, wire.ErrSignature) {
		t.Errorf("forged evidence: %v", err)
	}
	if evidence, err := other.Forks(t.Context(), "mesh"); err != nil || len(evidence) != 0 {
		t.Errorf("forged evidence is kept: %v %v", evidence, err)
	}
	// Both branches in one call.
	both := newStore(t, 1)
	if fresh, err := both.Accept(t.Context(), append(slices.Clone(two), one...)...); !errors.Is(err, wire.ErrFork) || len(fresh) != 3 {
		t.Errorf("both branches at once: %d fresh, %v", len(fresh), err)
	}
}

// A backup is restored: what the node has written since comes back from a peer,
// and no number is given twice.
func TestRestoredBackup(t *testing.T) {
	path := filepath.Join(t.TempDir(), "ledger.db")
	peer := newStore(t, 2)
	s := openAt(t, path, 1)
	accept(t, peer, appendTo(t, s, draft("mesh", "a"), draft("mesh", "b"))...)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	backup, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	s = openAt(t, path, 1)
	accept(t, peer, appendTo(t, s, draft("mesh", "c"), draft("mesh", "d"))...)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, backup, 0o600); err != nil {
		t.Fatal(err)
	}
	s = openAt(t, path, 1)
	appendTo(t, s, draft("mesh", "before it meets the peer"))
	exchange(t, peer, s, "mesh", 100)
	appendTo(t, s, draft("mesh", "after"))
	exchange(t, s, peer, "mesh", 100)
	for _, s := range []*Store{s, peer} {
		mustVerify(t, s, 7)
		if evidence, err := s.Forks(t.Context(), "mesh"); err != nil || len(evidence) > 0 {
			t.Errorf("the node is accused: %v %v", evidence, err)
		}
	}
}

// exchange gives to what it lacks of a topic.
func exchange(t rapidT, from, to *Store, topic string, limit int) (given int) {
	heads, err := to.Heads(t.Context(), topic)
	if err != nil {
		t.Fatal(err)
	}
	list, err := from.Since(t.Context(), topic, heads, limit)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := to.Accept(t.Context(), list...); err != nil && !errors.Is(err, wire.ErrFork) {
		t.Fatal(err)
	}
	return len(list)
}

// When two nodes that hold different branches of a chain meet, both find the
// first difference, tell a third one, and then have nothing more to say.
func TestForkSpreads(t *testing.T) {
	one := forge(t, 3, "mesh", 5, "a", "b", "c", "d", "e")
	two := forge(t, 3, "mesh", 5, "a", "b", "x", "y")
	a, b, c := newStore(t, 1), newStore(t, 2), newStore(t, 4)
	accept(t, a, one...)
	accept(t, b, two...)
	accept(t, c, one[:3]...)
	for round := range 4 {
		given := 0
		for _, pair := range [][2]*Store{{a, b}, {b, a}, {a, c}, {b, c}, {c, a}, {c, b}} {
			given += exchange(t, pair[0], pair[1], "mesh", 100)
		}
		if round == 3 && given > 0 {
			t.Errorf("they still exchange %d entries", given)
		}
	}
	for i, s := range []*Store{a, b, c} {
		evidence, err := s.Forks(t.Context(), "mesh")
		if err != nil || len(evidence) != 1 || evidence[0].Seq != 2 {
			t.Errorf("node %d: evidence %v %v", i, evidence, err)
		}
	}
}

func TestSince(t *testing.T) {
	a, b := newStore(t, 1), newStore(t, 2)
	const runTopic = "r-aaaaaaaaaaaaaaaa"
	accept(t, a, forge(t, 3, "mesh", 5, "a", "b", "c")...)
	accept(t, a, forge(t, 3, "mesh", 9, "d", "e")...)
	accept(t, a, forge(t, 4, "mesh", 7, "f")...)
	accept(t, a, forge(t, 4, runTopic, 7, "g", "h")...)
	accept(t, b, forge(t, 3, "mesh", 5, "a")...)
	for limit := 1; limit < 4; limit++ {
		list, err := a.Since(t.Context(), "mesh", nil, limit)
		if err != nil || len(list) != limit {
			t.Errorf("limit %d: %d entries, %v", limit, len(list), err)
		}
	}
	rounds := 0
	for exchange(t, a, b, "mesh", 2) > 0 {
		rounds++
	}
	if rounds != 3 {
		t.Errorf("5 entries, 2 at a time: %d rounds", rounds)
	}
	if list, err := b.Entries(t.Context(), runTopic); err != nil || len(list) != 0 {
		t.Errorf("entries of another topic have come along: %v %v", list, err)
	}
	mustVerify(t, b, 7)
	// Heads of chains that are not here, or are ahead, ask for nothing.
	heads, err := a.Heads(t.Context(), "mesh")
	if err != nil {
		t.Fatal(err)
	}
	for i := range heads {
		heads[i].Seq += 5
	}
	if list, err := a.Since(t.Context(), "mesh", append(heads, wire.Head{Segment: 1}), 9); err != nil || len(list) != 0 {
		t.Errorf("a node that is ahead gets %d entries, %v", len(list), err)
	}
}

// rapidT is what rapid.T and testing.T share.
type rapidT interface {
	Helper()
	Fatal(args ...any)
	Context() context.Context
}

// However entries of several authors reach two nodes - in any order, in parts,
// again and again, by Accept or from each other - both end with the same heads.
func TestConverge(t *testing.T) {
	nodes := [2]*Store{newStore(t, 1), newStore(t, 2)}
	round := 0
	rapid.Check(t, func(rt *rapid.T) {
		round++
		topic := fmt.Sprintf("topic-%d", round)
		var all []*wire.Entry
		for author := byte(3); author < 6; author++ {
			for segment := uint64(1); segment < 3; segment++ {
				texts := rapid.SliceOfN(rapid.Just("x"), 0, 4).Draw(rt, "chain")
				all = append(all, forge(t, author, topic, segment, texts...)...)
			}
		}
		for range rapid.IntRange(1, 12).Draw(rt, "steps") {
			to := nodes[rapid.IntRange(0, 1).Draw(rt, "to")]
			switch what := rapid.IntRange(0, 3).Draw(rt, "what"); {
			case what == 0:
				from := nodes[rapid.IntRange(0, 1).Draw(rt, "from")]
				exchange(rt, from, to, topic, rapid.IntRange(1, 5).Draw(rt, "limit"))
			case what == 1 || len(all) == 0:
				if _, err := to.Append(t.Context(), draft(topic, "own")); err != nil {
					rt.Fatal(err)
				}
			default:
				some := rapid.SliceOfN(rapid.SampledFrom(all), 1, 8).Draw(rt, "some")
				if _, err := to.Accept(t.Context(), some...); err != nil && !errors.Is(err, wire.ErrGap) {
					rt.Fatal(err)
				}
			}
		}
		for exchange(rt, nodes[0], nodes[1], topic, 3)+exchange(rt, nodes[1], nodes[0], topic, 3) > 0 {
		}
		var heads [2][]wire.Head
		for i, s := range nodes {
			var err error
			if heads[i], err = s.Heads(t.Context(), topic); err != nil {
				rt.Fatal(err)
			}
		}
		if !slices.Equal(heads[0], heads[1]) {
			rt.Fatalf("heads differ:\n%v\n%v", heads[0], heads[1])
		}
	})
	for _, s := range nodes {
		mustVerify(t, s, -1)
	}
}
