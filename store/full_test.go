package store

import (
	"errors"
	"fmt"
	"strings"
	"testing"
)

// fill appends until the disk is full and returns how many entries were
// acknowledged.
func fill(t *testing.T, s *Store) int {
	t.Helper()
	for n := range 100_000 {
		_, err := s.Append(t.Context(), draft("mesh", strings.Repeat("x", 2000)))
		if err == nil {
			continue
		}
		if !errors.Is(err, ErrDiskFull) || !strings.Contains(err.Error(), s.path) {
			t.Fatalf("full disk: %v", err)
		}
		return n
	}
	t.Fatal("the disk is never full")
	return 0
}

// A full disk loses nothing, and writing goes on when there is space.
func checkFull(t *testing.T, s *Store, makeSpace func()) {
	t.Helper()
	acknowledged := fill(t, s)
	if acknowledged == 0 {
		t.Fatal("full from the start")
	}
	if _, err := s.Accept(t.Context(), forge(t, 3, "mesh", 5, strings.Repeat("x", 60_000))...); !errors.Is(err, ErrDiskFull) {
		t.Errorf("accept on a full disk: %v", err)
	}
	mustVerify(t, s, acknowledged+1)
	makeSpace()
	for range 10 {
		appendTo(t, s, draft("mesh", "after"))
	}
	accept(t, s, forge(t, 3, "mesh", 5, strings.Repeat("x", 60_000))...)
	mustVerify(t, s, acknowledged+12)
}

func TestFull(t *testing.T) {
	s := newStore(t, 1)
	limit := func(pages int) {
		if _, err := s.conn.ExecContext(t.Context(), fmt.Sprintf("PRAGMA max_page_count = %d", pages)); err != nil {
			t.Fatal(err)
		}
	}
	limit(100)
	checkFull(t, s, func() { limit(1_000_000) })
}
