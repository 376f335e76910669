package run

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net"
	"os"
	"sync"
	"syscall"
	"time"

	"github.com/balanceai/balance/exec/cgroup"
	"github.com/balanceai/balance/exec/egress"
	"github.com/balanceai/balance/exec/isolate"
	"github.com/balanceai/balance/exec/isolate/inside"
	"github.com/balanceai/balance/exec/isolate/launch"
	"github.com/balanceai/balance/exec/task"
	"github.com/balanceai/balance/mesh/identity"
)

// Groups finds out where a machine makes the control groups of its runs, and
// what they can hold.
func Groups(self identity.ID) *cgroup.Base { return cgroup.Find("balance-" + self.Short() + "-") }

// level is the isolation of a run: what the owner's rules want of it, or more
// where the run itself asks for that.
func level(spec *task.Spec, grant Grant) string {
	if isolate.Stronger(spec.Isolation, grant.Isolation) {
		return spec.Isolation
	}
	return cmp.Or(grant.Isolation, isolate.Process)
}

// bounds are the limits of a run: the tighter of what it says itself and what
// the machine's owner says.
func bounds(spec *task.Spec, grant Grant) task.Limits {
	l := spec.Limits
	tighten(&l.Time, grant.Limits.Time)
	tighten(&l.Output, grant.Limits.Output)
	tighten(&l.Memory, grant.Limits.Memory)
	tighten(&l.CPU, grant.Limits.CPU)
	tighten(&l.PIDs, grant.Limits.PIDs)
	tighten(&l.Disk, grant.Limits.Disk)
	return l
}

func tighten[T ~int | ~int64 | ~uint64](limit *T, other T) {
	if *limit == 0 || other > 0 && other < *limit {
		*limit = other
	}
}

// split divides limits into those that a control group holds and those that, for
// want of one, each process has for itself.
func split(l task.Limits, can cgroup.Can) (cgroup.Limits, inside.Limits) {
	group := cgroup.Limits{Memory: uint64(l.Memory), CPU: uint64(l.CPU) * cgroup.Core / uint64(task.Core), PIDs: l.PIDs}
	own := inside.Limits{File: uint64(l.Disk)}
	if !can.Memory {
		group.Memory, own.Memory = 0, uint64(l.Memory)
	}
	if !can.PIDs {
		group.PIDs, own.Processes = 0, l.PIDs
	}
	if !can.CPU {
		group.CPU = 0 // the offer says so
	}
	return group, own
}

// walls returns how the run's program is started, and within which limits.
func (x *live) walls() (launch.Command, cgroup.Limits, error) {
	group, own := split(x.limits, x.r.control.can())
	env := x.environ()
	proxy := x.level == isolate.Sandbox && len(x.spec.Network) > 0
	if proxy {
		maps.Copy(env, egress.Environ(launch.ProxyAddr))
	}
	j := isolate.Job{Level: x.level, Command: x.spec.Command, Env: env, Work: x.work(), Temp: x.temp(), Limits: own, Proxy: proxy}
	if j.Level != isolate.Process {
		var err error
		if j.Devices, j.Trees, err = isolate.Devices("/", x.grant.Devices); err != nil {
			return launch.Command{}, group, err
		}
	}
	c, err := x.r.cfg.Machine.Command(j)
	return c, group, err
}

// wayOut returns the proxy of a run, and refuses hosts that are none.
func wayOut(spec *task.Spec, grant Grant, log *slog.Logger) (*egress.Proxy, error) {
	p := &egress.Proxy{Log: log}
	var err error
	if p.Allow, err = egress.ParseAllow(spec.Network); err != nil {
		return nil, err
	}
	if grant.Network != nil {
		p.Narrow = egress.Allow{}
		narrow, err := egress.ParseAllow(grant.Network)
		if err != nil {
			return nil, fmt.Errorf("the owner's rules: %w", err)
		}
		p.Narrow = append(p.Narrow, narrow...)
	}
	return p, nil
}

// letOut serves the run's way out, until stop is called.
func (x *live) letOut(door *os.File) (stop func()) {
	if door == nil {
		return func() {}
	}
	done := make(chan struct{})
	var mu sync.Mutex
	var ln net.Listener
	over := false
	go func() {
		defer close(done)
		p, err := wayOut(&x.spec, x.grant, x.r.cfg.Log)
		if err != nil {
			return // it was refused before
		}
		got, err := launch.Listener(door)
		if err != nil {
			return // the program has not started, which its report tells
		}
		mu.Lock()
		if ln = got; over {
			ln.Close()
		}
		mu.Unlock()
		if err := p.Serve(got); err != nil {
			x.r.cfg.Log.Warn("the way out of a run is shut", "run", x.id, "err", err)
		}
	}()
	return func() {
		mu.Lock()
		over = true
		if ln != nil {
			ln.Close()
		}
		mu.Unlock()
		<-done
	}
}

// told reads what became of the start of a program that says so itself, once it
// has ended. Its end is that of the walls where they could not be built.
func told(report *os.File) error {
	if report == nil {
		return nil
	}
	said, err := io.ReadAll(io.LimitReader(report, 4<<10))
	if err != nil {
		return err
	}
	return launch.Report(string(said))
}

// Exit codes of runs that their limits have ended, as the signal that the kernel
// has for that would give them.
const (
	exitMemory = exitSignalBase + int(syscall.SIGKILL)
	exitDisk   = exitSignalBase + int(syscall.SIGXFSZ)
)

// overran tells whether a run has failed for its limits. What the kernel did to
// the group explains only a failure: a program may well survive the end of one
// process, or go on with fewer.
func overran(l task.Limits, did cgroup.Events, fin *task.Finished) *end {
	switch {
	case fin.ExitCode == 0:
		return nil
	case did.OOM > 0:
		return &end{state: task.Failed, cause: task.CauseMemory, code: exitMemory, reason: fmt.Sprintf("out of memory: its limit is %v", l.Memory)}
	case l.Disk > 0 && fin.ExitCode == exitDisk: // one file alone
		return diskFull(l.Disk)
	case did.PIDs > 0:
		return &end{state: task.Failed, cause: task.CausePIDs, reason: fmt.Sprintf("its limit of %d processes and threads was reached", l.PIDs)}
	}
	return nil
}

// timeUp is why a run ends that takes too long.
func timeUp(limit time.Duration) *end {
	return &end{state: task.Failed, cause: task.CauseTime, code: exitTimeLimit, reason: "time limit " + task.FormatDuration(limit) + " reached"}
}

// cannotStart is the error of a program that was not started.
func cannotStart(name string, err error) error {
	if errors.Is(err, launch.ErrWalls) {
		return err
	}
	return fmt.Errorf("cannot start %s: %w", name, cause(err))
}
