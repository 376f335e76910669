package run

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"runtime"
	"strings"
	"syscall"
	"time"

	"github.com/balanceai/balance/exec/cgroup"
	"github.com/balanceai/balance/exec/isolate"
	"github.com/balanceai/balance/exec/isolate/launch"
	"github.com/balanceai/balance/exec/task"
)

// Exit codes of shells and of docker for what is not the program's own end.
const (
	exitTimeLimit  = 124
	exitCannot     = 126
	exitNotFound   = 127
	exitSignalBase = 128
)

// How long a run may go on after its program has ended.
const (
	linger = time.Second // for what it left in the background to end by itself
	drain  = time.Second // from the kill to the end of its output
)

// process runs the program and fills in how it ended. The error says why it
// could not be started, or what ended it: a signal, or an *end.
func (x *live) process(ctx context.Context, fin *task.Finished) error {
	// The program is killed when the thread that started it ends, so this
	// goroutine keeps its thread.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()

	out, err := newOutput(x)
	if err != nil {
		return err
	}
	began := time.Now()
	p, g, open, err := x.spawn(ctx, out)
	out.parent()
	if err != nil {
		out.cut()
		fin.ExitCode = startCode(err)
		return cannotStart(x.spec.Command[0], err)
	}
	defer open.Close()
	defer x.letOut(open.Door)()
	if limit := x.limits.Time; limit > 0 {
		defer time.AfterFunc(limit, func() { x.stop(timeUp(limit), false) }).Stop()
	}
	if limit := x.limits.Disk; limit > 0 {
		defer x.watchDisk(limit)()
	}
	x.event(&task.Event{Type: task.EventStarted, State: task.Running})
	out.start()
	rest := x.started(began)
	state, did, why := x.wait(ctx, p, g, out)
	x.early = rest()
	fin.Usage.WallMS = uint64(time.Since(began).Milliseconds())
	fin.Usage.Output, fin.Usage.Dropped = out.sum()
	err = ended(state, fin)
	failed := told(open.Report)
	if why != nil {
		return why
	}
	if failed != nil {
		fin.State, fin.ExitCode = task.Failed, startCode(failed)
		return cannotStart(x.spec.Command[0], failed)
	}
	if over := overran(x.limits, did, fin); over != nil {
		return over
	}
	return err
}

// spawn starts the program, unless the run is to end already. What it leaves open
// tells later whether that came to pass behind walls.
func (x *live) spawn(ctx context.Context, out *output) (p *os.Process, g *group, open *launch.Opened, err error) {
	c, limits, err := x.walls()
	if err != nil {
		return nil, nil, nil, err
	}
	stdin, err := x.input()
	if err != nil {
		return nil, nil, nil, err
	}
	defer stdin.Close()
	if open, err = c.Open(); err != nil {
		return nil, nil, nil, err
	}
	defer func() {
		open.CloseFiles()
		if err != nil {
			open.Close()
		}
	}()
	attr := &os.ProcAttr{Dir: c.Dir, Files: append([]*os.File{stdin, out.writers[0], out.writers[1]}, open.Files...)}
	attr.Env = append([]string{}, c.Env...) // nil would be this process's own
	x.mu.Lock()
	defer x.mu.Unlock()
	if ctx.Err() != nil {
		return nil, nil, open, context.Cause(ctx)
	}
	p, g, err = x.r.control.start(x.id, c.Path, c.Args, attr, limits, isolate.Stronger(x.level, isolate.Process))
	x.group = g
	return p, g, open, err
}

// input returns what the program gets as its standard input.
func (x *live) input() (*os.File, error) {
	if x.stdin != nil {
		return x.stdin.read, nil
	}
	return os.Open(os.DevNull)
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

// wait waits until the program has ended and all that it started is gone. The
// error is why the run was made to end, if it was before the program did.
func (x *live) wait(ctx context.Context, p *os.Process, g *group, out *output) (state *os.ProcessState, did cgroup.Events, why error) {
	state = awaitExit(p)
	why = context.Cause(ctx)
	x.mu.Lock()
	x.group = nil // from here on this goroutine kills
	if x.killer != nil {
		x.killer.Stop()
	}
	x.mu.Unlock()
	if why == nil && !out.ended(0) {
		stopped := context.AfterFunc(ctx, out.hurry)
		out.ended(linger)
		stopped()
	}
	did = g.events()
	if err := g.sweep(); err != nil {
		x.r.cfg.Log.Error("cannot kill all that a run has started", "run", x.id, "err", err)
	}
	if !out.ended(drain) {
		out.cut()
	}
	if state == nil {
		state, _ = p.Wait() // there is nothing else to be said of a state that is not there
	}
	return state, did, why
}

// ended fills in how the program ended. A signal is an error.
func ended(state *os.ProcessState, fin *task.Finished) error {
	if state == nil {
		return errors.New("nobody saw how it ended")
	}
	fin.Usage.CPUMS = uint64((state.UserTime() + state.SystemTime()).Milliseconds())
	fin.Usage.MaxRSS = maxRSS(state)
	if status, ok := state.Sys().(syscall.WaitStatus); ok && status.Signaled() {
		fin.ExitCode = exitSignalBase + int(status.Signal())
		return fmt.Errorf("signal: %v", status.Signal())
	}
	fin.ExitCode = state.ExitCode()
	if fin.ExitCode == 0 {
		fin.State = task.Succeeded
	}
	return nil
}

// environ returns the program's environment. It has little of this process's
// own, and nothing that the spec could use to claim another machine or device.
func (x *live) environ() map[string]string {
	env := map[string]string{
		"PATH": or(os.Getenv("PATH"), "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"),
		"LANG": or(os.Getenv("LANG"), "C.UTF-8"),
	}
	maps.Copy(env, x.spec.Env)
	env["BALANCE_RUN"] = x.id
	env["BALANCE_NODE"] = x.r.cfg.Name
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
