package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/signal"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/balanceai/balance/exec/blob"
	"github.com/balanceai/balance/exec/task"
	"github.com/balanceai/balance/mesh/wire"
)

// follower shows a run's events and ends with its exit code.
type follower struct {
	*app
	name     string // for the folder of the outputs
	out      string // folder of the outputs; empty: by name
	attached bool   // Ctrl-C stops the run, and the outputs are written
	stdin    bool
	term     *terminal     // that the run has; nil for none
	size     task.Terminal // of the run's own; zero: not known

	ranks   ranks // of a gang: its output
	brought []rankOutputs

	last uint64    // number of the last event seen
	gaps task.Gaps // in the output
	open bool      // what was written last has no end of its line
	lost bool
	undo func()

	leave context.CancelCauseFunc // stops following

	mu  sync.Mutex // Ctrl-C and standard input have goroutines of their own
	run string
	end *task.Event
}

// id returns the run's id, which is empty until it is known.
func (f *follower) id() string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.run
}

// begin takes the run's id, and reports whether it was not known.
func (f *follower) begin(id string) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.run != "" {
		return false
	}
	f.run = id
	return true
}

// ending returns the run's last event, or nil.
func (f *follower) ending() *task.Event {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.end
}

// schemaEvent is an event as --json prints it.
type schemaEvent struct {
	Schema int `json:"schema"`
	task.Event
}

// submit starts a run and follows it.
func (f *follower) submit(ctx context.Context, spec submission) error {
	if f.attached {
		ctx = f.catchInterrupts(ctx, false)
		defer f.undo()
		defer f.term.giveBack()
	}
	run, err := f.client.submit(ctx, spec, func(e task.Event) error { return f.event(ctx, e) })
	f.begin(run)
	f.term.cut()
	return f.goOn(ctx, err)
}

// takeOver goes on with a run that package quick has begun.
func (f *follower) takeOver(ctx context.Context, interrupted bool) error {
	f.gaps.Joined = true
	ctx = f.catchInterrupts(ctx, interrupted)
	defer f.undo()
	if interrupted {
		f.stop(ctx)
	}
	return f.goOn(ctx, nil)
}

// stop asks the run to stop, for whoever has pressed Ctrl-C.
func (f *follower) stop(ctx context.Context) {
	f.print.say("\nasking the run to stop; Ctrl-C again detaches")
	if err := f.client.call(ctx, http.MethodPost, runPath(f.id(), "/cancel"), nil, nil); err != nil {
		f.print.say("could not ask: %v", err)
	}
}

// patience is how long a follower waits for a daemon that went away.
const patience = 30 * time.Second

// goOn resumes after the daemon went away in mid-run, and then ends with the
// run's exit code.
func (f *follower) goOn(ctx context.Context, err error) error {
	var p *problem
	if errors.As(err, &p) {
		return err // the daemon itself said no, or was not there in the first place
	}
	since, pause := time.Now(), time.Duration(0)
	run := f.id()
	for f.ending() == nil && !f.lost && run != "" && ctx.Err() == nil && (!errors.As(err, &p) || p.Code == "not_running" || p.Code == "unreachable") {
		if time.Since(since) > patience {
			if q := (*problem)(nil); errors.As(err, &q) && q.Code == "unreachable" {
				return err
			}
			return fail("not_running", "start it with: balance up; then: balance wait "+run, "the node has stopped; the run %s may still go on", run)
		}
		time.Sleep(pause)
		pause = 200 * time.Millisecond
		before := f.last
		err = f.client.events(ctx, run, f.last, true, func(e task.Event) error { return f.event(ctx, e) })
		f.term.cut()
		if f.last != before {
			since = time.Now()
		}
	}
	switch {
	case f.ending() != nil:
		return f.finish(ctx)
	case f.lost:
		return fail("launcher", "when the machine is back, balance wait "+run+" tells how it ended", "the machine of %s cannot be reached: the run is lost to sight", run)
	case errors.Is(context.Cause(ctx), errDetached):
		return exitError(exitInterrupted)
	case errors.Is(context.Cause(ctx), errLeft):
		f.term.giveBack()
		f.print.say("\ndetached: the run goes on. Come back with: balance attach %s", run)
		return nil
	}
	return err
}

var errDetached = errors.New("detached")

// catchInterrupts makes the first Ctrl-C stop the run, and the second one leave
// it alone and detach. asked says that there was a first one before.
func (f *follower) catchInterrupts(ctx context.Context, asked bool) context.Context {
	ctx, cancel := context.WithCancelCause(ctx)
	signals := make(chan os.Signal, 2)
	signal.Notify(signals, syscall.SIGINT)
	go func() {
		for ; ; asked = true {
			select {
			case <-ctx.Done():
				return
			case <-signals:
			}
			if asked || f.id() == "" {
				f.print.say("\ndetached: the run goes on. See it with: balance logs -f %s", f.id())
				cancel(errDetached)
				return
			}
			f.stop(ctx)
		}
	}()
	f.leave = cancel
	f.undo = func() { signal.Stop(signals); cancel(nil) }
	return ctx
}

func (f *follower) event(ctx context.Context, e task.Event) error {
	if f.begin(e.Run) {
		f.sit(ctx)
	}
	f.last = e.Seq
	if f.print.json {
		if err := f.print.line(schemaEvent{1, e}); err != nil {
			return err
		}
	}
	switch e.Type {
	case task.EventOutput:
		if f.print.json {
			return nil
		}
		if n := f.gaps.Before(&e); n > 0 && f.term == nil {
			f.print.gap(&e, n, f.open)
		}
		if e.Rank != nil {
			return f.rankOutput(&e)
		}
		out := e.Output()
		f.open = !bytes.HasSuffix(out, []byte("\n"))
		_, err := f.streamOf(e.Stream).Write(out)
		return err
	case task.EventEnded:
		return f.rankEnded(&e)
	case task.EventPlaced:
		f.chat("%s on %s", e.Run, e.Node)
	case task.EventNote:
		f.chat("%s", e.Message)
		if e.State == task.Lost && f.attached {
			f.lost = true
			return errStop
		}
	case task.EventFinished:
		f.term.giveBack()
		f.mu.Lock()
		f.end = &e
		f.mu.Unlock()
		return errStop
	}
	return nil
}

// chat tells a person at a terminal what happens. It stays out of a redirected
// stderr, which is the run's.
func (f *follower) chat(format string, args ...any) {
	if f.print.errTTY {
		f.print.say("balance: %s", clean(fmt.Sprintf(format, args...), false))
	}
}

// finish writes the output files and returns the run's exit code as an error.
func (f *follower) finish(ctx context.Context) error {
	e := f.ending()
	if !f.attached {
		return f.ended(e)
	}
	dir := f.out
	if dir == "" {
		dir = fmt.Sprintf("%s-%s", f.name, strings.TrimPrefix(f.id(), "r-")[:6])
	}
	if e.Outputs != "" {
		if err := f.writeOutputs(ctx, e.Outputs, dir); err != nil {
			return err
		}
	}
	if err := f.writeRanks(ctx, dir); err != nil {
		return err
	}
	return f.ended(e)
}

// ended turns the end of a run into the program's own.
func (a *app) ended(e *task.Event) error {
	code := exitLauncher
	if e.ExitCode != nil && *e.ExitCode >= 0 {
		code = *e.ExitCode
	}
	switch e.State {
	case task.Succeeded:
		return nil
	case task.Unplaced:
		return a.tell(fail("no_fit", "see why with: balance why "+e.Run, "%s", e.Message), exitNoFit)
	case task.Cancelled:
		if code == exitLauncher || code == 0 {
			code = exitInterrupted
		}
	}
	if e.Message != "" {
		return a.tell(&problem{Code: "failure", Message: fmt.Sprintf("%s %s: %s", e.Run, e.State, e.Message)}, code)
	}
	return exitError(code)
}

// tell prints a problem and ends with another exit code than its own.
func (a *app) tell(p *problem, code int) error {
	if !a.print.json {
		a.print.fault(p)
	}
	return exitError(code)
}

// writeOutputs lays the output files of a run out in a folder, which must not
// hold any of them.
func (a *app) writeOutputs(ctx context.Context, digest, dir string) error {
	tree, err := wire.ParseHash(digest)
	if err != nil {
		return err
	}
	blobs, err := blob.Open(a.home.path(blobsDir))
	if err != nil {
		return err
	}
	if err := os.MkdirAll(dir, 0o777); err != nil {
		return err
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return err
	}
	defer root.Close()
	if err := blobs.Unpack(ctx, tree, root, "."); err != nil {
		return fmt.Errorf("write the output files to %s: %w", dir, err)
	}
	if a.print.errTTY {
		a.print.say("balance: output files are in %s", dir)
	}
	return nil
}
