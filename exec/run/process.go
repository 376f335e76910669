package run

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/balanceai/balance/exec/cgroup"
	"github.com/balanceai/balance/exec/isolate"
	"github.com/balanceai/balance/exec/isolate/launch"
	"github.com/balanceai/balance/exec/supervise"
	"github.com/balanceai/balance/exec/task"
)

// Exit codes of shells and of docker for what is not the program's own end.
const (
	exitTimeLimit  = 124
	exitCannot     = 126
	exitNotFound   = 127
	exitSignalBase = 128
)

// errLeft says that the Runner closes and the run goes on without it.
var errLeft = errors.New("the run goes on")

// process has a supervisor run the program, and fills in how it ended. The
// error says why it could not be started, or what ended it: a signal, or an
// *end.
func (x *live) process(ctx context.Context, fin *task.Finished) error {
	closed, err := x.open()
	if err != nil {
		return err
	}
	defer func() { fin.Usage.Models = closed() }()
	over, err := x.serve(ctx)
	if err != nil {
		return err
	}
	defer over()
	o, err := x.order(fin)
	if err != nil {
		fin.ExitCode = startCode(err)
		return cannotStart(x.spec.Command[0], err)
	}
	w, err := x.give(ctx, o)
	if err != nil {
		if o.Group != nil {
			_ = o.Group.Remove() // nothing is in it
		}
		return err
	}
	return x.follow(w, fin)
}

// give writes the order and gives the run to a supervisor.
func (x *live) give(ctx context.Context, o *supervise.Order) (*supervise.Watch, error) {
	if err := supervise.WriteOrder(x.dir, o); err != nil {
		return nil, err
	}
	return x.launch(ctx)
}

// order says what is to be started. The control group in it has been made.
func (x *live) order(fin *task.Finished) (*supervise.Order, error) {
	c, limits, err := x.walls()
	if err != nil {
		return nil, err
	}
	group, err := x.r.group(x.id, limits)
	if err != nil {
		return nil, err
	}
	o := &supervise.Order{
		Run: x.id, Node: x.r.cfg.Name, Boot: supervise.Boot(),
		Program: c.Path, Argv: c.Args, Env: c.Env, Dir: c.Dir, Files: c.Files, Stdin: x.spec.Stdin,
		Walled: x.level == isolate.Sandbox, Group: group, Output: int64(x.outputLimit()),
		Time: x.limits.Time, TimeUp: timeUp(x.limits.Time).told(),
		Disk: uint64(x.limits.Disk), DiskUp: diskFull(x.limits.Disk).told(), XFSZ: diskFull(x.limits.Disk).told(),
		OOM: outOfMemory(x.limits.Memory).told(), PIDs: tooMany(x.limits.PIDs).told(),
		Network: x.spec.Network, Narrow: x.grant.Network, Fill: []string{x.work(), x.temp()},
		Grace: x.r.cfg.Grace, Came: int64(fin.Usage.InBytes),
	}
	if x.level == task.LevelContainer {
		o.After = x.plan().After()
	}
	if t := x.spec.TTY; t != nil {
		o.TTY = &supervise.Size{Rows: t.Rows, Cols: t.Cols}
	}
	if x.lease != nil {
		o.Lease, o.LeaseUp = x.spec.LeaseLength(), lapsed(&x.spec).told()
	}
	return o, nil
}

// group makes the control group of a run, where there can be one.
func (r *Runner) group(run string, limits cgroup.Limits) (*cgroup.Group, error) {
	if !r.control.Groups.Can().Kill && limits == (cgroup.Limits{}) {
		return nil, nil //nolint:nilnil // no group, and no limit that would need one
	}
	return r.control.Groups.Make(run, limits)
}

// launch gives the run to a supervisor, unless it is to end already.
func (x *live) launch(ctx context.Context) (*supervise.Watch, error) {
	if err := x.secrets.Missing(&x.spec); err != nil { // they were in the memory of an earlier life
		return nil, lostEnd("%s, and it had not started", nodeStopped)
	}
	s, err := x.r.keeper.take()
	if err != nil {
		return nil, err
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	if ctx.Err() != nil {
		_ = s.Close()
		return nil, context.Cause(ctx)
	}
	w, err := s.Start(x.dir, x.private())
	x.watch = w
	return w, err
}

// startDelay is how long the ledger may not know that a program runs. One that
// ends sooner costs no commit of its own for that.
const startDelay = 20 * time.Millisecond

// started has the ledger know that the program runs. It returns a function that
// gives, once the program has ended, what is left to write of that.
func (x *live) started(at time.Time) (rest func() []task.Draft) {
	left := []task.Draft{{Topic: x.id, Kind: task.KindStarted, Record: task.Started{Attempt: x.attempt, Millis: at.UnixMilli()}}}
	done := make(chan struct{})
	timer := time.AfterFunc(startDelay, func() {
		defer close(done)
		entries, err := x.r.cfg.Ledger.Append(context.Background(), left...)
		if err != nil {
			x.r.cfg.Log.Error("cannot write the start of a run to the ledger", "run", x.id, "err", err)
			return
		}
		left = nil
		x.r.grew(x.from, entries...)
		x.tell(entries...)
		x.report()
	})
	return func() []task.Draft {
		if !timer.Stop() {
			<-done
		}
		return left
	}
}

// attach goes on with a run that has a supervisor already.
func (x *live) attach() (*supervise.Watch, error) {
	w, err := supervise.Dial(x.dir)
	if err != nil {
		return nil, err
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.closing() {
		_ = w.Close()
		return nil, errLeft
	}
	x.watch = w
	x.askLocked()
	return w, nil
}

// follow journals what happens to the program until it has ended, and fills in
// how. Without a watch it has ended already.
func (x *live) follow(w *supervise.Watch, fin *task.Finished) error {
	out, err := x.openOutput()
	if err != nil {
		return err
	}
	defer out.close()
	defer x.letOut()()
	x.regather()
	defer x.watchVRAM(fin)()
	rest := func() []task.Draft { return nil }
	begun := func(at time.Time) error {
		if !isClosed(x.begun) {
			close(x.begun)
			if !x.known {
				rest = x.started(at)
			}
		}
		return out.begin()
	}
	err = x.listen(w, out, begun)
	if err == nil {
		err = x.concluded(out, begun, fin)
	}
	x.early = rest()
	return err
}

// listen journals what a supervisor tells, until it has nothing more to say.
func (x *live) listen(w *supervise.Watch, out *output, begun func(time.Time) error) error {
	if w == nil {
		return nil
	}
	defer func() {
		if w != nil {
			_ = w.Close()
		}
	}()
	for {
		what, at, err := w.Next()
		switch {
		case err != nil && x.closing():
			return errLeft
		case errors.Is(err, supervise.ErrNone): // another one has it, or it died early
			if w, err = x.attach(); errors.Is(err, supervise.ErrNone) {
				_, err = supervise.Fence(x.dir)
			}
			if w == nil {
				return unlessGone(err)
			}
		case errors.Is(err, supervise.ErrVersion): // which is for a person to see to
			x.r.cfg.Log.Error("cannot follow a run, which goes on", "run", x.id, "err", err)
			<-x.r.closing
			return errLeft
		case err != nil, what == supervise.Exited:
			return nil
		case what == supervise.Started:
			err = begun(at)
		case what == supervise.Grown:
			err = out.drain()
		}
		if err != nil {
			return err
		}
	}
}

func unlessGone(err error) error {
	if errors.Is(err, supervise.ErrGone) {
		return nil
	}
	return err
}

func isClosed(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}

// closing reports whether the Runner closes.
func (x *live) closing() bool { return isClosed(x.r.closing) }

// concluded fills in how a run ended of which the supervisor has nothing more to
// say, or is gone.
func (x *live) concluded(out *output, begun func(time.Time) error, fin *task.Finished) error {
	x.mu.Lock()
	x.watch = nil
	x.mu.Unlock()
	x.removeContainer()
	e, err := supervise.ReadExit(x.dir)
	if err != nil {
		return x.unseen(out, err)
	}
	if e.Left != "" {
		x.r.cfg.Log.Error("cannot kill all that a run has started", "run", x.id, "err", e.Left)
	}
	fin.Usage.WallMS, fin.Usage.CPUMS, fin.Usage.MaxRSS = e.WallMS, e.CPUMS, task.Bytes(e.MaxRSS)
	fin.Usage.PeakMemory = task.Bytes(e.Memory)
	if x.level == task.LevelContainer { // what was measured is of what stands for it
		fin.Usage.CPUMS, fin.Usage.MaxRSS, fin.Usage.PeakMemory = 0, 0, 0
	}
	fin.Usage.Output, fin.Usage.Dropped = task.Bytes(e.Output), task.Bytes(e.Dropped)
	fin.Usage.GPUMS = e.WallMS * uint64(len(x.grant.Devices))
	if !e.Started.IsZero() {
		if err := begun(e.Started); err != nil {
			return err
		}
		if err := out.drain(); err != nil {
			return err
		}
	}
	err = ended(e, x.spec.Command[0], fin)
	if errors.Is(err, launch.ErrMemory) {
		return outOfMemory(x.limits.Memory)
	}
	return err
}

// unseen is the end of a run that has lost its supervisor: nobody knows how the
// program ended, and nothing of it may go on.
func (x *live) unseen(out *output, err error) error {
	if !errors.Is(err, os.ErrNotExist) {
		x.r.cfg.Log.Error("cannot read how a run ended", "run", x.id, "err", err)
	}
	if err := x.r.control.KillLeft([]string{x.id}); err != nil {
		x.r.cfg.Log.Error("cannot kill all that a run has started", "run", x.id, "err", err)
	}
	if err := out.drain(); err != nil {
		return err
	}
	if x.rebooted {
		return &end{state: task.Failed, reason: rebooted, lost: true}
	}
	return &end{state: task.Failed, reason: killed, lost: true}
}

// Reasons of runs of which nobody saw the end.
const (
	killed   = "its supervisor was killed: how it would have ended nobody knows"
	rebooted = "the machine was started again while the run was going"
)

// ended fills in how the program ended. A signal is an error.
func ended(e *supervise.Exit, program string, fin *task.Finished) error {
	var why error
	switch {
	case e.Error != "":
		err := error(errors.New(e.Error))
		if e.Errno != 0 {
			err = syscall.Errno(e.Errno)
		}
		fin.ExitCode = startCode(err)
		why = cannotStart(program, err)
	case e.Signal != 0:
		fin.ExitCode = exitSignalBase + e.Signal
		why = fmt.Errorf("signal: %v", syscall.Signal(e.Signal))
	default:
		fin.ExitCode = e.Code
		if e.Code == 0 {
			fin.State = task.Succeeded
		}
	}
	if e.End != nil {
		return &end{state: task.State(e.End.State), reason: e.End.Reason, code: e.End.Code, cause: e.End.Cause, lost: e.End.Lost}
	}
	if e.Error != "" {
		return why
	}
	err := told(e.Said)
	if errors.Is(err, launch.ErrMemory) {
		return err
	}
	if err != nil {
		fin.State, fin.ExitCode = task.Failed, startCode(err)
		return cannotStart(program, err)
	}
	return why
}

// outputLimit returns how much of the output is kept; see also [supervise.LeastLimit].
func (x *live) outputLimit() task.Bytes {
	if x.limits.Output > 0 {
		return x.limits.Output
	}
	return task.DefaultOutput
}

// environ returns the program's environment. It has little of this process's
// own, and nothing that the spec could use to claim another machine or device.
func (x *live) environ() map[string]string {
	env := map[string]string{
		"PATH": or(os.Getenv("PATH"), "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"),
		"LANG": or(os.Getenv("LANG"), "C.UTF-8"),
	}
	maps.Copy(env, x.endpoint)
	maps.Copy(env, x.served.Env)
	maps.Copy(env, x.spec.Env)
	env["BALANCE_RUN"] = x.id
	env["BALANCE_NODE"] = x.r.cfg.Name
	env["BALANCE_ATTEMPT"] = strconv.Itoa(x.attempt) // by which what the run writes to elsewhere can fence an older one
	if x.port != 0 {
		env[portVar], env[weightsVar] = strconv.Itoa(x.port), x.served.Weights
	}
	if x.rally != nil {
		maps.Copy(env, x.rally.environ(x.spec.Member))
	}
	devices := strings.Join(x.grant.Devices, ",")
	env["CUDA_VISIBLE_DEVICES"] = devices // empty for none
	env["NVIDIA_VISIBLE_DEVICES"] = or(devices, "void")
	env["ROCR_VISIBLE_DEVICES"] = devices
	delete(env, "HIP_VISIBLE_DEVICES") // would count within the ones above
	return env
}

func or(a, b string) string {
	if a != "" {
		return a
	}
	return b
}

// startCode returns the exit code for a program that could not be started.
func startCode(err error) int {
	if why := (*end)(nil); errors.As(err, &why) {
		return unseen
	}
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENOTDIR) {
		return exitNotFound
	}
	return exitCannot
}

// cause leaves out what os says of how it tried.
func cause(err error) error {
	if p := (*fs.PathError)(nil); errors.As(err, &p) {
		return p.Err
	}
	return err
}
