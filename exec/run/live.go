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
	"github.com/balanceai/balance/exec/lease"
	"github.com/balanceai/balance/exec/supervise"
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
	secrets task.Secrets // values; nil in a later life, where its supervisor has them
	grant   Grant
	level   string      // of isolation
	limits  task.Limits // that hold
	use     Use         // what it holds; without a Run for nothing; guarded by r.mu

	ready   chan struct{} // closed when it is known whether it is accepted
	err     error         // why it is not
	journal *journal.Journal
	unsent  [][]byte     // entries that no event has carried yet; of the run's goroutine
	early   []task.Draft // what the ledger is to have before the end; likewise

	writing sync.Mutex // of events
	place   int64      // one more than how much of the log is in the journal; 0: not started

	known    bool // the ledger has that it was started; of the run's goroutine
	rebooted bool // the machine was started again since; likewise

	begun chan struct{} // closed when the program was started, or never will be
	over  chan struct{} // closed when the run has ended, or is left

	lease   *lease.Holder // nil where nobody will start it again
	leasing sync.Mutex
	until   time.Duration // what its supervisor knows of the lease; with leasing
	held    chan struct{} // closed when its lease is granted
	gone    chan struct{} // closed when it has ended and is forgotten

	local    Local             // what it asks of this node; nil for nothing; of the run's goroutine
	endpoint map[string]string // variables that tell of that; likewise

	port   int    // at which it serves; 0 for nothing; of the run's goroutine
	served Served // likewise

	word chan struct{} // closed when its gang may start; with mu

	cancel context.CancelCauseFunc // of the context of its goroutine, with an *end

	mu     sync.Mutex
	watch  *supervise.Watch // on its supervisor; nil before and after
	rally  *rally           // with the others of its gang; nil where it is in none; written by the run's goroutine alone
	asked  *end             // to be told to it; the first one counts
	force  bool             // likewise
	paused bool             // the run is held still
}

// end is why a run is made to end.
type end struct {
	state  task.State
	reason string
	code   int           // instead of the program's own; 0 to keep that
	cause  string        // of [task.Finished]
	lost   bool          // it is this machine that has lost the run
	grace  time.Duration // from SIGTERM to SIGKILL; 0 for the Runner's
}

func (e *end) Error() string { return e.reason }

// told is the end as a supervisor is told it.
func (e *end) told() supervise.End {
	return supervise.End{State: string(e.state), Reason: e.reason, Code: e.code, Cause: e.cause, Lost: e.lost, Grace: e.grace}
}

// newLive returns a run and the context that ends when it is to end.
func newLive(r *Runner, id string) (*live, context.Context) {
	ctx, cancel := context.WithCancelCause(context.Background())
	return &live{
		r: r, id: id, dir: r.folder(id), cancel: cancel,
		ready: make(chan struct{}), begun: make(chan struct{}), over: make(chan struct{}),
		held: make(chan struct{}), gone: make(chan struct{}), word: make(chan struct{}),
	}, ctx
}

// stop makes a run end: at once with force, else after the grace time. The
// first reason counts.
func (x *live) stop(why *end, force bool) {
	x.cancel(why)
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.asked == nil {
		x.asked = why
	}
	x.force = x.force || force
	x.askLocked()
}

// askLocked tells the supervisor, if there is one, that the run is to end.
func (x *live) askLocked() {
	if x.watch == nil || x.asked == nil {
		return
	}
	if err := x.watch.End(x.asked.told(), x.force); err != nil {
		x.r.cfg.Log.Debug("a supervisor that is to end its run is gone", "run", x.id, "err", err)
	}
}

// run takes the run from its acceptance to its end.
func (x *live) run(ctx context.Context) {
	fin, err := x.execute(ctx)
	if errors.Is(context.Cause(ctx), errLeft) {
		err = errLeft
	}
	x.close(fin, err)
}

// close ends the run, or leaves it to a later life.
func (x *live) close(fin task.Finished, err error) {
	defer x.rally.close()
	defer close(x.over)
	if errors.Is(err, errLeft) {
		x.leave()
		return
	}
	if why := (*end)(nil); errors.As(err, &why) {
		fin.State, fin.Reason, fin.Cause, fin.Lost = why.state, why.reason, why.cause, why.lost
		fin.ExitCode = cmp.Or(why.code, fin.ExitCode)
	} else if err != nil {
		fin.State, fin.Reason = task.Failed, err.Error()
	}
	x.finish(fin)
}

// leave lets the run go on without this process.
func (x *live) leave() {
	_ = x.journal.Close()
	x.r.drop(x)
}

// execute brings the inputs and runs the program. The error says why that did
// not come to an end of its own.
func (x *live) execute(ctx context.Context) (task.Finished, error) {
	fin := task.Finished{Attempt: x.attempt, State: task.Failed, ExitCode: unseen}
	var err error
	if fin.Usage.InBytes, err = x.bring(ctx); err != nil {
		return fin, fmt.Errorf("inputs: %w", err)
	}
	if err = x.await(ctx); err != nil {
		return fin, err
	}
	if err = x.gather(ctx); err != nil {
		return fin, err
	}
	err = x.process(ctx, &fin)
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

func (x *live) append(e *task.Event) error { return x.appendAt(e, 0) }

// appendAt journals an event which takes the journal to a place in the log; 0
// leaves it where it is.
func (x *live) appendAt(e *task.Event, place int64) error {
	e.Run, e.Attempt, e.Node = x.id, x.attempt, x.r.cfg.Name
	if e.Time.IsZero() {
		e.Time = x.r.cfg.Now()
	}
	x.writing.Lock()
	defer x.writing.Unlock()
	e.Place = max(place, x.place)
	if err := x.journal.Append(e); err != nil {
		return err
	}
	x.place = e.Place
	return nil
}

// placed returns how far the journal has got.
func (x *live) placed() int64 {
	x.writing.Lock()
	defer x.writing.Unlock()
	return x.place
}

// detach stops following the run.
func (x *live) detach() {
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.watch != nil {
		_ = x.watch.Close()
		return
	}
	x.cancel(errLeft)
}
