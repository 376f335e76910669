package store

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"sync"

	"github.com/balanceai/balance/mesh/identity"
	"github.com/balanceai/balance/mesh/wire"
)

// Accept stores other nodes' entries, and this node's own where it has lost
// them, and returns those that were not here yet. The entries come from
// [wire.ParseEntry] or [wire.OpenEntry] and may be in any order.
//
// An entry that is not taken ends its chain for this call; the other chains are
// taken all the same. The error then tells of each: [wire.ErrGap] where it does
// not continue what is here, [wire.ErrSignature], or [wire.ErrFork]. Of a fork
// both entries are kept as evidence (see [Store.Forks]), and its chain is not
// continued any more.
func (s *Store) Accept(ctx context.Context, list ...*wire.Entry) (fresh []*wire.Entry, err error) {
	mesh, ok := s.Mesh()
	if !ok {
		return nil, ErrNoMesh
	}
	list = inOrder(list)

	// What is known or does not continue its chain costs no signature check. A
	// lone entry is nearly always new.
	var refused []error
	news := list
	if len(list) > 1 {
		news = nil
		keep := func(e *wire.Entry) error { news = append(news, e); return nil }
		if refused, err = walk(ctx, s.readers, mesh, list, keep, keep); err != nil {
			return nil, s.explain("accept entries into", err)
		}
	}
	news, bad := verified(mesh, news)
	refused = append(refused, bad...)
	if len(news) == 0 {
		return nil, errors.Join(refused...)
	}

	var late, forked []error
	err = s.write(ctx, func(t *tx) (err error) {
		fresh, forked = nil, nil
		late, err = walk(context.Background(), t, mesh, news, func(e *wire.Entry) error {
			fresh = append(fresh, e)
			return s.take(t, e)
		}, func(e *wire.Entry) error {
			forked = append(forked, refusal(e, wire.ErrFork))
			return t.insertFork(e)
		})
		return err
	})
	if err != nil {
		return nil, s.explain("accept entries into", err)
	}
	return fresh, errors.Join(slices.Concat(refused, late, forked)...)
}

// Import makes this the ledger of a mesh and stores the entries that its
// members have written so far, all or none. A new mesh is founded with its
// genesis alone, the entry whose hash is the mesh id. Repeating an import is
// fine; another mesh is [ErrOtherMesh].
func (s *Store) Import(ctx context.Context, mesh identity.MeshID, list []*wire.Entry) error {
	list = inOrder(list)
	if !slices.ContainsFunc(list, func(e *wire.Entry) bool { return e.Hash() == wire.Hash(mesh) }) {
		return errors.New("import entries: the genesis record is not among them")
	}
	if _, bad := verified(mesh, list); len(bad) > 0 {
		return fmt.Errorf("import entries: %w", errors.Join(bad...))
	}
	err := s.write(ctx, func(t *tx) error {
		var held []byte
		if _, err := meta(context.Background(), t, metaMesh, &held); err != nil {
			return err
		}
		if held != nil && !bytes.Equal(held, mesh[:]) {
			return ErrOtherMesh
		}
		if err := t.setMeta(metaMesh, mesh[:]); err != nil {
			return err
		}
		refused, err := walk(context.Background(), t, mesh, list, func(e *wire.Entry) error { return s.take(t, e) }, t.insertFork)
		return cmp.Or(err, errors.Join(refused...))
	})
	if err != nil {
		return s.explain("import entries into", err)
	}
	s.mesh.Store(&mesh)
	return nil
}

// take inserts an entry that may be an own one of an earlier life. Own new
// entries go into segments above it.
func (s *Store) take(t *tx, e *wire.Entry) error {
	if err := t.insert(e); err != nil {
		return err
	}
	if e.Author != s.self || e.Segment < s.segment {
		return nil
	}
	var last int64
	if _, err := meta(context.Background(), t, metaSegment, &last); err != nil {
		return err
	}
	s.segment = max(e.Segment, uint64(last)) + 1
	return t.setMeta(metaSegment, int64(s.segment))
}

// inOrder returns the entries with each chain together and in its order,
// without repetitions.
func inOrder(list []*wire.Entry) []*wire.Entry {
	list = slices.Clone(list)
	slices.SortStableFunc(list, func(a, b *wire.Entry) int {
		return cmp.Or(compareChains(a, b), cmp.Compare(a.Seq, b.Seq))
	})
	return slices.CompactFunc(list, func(a, b *wire.Entry) bool { return bytes.Equal(a.Raw, b.Raw) })
}

func compareChains(a, b *wire.Entry) int {
	return cmp.Or(cmp.Compare(a.Topic, b.Topic), bytes.Compare(a.Author[:], b.Author[:]), cmp.Compare(a.Segment, b.Segment))
}

// chains splits a list in order into its chains.
func chains(list []*wire.Entry) [][]*wire.Entry {
	var out [][]*wire.Entry
	for i, e := range list {
		if i == 0 || compareChains(list[i-1], e) != 0 {
			out = append(out, nil)
		}
		out[len(out)-1] = append(out[len(out)-1], e)
	}
	return out
}

// walk follows each chain of a list in order from where it ends in q. It calls
// next with each entry that continues its chain, and rival with one whose
// number another entry has and that is no known evidence of a fork. It leaves
// out what is known and returns why it stopped in the chains where it did.
func walk(ctx context.Context, q querier, mesh identity.MeshID, list []*wire.Entry, next, rival func(*wire.Entry) error) (refused []error, err error) {
	for _, c := range chains(list) {
		w := walker{q: q, mesh: mesh, chain: chainOf(c[0]), next: next, rival: rival}
		why, err := w.walk(ctx, c)
		if err != nil {
			return nil, err
		}
		if why != nil {
			refused = append(refused, why)
		}
	}
	return refused, nil
}

// walker goes along one chain.
type walker struct {
	q           querier
	mesh        identity.MeshID
	chain       chain
	next, rival func(*wire.Entry) error

	end  end         // where it stands
	fork *wire.Entry // known evidence, or nil
}

func (w *walker) walk(ctx context.Context, list []*wire.Entry) (refused, err error) {
	if w.end, err = tail(ctx, w.q, w.chain); err != nil {
		return nil, err
	}
	if w.fork, err = forkOf(ctx, w.q, w.chain); err != nil {
		return nil, err
	}
	for _, e := range list {
		is, err := w.judge(ctx, e)
		if err != nil {
			return nil, err
		}
		switch is {
		case isKnown:
		case isNext:
			if err := w.next(e); err != nil {
				return nil, err
			}
			w.end.advance(e)
		case isRival:
			return nil, w.rival(e)
		case isAfterFork:
			return refusal(e, wire.ErrFork), nil
		case isApart:
			// A signature that does not verify tells damage from mere lag.
			return cmp.Or(verify(w.mesh, e), refusal(e, wire.ErrGap)), nil
		}
	}
	return nil, nil
}

func refusal(e *wire.Entry, why error) error {
	return fmt.Errorf("entry %s %d/%d of %s in %s: %w", e.Kind, e.Segment, e.Seq, e.Author.Short(), e.Topic, why)
}

// verdict says what an entry is to its chain.
type verdict int

const (
	isKnown     verdict = iota
	isNext              // it continues the chain
	isRival             // another entry has its number
	isAfterFork         // it counts for nothing
	isApart             // what it continues is not here
)

func (w *walker) judge(ctx context.Context, e *wire.Entry) (verdict, error) {
	if e.Seq < w.end.next {
		raw, err := rawAt(ctx, w.q, w.chain, e.Seq)
		if err != nil {
			return 0, err
		}
		if bytes.Equal(raw, e.Raw) {
			return isKnown, nil
		}
	}
	switch {
	case w.fork != nil && bytes.Equal(w.fork.Raw, e.Raw):
		return isKnown, nil
	case w.fork != nil && e.Seq >= w.fork.Seq:
		return isAfterFork, nil
	case e.Seq < w.end.next:
		return isRival, nil
	case e.Seq == w.end.next && e.Prev == w.end.prev:
		return isNext, nil
	}
	return isApart, nil
}

// verified returns the entries of a list in order whose signatures verify, and
// an error for each chain that ends before one that does not.
func verified(mesh identity.MeshID, list []*wire.Entry) (good []*wire.Entry, bad []error) {
	errs := make([]error, len(list))
	parallel(len(list), func(i int) { errs[i] = verify(mesh, list[i]) })
	for _, c := range chains(list) {
		here := errs[:len(c)]
		errs = errs[len(c):]
		ok := len(c)
		if i := slices.IndexFunc(here, func(err error) bool { return err != nil }); i >= 0 {
			bad = append(bad, here[i])
			ok = i
		}
		good = append(good, c[:ok]...)
	}
	return good, bad
}

// parallel calls f with each number below n, on all processors.
func parallel(n int, f func(i int)) {
	workers := min(runtime.GOMAXPROCS(0), n/8+1)
	part := func(w int) {
		for i := w * n / workers; i < (w+1)*n/workers; i++ {
			f(i)
		}
	}
	var wg sync.WaitGroup
	for w := 1; w < workers; w++ {
		wg.Go(func() { part(w) })
	}
	part(0)
	wg.Wait()
}

// verify checks one signature. The genesis record alone is signed without the
// mesh id, because the id is its hash.
func verify(mesh identity.MeshID, e *wire.Entry) error {
	if e.Hash() == wire.Hash(mesh) {
		return e.Verify(identity.MeshID{})
	}
	return e.Verify(mesh)
}
