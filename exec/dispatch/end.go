package dispatch

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/balanceai/balance/exec/task"
	"github.com/balanceai/balance/mesh/wire"
)

// finish brings back what the run left, countersigns the machine's account, and
// tells the end.
func (r *run) finish(ctx context.Context) error {
	if err := r.fetch(ctx, r.end.Outputs); err != nil {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		message := fmt.Sprintf("the outputs did not come back from %s, where they still are: %v", r.placed.Name, err)
		if err := r.insist(ctx, "note", func(context.Context) error {
			return r.log(task.Event{Type: task.EventNote, Message: message})
		}); err != nil {
			return err
		}
	}
	if err := r.insist(ctx, "countersign", r.countersign); err != nil {
		return err
	}
	return r.insist(ctx, "end", func(context.Context) error { return r.logEnd(r.end.status()) })
}

// countersign writes the receipt, once.
func (r *run) countersign(ctx context.Context) error {
	if r.countersigned {
		return nil
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	err := r.writeLocked(ctx, r.receipt(r.end))
	r.countersigned = err == nil
	return err
}

func (r *run) receipt(end *ending) task.Draft {
	return task.Draft{Topic: r.id, Kind: task.KindReceipt, Record: task.Receipt{Attempt: r.placed.Attempt, Finished: end.entry.Hash()}}
}

// fetch brings the run's output files, if it left some. It gives up when nothing
// has come for a while.
func (r *run) fetch(ctx context.Context, tree wire.Hash) error {
	if tree.IsZero() || r.placed.Node == r.d.cfg.Self {
		return nil
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	patience := r.d.cfg.LostAfter
	idle := time.AfterFunc(patience, func() { cancel(fmt.Errorf("nothing came for %v", patience)) })
	defer idle.Stop()
	from := r.d.cfg.Source(r.placed.Node)
	_, err := r.d.cfg.Blobs.Fetch(ctx, tree, r.d.cfg.Outputs, func(ctx context.Context, h wire.Hash, offset int64) (io.ReadCloser, error) {
		body, err := from(ctx, h, offset)
		if err != nil {
			return nil, err
		}
		return progress{body, func() { idle.Reset(patience) }}, nil
	})
	return err
}

// progress tells when bytes come.
type progress struct {
	io.ReadCloser
	came func()
}

func (p progress) Read(b []byte) (int, error) {
	n, err := p.ReadCloser.Read(b)
	if n > 0 {
		p.came()
	}
	return n, err
}

// endNowhere tells the end of a run that no machine has.
func (r *run) endNowhere(ctx context.Context) error {
	st, err := r.d.nowhere(ctx, r.id)
	if err != nil {
		return err
	}
	return r.logEnd(st)
}

// logEnd writes the last event.
func (r *run) logEnd(st task.Status) error { return r.log(endEvent(st)) }

// endEvent is the event that says how a run has ended.
func endEvent(st task.Status) task.Event {
	e := task.Event{Type: task.EventFinished, State: st.State, ExitCode: st.ExitCode, Message: st.Reason, Time: st.Finished}
	if !st.Outputs.IsZero() {
		e.Outputs = st.Outputs.String()
	}
	return e
}

// settle gives the machine this node's last entries, and keeps at it until it
// has them, in this life or a later one.
func (r *run) settle(ctx context.Context) {
	if r.placed.Node.IsZero() {
		return
	}
	exec := r.d.cfg.Executor(r.placed.Node)
	for delay := r.d.times.retryMin; ; delay = min(2*delay, r.d.times.lost) {
		err := r.settleOnce(ctx, exec)
		if err == nil || errors.Is(err, task.ErrNoRun) { // a machine may forget what has ended
			os.Remove(r.d.unsettled(r.id))
			return
		}
		r.d.cfg.Log.Debug("receipt is not delivered yet", "run", r.id, "node", r.placed.Name, "err", err)
		if err := os.WriteFile(r.d.unsettled(r.id), nil, 0o600); err != nil {
			r.d.cfg.Log.Error("receipt may not reach the machine", "run", r.id, "err", err)
		}
		if ctx.Err() != nil {
			return
		}
		r.wait(ctx, delay)
	}
}

const unsettledSuffix = ".unsettled"

// unsettled is the path of the file that says that a run's machine does not
// have the receipt.
func (d *Dispatcher) unsettled(id string) string {
	return filepath.Join(d.cfg.Dir, id+unsettledSuffix)
}

// unsettledRuns returns the runs that have such a file.
func (d *Dispatcher) unsettledRuns() ([]string, error) {
	files, err := os.ReadDir(d.cfg.Dir)
	if err != nil {
		return nil, err
	}
	var out []string
	for _, f := range files {
		if id, ok := strings.CutSuffix(f.Name(), unsettledSuffix); ok && task.ValidID(id) {
			out = append(out, id)
		}
	}
	return out, nil
}

func (r *run) settleOnce(ctx context.Context, exec Executor) error {
	entries, err := r.own(ctx)
	if err != nil {
		return err
	}
	return exec.Settle(ctx, r.id, entries)
}
