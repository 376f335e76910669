package run

import (
	"errors"
	"io"
	"strings"
	"testing"

	"github.com/balanceai/balance/exec/task"
)

// A run with a terminal: what breaks off, or ends, does not end its input, the
// size arrives, and a cancel reaches what a shell has put in front.
func TestTerminal(t *testing.T) {
	l := newLab(t)
	s := stdinSpec("sh", "-i")
	s.TTY, s.Open = &task.Terminal{Rows: 11, Cols: 22}, true
	s.Env = map[string]string{"PS1": "ready> "}
	o := order(s)
	w := l.start(o)
	w.untilOutput("ready> ")
	have := int64(0)
	send := func(text string, broken error) {
		t.Helper()
		in := io.Reader(strings.NewReader(text))
		if broken != nil {
			in = io.MultiReader(in, &failing{broken})
		}
		if err := l.Stdin(t.Context(), o.Run, have, in); !errors.Is(err, broken) {
			t.Fatal(err)
		}
		have += int64(len(text))
	}
	send("stty size\n", io.ErrUnexpectedEOF)
	w.untilOutput("11 22")
	if err := l.Resize(t.Context(), o.Run, task.Terminal{Rows: 33, Cols: 44}); err != nil {
		t.Fatal(err)
	}
	send("stty size\n", nil)
	w.untilOutput("33 44")
	send("sh -c 'trap \"echo in-front-$((1+1)); exit\" TERM; echo up-$((1+1)); while :; do sleep 0.1; done'; exit 7\n", nil)
	w.untilOutput("up-2")
	if err := l.Cancel(t.Context(), o.Run, false); err != nil {
		t.Fatal(err)
	}
	w.untilOutput("in-front-2")
	if r := w.end(); r.account.State != task.Cancelled {
		t.Errorf("%+v", r.account)
	}
	if err := l.Resize(t.Context(), o.Run, task.Terminal{}); err != nil {
		t.Errorf("one that has ended: %v", err)
	}
}

func TestResizeWithoutTerminal(t *testing.T) {
	l := newLab(t)
	o := order(spec("sleep", "60"))
	w := l.start(o)
	w.until("the start", func(r *result) bool { return len(r.events) > 0 })
	if err := l.Resize(t.Context(), o.Run, task.Terminal{Rows: 1}); err == nil {
		t.Error("a run without a terminal got a size")
	}
	if err := l.Resize(t.Context(), task.NewID(), task.Terminal{}); !errors.Is(err, task.ErrNoRun) {
		t.Errorf("no run: %v", err)
	}
	_ = l.Cancel(t.Context(), o.Run, true)
	w.end()
}
