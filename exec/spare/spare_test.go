package spare_test

import (
	"errors"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"github.com/balanceai/balance/exec/spare"
)

func makeFile(path string) error { return os.WriteFile(path, []byte("new"), 0o600) }

func TestPool(t *testing.T) {
	dir := t.TempDir()
	old := filepath.Join(dir, "spare-7")
	if err := errors.Join(makeFile(old), makeFile(filepath.Join(dir, "mine"))); err != nil {
		t.Fatal(err)
	}
	made := 0
	var mu sync.Mutex
	p, err := spare.New(dir, func(path string) error {
		mu.Lock()
		defer mu.Unlock()
		made++
		return makeFile(path)
	})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(old); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the spare of an earlier life: %v", err)
	}
	for range 100 {
		p.Add()
	}
	if made != 8 {
		t.Errorf("%d were made, want 8", made)
	}
	var all sync.WaitGroup
	for _, name := range []string{"a", "b", "c", "d", "e", "f", "g", "h", "i", "j"} {
		all.Go(func() {
			path := filepath.Join(dir, name)
			if err := p.Take(path); err != nil {
				t.Error(err)
			}
			if b, err := os.ReadFile(path); err != nil || string(b) != "new" {
				t.Errorf("%s: %q, %v", name, b, err)
			}
		})
	}
	all.Wait()
	if files, err := os.ReadDir(dir); err != nil || len(files) != 11 || made != 10 {
		t.Errorf("%d files, of which %d were made, %v; want 10 and mine", len(files), made, err)
	}
}

// A disk that is full has no spares, and says so when something is needed.
func TestNone(t *testing.T) {
	full := errors.New("full")
	p, err := spare.New(t.TempDir(), func(string) error { return full })
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Take("x"); !errors.Is(err, full) {
		t.Errorf("%v, want %v", err, full)
	}
	if _, err := spare.New(filepath.Join(t.TempDir(), "missing"), makeFile); err == nil {
		t.Error("a pool where there is no folder")
	}
}
