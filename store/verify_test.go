package store

import (
	"bytes"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/balanceai/balance/mesh/identity"
	"github.com/balanceai/balance/mesh/wire"
)

// change does to the file what no promise of the store allows.
func change(t *testing.T, s *Store, statement string, args ...any) {
	t.Helper()
	if err := s.write(t.Context(), func(tx *tx) error { return tx.exec(statement, args...) }); err != nil {
		t.Fatal(err)
	}
}

func TestVerifyNamesTheFirst(t *testing.T) {
	author := key(3).ID()
	at := `topic = 'mesh' AND author = ? AND segment = 7 AND seq = 2`
	for name, test := range map[string]struct {
		statement, why string
		seq            uint64
	}{
		"raw":          {`UPDATE entries SET raw = CAST(substr(raw, 1, 60) || x'5a' || substr(raw, 62) AS BLOB) WHERE ` + at, "", 2},
		"payload":      {`UPDATE entries SET raw = CAST(substr(raw, 1, length(raw) - 1) || x'5a' AS BLOB) WHERE ` + at, "signature", 2},
		"raw cut":      {`UPDATE entries SET raw = substr(raw, 2) WHERE ` + at, "canonical", 2},
		"signature":    {`UPDATE entries SET sig = CAST(substr(sig, 1, 63) || x'5a' AS BLOB) WHERE ` + at, "signature", 2},
		"no signature": {`UPDATE entries SET sig = x'' WHERE ` + at, "signature of 0 bytes", 2},
		"kind":         {`UPDATE entries SET kind = 'other' WHERE ` + at, "columns", 2},
		"number":       {`UPDATE entries SET seq = 99 WHERE ` + at, "missing", 2},
		"segment":      {`UPDATE entries SET segment = 99 WHERE ` + at, "missing", 2},
		"topic":        {`UPDATE entries SET topic = 'other' WHERE ` + at, "missing", 2},
		"missing":      {`DELETE FROM entries WHERE ` + at, "missing", 2},
		"swapped":      {`UPDATE entries SET raw = (SELECT raw FROM entries WHERE topic = 'mesh' AND author = e.author AND segment = 7 AND seq = 3) FROM entries e WHERE e.id = entries.id AND entries.` + strings.ReplaceAll(at, "AND ", "AND entries."), "columns", 2},
		"first":        {`DELETE FROM entries WHERE topic = 'mesh' AND author = ? AND segment = 7 AND seq = 0`, "missing", 0},
	} {
		t.Run(name, func(t *testing.T) {
			s := newStore(t, 1)
			accept(t, s, forge(t, 3, "mesh", 7, "a", "b", "c", "d", "e")...)
			accept(t, s, forge(t, 3, "mesh", 8, "a", "b")...)
			mustVerify(t, s, 8)
			change(t, s, test.statement, author[:])
			r, err := s.Verify(t.Context())
			if err != nil || r.OK || r.Bad == nil {
				t.Fatalf("%+v %v", r, err)
			}
			if b := r.Bad; b.Topic != "mesh" || b.Author != author || b.Segment != 7 || b.Seq != test.seq || !strings.Contains(b.Why, test.why) {
				t.Errorf("%+v", *b)
			}
		})
	}
}

// A chain that was signed anew after its first entry, with the author's own key,
// still does not hang together.
func TestVerifyChain(t *testing.T) {
	s := newStore(t, 1)
	accept(t, s, forge(t, 3, "mesh", 7, "a", "b", "c")...)
	other := forge(t, 3, "mesh", 7, "a", "x", "c")
	change(t, s, `UPDATE entries SET raw = ?, sig = ? WHERE segment = 7 AND seq = 1`, other[1].Raw, other[1].Sig[:])
	r, err := s.Verify(t.Context())
	if err != nil || r.OK || r.Bad.Seq != 2 || !strings.Contains(r.Bad.Why, "follow") {
		t.Errorf("%+v %+v %v", r, r.Bad, err)
	}
	change(t, s, `DELETE FROM entries WHERE segment = 7`)
	_, g := genesis(t)
	change(t, s, `DELETE FROM entries WHERE kind = ?`, g.Kind)
	if r, err := s.Verify(t.Context()); err != nil || r.OK || !strings.Contains(r.Bad.Why, "genesis") {
		t.Errorf("without genesis: %+v %v", r, err)
	}
}

// Whatever byte of the file changes: either that is found, or every entry can
// still be read as it was.
func TestFlippedByte(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "ledger.db")
	s := openAt(t, path, 1)
	accept(t, s, forge(t, 3, "mesh", 7, "a", "b", "c", "d", "e")...)
	r := newRun(key(1).ID())
	appendTo(t, s, r.submit(), r.place(1), r.started(1))
	want, err := s.List(t.Context(), "", 99)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	good, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	// All bytes of one entry, and some of everything else.
	start := bytes.Index(good, want[4].Raw) - 150
	var where []int
	for i := range len(want[4].Raw) + 250 {
		where = append(where, start+i)
	}
	random := rand.New(rand.NewPCG(1, 2))
	for range 300 {
		where = append(where, random.IntN(len(good)))
	}
	found := 0
	copied := filepath.Join(dir, "copy.db")
	for _, i := range where {
		bad := slices.Clone(good)
		bad[i] ^= 1 << random.IntN(8)
		if err := os.WriteFile(copied, bad, 0o600); err != nil {
			t.Fatal(err)
		}
		if detected(t, copied, want) {
			found++
		}
		for _, suffix := range []string{"-wal", "-shm"} {
			os.Remove(copied + suffix)
		}
	}
	t.Logf("%d of %d flipped bits were found; the others changed no entry", found, len(where))
	if found < len(want[4].Raw) {
		t.Errorf("%d flipped bits were found, fewer than one entry has bytes", found)
	}
}

// detected opens a file with a flipped byte and reports whether that was found.
// Where it was not, it fails unless the entries are those wanted.
func detected(t *testing.T, path string, want []*wire.Entry) bool {
	t.Helper()
	s, err := Open(t.Context(), path, key(1))
	if err != nil {
		return true
	}
	defer func() { _ = s.Close() }()
	report, err := s.Verify(t.Context())
	if err != nil || !report.OK {
		return true
	}
	got, err := s.List(t.Context(), "", 99)
	if err != nil {
		return true
	}
	if len(got) != len(want) {
		t.Fatalf("%d entries of %d, and verify found nothing", len(got), len(want))
	}
	for i, e := range got {
		if !bytes.Equal(e.Raw, want[i].Raw) || e.Sig != want[i].Sig {
			t.Fatalf("entry %d differs, and verify found nothing", i)
		}
	}
	return false
}

// FuzzVerifyRow gives the verifier rows that no store has written.
func FuzzVerifyRow(f *testing.F) {
	mesh, g := genesis(f)
	f.Add(g.Topic, g.Author[:], int64(g.Segment), int64(g.Seq), g.Kind, g.Raw, g.Sig[:])
	f.Add("mesh", []byte{}, int64(-1), int64(-1), "", []byte{0xa0}, []byte{})
	f.Fuzz(func(t *testing.T, topic string, author []byte, segment, seq int64, kind string, raw, sig []byte) {
		v := verifier{mesh: mesh, joined: true}
		v.check([]row{{topic, author, segment, seq, kind, raw, sig}})
		genuine := bytes.Equal(raw, g.Raw) && bytes.Equal(sig, g.Sig[:])
		if v.report.Bad == nil && !genuine {
			t.Errorf("a row that nobody signed is sound: %x", raw)
		}
		if v.report.Bad != nil && v.report.Bad.Author == (identity.ID{}) && len(author) == 32 && !bytes.Equal(author, make([]byte, 32)) {
			t.Errorf("the author is not named: %+v", *v.report.Bad)
		}
	})
}
