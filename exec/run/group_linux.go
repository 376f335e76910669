package run

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/balanceai/balance/exec/cgroup"
)

// control starts programs so that all that they start can be found again.
//
// Where this process may make control groups, each run gets one: nothing leaves
// it. Elsewhere a run is found by its session and by its environment, which a
// program that wants to hide can change.
type control struct {
	groups *cgroup.Base
	node   string // in the environment of its runs
}

func newControl(groups *cgroup.Base, node string) control { return control{groups, node} }

// start starts a program in a session of its own, within limits, to be killed
// when the thread that calls start ends.
func (c control) start(run, program string, argv []string, attr *os.ProcAttr, limits cgroup.Limits, walled bool) (p *os.Process, g *group, err error) {
	g = &group{run: run, node: c.node, walled: walled}
	// A service manager may have given the node capabilities that pass to
	// programs: they are this thread's, and not for runs.
	_ = unix.Prctl(unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0)
	attr.Sys = &syscall.SysProcAttr{Setsid: true, Pdeathsig: syscall.SIGKILL}
	if can := c.groups.Can(); can.Kill || limits != (cgroup.Limits{}) {
		if g.cgroup, err = c.groups.Make(run, limits); err != nil {
			return nil, nil, err
		}
	}
	start := func() error {
		p, err = os.StartProcess(program, argv, attr)
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
	g.pid, g.began = p.Pid, time.Now()
	return p, g, nil
}

// group is every process that a run has started.
type group struct {
	run, node string
	cgroup    *cgroup.Group // nil without
	pid       int           // of the program, or of what holds its sandbox, which leads its session
	walled    bool          // in a sandbox
	began     time.Time
}

// can tells which limits hold for all processes of a run together.
func (c control) can() cgroup.Can { return c.groups.Can() }

// events tells what the limits have done to the run so far.
func (g *group) events() cgroup.Events {
	if g.cgroup == nil {
		return cgroup.Events{}
	}
	return g.cgroup.Events()
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
		if _, pgrp, _ := processState(pid); pgrp == g.pid && pid != g.pid && !nsInit(pid) {
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
// ended and was not waited for: its pid still stands for the session. It
// returns when nothing is left.
func (g *group) sweep() error {
	if g.cgroup != nil {
		return g.cgroup.Remove()
	}
	return killAll(func() []int { return slices.DeleteFunc(g.candidates(), func(pid int) bool { return !g.has(pid) }) })
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

// candidates returns the processes that may be the run's. After a short run
// those are the few that got the next process ids; to look at every process of
// the machine takes milliseconds.
func (g *group) candidates() []int {
	const short, few = time.Second, 128 // no machine wraps its process ids in a second
	if last, err := lastPid(); err == nil && time.Since(g.began) < short && last >= g.pid && last-g.pid < few {
		var out []int
		for pid := g.pid + 1; pid <= last; pid++ {
			out = append(out, pid)
		}
		return out
	}
	return allPids()
}

// lastPid returns the process id that the kernel gave last: the last field of
// /proc/loadavg.
func lastPid() (int, error) {
	b, err := os.ReadFile("/proc/loadavg")
	if err != nil {
		return 0, err
	}
	fields := strings.Fields(string(b))
	if len(fields) < 5 {
		return 0, errors.New("/proc/loadavg has another form")
	}
	return strconv.Atoi(fields[4])
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

func (g *group) has(pid int) bool {
	state, pgrp, session := processState(pid)
	if pid == g.pid || state == 0 || state == 'Z' || state == 'X' {
		return false
	}
	return pgrp == g.pid || session == g.pid || runOf(pid, g.node) == g.run
}

// processState reads /proc/PID/stat, see proc_pid_stat(5): state, parent,
// process group and session follow the name in brackets. The state is 0 where
// there is no such process.
func processState(pid int) (state byte, pgrp, session int) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, 0, 0
	}
	fields := strings.Fields(string(b[bytes.LastIndexByte(b, ')')+1:]))
	if len(fields) < 4 {
		return 0, 0, 0
	}
	pgrp, _ = strconv.Atoi(fields[2])
	session, _ = strconv.Atoi(fields[3])
	return fields[0][0], pgrp, session
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

// killLeft kills what the runs of an earlier life have left: it may have been
// in another control group itself.
func (c control) killLeft(runs []string) error {
	var errs []error
	for run, g := range c.groups.Left() {
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
