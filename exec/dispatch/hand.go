package dispatch

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"

	"github.com/balanceai/balance/exec/blob"
	"github.com/balanceai/balance/exec/task"
	"github.com/balanceai/balance/mesh/identity"
	"github.com/balanceai/balance/mesh/wire"
)

// A node that will sleep gives its runs into the custody of one that does not,
// which submits them and sees them through: it alone decides for the run from
// then on. That it was given is in the ledger before anything is sent. So a run
// has one dispatcher at any time: the giver takes it back only where the other one
// has certainly not got it, or says that it does not take it.

// Custodian takes runs into custody: this machine or, by the task protocol,
// another one. Its errors tell as those of an [Executor] do how far the request
// has got.
type Custodian interface {
	// Keep takes a run. Again is no mistake.
	Keep(ctx context.Context, h task.Handing) error
	// CancelKept asks a run that it has taken to end.
	CancelKept(ctx context.Context, run string) error
}

// handing is a run that is on its way to its custodian.
type handing struct {
	d       *Dispatcher
	id      string
	spec    task.Spec
	secrets task.Secrets
	to      identity.ID
	entries []*wire.Entry // of this node, about the run
	sent    bool          // the custodian may have it

	stop context.CancelFunc
	wake chan struct{}
	done chan struct{} // closed when it is known who has it
	back error         // why this node has it

	mu        sync.Mutex
	cancelled bool // the ledger says so
	there     bool // somebody has it, who is asked to cancel it from now on
}

// Hand submits a run by giving it to another node of this node's owner. It returns
// when that one has it, and back is nil, or when this node has taken it back because
// of back. Where ctx ends before, neither is known, and the run is brought there
// all the same.
func (d *Dispatcher) Hand(ctx context.Context, spec task.Spec, secrets task.Secrets, to identity.ID) (run string, back, err error) {
	if err := d.check(&spec); err != nil {
		return "", nil, err
	}
	if err := secrets.Check(&spec); err != nil {
		return "", nil, err
	}
	h := d.newHanding(task.NewID(), spec, secrets, to)
	h.entries, err = d.cfg.Ledger.Append(ctx, task.Draft{Topic: h.id, Kind: task.KindHand, Record: task.Hand{To: to, Spec: spec}})
	if err != nil {
		return "", nil, fmt.Errorf("submit: %w", err)
	}
	d.hand(h)
	select {
	case <-h.done:
		return h.id, h.back, nil
	case <-ctx.Done():
		return h.id, nil, nil
	}
}

func (d *Dispatcher) newHanding(id string, spec task.Spec, secrets task.Secrets, to identity.ID) *handing {
	return &handing{d: d, id: id, spec: spec, secrets: secrets, to: to, wake: make(chan struct{}, 1), done: make(chan struct{})}
}

// hand brings a run to its custodian. After Close the next life does.
func (d *Dispatcher) hand(h *handing) {
	ctx, stop := context.WithCancel(context.Background())
	h.stop = stop
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.closed {
		stop()
		close(h.done)
		return
	}
	d.handings[h.id] = h
	d.drivers.Go(func() {
		defer close(h.done)
		defer stop()
		h.bring(ctx)
		d.mu.Lock()
		defer d.mu.Unlock()
		delete(d.handings, h.id)
	})
}

// bring asks the custodian until it is known who has the run.
func (h *handing) bring(ctx context.Context) {
	for delay := h.d.times.retryMin; ctx.Err() == nil; delay = min(2*delay, h.d.times.lost) {
		err := h.d.cfg.Custodian(h.to).Keep(ctx, task.Handing{Run: h.id, From: h.d.cfg.Self, Entries: h.entries, Secrets: h.secrets})
		var refusal *task.Refusal
		unsent := errors.Is(err, task.ErrUnreachable)
		switch {
		case err == nil:
			h.cancelGiven(ctx)
			return
		case errors.As(err, &refusal), unsent && !h.sent:
			h.takeBack(ctx, err)
			return
		}
		h.sent = h.sent || !unsent
		h.d.cfg.Log.Warn("a run is not in custody yet", "run", h.id, "node", h.to.Short(), "err", err)
		pause(ctx, h.wake, delay)
	}
}

// takeBack has this node dispatch the run.
func (h *handing) takeBack(ctx context.Context, why error) {
	h.d.cfg.Log.Warn("a run is not in custody", "run", h.id, "node", h.to.Short(), "err", why)
	h.back = why
	for delay := h.d.times.retryMin; ctx.Err() == nil; delay = min(2*delay, h.d.times.retryMax) {
		err := h.d.submitAs(ctx, h.id, task.Submit{Spec: h.spec}, h.secrets)
		if err == nil {
			break
		}
		h.d.cfg.Log.Error("cannot take a run back", "run", h.id, "err", err)
		pause(ctx, h.wake, delay)
	}
	if h.arrived() { // a later life finds that in the ledger
		if err := h.d.cancel(ctx, h.id, false); err != nil && !errors.Is(err, ErrOver) {
			h.d.cfg.Log.Error("cannot cancel a run that was taken back", "run", h.id, "err", err)
		}
	}
}

// cancelHanding cancels a run that is on its way, as soon as somebody has it. It
// reports whether it is.
func (d *Dispatcher) cancelHanding(ctx context.Context, id string) (bool, error) {
	d.mu.Lock()
	h := d.handings[id]
	d.mu.Unlock()
	if h == nil {
		return false, nil
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.there || h.cancelled {
		return h.cancelled, nil
	}
	_, err := d.cfg.Ledger.Append(ctx, task.Draft{Topic: id, Kind: task.KindCancel, Record: task.Cancel{Reason: cancelReason}})
	h.cancelled = err == nil
	return true, err
}

// arrived tells that somebody has the run, and reports whether it was cancelled on
// its way.
func (h *handing) arrived() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.there = true
	return h.cancelled
}

// cancelGiven has its custodian cancel the run, if that was asked for on its way.
func (h *handing) cancelGiven(ctx context.Context) {
	if !h.arrived() {
		return
	}
	for delay := h.d.times.retryMin; ctx.Err() == nil; delay = min(2*delay, h.d.times.lost) {
		err := h.d.cfg.Custodian(h.to).CancelKept(ctx, h.id)
		if err == nil || errors.Is(err, task.ErrNoRun) {
			return
		}
		pause(ctx, h.wake, delay)
	}
}

// handAgain takes up a run of an earlier life that may not have got to its
// custodian.
func (d *Dispatcher) handAgain(ctx context.Context, st task.Status) error {
	entries, err := d.cfg.Ledger.Entries(ctx, st.ID)
	if err != nil {
		return err
	}
	for i, e := range entries {
		var r task.Hand
		if e.Author != d.cfg.Self || e.Kind != task.KindHand {
			continue
		}
		if err := wire.Unmarshal(e.Payload, &r); err != nil {
			return err
		}
		h := d.newHanding(st.ID, r.Spec, nil, r.To)
		h.entries, h.sent = entries[i:i+1], true // for all that is known
		h.cancelled = slices.ContainsFunc(entries, func(e *wire.Entry) bool { return e.Author == d.cfg.Self && e.Kind == task.KindCancel })
		d.hand(h)
		return nil
	}
	return task.ErrNoRun
}

// Keep implements [Custodian]: it takes a run of another node's, with its inputs,
// and submits it. It is the caller who knows whether that node may ask this.
func (d *Dispatcher) Keep(ctx context.Context, h task.Handing) error {
	_, err, _ := d.keeping.Do(h.Run, func() (any, error) { return nil, d.keep(ctx, &h) })
	return err
}

func (d *Dispatcher) keep(ctx context.Context, h *task.Handing) error {
	given, spec, err := h.Check(d.cfg.Self)
	if err != nil {
		return notKept("%v", err)
	}
	known, err := d.cfg.Ledger.Entries(ctx, h.Run)
	if err != nil {
		return err
	}
	for _, e := range known {
		if e.Author == d.cfg.Self && e.Kind == task.KindSubmit {
			if st, err := task.Fold(h.Run, known); err != nil || st.For != h.From {
				return notKept("there is another run with its id")
			}
			return nil
		}
	}
	if err := errors.Join(d.check(&spec), h.Secrets.Check(&spec)); err != nil {
		if errors.Is(err, ErrClosed) {
			return err
		}
		return notKept("%v", err)
	}
	for _, in := range spec.Inputs {
		limits := blob.Limits{Size: in.Size, Files: maxInputFiles}
		if _, err := d.cfg.Blobs.Fetch(ctx, in.Tree, limits, d.cfg.Source(h.From)); err != nil {
			return notKept("input %s: %v", in.Path, err)
		}
	}
	return d.submitAs(ctx, h.Run, task.Submit{Spec: spec, For: h.From, Hand: given}, h.Secrets, h.Entries...)
}

// maxInputFiles bounds the files of an input, as machines do.
const maxInputFiles = 250_000

func notKept(format string, args ...any) error {
	return &task.Refusal{Reasons: []task.Reason{task.Reasonf("custody", "does not take the run into custody: "+format, args...)}}
}

// CancelKept implements [Custodian].
func (d *Dispatcher) CancelKept(ctx context.Context, run string) error {
	err := d.Cancel(ctx, run, false)
	if errors.Is(err, ErrOver) {
		return nil
	}
	return err
}
