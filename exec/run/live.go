package run

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"time"

	"github.com/balanceai/balance/exec/blob"
	"github.com/balanceai/balance/exec/journal"
	"github.com/balanceai/balance/exec/task"
	"github.com/balanceai/balance/mesh/identity"
	"github.com/balanceai/balance/mesh/wire"
)

// live is a run that has not ended, or that is about to be accepted. Its own
// goroutine takes it through its life.
type live struct {
	r       *Runner
	id      string
	dir     string
	attempt int
	from    identity.ID
	spec    task.Spec
	grant   Grant
	use     Use // what it holds; without a Run for nothing; guarded by r.mu

	ready   chan struct{} // closed when it is known whether it is accepted
	err     error         // why it is not
	journal *journal.Journal
	unsent  [][]byte     // entries that no event has carried yet; of the run's goroutine
	early   []task.Draft // what the ledger is to have before the end; likewise
	stdin   *stdin       // nil where the run has none

	cancel context.CancelCauseFunc // of the context of its goroutine, with an *end

	mu     sync.Mutex
	group  *group      // what it has started; nil before and after
	killer *time.Timer // from SIGTERM to SIGKILL
	paused bool        // the group is frozen
}

// end is why a run is made to end.
type end struct {
	state  task.State
	reason string
	code   int // instead of the program's own; 0 to keep that
}

func (e *end) Error() string { return e.reason }

// newLive returns a run and the context that ends when it is to end.
func newLive(r *Runner, id string) (*live, context.Context) {
	ctx, cancel := context.WithCancelCause(context.Background())
	return &live{r: r, id: id, dir: r.folder(id), ready: make(chan struct{}), cancel: cancel}, ctx
}

// stop makes a run end: at once with force, else after the grace time. The
// first reason counts.
func (x *live) stop(why *end, force bool) {
	grace := x.r.cfg.Grace
	if force {
		grace = 0
	}
	x.stopWithin(why, grace)
}

// stopWithin is stop with a grace time of its own; 0 kills at once.
func (x *live) stopWithin(why *end, grace time.Duration) {
	x.cancel(why)
	x.mu.Lock()
	defer x.mu.Unlock()
	switch {
	case x.group == nil: // not started: it will not be; or ended
	case grace == 0:
		x.group.kill()
	case x.killer == nil:
		x.group.terminate()
		x.killer = time.AfterFunc(grace, func() { x.stopWithin(why, 0) })
	}
	if x.paused && x.group != nil { // what is frozen does not hear SIGTERM
		x.paused = x.group.thaw() != nil
	}
}

// run takes the run from its acceptance to its end.
func (x *live) run(ctx context.Context) {
	fin, err := x.execute(ctx)
	if why := (*end)(nil); errors.As(err, &why) {
		fin.State, fin.Reason = why.state, why.reason
		fin.ExitCode = cmp.Or(why.code, fin.ExitCode)
	} else if err != nil {
		fin.State, fin.Reason = task.Failed, err.Error()
	}
	if x.stdin != nil {
		x.stdin.close()
	}
	x.finish(fin)
}

// execute brings the inputs and runs the program. The error says why that did
// not come to an end of its own.
func (x *live) execute(ctx context.Context) (task.Finished, error) {
	fin := task.Finished{Attempt: x.attempt, State: task.Failed, ExitCode: unseen}
	came, err := x.bring(ctx)
	fin.Usage.InBytes = came
	if err != nil {
		return fin, fmt.Errorf("inputs: %w", err)
	}
	err = x.process(ctx, &fin)
	fin.Usage.GPUMS = fin.Usage.WallMS * uint64(len(x.grant.Devices))
	return fin, err
}

// unseen is the exit code of a program that never ran, or whose end nobody saw.
const unseen = -1

// Limits of inputs and outputs that nobody has to think about.
const (
	maxFiles = 250_000
	stall    = 2 * time.Minute // without a byte of the inputs
)

// bring lays out the inputs in the work folder.
func (x *live) bring(ctx context.Context) (came task.Bytes, err error) {
	if len(x.spec.Inputs) == 0 {
		return 0, nil
	}
	var size task.Bytes
	for _, in := range x.spec.Inputs {
		size += in.Size
	}
	x.report() // it may take long until there is more to say
	x.event(&task.Event{Type: task.EventNote, Message: fmt.Sprintf("bringing %v of inputs", size)})
	root, err := os.OpenRoot(x.work())
	if err != nil {
		return 0, err
	}
	defer root.Close()
	for _, in := range x.spec.Inputs {
		n, err := x.fetch(ctx, &in)
		came += n
		if err != nil {
			return came, fmt.Errorf("%s: %w", in.Path, err)
		}
		if err := x.r.cfg.Blobs.Unpack(ctx, in.Tree, root, in.Path); err != nil {
			return came, err
		}
	}
	return came, nil
}

// fetch brings an input, and waits for a submitter that is away, but not for
// ever.
func (x *live) fetch(ctx context.Context, in *task.Input) (task.Bytes, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	patience := time.AfterFunc(stall, func() { cancel(fmt.Errorf("nothing has come from the submitter for %s", task.FormatDuration(stall))) })
	defer patience.Stop()
	source := func(ctx context.Context, h wire.Hash, offset int64) (io.ReadCloser, error) {
		r, err := x.r.cfg.Fetch(ctx, x.from, h, offset)
		if err != nil {
			return nil, err
		}
		return &watched{r, patience}, nil
	}
	n, err := x.r.cfg.Blobs.Fetch(ctx, in.Tree, blob.Limits{Size: in.Size, Files: maxFiles}, source)
	return task.Bytes(n), err
}

// watched is a reader that winds up a timer with each byte.
type watched struct {
	io.ReadCloser
	timer *time.Timer
}

func (w *watched) Read(p []byte) (int, error) {
	n, err := w.ReadCloser.Read(p)
	if n > 0 {
		w.timer.Reset(stall)
	}
	return n, err
}

// tell keeps entries of this node for the next event.
func (x *live) tell(entries ...*wire.Entry) {
	for _, e := range entries {
		x.unsent = append(x.unsent, e.Encode())
	}
}

// event journals something other than output. Where that fails, the end of the
// run will be told nevertheless.
func (x *live) event(e *task.Event) { _ = x.append(e) }

// report journals the entries that the ledger got since the last report, for
// the submitter's ledger.
func (x *live) report() {
	if x.append(&task.Event{Type: task.EventRecord, Entries: x.unsent}) == nil {
		x.unsent = nil
	}
}

func (x *live) append(e *task.Event) error {
	e.Run, e.Time, e.Attempt, e.Node = x.id, x.r.cfg.Now(), x.attempt, x.r.cfg.Name
	return x.journal.Append(e)
}
