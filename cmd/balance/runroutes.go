package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"strconv"

	"github.com/balanceai/balance/cmd/balance/quick"
	"github.com/balanceai/balance/exec/dispatch"
	"github.com/balanceai/balance/exec/remote"
	"github.com/balanceai/balance/exec/task"
	"github.com/balanceai/balance/store"
)

// The part of the local API that is about runs.

func (l *localAPI) submit(w http.ResponseWriter, r *http.Request) error {
	var s submission
	if err := readJSON(r, &s); err != nil {
		return err
	}
	if err := errors.Join(s.Check(), task.Secrets(s.Values).Check(&s.Spec)); err != nil {
		return fail("usage", "", "%v", err)
	}
	if s.Detached {
		to, err := l.custody.choose(s.Custodian)
		if err != nil {
			return err
		}
		if !to.IsZero() {
			out, err := l.hand(r.Context(), &s, to)
			if err == nil {
				reply(w, out)
			}
			return err
		}
	}
	id, err := l.submitted.SubmitWith(r.Context(), s.Spec, s.Values)
	if err != nil {
		return err
	}
	if r.FormValue("follow") == "" {
		reply(w, runReply{Run: id})
		return nil
	}
	w.Header().Set(quick.RunHeader, id)
	if err := streamEvents(w, r, l.submitted.Events, id, 0, true); err != nil {
		// The run exists: whoever asked goes on with its events, and must not
		// take this for a run that was refused.
		l.log.Debug("events of a run", "run", id, "error", err)
		w.WriteHeader(http.StatusOK)
	}
	return nil
}

// eventsFunc yields the events of a run.
type eventsFunc func(ctx context.Context, run string, after uint64, follow bool, yield func(*task.Event) error) error

func streamEvents(w http.ResponseWriter, r *http.Request, from eventsFunc, id string, after uint64, follow bool) error {
	send, sent := lines(w), false
	err := from(r.Context(), id, after, follow, func(e *task.Event) error {
		sent = true
		if e.Type == task.EventRecord {
			return nil
		}
		shown := *e
		shown.Entries, shown.Source, shown.Part = nil, 0, false
		return send(shown)
	})
	if sent {
		return nil // a stream that ends early is resumed by who reads it
	}
	return err
}

func (l *localAPI) runs(w http.ResponseWriter, r *http.Request) error {
	limit, err := strconv.Atoi(r.FormValue("limit"))
	if err != nil || limit < 0 {
		return fail("usage", "", "a number of runs, or 0 for all, not %q", r.FormValue("limit"))
	}
	runs, err := l.db.Runs(r.Context(), store.RunFilter{Limit: limit})
	if err != nil {
		return err
	}
	if runs == nil {
		runs = []task.Status{}
	}
	reply(w, runs)
	return nil
}

// ofRun resolves what a person calls a run, for what is about one.
func (l *localAPI) ofRun(handle func(w http.ResponseWriter, r *http.Request, id string) error) func(http.ResponseWriter, *http.Request) error {
	return func(w http.ResponseWriter, r *http.Request) error {
		id, err := l.db.FindRun(r.Context(), r.PathValue("run"))
		if err != nil {
			return hint(err, "see the runs with: balance ps")
		}
		return handle(w, r, id)
	}
}

func (l *localAPI) inspect(w http.ResponseWriter, r *http.Request, id string) error {
	status, err := l.db.Run(r.Context(), id)
	if err != nil {
		return err
	}
	if r.FormValue("outputs") != "" {
		if err := l.custody.bringOutputs(r.Context(), &status); err != nil {
			return fmt.Errorf("bring the outputs of %s from %s: %w", id, l.who.name(status.Custodian), err)
		}
	}
	entries, err := l.db.Entries(r.Context(), id)
	if err != nil {
		return err
	}
	spec, err := specOf(entries)
	if err != nil {
		return err
	}
	out := inspectReply{Status: status, Spec: spec, Entries: l.describeEntries(entries)}
	if status.InCustody() {
		out.Custody = fmt.Sprintf("%s, for %s", l.who.name(status.Custodian), l.who.name(status.For))
		if status.OnItsWay() {
			out.Custody += ", which has not taken it yet"
		}
	}
	reply(w, out)
	return nil
}

func (l *localAPI) events(w http.ResponseWriter, r *http.Request, id string) error {
	after, err := strconv.ParseUint(r.FormValue("after"), 10, 64)
	if err != nil && r.FormValue("after") != "" {
		return fail("usage", "", "after: %v", err)
	}
	status, err := l.db.Run(r.Context(), id)
	if err != nil {
		return err
	}
	from := l.submitted.Events
	if status.Submitter != l.self {
		if l.who.now().Members[status.Submitter].Owner != l.who.me().Owner {
			return l.own(r.Context(), id)
		}
		from = l.runner.Events // of one's own, at the machine that has it
	}
	return streamEvents(w, r, from, id, after, r.FormValue("follow") != "")
}

// own refuses what only the submitter's machine can do.
func (l *localAPI) own(ctx context.Context, run string) error {
	s, err := l.db.Run(ctx, run)
	if err != nil {
		return err
	}
	if s.Submitter != l.self {
		return fail("forbidden", "ask on that machine", "the run %s was submitted on %s: its output is not for this machine", run, l.who.name(s.Submitter))
	}
	return nil
}

func (l *localAPI) stdin(w http.ResponseWriter, r *http.Request, id string) error {
	// The answer may come while more is sent; the rest is not awaited.
	w.Header().Set("Connection", "close")
	if err := l.submitted.Stdin(r.Context(), id, r.Body); err != nil {
		return err
	}
	reply(w, runReply{Run: id})
	return nil
}

// attach tells what whoever sits down at a run has to know.
func (l *localAPI) attach(w http.ResponseWriter, r *http.Request, id string) error {
	if err := l.own(r.Context(), id); err != nil {
		return err
	}
	spec, after, err := l.submitted.Now(r.Context(), id)
	if err != nil {
		return hint(err, "see what it wrote with: balance logs %s", id)
	}
	reply(w, attachReply{Run: id, Name: runName(&spec), After: after, TTY: spec.TTY != nil, Stdin: spec.Open})
	return nil
}

func (l *localAPI) size(w http.ResponseWriter, r *http.Request, id string) error {
	var size task.Terminal
	if err := readJSON(r, &size); err != nil {
		return err
	}
	if err := l.submitted.Resize(r.Context(), id, size); err != nil {
		return err
	}
	reply(w, runReply{Run: id})
	return nil
}

// runFiles gives files of a run to who submitted it, and to the owner of its
// machine.
func (l *localAPI) runFiles(w http.ResponseWriter, r *http.Request, id string) error {
	status, err := l.db.Run(r.Context(), id)
	if err != nil {
		return err
	}
	out := &remote.Archive{W: w}
	give := l.runner.Files
	if status.Submitter == l.self {
		give = l.submitted.Files
	}
	err = out.End(give(r.Context(), id, r.FormValue("path"), out))
	if errors.Is(err, fs.ErrNotExist) {
		return fail("not_found", "its machine keeps the work folder for some days", "the run %s has no file %s, or none any more", id, r.FormValue("path"))
	}
	return err
}

func (l *localAPI) cancel(w http.ResponseWriter, r *http.Request, id string) error {
	status, err := l.db.Run(r.Context(), id)
	if err != nil {
		return err
	}
	force := r.FormValue("force") != ""
	if status.Submitter != l.self {
		// The owner of a machine may always end what runs on it.
		err = l.runner.Cancel(r.Context(), id, force)
	} else {
		err = l.submitted.Cancel(r.Context(), id, force)
	}
	if err != nil && !errors.Is(err, dispatch.ErrOver) {
		return err
	}
	reply(w, runReply{Run: id})
	return nil
}

func (l *localAPI) why(w http.ResponseWriter, r *http.Request, id string) error {
	tries, err := l.submitted.Why(r.Context(), id)
	if err != nil {
		return err
	}
	out := []whyAttempt{}
	for _, t := range tries {
		out = append(out, whyAttempt{Attempt: t.Attempt, Node: t.Node, Waits: t.Waits, Ranking: t.Ranking, More: t.More, Refused: t.Refusal, Lost: t.Lost})
	}
	reply(w, out)
	return nil
}
