package store

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/balanceai/balance/exec/task"
	"github.com/balanceai/balance/mesh/identity"
	"github.com/balanceai/balance/mesh/wire"
)

func TestMain(m *testing.M) {
	if path := os.Getenv("STORE_TEST_WRITER"); path != "" {
		if err := runWriter(path); err != nil {
			panic(err)
		}
		os.Exit(0)
	}
	goleak.VerifyTestMain(m)
}

// key returns the identity of test node n.
func key(n byte) identity.Key { return identity.KeyFromSeed([32]byte{n}) }

// note is a record of no meaning.
type note struct {
	Text string `cbor:"1,keyasint"`
}

func draft(topic, text string) task.Draft {
	return task.Draft{Topic: topic, Kind: "note", Record: note{text}}
}

func marshal(t testing.TB, record any) []byte {
	t.Helper()
	b, err := wire.Marshal(record)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// genesis is the record that founds the mesh of all tests here; test node 1
// writes it.
func genesis(t testing.TB) (identity.MeshID, *wire.Entry) {
	t.Helper()
	e, err := wire.NewEntry(key(1), identity.MeshID{}, wire.Body{Topic: wire.TopicMesh, Kind: "genesis", Payload: marshal(t, note{"mesh"})})
	if err != nil {
		t.Fatal(err)
	}
	return identity.MeshID(e.Hash()), e
}

// openAt opens the ledger of test node n, which belongs to the test mesh.
func openAt(t testing.TB, path string, n byte) *Store {
	t.Helper()
	s, err := Open(t.Context(), path, key(n))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	mesh, g := genesis(t)
	if err := s.Import(t.Context(), mesh, []*wire.Entry{g}); err != nil {
		t.Fatal(err)
	}
	return s
}

func newStore(t testing.TB, n byte) *Store {
	t.Helper()
	return openAt(t, filepath.Join(t.TempDir(), "ledger.db"), n)
}

func appendTo(t testing.TB, s *Store, drafts ...task.Draft) []*wire.Entry {
	t.Helper()
	list, err := s.Append(t.Context(), drafts...)
	if err != nil {
		t.Fatal(err)
	}
	return list
}

// forge signs a chain of notes of test node n that no store has written.
func forge(t testing.TB, n byte, topic string, segment uint64, texts ...string) []*wire.Entry {
	t.Helper()
	mesh, _ := genesis(t)
	var out []*wire.Entry
	var prev wire.Hash
	for i, text := range texts {
		e, err := wire.NewEntry(key(n), mesh, wire.Body{
			Topic: topic, Segment: segment, Seq: uint64(i), Prev: prev, Kind: "note", Payload: marshal(t, note{text}),
		})
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, e)
		prev = e.Hash()
	}
	return out
}

func mustVerify(t testing.TB, s *Store, entries int) {
	t.Helper()
	r, err := s.Verify(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if !r.OK {
		t.Fatalf("ledger is not sound: %+v", *r.Bad)
	}
	if entries >= 0 && r.Entries != entries {
		t.Fatalf("verified %d entries, want %d", r.Entries, entries)
	}
}

func TestOpen(t *testing.T) {
	path := filepath.Join(t.TempDir(), "odd #?% name", "ledger.db")
	if err := os.Mkdir(filepath.Dir(path), 0o700); err != nil {
		t.Fatal(err)
	}
	s := openAt(t, path, 1)
	first := appendTo(t, s, draft("mesh", "a"))
	for _, suffix := range []string{"", "-wal", "-shm"} {
		info, err := os.Stat(path + suffix)
		if err != nil {
			t.Fatal(err)
		}
		if info.Mode().Perm() != 0o600 {
			t.Errorf("mode of the ledger%s is %04o", suffix, info.Mode().Perm())
		}
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Append(t.Context(), draft("mesh", "b")); !errors.Is(err, ErrClosed) {
		t.Errorf("append after close: %v", err)
	}
	if err := s.Close(); err != nil {
		t.Errorf("close again: %v", err)
	}

	s = openAt(t, path, 1)
	mesh, _ := genesis(t)
	if got, ok := s.Mesh(); !ok || got != mesh {
		t.Errorf("mesh after opening again: %v %v", got, ok)
	}
	second := appendTo(t, s, draft("mesh", "c"))
	if second[0].Segment <= first[0].Segment || second[0].Seq != 0 {
		t.Errorf("after opening again: segment %d number %d, before %d", second[0].Segment, second[0].Seq, first[0].Segment)
	}
	mustVerify(t, s, 3)
}

// A clock that was put back, or entries of an own later life that come back from
// others, never make a segment be used again.
func TestSegments(t *testing.T) {
	path := filepath.Join(t.TempDir(), "ledger.db")
	mesh, g := genesis(t)
	var last uint64
	for i, at := range []int64{1000, 500, 1, 2000} {
		s, err := open(t.Context(), path, key(1), func() time.Time { return time.Unix(at, 0) })
		if err != nil {
			t.Fatal(err)
		}
		if err := s.Import(t.Context(), mesh, []*wire.Entry{g}); err != nil {
			t.Fatal(err)
		}
		e := appendTo(t, s, draft("mesh", "x"))[0]
		if e.Segment <= last {
			t.Errorf("start %d: segment %d after %d", i, e.Segment, last)
		}
		own := forge(t, 1, "mesh", e.Segment+10, "from before the backup")
		if _, err := s.Accept(t.Context(), own...); err != nil {
			t.Fatal(err)
		}
		e = appendTo(t, s, draft("mesh", "y"))[0]
		if e.Segment <= own[0].Segment || e.Seq != 0 {
			t.Errorf("start %d: segment %d after an own one of %d", i, e.Segment, own[0].Segment)
		}
		last = e.Segment
		mustVerify(t, s, 1+3*(i+1))
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

func TestOpenRefuses(t *testing.T) {
	dir := t.TempDir()
	good := filepath.Join(dir, "good.db")
	s := openAt(t, good, 1)
	if err := s.write(t.Context(), func(tx *tx) error { return tx.exec(`PRAGMA user_version = 99`) }); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	_, err := Open(t.Context(), good, key(1))
	if !errors.Is(err, ErrNewer) || !strings.Contains(err.Error(), good) || !strings.Contains(err.Error(), "99") {
		t.Errorf("newer schema: %v", err)
	}

	bad := filepath.Join(dir, "bad.db")
	if err := os.WriteFile(bad, []byte(strings.Repeat("this is no database ", 1000)), 0o600); err != nil {
		t.Fatal(err)
	}
	_, err = Open(t.Context(), bad, key(1))
	if !errors.Is(err, ErrDamaged) || !strings.Contains(err.Error(), bad) {
		t.Errorf("another file: %v", err)
	}
	if _, err := Open(t.Context(), filepath.Join(dir, "none", "ledger.db"), key(1)); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("no folder: %v", err)
	}
}

func TestImport(t *testing.T) {
	mesh, g := genesis(t)
	path := filepath.Join(t.TempDir(), "ledger.db")
	s, err := Open(t.Context(), path, key(2))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = s.Close() }()
	if _, err := s.Append(t.Context(), draft("mesh", "a")); !errors.Is(err, ErrNoMesh) {
		t.Errorf("append before a mesh: %v", err)
	}
	if _, err := s.Accept(t.Context(), g); !errors.Is(err, ErrNoMesh) {
		t.Errorf("accept before a mesh: %v", err)
	}
	log := append(forge(t, 1, "mesh", 7, "a", "b", "c"), forge(t, 3, "mesh", 9, "d")...)
	forged := *log[1]
	forged.Sig[3] ^= 1
	for name, list := range map[string][]*wire.Entry{
		"without genesis": log,
		"with a hole":     {g, log[0], log[2], log[3]},
		"with a bad one":  {g, log[0], &forged},
		"of nothing":      {},
	} {
		if err := s.Import(t.Context(), mesh, list); err == nil {
			t.Errorf("import %s is accepted", name)
		}
		if _, ok := s.Mesh(); ok {
			t.Fatalf("import %s left something", name)
		}
		if list, err := s.List(t.Context(), "", 10); err != nil || len(list) > 0 {
			t.Fatalf("import %s left entries: %d %v", name, len(list), err)
		}
	}
	for range 2 { // a join may be repeated
		if err := s.Import(t.Context(), mesh, append([]*wire.Entry{log[3], g, log[2], log[0]}, log...)); err != nil {
			t.Fatal(err)
		}
	}
	mustVerify(t, s, 5)
	other, err := wire.NewEntry(key(1), identity.MeshID{}, wire.Body{Topic: "mesh", Kind: "genesis", Payload: marshal(t, note{"another"})})
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Import(t.Context(), identity.MeshID(other.Hash()), []*wire.Entry{other}); !errors.Is(err, ErrOtherMesh) {
		t.Errorf("import of another mesh: %v", err)
	}
}

func TestAppend(t *testing.T) {
	s := newStore(t, 1)
	var told []*wire.Entry
	s.OnCommit(func(fresh []*wire.Entry) { told = append(told, fresh...) })
	a := appendTo(t, s, draft("mesh", "a"), draft("r-aaaaaaaaaaaaaaaa", "b"), draft("mesh", "c"))
	b := appendTo(t, s, draft("mesh", "d"))
	want := slices.Concat(a, b)
	if !slices.Equal(told, want) {
		t.Errorf("told of %d entries, want the %d stored", len(told), len(want))
	}
	list, err := s.Entries(t.Context(), "mesh")
	if err != nil {
		t.Fatal(err)
	}
	if len(list) != 4 {
		t.Fatalf("%d entries in the topic", len(list))
	}
	for i, e := range list[1:] {
		if e.Seq != uint64(i) || e.Author != key(1).ID() || e.Hash() != []*wire.Entry{a[0], a[2], b[0]}[i].Hash() {
			t.Errorf("entry %d: %+v", i, e.Body)
		}
	}
	newest, err := s.List(t.Context(), "", 2)
	if err != nil || len(newest) != 2 || newest[0].Hash() != b[0].Hash() || newest[1].Hash() != a[2].Hash() {
		t.Errorf("list: %v %v", newest, err)
	}
	newest, err = s.List(t.Context(), "r-aaaaaaaaaaaaaaaa", 9)
	if err != nil || len(newest) != 1 || newest[0].Hash() != a[1].Hash() {
		t.Errorf("list of a topic: %v %v", newest, err)
	}

	// All drafts of a call, or none.
	if _, err := s.Append(t.Context(), draft("mesh", "e"), draft("Not a topic", "f")); !errors.Is(err, wire.ErrForm) {
		t.Errorf("bad topic: %v", err)
	}
	if _, err := s.Append(t.Context(), draft("mesh", "e"), draft("mesh", strings.Repeat("x", wire.MaxRecord))); err == nil {
		t.Error("a record over the limit is accepted")
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := s.Append(ctx, draft("mesh", "e")); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
	mustVerify(t, s, 5)
}

// Writers that share transactions get what each would get alone, also where one
// of them fails.
func TestConcurrentAppend(t *testing.T) {
	s := newStore(t, 1)
	var mu sync.Mutex
	var order []*wire.Entry
	s.OnCommit(func(fresh []*wire.Entry) {
		mu.Lock()
		defer mu.Unlock()
		order = append(order, fresh...)
	})
	const writers, each = 16, 25
	var wg sync.WaitGroup
	for w := range writers {
		wg.Go(func() {
			for i := range each {
				if w == 0 {
					if _, err := s.Append(t.Context(), draft("no topic!", "x")); err == nil {
						t.Error("a bad draft is accepted")
					}
					continue
				}
				list, err := s.Append(t.Context(), draft("mesh", "x"), draft("r-aaaaaaaaaaaaaaaa", "y"))
				if err != nil || len(list) != 2 {
					t.Errorf("append %d: %v", i, err)
				}
			}
		})
	}
	wg.Wait()
	const want = (writers - 1) * each * 2
	if len(order) != want {
		t.Errorf("told of %d entries, want %d", len(order), want)
	}
	next := map[string]uint64{}
	for _, e := range order {
		if e.Seq != next[e.Topic] {
			t.Fatalf("told of %d in %s, want %d", e.Seq, e.Topic, next[e.Topic])
		}
		next[e.Topic]++
	}
	mustVerify(t, s, want+1)
}

func TestLatest(t *testing.T) {
	s := newStore(t, 1)
	if list, err := s.Latest(t.Context(), "note"); err != nil || len(list) != 0 {
		t.Errorf("latest of none: %v %v", list, err)
	}
	own := appendTo(t, s, draft("mesh", "a"), draft("mesh", "b"), draft("r-aaaaaaaaaaaaaaaa", "c"), task.Draft{Topic: "mesh", Kind: "other", Record: note{"d"}})
	for n := byte(2); n < 6; n++ {
		old, young := forge(t, n, "mesh", 5, "e", "f", "g"), forge(t, n, "mesh", 6, "h", "i")
		if _, err := s.Accept(t.Context(), append(young, old...)...); err != nil {
			t.Fatal(err)
		}
	}
	list, err := s.Latest(t.Context(), "note")
	if err != nil || len(list) != 5 {
		t.Fatalf("latest: %d entries, %v", len(list), err)
	}
	for _, e := range list {
		if e.Author == key(1).ID() && e.Hash() != own[1].Hash() || e.Author != key(1).ID() && (e.Segment != 6 || e.Seq != 1) {
			t.Errorf("latest of %s is %d/%d", e.Author.Short(), e.Segment, e.Seq)
		}
	}
}
