package launch

import (
	"errors"
	"syscall"
	"testing"
)

func TestReport(t *testing.T) {
	for said, want := range map[string]error{
		Started: nil, "+m": ErrMemory, "": ErrWalls, "?": ErrWalls, Failed: ErrWalls, "-0 landlock: odd": ErrWalls, "-2 not found": syscall.ENOENT, "+-13 not allowed": syscall.EACCES,
	} {
		if err := Report(said); !errors.Is(err, want) || (err == nil) != (want == nil) {
			t.Errorf("%q: %v, want %v", said, err, want)
		}
	}
}

// Whatever comes out of a sandbox, only the one word means that the run began.
func FuzzReport(f *testing.F) {
	for _, s := range []string{"", "+", "-", "+-2 x", "-99999999999999999999 x", "?"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, said string) {
		if err := Report(said); err == nil && said != Started {
			t.Errorf("%q began", said)
		}
	})
}
