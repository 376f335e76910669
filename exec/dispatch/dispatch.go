// Package dispatch is the submitter's side of a run: it chooses a machine,
// follows the run there, and brings back its end.
//
// A run that was submitted goes on without the one who submitted it: a closed
// terminal ends nothing. What the dispatcher decides is in the ledger before
// anybody acts on it. What a machine says is in the run's journal before anybody
// here sees it, and its account of the end is in the ledger, signed by that
// machine. So a dispatcher that was killed goes on where it was
// ([Dispatcher.Resume]) and promises:
//
//   - Each run reaches a final state, or is lost for as long as its machine is.
//   - A run is started on another machine only after the first has refused it,
//     or could not be sent the order at all. What may have been accepted is
//     waited for: a second start is worse than a late one. Where the run may be
//     retried, that wait ends with the lease that the machine had; see package
//     lease.
//   - Each event of the machine is shown once, in order, across broken
//     connections and restarts on both sides.
//   - The machine's word counts. Lost is what the submitter believes until the
//     machine is back.
//
// Each run that is not over has a goroutine, its driver, which alone decides for
// it. Calls of users reach the driver through the run's lock.
package dispatch

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/singleflight"

	"github.com/balanceai/balance/exec/blob"
	"github.com/balanceai/balance/exec/fleet"
	"github.com/balanceai/balance/exec/place"
	"github.com/balanceai/balance/exec/policy"
	"github.com/balanceai/balance/exec/spare"
	"github.com/balanceai/balance/exec/task"
	"github.com/balanceai/balance/mesh/identity"
	"github.com/balanceai/balance/mesh/wire"
)

// Executor runs orders: on this machine or, by the task protocol, on another.
// [task.ErrUnreachable] means that nothing was sent to the machine. After any
// error that is not an answer of the machine, it may have received the request.
type Executor interface {
	// Reserve keeps what a run needs until its order comes: it yields a
	// [task.EventHeld] when it does, and returns when it does not any more.
	Reserve(ctx context.Context, bid task.Bid, yield func(*task.Event) error) error
	// Start runs an order and yields its events until it has finished. It
	// attaches to a run that is there. A *[task.Refusal] is the machine's no.
	Start(ctx context.Context, order task.Order, yield func(*task.Event) error) error
	// Follow yields the events that come after number after.
	Follow(ctx context.Context, run string, after uint64, yield func(*task.Event) error) error
	// Stdin gives the run its standard input from a byte offset on, until it
	// ends. *[task.OffsetError] tells another offset to send from.
	Stdin(ctx context.Context, run string, offset int64, in io.Reader) error
	// Resize tells the run the size of its terminal.
	Resize(ctx context.Context, run string, size task.Terminal) error
	// Files writes what is at a path of its work folder to w, as a tar archive.
	Files(ctx context.Context, run, path string, w io.Writer) error
	Cancel(ctx context.Context, run string, force bool) error
	// Go lets a rank of a gang start.
	Go(ctx context.Context, run string) error
	// Renew keeps the lease of an attempt; see package lease.
	Renew(ctx context.Context, run string, attempt int, seen uint64) (next uint64, err error)
	// Settle hands over the submitter's entries at the end.
	Settle(ctx context.Context, run string, entries []*wire.Entry) error
}

// Ledger keeps signed entries. What one call of Append or Record is given is
// stored all or none.
type Ledger interface {
	Record(ctx context.Context, theirs []*wire.Entry, drafts ...task.Draft) ([]*wire.Entry, error)
	Append(ctx context.Context, drafts ...task.Draft) ([]*wire.Entry, error)
	Accept(ctx context.Context, entries ...*wire.Entry) (fresh []*wire.Entry, err error)
	Entries(ctx context.Context, topic string) ([]*wire.Entry, error)
}

// Blobs keeps the files that runs leave.
type Blobs interface {
	Fetch(ctx context.Context, tree wire.Hash, limits blob.Limits, from blob.Source) (int64, error)
}

// Config is what a dispatcher works with. LostAfter, Now and Log may be zero.
type Config struct {
	Self identity.ID
	From policy.Asker // Self, as terms of others see it
	Dir  string       // for the journals: a file for each run

	Ledger   Ledger
	Runs     func(context.Context) ([]task.Status, error) // this node's: all that are not final, and a hundred of the newest others
	View     func() []fleet.Node
	Executor func(identity.ID) Executor
	// Custodian returns another node that takes runs into custody.
	Custodian func(identity.ID) Custodian

	Blobs   Blobs
	Source  func(identity.ID) blob.Source // of a machine's blobs
	Outputs blob.Limits                   // on what a run brings back

	LostAfter time.Duration // without contact a run is lost; 15 s
	Now       func() time.Time
	Log       *slog.Logger
}

// times are how long the dispatcher waits for what.
type times struct {
	connect  time.Duration // for a machine that was never sent the order
	retryMin time.Duration // before the second request of a kind, then doubled
	retryMax time.Duration
	lost     time.Duration // at most between requests to a machine that is out of reach
	gang     time.Duration // before a gang is tried again, then doubled
	probe    time.Duration // for the answers of machines that are asked before one is chosen
	offer    time.Duration // for what a machine offers that has just come up
	look     time.Duration // between looks of a run that waits at which machines could take it
}

// Dispatcher dispatches this node's runs. It is safe for concurrent use.
type Dispatcher struct {
	cfg   Config
	times times
	spare *spare.Pool // of journals
	line  line

	mu       sync.Mutex
	runs     map[string]*run // those with a driver
	handings map[string]*handing
	closed   bool
	drivers  sync.WaitGroup

	keeping singleflight.Group // runs that are being taken into custody

	ranking sync.Mutex // guards what follows
	index   *place.Index
	recent  place.Recent
	pledges pledges
	pace    pace

	past sync.Mutex // held while the journal of a run without a driver is opened
}

// Errors for errors.Is.
var (
	ErrClosed = errors.New("this node is stopping")
	ErrOver   = errors.New("the run is over")
)

// New returns a dispatcher. [Dispatcher.Resume] takes up the runs of an earlier
// life.
func New(cfg Config) (*Dispatcher, error) {
	if err := os.MkdirAll(cfg.Dir, 0o700); err != nil {
		return nil, fmt.Errorf("dispatcher: %w", err)
	}
	cfg.LostAfter = cmp.Or(cfg.LostAfter, 15*time.Second)
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	journals, err := spare.New(cfg.Dir, makeJournal)
	if err != nil {
		return nil, fmt.Errorf("dispatcher: %w", err)
	}
	return &Dispatcher{
		cfg:   cfg,
		spare: journals,
		line:  line{kinds: map[string][]*run{}},
		times: times{connect: 2 * time.Second, retryMin: 100 * time.Millisecond, retryMax: 5 * time.Second, lost: time.Minute, gang: time.Second, probe: time.Second, offer: 2 * time.Second, look: 2 * time.Second},
		runs:  map[string]*run{}, handings: map[string]*handing{},
		index: place.NewIndex(place.NewWorkload(nil)),
	}, nil
}

// rank returns the verdict on the machines that are not to be skipped, as
// [place.Index.Choose] does.
func (d *Dispatcher) rank(spec *task.Spec, limit int, skip func(identity.ID) bool) (task.Ranking, int) {
	d.ranking.Lock()
	defer d.ranking.Unlock()
	return d.rankLocked(spec, limit, skip)
}

// take does so for a run, and counts on the best machine to hold what it needs.
func (d *Dispatcher) take(r *run) (task.Ranking, int) {
	d.ranking.Lock()
	defer d.ranking.Unlock()
	d.pledges.drop(r.id)
	ranking, more := d.rankLocked(&r.spec, maxVerdicts, r.hasTried)
	if fit := ranking.Best(); len(fit) > 0 {
		d.pledges.add(r.id, r.spec.Needs.Held(), d.cfg.From.Owner, fit[0], d.cfg.Now())
		d.pace.own++
	}
	return ranking, more
}

// counts tells that a machine takes a run without being chosen by take.
func (d *Dispatcher) counts() {
	d.ranking.Lock()
	defer d.ranking.Unlock()
	d.pace.own++
}

// left tells that the machine of a run does not hold anything for it any more.
func (d *Dispatcher) left(r *run) {
	d.ranking.Lock()
	defer d.ranking.Unlock()
	d.pledges.drop(r.id)
}

func (d *Dispatcher) rankLocked(spec *task.Spec, limit int, skip func(identity.ID) bool) (task.Ranking, int) {
	now := d.cfg.Now()
	d.index.Update(d.pledges.apply(d.cfg.View(), now))
	d.pace.saw(d.index.Taken(), now)
	return d.index.Choose(spec, d.cfg.From, now, limit, skip)
}

// judge returns the verdict on a machine as it has just said that it is.
func (d *Dispatcher) judge(spec *task.Spec, n *fleet.Node) task.Verdict {
	d.ranking.Lock()
	defer d.ranking.Unlock()
	return d.index.Judge(spec, d.cfg.From, n, d.cfg.Now())
}

// learn takes what a run asks for into what runs usually do.
func (d *Dispatcher) learn(n task.Needs) {
	d.ranking.Lock()
	defer d.ranking.Unlock()
	if d.recent.Add(n) {
		d.index.Expect(d.recent.Workload())
	}
}

func makeJournal(path string) error { return os.WriteFile(path, nil, 0o600) }

// Close stops following runs, which go on where they are, and waits until it
// has.
func (d *Dispatcher) Close() error {
	d.mu.Lock()
	d.closed = true
	for _, r := range d.runs {
		r.stop()
	}
	for _, h := range d.handings {
		h.stop()
	}
	d.mu.Unlock()
	d.drivers.Wait()
	return nil
}

// Submit places a run and returns its id. The inputs of the spec are in this
// node's blobs. When no machine fits, the run exists and waits for one, or has
// ended as unplaced, as the spec says.
// What becomes of it is in its events.
func (d *Dispatcher) Submit(ctx context.Context, spec task.Spec) (string, error) {
	return d.SubmitWith(ctx, spec, nil)
}

// SubmitWith submits a run that has secrets. Their values are kept in memory
// until the run is over, and go to its machine alone. A dispatcher that was
// started again does not have them: a run that has not reached a machine by then,
// or that would be started on another one, ends as unplaced.
func (d *Dispatcher) SubmitWith(ctx context.Context, spec task.Spec, secrets task.Secrets) (string, error) {
	if err := d.check(&spec); err != nil {
		return "", err
	}
	if err := secrets.Check(&spec); err != nil {
		return "", err
	}
	d.hear(ctx, &spec)
	id := task.NewID()
	if err := d.submitAs(ctx, id, task.Submit{Spec: spec}, secrets); err != nil {
		return "", err
	}
	return id, nil
}

// hear waits a moment where no machine fits, and one that has just come up has not
// said yet what it offers: that is on its way.
func (d *Dispatcher) hear(ctx context.Context, spec *task.Spec) {
	for end := time.Now().Add(d.times.offer); spec.Wait == 0 && ctx.Err() == nil && time.Now().Before(end); sleep(ctx, 20*time.Millisecond) {
		if !slices.ContainsFunc(d.cfg.View(), func(n fleet.Node) bool { return n.Offer == nil && n.State == fleet.Up }) {
			return
		}
		ranking, _ := d.rank(spec, maxVerdicts, nil)
		if len(ranking.Best()) > 0 || !slices.ContainsFunc(ranking, unsaid) {
			return
		}
	}
}

// unsaid reports whether nothing is against a machine but that it has not said
// what it offers.
func unsaid(v task.Verdict) bool {
	return len(v.Reasons) == 1 && v.Reasons[0].Rule == place.RuleOffer
}

// submitAs submits a run under an id. Given are another node's entries that belong
// to it.
func (d *Dispatcher) submitAs(ctx context.Context, id string, s task.Submit, secrets task.Secrets, given ...*wire.Entry) error {
	if err := d.spare.Take(d.path(id)); err != nil {
		return fmt.Errorf("submit: %w", err)
	}
	r, err := d.newRun(id, s.Spec)
	if err != nil {
		return fmt.Errorf("submit: %w", err)
	}
	r.secrets = secrets
	if err := r.submit(ctx, s, given); err != nil {
		_ = r.journal.Close()
		os.Remove(d.path(r.id))
		return fmt.Errorf("submit: %w", err)
	}
	d.drive(r)
	return nil
}

// Plan returns what [Dispatcher.Submit] would choose from.
func (d *Dispatcher) Plan(_ context.Context, spec task.Spec) (task.Ranking, error) {
	if err := d.check(&spec); err != nil {
		return nil, err
	}
	ranking, _ := d.rank(&spec, 0, nil)
	return ranking, nil
}

// check refuses what cannot run anywhere, and writes the id of the one machine
// that may run it into the spec.
func (d *Dispatcher) check(spec *task.Spec) error {
	d.mu.Lock()
	closed := d.closed
	d.mu.Unlock()
	if closed {
		return ErrClosed
	}
	if err := errors.Join(spec.Check(), spec.CheckGang()); err != nil {
		return err
	}
	if spec.Node == "" {
		return nil
	}
	id, err := place.Pin(d.cfg.View(), spec.Node)
	if err != nil {
		return err
	}
	spec.Node = id.String()
	return nil
}

// NodeUp tells that a machine can be reached again: its runs are asked after at
// once.
func (d *Dispatcher) NodeUp(id identity.ID) { d.tell(id, false) }

// NodeDown tells that a machine is down: its runs whose connection is broken
// are lost.
func (d *Dispatcher) NodeDown(id identity.ID) { d.tell(id, true) }

func (d *Dispatcher) tell(id identity.ID, down bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, r := range d.runs {
		r.nodeIs(id, down)
	}
	for _, h := range d.handings {
		if h.to == id && !down {
			poke(h.wake)
		}
	}
}

// drive starts the driver of a run that is in the ledger. After Close the run
// waits for the next life.
func (d *Dispatcher) drive(r *run) {
	ctx, stop := context.WithCancel(context.Background()) // the run's own, not its submitter's
	r.stop = stop
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.closed {
		stop()
		_ = r.journal.Close() // it is empty, or as it was
		return
	}
	d.runs[r.id] = r
	d.drivers.Go(func() {
		r.drive(ctx)
		stop()
		d.spare.Add()
		d.mu.Lock()
		defer d.mu.Unlock()
		delete(d.runs, r.id)
	})
}

// active returns a run that has a driver, or nil.
func (d *Dispatcher) active(id string) *run {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.runs[id]
}

func (d *Dispatcher) path(id string) string { return filepath.Join(d.cfg.Dir, id+journalSuffix) }
