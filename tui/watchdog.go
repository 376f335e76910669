package tui

import (
	"context"
	"os"
	"sync"
	"time"

	"golang.org/x/term"
)

// watchdog ends the program when the screen should have ended and has not: a
// terminal that takes no more output (Ctrl-S, a stalled connection) holds
// whoever writes to it, and the event loop behind it, for ever.
type watchdog struct {
	done chan struct{}
	wg   sync.WaitGroup
}

// startWatchdog remembers how the terminal is set now. When ctx has ended or
// leaving is closed, the screen has patience to end; after that the terminal is
// set back and the program exits.
func startWatchdog(ctx context.Context, leaving <-chan struct{}, patience time.Duration) *watchdog {
	restore := func() {}
	if fd := int(os.Stdin.Fd()); term.IsTerminal(fd) {
		if state, err := term.GetState(fd); err == nil {
			restore = func() { _ = term.Restore(fd, state) }
		}
	}
	w := &watchdog{done: make(chan struct{})}
	w.wg.Go(func() {
		select {
		case <-ctx.Done():
		case <-leaving:
		case <-w.done:
			return
		}
		select {
		case <-time.After(patience):
			restore()
			os.Exit(1)
		case <-w.done:
		}
	})
	return w
}

func (w *watchdog) stop() {
	close(w.done)
	w.wg.Wait()
}
