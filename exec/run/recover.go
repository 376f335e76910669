package run

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/balanceai/balance/exec/journal"
	"github.com/balanceai/balance/exec/supervise"
	"github.com/balanceai/balance/exec/task"
	"github.com/balanceai/balance/mesh/identity"
	"github.com/balanceai/balance/mesh/wire"
)

// past is what the ledger has of a run.
type past struct {
	submitter identity.ID   // of the accepted attempt
	spec      task.Spec     // of it
	own       []*wire.Entry // this machine's
	refused   map[int][]task.Reason
	accepted  *task.Accepted
	started   bool           // it has that the program was
	promised  time.Time      // when it was accepted
	finished  *task.Finished // of the accepted attempt
}

func (r *Runner) past(ctx context.Context, run string) (past, error) {
	entries, err := r.cfg.Ledger.Entries(ctx, run)
	if err != nil {
		return past{}, fmt.Errorf("read the ledger of %s: %w", run, err)
	}
	p := past{refused: map[int][]task.Reason{}}
	for _, e := range entries {
		if e.Author == r.cfg.Self {
			err = p.add(e)
		}
		if err != nil {
			return past{}, fmt.Errorf("read the ledger of %s: %w", run, err)
		}
	}
	for _, e := range entries {
		if p.accepted != nil && e.Hash() == p.accepted.Submit {
			var s task.Submit
			if err := wire.Unmarshal(e.Payload, &s); err != nil {
				return past{}, fmt.Errorf("read the ledger of %s: %w", run, err)
			}
			p.submitter, p.spec = e.Author, s.Spec
		}
	}
	return p, nil
}

// add takes an entry of this machine.
func (p *past) add(e *wire.Entry) error {
	switch e.Kind {
	case task.KindRefused:
		var f task.Refused
		if err := wire.Unmarshal(e.Payload, &f); err != nil {
			return err
		}
		p.refused[f.Attempt] = f.Reasons
	case task.KindAccepted:
		p.accepted, p.promised, p.started, p.finished = &task.Accepted{}, e.Time(), false, nil
		if err := wire.Unmarshal(e.Payload, p.accepted); err != nil {
			return err
		}
	case task.KindFinished:
		p.finished = &task.Finished{}
		if err := wire.Unmarshal(e.Payload, p.finished); err != nil {
			return err
		}
	case task.KindStarted:
		p.started = true
	default:
		return nil // this machine is the submitter too
	}
	p.own = append(p.own, e)
	return nil
}

// recover goes on with the runs of an earlier life.
func (r *Runner) recover(ctx context.Context) error {
	folders, err := os.ReadDir(r.cfg.Dir)
	if err != nil {
		return err
	}
	for _, f := range folders {
		if !task.ValidID(f.Name()) {
			continue
		}
		if over, err := journal.Ended(r.journalPath(f.Name())); err == nil && over {
			continue
		}
		_, err := r.revive(ctx, f.Name())
		if errors.Is(err, task.ErrNoRun) { // never promised
			err = os.RemoveAll(r.folder(f.Name()))
		}
		if err != nil { // the others still go on
			r.cfg.Log.Error("cannot go on with a run of an earlier life", "run", f.Name(), "err", err)
		}
	}
	r.sweepContainers(ctx)
	return nil
}

// gap is left in the numbers of events before the end that is written for an
// earlier life of the machine, so that it counts as new for whoever saw events
// that a power cut has taken from the journal.
const gap = 1 << 32

// patience is how long after its promise a run may be started that no
// supervisor has. Its submitter is still waiting for that.
const patience = 30 * time.Second

// revive returns the journal of a run that this life does not know yet, and goes
// on with the run where an earlier life has left it.
func (r *Runner) revive(ctx context.Context, run string) (*journal.Journal, error) {
	p, err := r.past(ctx, run)
	if err != nil {
		return nil, err
	}
	if p.accepted == nil {
		return nil, task.ErrNoRun
	}
	r.mu.Lock()
	if r.closed {
		r.mu.Unlock()
		return nil, errStopping
	}
	if r.runs[run] != nil { // somebody else does it
		r.mu.Unlock()
		return r.journal(ctx, run)
	}
	x, life := newLive(r, run)
	x.attempt, x.from, x.spec = p.accepted.Attempt, p.submitter, p.spec
	x.grant = Grant{Devices: p.accepted.Devices, Policy: p.accepted.Policy}
	x.loadGrant()
	r.runs[run] = x
	r.wg.Add(1)
	r.mu.Unlock()
	whole, err := x.reopen()
	x.err = err
	if x.err != nil || x.journal.Finished() {
		close(x.ready)
		r.drop(x)
		r.wg.Done()
		return x.journal, x.err
	}
	x.tell(p.own...)
	x.known = p.started
	then := x.next(&p, whole)
	if err := x.takeUp(then); err != nil {
		r.cfg.Log.Error("cannot take up the lease of a run", "run", run, "err", err)
	}
	if then != conclude {
		x.hold(p.promised)
	}
	close(x.ready)
	go func() {
		defer r.wg.Done()
		x.goOn(life, then, &p)
	}()
	return x.journal, nil
}

// hold takes what the run has of the machine.
func (x *live) hold(since time.Time) {
	x.r.mu.Lock()
	defer x.r.mu.Unlock()
	x.use = Use{Run: x.id, From: x.from, Needs: x.spec.Needs.Held(), Devices: x.grant.Devices, Since: since, Serves: x.spec.Serve != nil}
}

// reopen opens the journal of a run, whose folder a power cut may have taken. It
// reports whether all was there.
func (x *live) reopen() (whole bool, err error) {
	_, err = os.Stat(x.r.journalPath(x.id))
	whole = err == nil
	if err := os.MkdirAll(x.work(), 0o700); err != nil {
		return false, err
	}
	x.journal, err = journal.Open(x.r.journalPath(x.id))
	return whole, err
}

// step is how to go on with a run of an earlier life.
type step int

const (
	conclude step = iota // write its end
	adopt                // a supervisor has it, or had it, or is to get what is ordered
	begin                // nothing is ordered, and it is not too late
)

// next finds out how to go on.
func (x *live) next(p *past, whole bool) step {
	if p.finished != nil || !whole {
		return conclude
	}
	if _, err := x.remembered(); err == nil {
		return conclude
	}
	if age := x.r.cfg.Now().Sub(p.promised); age >= 0 && age < patience && !x.claimed() {
		if _, err := supervise.ReadOrder(x.dir); err == nil {
			return adopt
		}
		return begin
	}
	if mine, err := supervise.Fence(x.dir); err == nil && mine {
		return conclude // from here on it cannot be started
	}
	return adopt
}

// claimed reports whether a supervisor has the run, or had it.
func (x *live) claimed() bool {
	w, err := supervise.Dial(x.dir)
	if err == nil {
		_ = w.Close()
	}
	return !errors.Is(err, supervise.ErrNone)
}

// goOn takes a run of an earlier life to its end.
func (x *live) goOn(life context.Context, then step, p *past) {
	switch then {
	case begin:
		x.again()
		x.run(life)
		x.r.keeper.fill()
	case adopt:
		fin := task.Finished{Attempt: x.attempt, State: task.Failed, ExitCode: unseen}
		x.close(fin, x.adopt(life, &fin))
	default:
		x.conclude(p.finished)
		close(x.over)
	}
}

// again empties the folder of a run that was not started, for its inputs.
func (x *live) again() {
	for _, dir := range []string{x.work(), x.temp()} {
		err := os.RemoveAll(dir)
		if err == nil {
			err = os.Mkdir(dir, 0o700)
		}
		if err != nil {
			x.r.cfg.Log.Error("cannot empty the folder of a run", "run", x.id, "err", err)
		}
	}
}

// adopt follows a run that has a supervisor, or had one.
func (x *live) adopt(life context.Context, fin *task.Finished) error {
	o, err := supervise.ReadOrder(x.dir)
	if errors.Is(err, os.ErrNotExist) { // an earlier life has fenced it off
		return &end{state: task.Failed, reason: nodeStopped, lost: true}
	}
	if err != nil {
		return err
	}
	fin.Usage.InBytes = task.Bytes(o.Came)
	if o.Boot != supervise.Boot() {
		x.journal.Skip(gap)
		x.rebooted = true
		return x.follow(nil, fin)
	}
	w, err := x.attach()
	if errors.Is(err, supervise.ErrNone) {
		w, err = x.second(life)
	}
	switch {
	case err == nil:
		closed := x.openAgain()
		defer func() { fin.Usage.Models = closed() }()
		defer x.serveAgain(o)()
		x.r.cfg.Log.Info("goes on with a run of an earlier life", "run", x.id)
	case !errors.Is(err, supervise.ErrGone):
		return err
	}
	return x.follow(w, fin)
}

// second gives the order of an earlier life to a supervisor. One of that life may
// be about to claim it: it is the order of both, and one of them does it.
func (x *live) second(life context.Context) (*supervise.Watch, error) {
	w, err := x.launch(life)
	if err == nil {
		return w, nil
	}
	if mine, ferr := supervise.Fence(x.dir); mine || ferr != nil {
		return nil, errors.Join(err, ferr)
	}
	return x.attach()
}

// conclude ends a run of an earlier life that cannot go on. fin is its end in
// the ledger, if that was written.
func (x *live) conclude(fin *task.Finished) {
	x.journal.Skip(gap)
	if fin != nil {
		x.announce(*fin)
		x.r.drop(x)
		return
	}
	last, err := x.remembered()
	if err != nil {
		if !errors.Is(err, os.ErrNotExist) {
			x.r.cfg.Log.Warn("cannot read how a run ended", "run", x.id, "err", err)
		}
		last = task.Finished{Attempt: x.attempt, State: task.Failed, ExitCode: unseen, Reason: nodeStopped, Lost: true}
	}
	x.finish(last)
}
