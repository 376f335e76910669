package run

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/balanceai/balance/exec/container"
	"github.com/balanceai/balance/exec/isolate/launch"
	"github.com/balanceai/balance/exec/task"
)

// noEngine is why a machine runs no images.
func noEngine() task.Reason {
	return task.Reasonf("driver", "no container runtime on this machine: it runs programs, not images")
}

// lacksImage returns why an image cannot be run here.
func (r *Runner) lacksImage(ref string) []task.Reason {
	if r.cfg.Containers == nil {
		return []task.Reason{noEngine()}
	}
	err := r.cfg.Containers.Has(context.Background(), ref)
	if errors.Is(err, container.ErrNoImage) {
		return []task.Reason{task.Reasonf("image", "the image %s is not on this machine; %s pull %[1]s", ref, r.cfg.Containers.Name)}
	}
	if err != nil {
		return []task.Reason{task.Reasonf("image", "cannot run the image %s: %v", ref, err)}
	}
	return nil
}

// containable returns what a run wants that a container cannot give it, or cannot
// hold it to.
func (r *Runner) containable(spec *task.Spec, limits task.Limits) []task.Reason {
	e := r.cfg.Containers
	if e == nil {
		return []task.Reason{noEngine()}
	}
	var out []task.Reason
	if lacks := e.Lacks(containerLimits(limits)); len(lacks) > 0 {
		out = append(out, task.Reasonf("limits", "its %s cannot hold a container to the limit of %s", e.Name, strings.Join(lacks, ", ")))
	}
	for _, w := range []struct {
		wanted bool
		what   string
	}{
		{spec.Isolation == task.LevelSandbox, "a sandbox, but for their container"},
		{spec.Needs.Held().GPUs > 0, "a GPU"},
		{len(spec.Network) > 0, "a network"},
		{len(spec.Models) > 0, "models"},
		{len(spec.Secrets) > 0, "secrets"},
	} {
		if w.wanted {
			out = append(out, task.Reasonf("image", "runs images without %s", w.what))
		}
	}
	return out
}

func containerLimits(l task.Limits) container.Limits {
	return container.Limits{Memory: uint64(l.Memory), CPU: uint64(l.CPU) * 1000 / uint64(task.Core), PIDs: l.PIDs, File: uint64(l.Disk)}
}

// plan is the container of a run.
func (x *live) plan() *container.Plan {
	p := &container.Plan{
		Run: x.id, Node: x.r.cfg.Self.String(), Image: x.spec.Image, Command: x.spec.Command,
		Work: x.work(), Temp: x.temp(), Stdin: x.spec.Stdin, TTY: x.spec.TTY != nil, Limits: containerLimits(x.limits),
	}
	if e := x.r.cfg.Containers; e != nil {
		p.Socket = e.Socket
	}
	env := x.environ()
	for _, k := range []string{"PATH", "LANG"} { // the machine's own are not the image's
		if _, ok := x.spec.Env[k]; !ok {
			delete(env, k)
		}
	}
	for k, v := range map[string]string{"HOME": container.WorkDir, "TMPDIR": container.TempDir} {
		env[k] = or(env[k], v)
	}
	for k, v := range env {
		p.Env = append(p.Env, k+"="+v)
	}
	slices.Sort(p.Env)
	return p
}

// contain returns how the run's container is started, and gives its folders to who
// the program is there.
func (x *live) contain() (launch.Command, error) {
	e := x.r.cfg.Containers
	if e == nil {
		return launch.Command{}, errors.New("there is no container engine on this machine any more")
	}
	p := x.plan()
	user, owner := e.User(os.Getuid(), os.Getgid())
	p.User = user
	if owner >= 0 {
		for _, dir := range []string{x.work(), x.temp()} {
			if err := giveTo(dir, owner); err != nil {
				return launch.Command{}, fmt.Errorf("give the run its folder: %w", err)
			}
		}
	}
	return p.Launch()
}

// giveTo makes a user the owner of a folder and all that is in it.
func giveTo(dir string, user int) error {
	return filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		return os.Lchown(path, user, user)
	})
}

// still has all that the run has started stand still, or go on. The caller holds
// the lock, and there is a watch.
func (x *live) still(still bool) error {
	if x.level == task.LevelContainer && x.r.cfg.Containers != nil {
		return x.r.cfg.Containers.Pause(context.Background(), x.id, still)
	}
	return x.watch.Hold(still)
}

// removeContainer removes what is left of the run where its supervisor could not.
func (x *live) removeContainer() {
	if x.level != task.LevelContainer {
		return
	}
	err := errors.New("there is no container engine any more")
	if e := x.r.cfg.Containers; e != nil {
		err = e.Remove(context.Background(), x.id)
	}
	if err != nil {
		x.r.cfg.Log.Error("cannot remove the container of a run", "run", x.id, "err", err)
	}
}

// sweepContainers removes those of runs that have ended while their engine did not
// answer.
func (r *Runner) sweepContainers(ctx context.Context) {
	e := r.cfg.Containers
	if e == nil {
		return
	}
	left, err := e.Left(ctx, r.cfg.Self.String())
	for _, run := range left {
		if r.found(run) == nil && task.ValidID(run) {
			err = errors.Join(err, e.Remove(ctx, run))
		}
	}
	if err != nil {
		r.cfg.Log.Warn("cannot remove the containers of runs that have ended", "err", err)
	}
}
