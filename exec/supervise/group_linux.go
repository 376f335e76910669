package supervise

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/balanceai/balance/exec/cgroup"
)

// Control finds what runs have started.
//
// Where the node may make control groups, each run gets one: nothing leaves it.
// Elsewhere a run's supervisor becomes the parent of all that the program leaves
// behind, and when the supervisor has been killed too, a run is found by its
// environment, which a program that wants to hide can change.
type Control struct {
	Groups *cgroup.Base
	node   string // in the environment of its runs
}

// NewControl is for the runs of a node.
func NewControl(groups *cgroup.Base, node string) Control { return Control{groups, node} }

// start starts a program in a session of its own, to be killed when the thread
// that calls start ends.
func start(o *Order, files []*os.File) (p *os.Process, g *group, err error) {
	// A service manager may have given the node capabilities that pass to
	// programs: they are this thread's, and not for runs.
	_ = unix.Prctl(unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0)
	attr := &os.ProcAttr{Dir: o.Dir, Env: append([]string{}, o.Env...), Files: files} // a nil Env would be this process's own
	terminal := o.TTY != nil && !o.Walled                                             // in a sandbox it makes it its own by itself
	attr.Sys = &syscall.SysProcAttr{Setsid: true, Setctty: terminal, Pdeathsig: syscall.SIGKILL}
	g = &group{cgroup: o.Group, walled: o.Walled}
	start := func() error {
		p, err = os.StartProcess(o.Program, o.Argv, attr)
		return err
	}
	if g.cgroup == nil {
		err = start()
	} else if err = g.cgroup.Start(attr.Sys, start); err != nil {
		_ = g.cgroup.Remove() // nothing is in it
	}
	if err != nil {
		return nil, nil, err
	}
	g.pid = p.Pid
	return p, g, nil
}

// group is every process that a run has started.
type group struct {
	cgroup *cgroup.Group // nil without
	pid    int           // of the program, or of what holds its sandbox, which leads its session
	walled bool          // in a sandbox
}

// events tells what the limits have done to the run so far.
func (g *group) events() cgroup.Events {
	if g.cgroup == nil {
		return cgroup.Events{}
	}
	return g.cgroup.Events()
}

// usage tells what all of the group has used so far.
func (g *group) usage() cgroup.Usage {
	if g.cgroup == nil {
		return cgroup.Usage{}
	}
	return g.cgroup.Usage()
}

// terminate asks the program, and what shares its process group, to end. Those
// that hold a sandbox are in the group as well, and would take the run with them
// before it can do anything about it: where there is one, they are left out.
func (g *group) terminate() {
	if !g.walled {
		_ = syscall.Kill(-g.pid, syscall.SIGTERM)
		return
	}
	for _, pid := range allPids() {
		if pgrp, err := syscall.Getpgid(pid); err == nil && pgrp == g.pid && pid != g.pid && !nsInit(pid) {
			_ = syscall.Kill(pid, syscall.SIGTERM)
		}
	}
}

// nsInit reports whether a process is the first one of a PID namespace, which
// the kernel kills with all others in it when it ends.
func nsInit(pid int) bool {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return false
	}
	for line := range strings.Lines(string(b)) {
		if ids, ok := strings.CutPrefix(line, "NSpid:"); ok {
			f := strings.Fields(ids)
			return len(f) > 1 && f[len(f)-1] == "1"
		}
	}
	return false
}

// hold has all that the run has started stand still, or go on: by the kernel
// where the run has a group that can, else by a signal to each process.
func (g *group) hold(still bool) error {
	if g.cgroup != nil {
		if err := g.cgroup.Freeze(still); !errors.Is(err, errors.ErrUnsupported) {
			return err
		}
	}
	sig := syscall.SIGCONT
	if still {
		sig = syscall.SIGSTOP
	}
	for seen := map[int]bool{}; ; { // those that were started meanwhile too
		more := false
		for _, pid := range descendants() {
			if !seen[pid] {
				seen[pid], more = true, true
				_ = syscall.Kill(pid, sig)
			}
		}
		if !more {
			return nil
		}
	}
}

// descendants returns every process that this one has started, however far down.
func descendants() []int {
	parents := map[int]int{}
	for _, pid := range allPids() {
		parents[pid] = parent(pid)
	}
	var out []int
	for pid := range parents {
		for p := parents[pid]; p > 1; p = parents[p] {
			if p == os.Getpid() {
				out = append(out, pid)
				break
			}
		}
	}
	return out
}

// kill kills without waiting. The program must not have been waited for.
func (g *group) kill() {
	_ = syscall.Kill(-g.pid, syscall.SIGKILL)
	if g.cgroup != nil {
		_ = g.cgroup.Kill()
	}
}

// sweepTime bounds the wait for processes that were killed.
const sweepTime = 2 * time.Second

// sweep kills all that is left of the group, but for the program, which has
// ended and was not waited for. It returns when nothing is left.
func (g *group) sweep() error {
	if g.cgroup != nil {
		return g.cgroup.Remove()
	}
	return killAll(g.orphans)
}

// orphans returns this process's children, of which only the program was
// started by it: the others have lost their parents. Those that have ended are
// waited for. What they have started comes here when they are gone.
func (g *group) orphans() []int {
	var out []int
	for _, pid := range children() {
		if pid == g.pid {
			continue
		}
		if done, _ := syscall.Wait4(pid, nil, syscall.WNOHANG, nil); done != pid {
			out = append(out, pid)
		}
	}
	return out
}

// children reads those of each thread, or where the kernel does not tell those
// (CONFIG_PROC_CHILDREN) looks at every process.
func children() []int {
	var out []int
	lists, _ := filepath.Glob("/proc/self/task/*/children")
	for _, name := range lists {
		b, err := os.ReadFile(name)
		if err != nil {
			continue // the thread has ended
		}
		for field := range strings.FieldsSeq(string(b)) {
			if pid, err := strconv.Atoi(field); err == nil {
				out = append(out, pid)
			}
		}
	}
	if len(lists) == 0 {
		out = slices.DeleteFunc(allPids(), func(pid int) bool { return parent(pid) != os.Getpid() })
	}
	return out
}

// killAll kills until nothing more is found.
func killAll(find func() []int) error {
	end := time.Now().Add(sweepTime)
	for pause := time.Millisecond; ; pause *= 2 {
		pids := find()
		if len(pids) == 0 {
			return nil
		}
		if time.Now().After(end) {
			return fmt.Errorf("processes %v do not end", pids)
		}
		for _, pid := range pids {
			_ = syscall.Kill(pid, syscall.SIGKILL)
		}
		time.Sleep(pause)
	}
}

func allPids() []int {
	dir, err := os.Open("/proc")
	if err != nil {
		return nil
	}
	defer dir.Close()
	names, err := dir.Readdirnames(-1)
	if err != nil {
		return nil
	}
	var out []int
	for _, name := range names {
		if pid, err := strconv.Atoi(name); err == nil {
			out = append(out, pid)
		}
	}
	return out
}

// parent reads /proc/PID/stat, see proc_pid_stat(5): the state and the parent
// follow the name in brackets. It is 0 where there is no such process.
func parent(pid int) int {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0
	}
	fields := strings.Fields(string(b[bytes.LastIndexByte(b, ')')+1:]))
	if len(fields) < 2 {
		return 0
	}
	ppid, _ := strconv.Atoi(fields[1])
	return ppid
}

// runOf returns the run of a node that a process belongs to by its environment,
// or nothing.
func runOf(pid int, node string) (run string) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/environ", pid))
	if err != nil {
		return ""
	}
	here := false
	for v := range strings.SplitSeq(string(b), "\x00") {
		if id, ok := strings.CutPrefix(v, "BALANCE_RUN="); ok {
			run = id
		}
		here = here || v == "BALANCE_NODE="+node
	}
	if !here {
		return ""
	}
	return run
}

// KillLeft kills what runs without a supervisor have left: the node may have been
// in another control group when it started them.
func (c Control) KillLeft(runs []string) error {
	var errs []error
	for run, g := range c.Groups.Left() {
		if slices.Contains(runs, run) {
			errs = append(errs, g.Remove())
		}
	}
	errs = append(errs, killAll(func() []int {
		return slices.DeleteFunc(allPids(), func(pid int) bool { // a zombie has no environment
			run := runOf(pid, c.node)
			return run == "" || !slices.Contains(runs, run)
		})
	}))
	return errors.Join(errs...)
}

// awaitExit waits until a process has ended. It leaves the exit status to be
// waited for, so that the process id stays taken: the state is nil.
func awaitExit(p *os.Process) *os.ProcessState {
	for errors.Is(unix.Waitid(unix.P_PID, p.Pid, nil, unix.WEXITED|unix.WNOWAIT, nil), unix.EINTR) {
	}
	return nil
}
