//go:build !linux

package supervise

import (
	"os"
	"syscall"

	"github.com/balanceai/balance/exec/cgroup"
)

// Control does nothing here: only the supervisor finds what a run has started,
// which is its process group.
type Control struct{ Groups *cgroup.Base }

// NewControl is for the runs of a node.
func NewControl(groups *cgroup.Base, _ string) Control { return Control{groups} }

// KillLeft kills nothing: it cannot be found.
func (Control) KillLeft([]string) error { return nil }

func start(o *Order, files []*os.File) (*os.Process, *group, error) {
	attr := &os.ProcAttr{Dir: o.Dir, Env: o.Env, Files: files, Sys: &syscall.SysProcAttr{Setsid: true, Setctty: o.TTY != nil}}
	p, err := os.StartProcess(o.Program, o.Argv, attr)
	if err != nil {
		return nil, nil, err
	}
	return p, &group{pid: p.Pid}, nil
}

// group is the process group of a run.
type group struct{ pid int }

func (*group) events() cgroup.Events { return cgroup.Events{} }

func (*group) usage() cgroup.Usage { return cgroup.Usage{} }

func children() []int { return nil }

// orphans finds nothing here.
func (g *group) orphans() []int { return nil }

func (g *group) terminate() { _ = syscall.Kill(-g.pid, syscall.SIGTERM) }

// hold stops the process group, or lets it go on.
func (g *group) hold(still bool) error {
	if still {
		return syscall.Kill(-g.pid, syscall.SIGSTOP)
	}
	return syscall.Kill(-g.pid, syscall.SIGCONT)
}

func (g *group) kill() { _ = syscall.Kill(-g.pid, syscall.SIGKILL) }

func (g *group) sweep() error {
	g.kill()
	return nil
}

// awaitExit waits until a process has ended and returns how.
func awaitExit(p *os.Process) *os.ProcessState {
	state, err := p.Wait()
	if err != nil {
		return nil
	}
	return state
}
