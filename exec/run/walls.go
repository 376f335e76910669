package run

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"syscall"
	"time"

	"github.com/balanceai/balance/exec/cgroup"
	"github.com/balanceai/balance/exec/egress"
	"github.com/balanceai/balance/exec/isolate"
	"github.com/balanceai/balance/exec/isolate/inside"
	"github.com/balanceai/balance/exec/isolate/launch"
	"github.com/balanceai/balance/exec/supervise"
	"github.com/balanceai/balance/exec/task"
	"github.com/balanceai/balance/mesh/identity"
)

// Groups finds out where a machine makes the control groups of its runs, and
// what they can hold.
func Groups(self identity.ID) *cgroup.Base { return cgroup.Find("balance-" + self.Short() + "-") }

// level is the isolation of a run: what the owner's rules want of it, or more
// where the run itself asks for that. An image has one of its own.
func level(spec *task.Spec, grant Grant) string {
	if spec.Driver == task.DriverImage {
		return task.LevelContainer
	}
	if isolate.Stronger(spec.Isolation, grant.Isolation) {
		return spec.Isolation
	}
	return cmp.Or(grant.Isolation, isolate.Process)
}

// saveGrant notes what the run was granted, so that a later life which comes to
// start it does so behind the same walls.
func (x *live) saveGrant() error {
	b, err := json.Marshal(x.grant)
	if err != nil {
		return err
	}
	return os.WriteFile(x.grantPath(), b, 0o600)
}

// loadGrant reads what an earlier life has granted. Without that the run has no
// level, which is none that can be started.
func (x *live) loadGrant() {
	b, err := os.ReadFile(x.grantPath())
	if err == nil {
		err = json.Unmarshal(b, &x.grant)
	}
	if err != nil {
		x.r.cfg.Log.Warn("cannot read what a run was granted", "run", x.id, "err", err)
		return
	}
	x.level, x.limits = level(&x.spec, x.grant), bounds(&x.spec, x.grant)
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
	if x.level == task.LevelContainer {
		c, err := x.contain()
		return c, cgroup.Limits{}, err // the engine holds those, which it is asked about
	}
	group, own := split(x.limits, x.r.control.Groups.Can())
	env := x.environ()
	out := x.level == isolate.Sandbox && len(x.spec.Network) > 0
	proxy := out || x.level == isolate.Sandbox && x.local != nil
	if out {
		maps.Copy(env, egress.Environ(launch.ProxyAddr))
		if err := secretURLs(&x.spec, env); err != nil {
			return launch.Command{}, cgroup.Limits{}, err
		}
	}
	j := isolate.Job{Level: x.level, Command: x.command(), Env: env, Work: x.work(), Temp: x.temp(), Limits: own, Proxy: proxy, Private: x.spec.Exposed(), TTY: x.spec.TTY != nil}
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
func wayOut(network, most []string, log *slog.Logger) (*egress.Proxy, error) {
	p := &egress.Proxy{Log: log}
	var err error
	if p.Allow, err = egress.ParseAllow(network); err != nil {
		return nil, err
	}
	if most != nil {
		p.Narrow = egress.Allow{}
		narrow, err := egress.ParseAllow(most)
		if err != nil {
			return nil, fmt.Errorf("the owner's rules: %w", err)
		}
		p.Narrow = append(p.Narrow, narrow...)
	}
	return p, nil
}

// letOut serves the run's way out while the run is followed, until stop is
// called. The supervisor leads to it, and the order says where it may lead, also
// in a later life.
func (x *live) letOut() (stop func()) {
	o, err := supervise.ReadOrder(x.dir)
	if err != nil || !o.Walled || len(o.Network) == 0 && x.local == nil {
		return func() {}
	}
	p, err := wayOut(o.Network, o.Narrow, x.r.cfg.Log)
	if err != nil {
		return func() {} // it was refused before
	}
	if x.local != nil {
		p.Local = x.local
	}
	if p.Inject, err = injections(&x.spec, x.kept()); err != nil {
		x.r.cfg.Log.Warn("a run goes on without its secrets", "run", x.id, "err", err)
	}
	if x.r.cfg.letOut != nil {
		x.r.cfg.letOut(p)
	}
	ln, err := supervise.ListenNet(x.dir)
	if err != nil {
		x.r.cfg.Log.Warn("a run has no way out", "run", x.id, "err", err)
		return func() {}
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := p.Serve(ln); err != nil {
			x.r.cfg.Log.Warn("the way out of a run is shut", "run", x.id, "err", err)
		}
	}()
	return func() {
		ln.Close()
		<-done
	}
}

// told reads what a program has said of its start that says so itself.
func told(said string) error {
	if said == "" {
		return nil
	}
	return launch.Report(said)
}

// Exit codes of runs that their limits have ended, as the signal that the kernel
// has for that would give them.
const (
	exitMemory = exitSignalBase + int(syscall.SIGKILL)
	exitDisk   = exitSignalBase + int(syscall.SIGXFSZ)
)

// outOfMemory is why a run ends that wants more than it may have.
func outOfMemory(limit task.Bytes) *end {
	return &end{state: task.Failed, cause: task.CauseMemory, code: exitMemory, reason: fmt.Sprintf("out of memory: its limit is %v", limit)}
}

// tooMany is why a run has failed that could not start all that it wanted.
func tooMany(limit int) *end {
	return &end{state: task.Failed, cause: task.CausePIDs, reason: fmt.Sprintf("its limit of %d processes and threads was reached", limit)}
}

// timeUp is why a run ends that takes too long.
func timeUp(limit time.Duration) *end {
	return &end{state: task.Failed, cause: task.CauseTime, code: exitTimeLimit, reason: "time limit " + task.FormatDuration(limit) + " reached"}
}

// diskFull is why a run ends that writes too much.
func diskFull(limit task.Bytes) *end {
	return &end{state: task.Failed, cause: task.CauseDisk, code: exitDisk, reason: fmt.Sprintf("its limit of %v on the disk was reached", limit)}
}

// cannotStart is the error of a program that was not started.
func cannotStart(name string, err error) error {
	if errors.Is(err, launch.ErrWalls) {
		return err
	}
	return fmt.Errorf("cannot start %s: %w", name, cause(err))
}
