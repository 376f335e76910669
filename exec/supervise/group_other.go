//go:build !linux

package supervise

import (
	"os"
	"syscall"
)

// Control does nothing here: only the supervisor finds what a run has started,
// which is its process group.
type Control struct{ Cgroup string }

// NewControl finds out what this process may do.
func NewControl(string, string) Control { return Control{} }

// Group returns nothing.
func (Control) Group(string) string { return "" }

// KillLeft kills nothing: it cannot be found.
func (Control) KillLeft([]string) error { return nil }

func start(o *Order, files []*os.File, tty bool) (*os.Process, *group, error) {
	attr := &os.ProcAttr{Dir: o.Dir, Env: o.Env, Files: files, Sys: &syscall.SysProcAttr{Setsid: true, Setctty: tty}}
	p, err := os.StartProcess(o.Program, o.Argv, attr)
	if err != nil {
		return nil, nil, err
	}
	return p, &group{pid: p.Pid}, nil
}

// group is the process group of a run.
type group struct{ pid int }

func children() []int { return nil }

// orphans finds nothing here.
func (g *group) orphans() []int { return nil }

func (g *group) terminate() { _ = syscall.Kill(-g.pid, syscall.SIGTERM) }

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
