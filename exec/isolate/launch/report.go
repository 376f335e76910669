package launch

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"syscall"
)

// What a program says through the pipe of a [File] that reports.
const (
	Started = "+"
	Failed  = "-"
	Memory  = "m" // at the end, of one that stands for another: that was killed for want of memory
)

// ErrWalls says that the walls around a run could not be built. Nothing of the
// run has been started.
var ErrWalls = errors.New("the walls around the run could not be built")

// ErrMemory says that a program was started, and killed for want of memory.
var ErrMemory = errors.New("out of memory")

// Report reads what was written to the pipe of a [File] that reports, all of it:
// nil where the program was started, else why it was not.
func Report(said string) error {
	// A program whose start fails has said before that it starts.
	if rest, ok := strings.CutPrefix(strings.TrimPrefix(said, Started), Failed); ok {
		code, text, _ := strings.Cut(rest, " ")
		if n, err := strconv.Atoi(code); err == nil && n > 0 {
			return fmt.Errorf("%w", syscall.Errno(n))
		}
		return fmt.Errorf("%w: %s", ErrWalls, text)
	}
	switch said {
	case Started:
		return nil
	case Started + Memory:
		return ErrMemory
	}
	return ErrWalls
}
