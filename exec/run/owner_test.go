package run

import (
	"strings"
	"testing"
	"time"

	"github.com/balanceai/balance/exec/task"
)

// counting writes numbers, from a child of the program too, until it is told to
// end, which it does with 3.
const counting = `trap 'exit 3' TERM; echo ready; (while true; do echo child; sleep 0.01; done) & while true; do echo parent; sleep 0.01; done`

func (w *watcher) length() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.r.stdout.Len()
}

// still waits until the run writes nothing for a while.
func (w *watcher) still() {
	w.l.t.Helper()
	const quiet = 300 * time.Millisecond // 30 times as long as the program's own pauses
	at, since := w.length(), time.Now()
	w.until("silence", func(r *result) bool {
		if n := r.stdout.Len(); n != at {
			at, since = n, time.Now()
		}
		return time.Since(since) > quiet
	})
}

func TestPause(t *testing.T) {
	l := newLab(t)
	o := order(spec("sh", "-c", counting))
	w := l.start(o)
	w.untilOutput("child")
	for range 2 { // again is no mistake
		if err := l.Pause(o.Run, "the owner is back"); err != nil {
			t.Fatal(err)
		}
	}
	w.still()
	before := w.length()
	if err := l.Resume(o.Run); err != nil {
		t.Fatal(err)
	}
	w.until("more of both", func(r *result) bool {
		rest := r.stdout.String()[before:]
		return strings.Contains(rest, "child") && strings.Contains(rest, "parent")
	})

	// One that is paused ends as politely as any.
	if err := l.Pause(o.Run, "again"); err != nil {
		t.Fatal(err)
	}
	l.Stop(o.Run, "its hours are over", 30*time.Second)
	r := w.end()
	if f := r.account; f.State != task.Failed || f.ExitCode != 3 || f.Reason != "its hours are over" {
		t.Errorf("%s, exit code %d: %q", f.State, f.ExitCode, f.Reason)
	}
	if got := strings.Join(r.notes, "; "); got != "paused: the owner is back; goes on; paused: again" {
		t.Errorf("notes %q", got)
	}
	if err := l.Pause(o.Run, "late"); err != nil {
		t.Errorf("after its end: %v", err)
	}
}

func TestStopWithinGrace(t *testing.T) {
	l := newLab(t)
	o := order(spec("sh", "-c", "trap '' TERM; echo ready; sleep 60"))
	w := l.start(o)
	w.untilOutput("ready")
	l.Stop(o.Run, "withdrawn", 50*time.Millisecond)
	if f := w.end().account; f.State != task.Failed || f.ExitCode != 137 || f.Reason != "withdrawn" {
		t.Errorf("%s, exit code %d: %q", f.State, f.ExitCode, f.Reason)
	}
}
