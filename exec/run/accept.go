package run

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/balanceai/balance/exec/isolate"
	"github.com/balanceai/balance/exec/lease"
	"github.com/balanceai/balance/exec/policy"
	"github.com/balanceai/balance/exec/supervise"
	"github.com/balanceai/balance/exec/task"
	"github.com/balanceai/balance/mesh/wire"
)

// Start runs an attempt and yields its events until it has ended. An attempt
// that this machine has accepted already is not started again: its events are
// yielded from the first one. A machine that does not run it says why with a
// [*task.Refusal].
//
// The run goes on when ctx ends or yield fails.
func (r *Runner) Start(ctx context.Context, o task.Order, yield func(*task.Event) error) error {
	w, err := r.check(&o)
	if err != nil {
		return invalid(err)
	}
	x, err := r.take(ctx, &o, w)
	if errors.Is(err, errAgain) {
		return r.Follow(ctx, o.Run, 0, yield)
	}
	if err != nil {
		return err
	}
	return read(ctx, x.journal, 0, true, yield)
}

// errAgain says that the attempt has been accepted before.
var errAgain = errors.New("accepted before")

// wish is what an order says.
type wish struct {
	spec   task.Spec
	submit wire.Hash
}

// check takes an order only from who has written its entries, and only for this
// machine. Signatures are left to [Ledger.Record].
func (r *Runner) check(o *task.Order) (wish, error) {
	if !task.ValidID(o.Run) {
		return wish{}, fmt.Errorf("run id %.64q", o.Run)
	}
	var w wish
	placed := false
	for _, e := range o.Entries {
		if e.Topic != o.Run || e.Author != o.From {
			return wish{}, errors.New("an entry of another run or author")
		}
		switch e.Kind {
		case task.KindSubmit:
			var s task.Submit
			if err := wire.Unmarshal(e.Payload, &s); err != nil {
				return wish{}, err
			}
			w = wish{s.Spec, e.Hash()}
		case task.KindPlace:
			var p task.Place
			if err := wire.Unmarshal(e.Payload, &p); err != nil {
				return wish{}, err
			}
			placed = placed || p.Attempt == o.Attempt && p.Node == r.cfg.Self
		}
	}
	switch {
	case w.submit.IsZero():
		return wish{}, errors.New("nobody has submitted the run")
	case !placed:
		return wish{}, fmt.Errorf("attempt %d is not placed on this machine", o.Attempt)
	}
	return w, w.spec.Check()
}

// take accepts an attempt, or finds the run that was started for it.
func (r *Runner) take(ctx context.Context, o *task.Order, w wish) (*live, error) {
	r.mu.Lock()
	if r.closed {
		r.mu.Unlock()
		return nil, errStopping
	}
	if x := r.runs[o.Run]; x != nil {
		r.mu.Unlock()
		return r.join(ctx, x, o, w)
	}
	x, life := newLive(r, o.Run)
	x.attempt, x.from, x.spec = o.Attempt, o.From, w.spec
	x.secrets = o.Secrets
	if length := w.spec.LeaseLength(); length > 0 {
		x.lease = lease.NewHolder(length)
	}
	r.runs[o.Run] = x
	r.wg.Add(1)
	r.mu.Unlock()

	// From here on the caller may leave: it must not decide what is half done.
	if err := r.accept(context.WithoutCancel(ctx), x, o, w); err != nil {
		x.err = err
		r.drop(x)
		close(x.ready)
		r.wg.Done()
		return nil, err
	}
	close(x.ready)
	go func() {
		defer r.wg.Done()
		x.run(life)
		r.keeper.fill()
		r.spares.Add()
	}()
	return x, nil
}

// drop forgets a run that has ended or was not accepted.
func (r *Runner) drop(x *live) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.runs, x.id)
	close(x.gone)
}

// join waits until it is known whether the run x is accepted.
func (r *Runner) join(ctx context.Context, x *live, o *task.Order, w wish) (*live, error) {
	select {
	case <-x.ready:
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	switch {
	case x.from != o.From:
		return nil, invalid(errOther)
	case x.attempt == o.Attempt:
		return x, x.err
	case x.err != nil: // it makes way
		return r.take(ctx, o, w)
	case o.Attempt > x.attempt && x.lease != nil:
		x.fence(o.Attempt)
		select {
		case <-x.gone:
			return r.take(ctx, o, w)
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	p, err := r.past(ctx, o.Run)
	if err != nil {
		return nil, err
	}
	return nil, r.refuse(ctx, o, p.own, otherAttempt(x.attempt))
}

var errOther = errors.New("the run is somebody else's")

// invalid refuses an order that means nothing, so that nothing is written.
func invalid(err error) *task.Refusal {
	return &task.Refusal{Reasons: []task.Reason{task.Reasonf("order", "the order is not valid: %v", err)}}
}

func otherAttempt(n int) task.Reason {
	return task.Reasonf("attempt", "has attempt %d of the run already", n)
}

// accept promises to run an attempt. The promise is durable when it returns.
func (r *Runner) accept(ctx context.Context, x *live, o *task.Order, w wish) error {
	p, err := r.past(ctx, o.Run)
	if err != nil {
		return err
	}
	if p.accepted != nil && p.submitter != o.From {
		return invalid(errOther)
	}
	if p.accepted != nil && p.accepted.Attempt == o.Attempt {
		return errAgain
	}
	if reasons, ok := p.refused[o.Attempt]; ok {
		return &task.Refusal{Reasons: reasons, Entries: p.own}
	}
	again := x.lease != nil && p.finished != nil && o.Attempt > p.accepted.Attempt
	if p.accepted != nil && !again {
		return r.refuse(ctx, o, p.own, otherAttempt(p.accepted.Attempt))
	}
	if err := o.Secrets.Check(&w.spec); err != nil {
		return r.refuse(ctx, o, p.own, task.Reasonf("secrets", "did not get what the run needs: %v", err))
	}
	if reasons := r.admit(x); len(reasons) > 0 {
		if slices.ContainsFunc(reasons, overQuota) {
			return refused(reasons...) // to write that down would be what there is a quota for
		}
		return r.refuse(ctx, o, p.own, reasons...)
	}
	if err := x.prepare(); err != nil {
		x.discard()
		return r.refuse(ctx, o, p.own, task.Reasonf("disk", "cannot make a folder for the run: %v", err))
	}
	if err := x.promise(ctx, o, w, p.own); err != nil {
		x.discard()
		return err
	}
	return nil
}

// promise writes that this machine runs the attempt.
func (x *live) promise(ctx context.Context, o *task.Order, w wish, own []*wire.Entry) error {
	entries, err := x.r.cfg.Ledger.Record(ctx, o.Entries, task.Draft{Topic: o.Run, Kind: task.KindAccepted, Record: task.Accepted{
		Attempt: o.Attempt, Submit: w.submit, Devices: x.grant.Devices, Policy: x.grant.Policy,
	}})
	if errors.Is(err, wire.ErrSignature) || errors.Is(err, wire.ErrFork) || errors.Is(err, wire.ErrGap) {
		return invalid(err)
	}
	if err != nil {
		return fmt.Errorf("accept %s: %w", o.Run, err)
	}
	x.r.grew(x.from, slices.Concat(entries, o.Entries)...)
	x.tell(own...)
	x.tell(entries...)
	return nil
}

// refuse answers that this machine does not run an attempt, for good.
func (r *Runner) refuse(ctx context.Context, o *task.Order, own []*wire.Entry, reasons ...task.Reason) error {
	entries, err := r.cfg.Ledger.Append(ctx, task.Draft{Topic: o.Run, Kind: task.KindRefused, Record: task.Refused{Attempt: o.Attempt, Reasons: reasons}})
	if err != nil {
		return fmt.Errorf("refuse %s: %w", o.Run, err)
	}
	r.grew(o.From, entries...)
	return &task.Refusal{Reasons: reasons, Entries: append(own, entries...)}
}

// admit asks every rule whether the run may be here, and reserves what it needs.
func (r *Runner) admit(x *live) []task.Reason {
	own := r.cannot(&x.spec)
	r.mu.Lock()
	defer r.mu.Unlock()
	b := &bidder{Bid: task.Bid{Run: x.id, From: x.from, Spec: x.spec}}
	b.place = r.place(&b.Bid)
	old := r.line.of(x.id)
	kept := old != nil && old.From == x.from && r.line.kept[x.id] == old
	if old != nil && old.From == x.from {
		r.line.forget(old)
	}
	reasons := r.fits(b, x.attempt)
	if !kept && len(reasons) == 0 { // else that was asked when it was kept
		reasons = r.yields(b, r.ahead(b))
	}
	for _, o := range own {
		said := func(r task.Reason) bool { return r.Rule == o.Rule }
		if !slices.ContainsFunc(reasons, said) {
			reasons = append(reasons, o)
		}
	}
	if len(reasons) > 0 {
		if kept {
			r.serve()
		}
		return reasons
	}
	x.grant, x.level, x.limits = b.grant, level(&x.spec, b.grant), bounds(&x.spec, b.grant)
	x.use = b.use
	r.taken++
	r.changed()
	return nil
}

// fits asks every rule whether a run may be here now, and notes what it gets. The
// caller holds the lock.
func (r *Runner) fits(b *bidder, attempt int) []task.Reason {
	if reasons := r.quota(b.From, b.Run); len(reasons) > 0 {
		return reasons
	}
	grant, reasons := r.cfg.Admit(Ask{Run: b.Run, Attempt: attempt, From: b.From, Spec: &b.Spec, Held: r.heldLocked()})
	if len(reasons) > 0 {
		return reasons
	}
	level := level(&b.Spec, grant)
	if reasons := append(r.apart(&b.Spec, level), r.unreachable(&b.Spec, level)...); len(reasons) > 0 {
		return reasons
	}
	if level == task.LevelContainer {
		if reasons := r.containable(&b.Spec, bounds(&b.Spec, grant)); len(reasons) > 0 {
			return reasons
		}
	}
	if isolate.Stronger(level, r.cfg.Machine.Level()) {
		return []task.Reason{task.Reasonf("isolation", "has no %s for the run: %s", level, r.cfg.Machine.Why)}
	}
	if _, err := wayOut(b.Spec.Network, grant.Network, r.cfg.Log); err != nil {
		return []task.Reason{task.Reasonf("network", "cannot let the run out: %v", err)}
	}
	if level != isolate.Process && len(b.Spec.Network) > 0 && grant.Network != nil && len(grant.Network) == 0 {
		return []task.Reason{task.Reasonf("network", "its owner grants no network to the run, which asks for %s", strings.Join(b.Spec.Network, ", "))}
	}
	if reasons := r.confine(b, &grant); len(reasons) > 0 {
		return reasons
	}
	b.grant = grant
	b.use = Use{Run: b.Run, From: b.From, Needs: b.Spec.Needs.Held(), Devices: grant.Devices, Since: r.cfg.Now(), Serves: b.Spec.Serve != nil}
	return nil
}

func overQuota(r task.Reason) bool { return r.Rule == policy.RuleQuota }

// cannot returns what keeps this Runner from a run, whatever the owner says.
func (r *Runner) cannot(spec *task.Spec) []task.Reason {
	var out []task.Reason
	if spec.Driver == task.DriverImage {
		out = append(out, r.lacksImage(spec.Image)...)
	}
	if short := r.disk(spec); short != nil {
		out = append(out, *short)
	}
	return out
}

// reserve is what runs leave free of the disk, for the ledger and the node.
const reserve = task.Bytes(supervise.Reserve)

// leastRoom is the least of the disk that a run of another owner is let in with.
const leastRoom = 16 * task.MiB

// confine holds a run of another owner to what the disk has besides the reserve, and
// what others of the kind may take. The caller holds the lock.
func (r *Runner) confine(b *bidder, grant *Grant) []task.Reason {
	free, err := freeDisk(r.cfg.Dir)
	if grant.Limits.Disk == 0 || err != nil {
		return nil
	}
	taken := reserve
	for _, x := range r.runs {
		if x.id != b.Run && x.grant.Limits.Disk > 0 {
			taken += x.limits.Disk
		}
	}
	for _, k := range r.line.kept {
		if k.Run != b.Run && r.runs[k.Run] == nil {
			taken += k.grant.Limits.Disk
		}
	}
	room := free - min(free, taken)
	if need := max(b.Spec.Needs.Disk, min(leastRoom, grant.Limits.Disk)); need > room {
		return []task.Reason{{Rule: "disk", Need: uint64(need), Have: uint64(room), Ever: true, Text: fmt.Sprintf("has %v of disk for runs of other owners, and this one needs %v", room, need)}}
	}
	tighten(&grant.Limits.Disk, room)
	return nil
}

// disk refuses a run whose inputs do not fit on the disk, which has to hold
// them twice: as blobs and in the work folder.
func (r *Runner) disk(spec *task.Spec) *task.Reason {
	free, err := freeDisk(r.cfg.Dir)
	if err != nil {
		return nil // what the disk cannot hold fails when it is written
	}
	need := reserve
	for _, in := range spec.Inputs {
		need += 2 * min(in.Size, task.TiB)
	}
	if free >= need {
		return nil
	}
	reason := task.Reasonf("disk", "has %v of disk left, and needs %v for the run's inputs and itself", free, need)
	reason.Need, reason.Have, reason.Ever = uint64(need), uint64(free), true
	return &reason
}
