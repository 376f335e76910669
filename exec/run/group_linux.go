package run

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// control starts programs so that all that they start can be found again.
//
// Where this process may make control groups (version 2), each run gets one:
// nothing leaves it, and the kernel kills all that is in it at once. Elsewhere a
// run is found by its session and by its environment, which a program that
// wants to hide can change.
type control struct {
	cgroup string // folder to make groups in; empty where that is not possible
	leaf   string // begins the name of this node's groups
	node   string // in the environment of its runs
}

func newControl(short, node string) control {
	c := control{leaf: "balance-" + short + "-", node: node}
	dir, err := ownCgroup()
	if err != nil {
		return c
	}
	probe := filepath.Join(dir, c.leaf+"probe")
	if err := os.Mkdir(probe, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
		return c
	}
	defer os.Remove(probe)
	if _, err := os.Stat(filepath.Join(probe, "cgroup.kill")); err == nil { // Linux 5.14
		c.cgroup = dir
	}
	return c
}

// ownCgroup returns the folder of the group (version 2) that this process is in.
func ownCgroup() (string, error) {
	mount, err := cgroupMount()
	if err != nil {
		return "", err
	}
	b, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		return "", err
	}
	for line := range strings.Lines(string(b)) {
		if path, ok := strings.CutPrefix(strings.TrimSpace(line), "0::/"); ok && !strings.HasPrefix(path, "..") {
			return filepath.Join(mount, path), nil
		}
	}
	return "", errors.New("not in a control group")
}

// cgroupMount finds where cgroup2 is mounted. See proc_pid_mountinfo(5): the
// mount point is the fifth field, the type follows a lone hyphen.
func cgroupMount() (string, error) {
	b, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return "", err
	}
	for line := range strings.Lines(string(b)) {
		before, after, ok := strings.Cut(line, " - ")
		if fields := strings.Fields(before); ok && len(fields) > 4 && strings.HasPrefix(after, "cgroup2 ") {
			return fields[4], nil
		}
	}
	return "", errors.New("no cgroup2 is mounted")
}

// start starts a program in a session of its own, to be killed when the thread
// that calls start ends.
func (c control) start(run, program string, argv []string, attr *os.ProcAttr) (*os.Process, *group, error) {
	g := &group{run: run, node: c.node}
	// A service manager may have given the node capabilities that pass to
	// programs: they are this thread's, and not for runs.
	_ = unix.Prctl(unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0)
	attr.Sys = &syscall.SysProcAttr{Setsid: true, Pdeathsig: syscall.SIGKILL}
	if c.cgroup != "" {
		g.cgroup = filepath.Join(c.cgroup, c.leaf+run)
	}
	p, err := g.start(program, argv, attr)
	if err != nil && g.cgroup != "" {
		// What a group's parent allows shows only now.
		os.Remove(g.cgroup)
		g.cgroup, attr.Sys.UseCgroupFD = "", false
		p, err = g.start(program, argv, attr)
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
	cgroup    string // folder; empty without
	pid       int    // of the program, which leads its session
	began     time.Time
}

func (g *group) start(program string, argv []string, attr *os.ProcAttr) (*os.Process, error) {
	if g.cgroup != "" {
		if err := os.Mkdir(g.cgroup, 0o755); err != nil {
			return nil, err
		}
		dir, err := os.Open(g.cgroup)
		if err != nil {
			return nil, err
		}
		defer dir.Close()
		attr.Sys.UseCgroupFD, attr.Sys.CgroupFD = true, int(dir.Fd())
	}
	return os.StartProcess(program, argv, attr)
}

// terminate asks the program, and what shares its process group, to end.
func (g *group) terminate() { _ = syscall.Kill(-g.pid, syscall.SIGTERM) }

// kill kills without waiting. The program must not have been waited for.
func (g *group) kill() {
	_ = syscall.Kill(-g.pid, syscall.SIGKILL)
	if g.cgroup != "" {
		_ = killCgroup(g.cgroup)
	}
}

// sweepTime bounds the wait for processes that were killed.
const sweepTime = 2 * time.Second

// sweep kills all that is left of the group, but for the program, which has
// ended and was not waited for: its pid still stands for the session. It
// returns when nothing is left.
func (g *group) sweep() error {
	if g.cgroup != "" {
		return removeCgroup(g.cgroup)
	}
	return killAll(func() []int { return slices.DeleteFunc(g.candidates(), func(pid int) bool { return !g.has(pid) }) })
}

func killCgroup(dir string) error {
	return os.WriteFile(filepath.Join(dir, "cgroup.kill"), []byte("1"), 0)
}

// removeCgroup kills all that is in a group and removes it, which the kernel
// allows only when nothing is in it.
func removeCgroup(dir string) error {
	end := time.Now().Add(sweepTime)
	for pause := time.Millisecond; ; pause *= 2 {
		err := os.Remove(dir)
		if err == nil || errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if time.Now().After(end) {
			return err
		}
		if err := killCgroup(dir); err != nil {
			return err
		}
		time.Sleep(pause)
		removeBelow(dir)
	}
}

// removeBelow removes the groups that a run has made in its own.
func removeBelow(dir string) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return
	}
	for _, e := range entries {
		if e.IsDir() {
			below := filepath.Join(dir, e.Name())
			removeBelow(below)
			os.Remove(below)
		}
	}
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
	if mount, err := cgroupMount(); err == nil {
		errs = append(errs, filepath.WalkDir(mount, func(path string, d fs.DirEntry, err error) error {
			if err != nil || !d.IsDir() {
				return nil // not ours
			}
			if run, ok := strings.CutPrefix(d.Name(), c.leaf); ok && slices.Contains(runs, run) {
				errs = append(errs, removeCgroup(path))
				return fs.SkipDir
			}
			return nil
		}))
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
