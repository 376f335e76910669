// Package run starts and owns the runs on this machine.
//
// A [Runner] takes orders. It checks that the submitter itself has sent the
// order and chosen this machine, asks the machine's owner through
// [Config.Admit], promises in the ledger to run, and only then starts the
// program. The same order given again, however often, goes on with the same
// run. A machine that has promised an attempt, or refused it, never starts it
// again, in this life or a later one.
//
// Everything that happens to a run is in its journal before anybody is told,
// the promise to run is in the ledger before the program starts, and the account
// of its end before that is told. So whoever follows a run can be cut off at any
// point and resume, and both sides hold the same signed account of it. What the
// program writes does not wait for the ledger.
//
// A run is a program of this machine, started as the user who runs Balance,
// in a folder of its own, by a supervisor (see package supervise). When it ends,
// however it ends, every process that it started is killed. It does not end when
// the Runner does: the next one goes on following it, and misses nothing.
package run

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/balanceai/balance/exec/blob"
	"github.com/balanceai/balance/exec/container"
	"github.com/balanceai/balance/exec/egress"
	"github.com/balanceai/balance/exec/isolate"
	"github.com/balanceai/balance/exec/journal"
	"github.com/balanceai/balance/exec/spare"
	"github.com/balanceai/balance/exec/supervise"
	"github.com/balanceai/balance/exec/task"
	"github.com/balanceai/balance/mesh/identity"
	"github.com/balanceai/balance/mesh/wire"
)

// Ledger is what a Runner needs of the node's ledger.
type Ledger interface {
	// Append signs and stores entries of this node, durably.
	Append(ctx context.Context, drafts ...task.Draft) ([]*wire.Entry, error)
	// Accept verifies and stores entries of others, durably. Those that it has
	// already are no error.
	Accept(ctx context.Context, entries ...*wire.Entry) (fresh []*wire.Entry, err error)
	// Record does both in one transaction, or nothing of it.
	Record(ctx context.Context, theirs []*wire.Entry, drafts ...task.Draft) ([]*wire.Entry, error)
	// Entries returns a topic, each author's entries in the order of its chain.
	Entries(ctx context.Context, topic string) ([]*wire.Entry, error)
}

// Config says what a Runner works with. Now, Log and Grace may be zero.
type Config struct {
	Dir    string      // holds a folder for each run
	Self   identity.ID // this machine
	Name   string      // of this machine
	Ledger Ledger
	Blobs  *blob.Store
	Grace  time.Duration // from SIGTERM to SIGKILL; 10 s
	Now    func() time.Time
	Log    *slog.Logger

	// Admit decides whether a run may be on this machine now: the owner's terms
	// and what is free. It is called by one goroutine at a time and must not
	// call the Runner. Reasons refuse the run.
	Admit func(Ask) (Grant, []task.Reason)

	// Weigh tells what a run counts for in the line of those who wait. Nil: all are
	// alike, and of the machine's owner.
	Weigh func(from identity.ID, n task.Needs) Weight

	// Quota returns why a member may not have this machine keep one more run of it,
	// by what is kept for each member. Such a refusal is in no ledger. It is called
	// as Admit is. Nil: there are no quotas.
	Quota func(from identity.ID, kept func(identity.ID) Kept) []task.Reason

	// Facts encodes what is free here besides what is held, for who has bid for it.
	Facts func(held []Use) []byte

	// Changed is called when what runs hold has changed. It must not call the Runner.
	Changed func()

	// Patience is how long a run waits in line before it holds back what others
	// could take; 1 min.
	Patience time.Duration

	// VRAM tells how much memory of some GPUs each process holds; nil for a
	// machine that cannot tell. A process that is not in it is not known.
	VRAM func(devices []string) map[int]task.Bytes

	// Machine is what this machine can put between itself and a run; nil for
	// nothing.
	Machine *isolate.Machine

	// Containers runs images; nil for a machine that does not.
	Containers *container.Engine

	// Local makes what a run asks of its node, with a key of an earlier life, or of
	// its own where there is none; nil for a run that asks nothing. Nil: this
	// machine has no such thing.
	Local func(a Ask, key string) (Local, error)

	// Serve readies what a run that serves needs, before its program starts: it will
	// listen at a port of loopback. Again says that the program runs already, in a
	// later life of this process. Nil: no run serves anything here.
	Serve func(ctx context.Context, a Ask, port int, again bool) (Served, error)

	// Fetch reads a blob of a run's submitter from an offset on, as
	// [blob.Source] has it.
	Fetch func(ctx context.Context, from identity.ID, h wire.Hash, offset int64) (io.ReadCloser, error)

	// Join carries a connection to a rank of a gang on another machine, which
	// answers it with [Runner.Dial]. Without it there are no ranks here.
	Join func(ctx context.Context, node identity.ID, run string, c net.Conn) error

	letOut func(*egress.Proxy) // lets runs reach a test's own servers; nil but in tests
}

// Ask is a question to the owner of the machine.
type Ask struct {
	Run     string
	Attempt int
	From    identity.ID // the submitter
	Spec    *task.Spec
	Held    []Use

	// Bare asks as if nothing were going on here but what is in Held.
	Bare bool

	Used task.ModelUsage // what the run has asked of models in earlier lives of the node
}

// Weight is what a run counts for.
type Weight struct {
	Owner string
	Own   bool    // it is the machine's
	Share float64 // the largest of the run's shares of the machine's CPU, memory and GPUs, 0 to 1
}

// Grant is what a run gets.
type Grant struct {
	Devices []string    // GPUs, by UUID
	Policy  wire.Hash   // digest of the owner's terms
	Limits  task.Limits // the machine's own, which bound those of the spec; zero for none

	// Isolation is the level that the run gets, of package isolate, or more where
	// it asks for more; empty for none.
	Isolation string

	// Network are the hosts that the run may reach at most, as in [task.Spec]; nil
	// for those that it asks for.
	Network []string
}

// Use is what one run holds of the machine.
type Use struct {
	Run     string
	From    identity.ID // the submitter
	Needs   task.Needs  // as [task.Needs.Held] gives them
	Devices []string    // GPUs, by UUID
	Since   time.Time
	Serves  bool // it goes on until it is ended
}

// Runner runs. It is safe for concurrent use.
type Runner struct {
	cfg     Config
	control supervise.Control // of processes, as this system has it
	spares  *spare.Pool
	keeper  keeper

	closing chan struct{}  // closed by Close
	wg      sync.WaitGroup // of the goroutines of runs

	mu     sync.Mutex
	closed bool
	runs   map[string]*live // that have not ended, and those about to be accepted
	line   line
	growth growth // of the ledger
	taken  uint32 // runs, in this life
}

// Open starts a Runner on a folder. It goes on with the runs of an earlier one:
// it follows those that have a supervisor, starts those that were promised a
// moment ago and never given to one, and gives the others an end.
func Open(ctx context.Context, cfg Config) (*Runner, error) {
	cfg.Grace = cmp.Or(cfg.Grace, 10*time.Second)
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	cfg.Patience = cmp.Or(cfg.Patience, time.Minute)
	if cfg.Machine == nil {
		cfg.Machine = &isolate.Machine{Why: "nobody has looked for one"}
	}
	dir, err := filepath.Abs(cfg.Dir)
	if err == nil {
		err = os.MkdirAll(dir, 0o700)
	}
	if err != nil {
		return nil, fmt.Errorf("open runs: %w", err)
	}
	cfg.Dir = dir
	r := &Runner{cfg: cfg, closing: make(chan struct{}), runs: map[string]*live{}, line: line{kept: map[string]*bidder{}}}
	r.control = supervise.NewControl(Groups(cfg.Self), cfg.Name)
	if err = r.recover(ctx); err == nil {
		r.spares, err = spare.New(dir, makeFolder)
	}
	if err != nil {
		return nil, fmt.Errorf("open runs: %w", err)
	}
	r.keeper.fill()
	r.wg.Go(r.lookOn)
	return r, nil
}

// errStopping answers orders that come while the Runner closes.
var errStopping = fmt.Errorf("%w: the node is stopping", task.ErrBroken)

// Close stops following the runs, which go on: the next Runner on the folder
// finds them. Those that have not been started yet, it starts.
func (r *Runner) Close() error {
	r.mu.Lock()
	if !r.closed {
		r.closed = true
		close(r.closing)
	}
	for _, x := range r.runs {
		x.detach()
	}
	going := len(r.runs)
	r.mu.Unlock()
	r.wg.Wait()
	r.keeper.close()
	if going > 0 {
		r.cfg.Log.Info("runs go on without the node, which finds them when it starts again", "runs", going)
	}
	return nil
}

// nodeStopped is the reason of runs that their node did not come to start.
const nodeStopped = "the node stopped before it could start the run"

// Follow yields the events of a run that come after number after, until it has
// ended. It gives [task.ErrNoRun] when this machine has never accepted the run.
func (r *Runner) Follow(ctx context.Context, run string, after uint64, yield func(*task.Event) error) error {
	return r.Events(ctx, run, after, true, yield)
}

// Events does what Follow does, and without follow ends at the newest event.
func (r *Runner) Events(ctx context.Context, run string, after uint64, follow bool, yield func(*task.Event) error) error {
	j, err := r.journal(ctx, run)
	if err != nil {
		return err
	}
	return read(ctx, j, after, follow, yield)
}

// read yields what is in a journal but for what only this machine needs.
func read(ctx context.Context, j *journal.Journal, after uint64, follow bool, yield func(*task.Event) error) error {
	return j.Read(ctx, after, follow, func(e *task.Event) error {
		e.Place = 0
		return yield(e)
	})
}

// journal returns the journal of a run that has been accepted.
func (r *Runner) journal(ctx context.Context, run string) (*journal.Journal, error) {
	x, err := r.going(ctx, run)
	switch {
	case err == nil:
		return x.journal, nil
	case errors.Is(err, task.ErrNoRun) && task.ValidID(run):
		return r.revive(ctx, run)
	}
	return nil, err
}

// going returns a run that has not ended.
func (r *Runner) going(ctx context.Context, run string) (*live, error) {
	r.mu.Lock()
	x := r.runs[run]
	r.mu.Unlock()
	if x == nil {
		return nil, task.ErrNoRun
	}
	select {
	case <-x.ready:
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	if x.err != nil {
		return nil, task.ErrNoRun
	}
	return x, nil
}

// Cancel asks a run to end: it gets SIGTERM, and SIGKILL after the grace time,
// or at once with force. A run that has ended is no error.
func (r *Runner) Cancel(ctx context.Context, run string, force bool) error {
	x, err := r.going(ctx, run)
	if errors.Is(err, task.ErrNoRun) {
		_, err := r.journal(ctx, run)
		return err
	}
	if err != nil {
		return err
	}
	x.stop(&end{state: task.Cancelled, reason: "cancelled by its submitter"}, force)
	return nil
}

// Settle stores what the submitter has signed about a run that is here or was.
func (r *Runner) Settle(ctx context.Context, run string, entries []*wire.Entry) error {
	from, err := r.Submitter(ctx, run)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if e.Topic != run || e.Author != from {
			return fmt.Errorf("settle %s: an entry of another run or author", run)
		}
	}
	if err := r.settleable(from); err != nil {
		return fmt.Errorf("settle %s: %w", run, err)
	}
	fresh, err := r.cfg.Ledger.Accept(ctx, entries...)
	if err != nil {
		return fmt.Errorf("settle %s: %w", run, err)
	}
	r.grew(from, fresh...)
	return nil
}

// Submitter returns who has submitted a run that this machine has accepted.
// Nobody else may follow, feed or stop it.
func (r *Runner) Submitter(ctx context.Context, run string) (identity.ID, error) {
	if x, err := r.going(ctx, run); err == nil {
		return x.from, nil
	}
	p, err := r.past(ctx, run)
	if err != nil {
		return identity.ID{}, err
	}
	if p.accepted == nil {
		return identity.ID{}, task.ErrNoRun
	}
	return p.submitter, nil
}

// Held returns what runs hold of the machine now.
func (r *Runner) Held() []Use {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.heldLocked()
}

// Taken returns how many runs the Runner has taken.
func (r *Runner) Taken() uint32 {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.taken
}

func (r *Runner) heldLocked() []Use {
	var out []Use
	for _, x := range r.runs {
		if x.use.Run != "" {
			out = append(out, x.use)
		}
	}
	for _, b := range r.line.kept {
		out = append(out, b.use)
	}
	return out
}
