package dispatch

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/balanceai/balance/exec/journal"
	"github.com/balanceai/balance/exec/task"
	"github.com/balanceai/balance/mesh/wire"
)

// Bounds on what a machine can make this node keep of a run.
const (
	maxEntries  = 16        // in one event
	maxMessage  = 4096      // bytes
	maxOutput   = 128 << 10 // bytes, in one event; machines send a quarter of that
	maxReasons  = 32        // of a refusal
	maxReason   = 512       // bytes
	eventCost   = 256       // bytes that an event takes besides its output
	leastOutput = task.MiB
	otherEvents = 16 << 20 // bytes of events that are no output
)

// room is for a machine's events in the journal of a run. Its output goes into
// parts, of which the newest ones are kept (see package journal), where the machine
// begins one, or where the present one is full.
type room struct {
	part  int64 // bytes that one may take: twice those of an output as long as the run may keep, as short lines cost more than their length
	left  int64 // of the present one
	other int64 // for all else
}

func newRoom(spec *task.Spec) room {
	output := spec.Limits.Output
	if output == 0 {
		output = task.DefaultOutput
	}
	output = min(max(output, leastOutput), task.TiB)
	if spec.Gang != nil && spec.Member == nil { // all ranks write into its journal
		output *= task.Bytes(spec.Gang.Nodes)
	}
	part := 2 * int64(output) / (journal.Parts + 2)
	return room{part: part, left: 2 * part, other: otherEvents}
}

// take has an event take its room, or begin a part. It reports whether there is
// any.
func (r *room) take(e *task.Event) bool {
	cost := eventCost + int64(len(e.Data)+len(e.Binary)+len(e.Message))
	if e.Type != task.EventOutput {
		r.other -= cost
		return r.other >= 0
	}
	if len(e.Data)+len(e.Binary) > maxOutput {
		return false
	}
	if e.Part = e.Part || cost > r.left; e.Part {
		r.left = r.part
	}
	r.left -= cost
	return true
}

// take takes an event from the machine: its entries go into the ledger, then
// the event into the journal. An event that was taken before is left out.
func (r *run) take(ctx context.Context, exec Executor, e *task.Event) error {
	r.contact, r.sent = true, true
	r.down.Store(false)
	r.leased.heard()
	if r.lost {
		if err := r.find(ctx); err != nil {
			return err
		}
	}
	if r.end != nil {
		return nil
	}
	entries, err := parseEntries(e.Entries)
	if err != nil {
		return err
	}
	if e.Type == task.EventFinished {
		return r.takeEnd(ctx, entries)
	}
	if err := r.store(ctx, entries, e.Type == task.EventRecord); err != nil {
		return err
	}
	if e.Seq <= r.source {
		return nil
	}
	if e.Type == task.EventRecord {
		r.source = e.Seq
		return nil
	}
	if err := r.show(e); err != nil {
		return err
	}
	r.source = e.Seq
	if e.Type == task.EventStarted {
		r.begun()
		_ = r.tellCancel(ctx, exec) // what could not be told before, as the machine did not know the run
	}
	return nil
}

// begun lets standard input through, once there is somebody to read it or
// nobody ever will be.
func (r *run) begun() {
	select {
	case <-r.started:
	default:
		close(r.started)
	}
}

func parseEntries(list [][]byte) ([]*wire.Entry, error) {
	if len(list) > maxEntries {
		return nil, fmt.Errorf("%d entries with one event", len(list))
	}
	out := make([]*wire.Entry, len(list))
	for i, b := range list {
		var err error
		if out[i], err = wire.ParseEntry(b); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// takeEnd takes the machine's account of the end. Where there are no files to
// bring, the receipt goes into the ledger with it.
func (r *run) takeEnd(ctx context.Context, entries []*wire.Entry) error {
	end, err := r.account(entries)
	if err != nil {
		return err
	}
	if err = r.stored(); err == nil && r.retries(end) {
		if err = r.accept(ctx, r.placed, entries); err == nil {
			return &loss{reason: r.placed.Name + " has lost it: " + shorten(end.Reason, maxReason), told: true}
		}
	} else if err == nil {
		err = r.storeEnd(ctx, end, entries)
	}
	if err != nil {
		r.anew = true
		return err
	}
	r.end = end
	return nil
}

func (r *run) storeEnd(ctx context.Context, end *ending, entries []*wire.Entry) error {
	if !end.Outputs.IsZero() {
		return r.accept(ctx, r.placed, entries)
	}
	if err := r.check(r.placed, entries); err != nil {
		return err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	own, err := r.d.cfg.Ledger.Record(ctx, entries, r.receipt(end))
	if err == nil && r.mine != nil {
		r.mine = append(r.mine, own...)
	}
	r.countersigned = err == nil
	return err
}

// store puts the machine's entries into the ledger. Behind does that while the
// run's output goes on; what comes next for the ledger waits for it. Where it
// fails, or this node ends before it is done, the machine is asked for all that
// it has said once more.
func (r *run) store(ctx context.Context, entries []*wire.Entry, behind bool) error {
	if len(entries) == 0 {
		return nil
	}
	err := r.stored()
	switch {
	case err == nil && behind:
		done := make(chan error, 1)
		from := r.placed
		go func() { done <- r.accept(ctx, from, entries) }()
		r.storing = done
	case err == nil:
		err = r.accept(ctx, r.placed, entries)
	}
	r.anew = r.anew || err != nil
	return err
}

// stored waits until what store has begun is done.
func (r *run) stored() error {
	if r.storing == nil {
		return nil
	}
	err := <-r.storing
	r.storing = nil
	return err
}

// machineKinds are what a machine writes in the topic of a run. Anything else of
// its would speak for the submitter.
var machineKinds = []string{task.KindAccepted, task.KindRefused, task.KindStarted, task.KindFinished}

// accept stores a machine's entries about this run.
func (r *run) accept(ctx context.Context, from task.Place, entries []*wire.Entry) error {
	if err := r.check(from, entries); err != nil {
		return err
	}
	_, err := r.d.cfg.Ledger.Accept(ctx, entries...)
	return err
}

// check refuses what a machine may not say of this run.
func (r *run) check(from task.Place, entries []*wire.Entry) error {
	for _, e := range entries {
		if e.Author != from.Node || e.Topic != r.id || !slices.Contains(machineKinds, e.Kind) {
			return fmt.Errorf("entry %s of %s in %s: not what %s can say of this run", e.Kind, e.Author.Short(), e.Topic, from.Name)
		}
	}
	return nil
}

// inOurWords is a machine's event as this node shows it; false for one that it
// does not.
func inOurWords(e *task.Event) (task.Event, bool) {
	out := task.Event{Type: e.Type, Time: e.Time}
	switch e.Type {
	case task.EventReady:
	case task.EventStarted:
		out.State = task.Running
	case task.EventOutput:
		out.Data, out.Binary, out.Offset, out.Part = e.Data, e.Binary, max(e.Offset, 0), e.Part
		if out.Stream = task.Stdout; e.Stream == task.Stderr {
			out.Stream = task.Stderr
		}
	case task.EventNote:
		out.Message = shorten(e.Message, maxMessage)
	default:
		return out, false // a newer program's
	}
	return out, true
}

// show writes a machine's event into the journal.
func (r *run) show(e *task.Event) error {
	out, ok := inOurWords(e)
	if !ok {
		return nil
	}
	out.Source = e.Seq
	if !r.room.take(&out) {
		if r.full {
			return nil
		}
		r.full = true
		out = task.Event{Type: task.EventNote, Source: e.Seq, Message: r.placed.Name + " sends more than the run may keep: the rest is left out"}
	}
	return r.log(out)
}

// ending is a machine's signed account of an attempt.
type ending struct {
	task.Finished
	entry *wire.Entry
}

func (e *ending) status() task.Status {
	return task.Status{State: e.State, ExitCode: &e.ExitCode, Reason: e.Reason, Finished: e.entry.Time(), Outputs: e.Outputs}
}

// account finds the machine's account of the attempt among its entries.
func (r *run) account(entries []*wire.Entry) (*ending, error) {
	for _, e := range entries {
		if e.Author != r.placed.Node || e.Kind != task.KindFinished {
			continue
		}
		end := &ending{entry: e}
		if err := wire.Unmarshal(e.Payload, &end.Finished); err != nil {
			return nil, fmt.Errorf("its account: %w", err)
		}
		if end.Attempt != r.placed.Attempt {
			continue
		}
		switch end.State {
		case task.Succeeded, task.Failed, task.Cancelled:
			return end, nil
		}
		return nil, fmt.Errorf("its account ends in state %q", end.State)
	}
	return nil, errors.New("it finished without a signed account")
}
