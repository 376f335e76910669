//go:build !linux

package run

import (
	"os"
	"syscall"

	"github.com/balanceai/balance/exec/cgroup"
)

// control starts programs so that what they start can be killed: those in the
// program's process group. What leaves the group, or outlives this process, is
// not found.
type control struct{}

func newControl(*cgroup.Base, string) control { return control{} }

func (control) can() cgroup.Can { return cgroup.Can{} }

func (control) start(_, program string, argv []string, attr *os.ProcAttr, _ cgroup.Limits, _ bool) (*os.Process, *group, error) {
	attr.Sys = &syscall.SysProcAttr{Setsid: true}
	p, err := os.StartProcess(program, argv, attr)
	if err != nil {
		return nil, nil, err
	}
	return p, &group{pid: p.Pid}, nil
}

// group is the process group of a run.
type group struct{ pid int }

func (g *group) terminate() { _ = syscall.Kill(-g.pid, syscall.SIGTERM) }

func (g *group) kill() { _ = syscall.Kill(-g.pid, syscall.SIGKILL) }

func (*group) events() cgroup.Events { return cgroup.Events{} }

func (g *group) sweep() error {
	g.kill()
	return nil
}

func (control) killLeft([]string) error { return nil }

// awaitExit waits until a process has ended and returns how.
func awaitExit(p *os.Process) *os.ProcessState {
	state, err := p.Wait()
	if err != nil {
		return nil
	}
	return state
}
