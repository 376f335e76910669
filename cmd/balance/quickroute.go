package main

import (
	"fmt"
	"io"
	"net/http"
	"strings"

	"github.com/balanceai/balance/cmd/balance/quick"
	"github.com/balanceai/balance/exec/task"
)

// quick submits a bare command and streams what becomes of it in the frames of
// package quick.
func (l *localAPI) quick(w http.ResponseWriter, r *http.Request) error {
	body, err := io.ReadAll(io.LimitReader(r.Body, maxRequest))
	if err != nil {
		return err
	}
	spec := task.Spec{Driver: task.DriverProcess, Command: strings.Split(string(body), "\x00")}
	if err := spec.Check(); err != nil {
		return fail("usage", "", "%v", err)
	}
	id, err := l.submitted.Submit(r.Context(), spec)
	if err != nil {
		return err
	}
	w.Header().Set(quick.RunHeader, id)
	out := http.NewResponseController(w)
	var gaps task.Gaps
	err = l.submitted.Events(r.Context(), id, 0, true, func(e *task.Event) error {
		if n := gaps.Before(e); n > 0 {
			text := task.Dropped(n) + "\n"
			if _, err := fmt.Fprintf(w, "%s %d %d\n%s", quick.Stderr, e.Seq-1, len(text), text); err != nil {
				return err
			}
		}
		kind, err := writeFrame(w, e)
		if err != nil || kind == quick.Skip && e.Seq > 1 { // the first one carries the run's id
			return err
		}
		return out.Flush()
	})
	if err != nil {
		l.log.Debug("events of a run", "run", id, "error", err)
		w.WriteHeader(http.StatusOK) // the run exists: whoever asked goes on with its events
	}
	return nil
}

// writeFrame writes what an event means to a script.
func writeFrame(w io.Writer, e *task.Event) (kind string, err error) {
	kind = quick.Other
	n, out := 0, []byte(nil)
	switch e.Type {
	case task.EventPlaced, task.EventStarted:
		kind = quick.Skip
	case task.EventOutput:
		if kind = quick.Stdout; e.Stream == task.Stderr {
			kind = quick.Stderr
		}
		out = e.Output()
		n = len(out)
	case task.EventFinished:
		ended := e.State == task.Succeeded || e.State == task.Failed
		if ended && e.ExitCode != nil && *e.ExitCode >= 0 && e.Message == "" && e.Outputs == "" {
			kind, n = quick.Exit, *e.ExitCode
		}
	}
	_, err = w.Write(append(fmt.Appendf(nil, "%s %d %d\n", kind, e.Seq, n), out...))
	return kind, err
}
