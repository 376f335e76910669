package run

import (
	"fmt"
	"time"

	"github.com/balanceai/balance/exec/task"
)

// What the machine's owner does to runs that are going. A run that has ended, or
// was never here, is no mistake: it may end at any moment.

// Stop ends a run as failed, with a reason for its account: SIGTERM, and SIGKILL
// after the grace time.
func (r *Runner) Stop(run, reason string, grace time.Duration) {
	if x := r.found(run); x != nil {
		x.stop(&end{state: task.Failed, reason: reason, grace: grace}, grace == 0)
	}
}

// Rest ends a run that serves, because nobody has asked it for long.
func (r *Runner) Rest(run, reason string) {
	if x := r.found(run); x != nil {
		x.stop(&end{state: task.Failed, reason: reason, cause: task.CauseIdle}, false)
	}
}

// Pause freezes a run, with a reason for who reads its output. What time it has
// goes on. Again is no mistake.
func (r *Runner) Pause(run, reason string) error {
	if x := r.found(run); x != nil {
		return x.pause(reason)
	}
	return nil
}

// Resume lets a run go on that was paused.
func (r *Runner) Resume(run string) error {
	if x := r.found(run); x != nil {
		return x.resume()
	}
	return nil
}

func (r *Runner) found(run string) *live {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.runs[run]
}

func (x *live) pause(reason string) error {
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.watch == nil || x.paused || x.asked != nil {
		return nil
	}
	if err := x.still(true); err != nil {
		return fmt.Errorf("pause %s: %w", x.id, err)
	}
	x.paused = true
	x.event(&task.Event{Type: task.EventNote, Message: "paused: " + reason})
	return nil
}

func (x *live) resume() error {
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.watch == nil || !x.paused {
		return nil
	}
	if err := x.still(false); err != nil {
		return fmt.Errorf("resume %s: %w", x.id, err)
	}
	x.paused = false
	x.event(&task.Event{Type: task.EventNote, Message: "goes on"})
	return nil
}
