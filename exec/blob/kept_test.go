package blob

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/balanceai/balance/exec/task"
	"github.com/balanceai/balance/mesh/wire"
)

func names(list []Kept) (out []string) {
	for _, k := range list {
		out = append(out, k.Name)
	}
	return out
}

// age makes a kept file one that was used some hours ago.
func age(t *testing.T, s *Store, k Kept, hours int) {
	t.Helper()
	at := time.Now().Add(-time.Duration(hours) * time.Hour)
	if err := os.Chtimes(s.path(k.Hash), at, at); err != nil {
		t.Fatal(err)
	}
}

// put keeps a file of some content, as one that a person put here or not.
func put(t *testing.T, s *Store, name, content string, own bool) Kept {
	t.Helper()
	file := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(file, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	k, err := s.Add(t.Context(), file, "", []string{"ben"})
	if err != nil {
		t.Fatal(err)
	}
	k.Own = own
	if err := s.Keep(k); err != nil {
		t.Fatal(err)
	}
	return k
}

func kepts(t *testing.T, s *Store) []Kept {
	t.Helper()
	list, err := s.Kept()
	if err != nil {
		t.Fatal(err)
	}
	return list
}

func TestKeep(t *testing.T) {
	s := open(t)
	if list := kepts(t, s); len(list) != 0 {
		t.Fatalf("kept at first: %v", list)
	}
	b, a := put(t, s, "b.gguf", "weights", true), put(t, s, "a.gguf", "other weights", true)
	list := kepts(t, s)
	if got := names(list); !slices.Equal(got, []string{"a.gguf", "b.gguf"}) {
		t.Fatalf("kept %v", got)
	}
	if k := list[0]; k.Hash != hashOf("other weights") || k.Size != task.Bytes(len("other weights")) || !slices.Equal(k.To, []string{"ben"}) || k.Used.IsZero() {
		t.Errorf("kept %+v", k)
	}
	// A blob that was damaged is not there.
	if err := os.WriteFile(s.path(a.Hash), []byte("short"), 0o600); err != nil {
		t.Fatal(err)
	}
	if got := names(kepts(t, s)); !slices.Equal(got, []string{"b.gguf"}) {
		t.Errorf("kept %v", got)
	}
	if err := s.Unkeep(b.Hash); err != nil {
		t.Fatal(err)
	}
	if list := kepts(t, s); len(list) != 0 {
		t.Errorf("kept %v", list)
	}
	if _, err := os.Stat(s.path(b.Hash)); err == nil {
		t.Error("its blob is still there")
	}
	if s.Unkeep(b.Hash) == nil {
		t.Error("forgotten twice")
	}
}

func TestAddRefuses(t *testing.T) {
	s, dir := open(t), t.TempDir()
	empty := filepath.Join(dir, "empty")
	if err := os.WriteFile(empty, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{empty, dir, filepath.Join(dir, "none"), "/dev/null"} {
		if _, err := s.Add(t.Context(), path, "x", nil); err == nil {
			t.Errorf("%s: no error", path)
		}
	}
	for _, name := range []string{"", ".", "..", ".x", "a/b", `a\b`, "a\x1b[31m", "a\nb", "\xff", strings.Repeat("x", maxName+1)} {
		if CheckName(name) == nil {
			t.Errorf("name %q: no error", name)
		}
	}
}

func TestPruneSparesWhatIsKept(t *testing.T) {
	s := open(t)
	k := put(t, s, "model", "weights", true)
	gone := put(t, s, "gone", "not kept any more", true)
	for _, k := range []Kept{k, gone} {
		age(t, s, k, 48)
		old := time.Now().Add(-48 * time.Hour)
		if err := os.Chtimes(filepath.Join(s.dir, kept, k.Hash.String()), old, old); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Remove(filepath.Join(s.dir, kept, gone.Hash.String())); err != nil {
		t.Fatal(err)
	}
	if err := s.Prune(t.Context(), time.Now().Add(-time.Hour)); err != nil {
		t.Fatal(err)
	}
	if got := names(kepts(t, s)); !slices.Equal(got, []string{"model"}) {
		t.Errorf("kept %v", got)
	}
	if _, err := os.Stat(s.path(gone.Hash)); err == nil {
		t.Error("a blob that nobody keeps or uses is still there")
	}
}

func TestTrim(t *testing.T) {
	for budget, want := range map[task.Bytes][]string{100: {"a", "b", "c", "own"}, 40: {"a", "b", "c", "own"}, 39: {"a", "c", "own"}, 20: {"c", "own"}, 0: {"c", "own"}} {
		s := open(t)
		age(t, s, put(t, s, "own", "0123456789", true), 9)
		var inUse wire.Hash // of c
		for name, hours := range map[string]int{"a": 1, "b": 3, "c": 2} {
			k := put(t, s, name, name+"123456789", false)
			if age(t, s, k, hours); name == "c" {
				inUse = k.Hash
			}
		}
		gone, err := s.Trim(budget, func(h wire.Hash) bool { return h == inUse })
		if err != nil {
			t.Fatal(err)
		}
		if got := names(kepts(t, s)); !slices.Equal(got, want) || len(gone)+len(got) != 4 {
			t.Errorf("with %v: kept %v and %d are gone, want %v", budget, got, len(gone), want)
		}
	}
}
