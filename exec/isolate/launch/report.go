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
)

// ErrWalls says that the walls around a run could not be built. Nothing of the
// run has been started.
var ErrWalls = errors.New("the sandbox could not be built")

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
	if said == Started {
		return nil
	}
	return ErrWalls
}
