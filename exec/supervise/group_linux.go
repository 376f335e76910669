package supervise

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

// Control finds what runs have started.
//
// Where this process may make control groups (version 2), each run gets one:
// nothing leaves it, and the kernel kills all that is in it at once. Elsewhere a
// run's supervisor becomes the parent of all that the program leaves behind, and
// when the supervisor has been killed too, a run is found by its environment,
// which a program that wants to hide can change.
type Control struct {
	Cgroup string // folder to make groups in; empty where that is not possible
	leaf   string // begins the name of this node's groups
	node   string // in the environment of its runs
}

// NewControl finds out what this process may do. short and node name the node.
func NewControl(short, node string) Control {
	c := Control{leaf: "balance-" + short + "-", node: node}
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
		c.Cgroup = dir
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

// Group returns the folder of the control group for a run, empty for none.
func (c Control) Group(run string) string {
	if c.Cgroup == "" {
		return ""
	}
	return filepath.Join(c.Cgroup, c.leaf+run)
}

// start starts a program in a session of its own, to be killed when the thread
// that calls start ends.
func start(o *Order, files []*os.File, tty bool) (*os.Process, *group, error) {
	// A service manager may have given the node capabilities that pass to
	// programs: they are this thread's, and not for runs.
	_ = unix.Prctl(unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0)
	attr := &os.ProcAttr{Dir: o.Dir, Env: o.Env, Files: files}
	attr.Sys = &syscall.SysProcAttr{Setsid: true, Setctty: tty, Pdeathsig: syscall.SIGKILL}
	g := &group{cgroup: o.Cgroup}
	p, err := g.start(o.Program, o.Argv, attr)
	if err != nil && g.cgroup != "" {
		// What a group's parent allows shows only now.
		os.Remove(g.cgroup)
		g.cgroup, attr.Sys.UseCgroupFD = "", false
		p, err = g.start(o.Program, o.Argv, attr)
	}
	if err != nil {
		return nil, nil, err
	}
	g.pid = p.Pid
	return p, g, nil
}

// group is every process that a run has started.
type group struct {
	cgroup string // folder; empty without
	pid    int    // of the program, which leads its session
}

func (g *group) start(program string, argv []string, attr *os.ProcAttr) (*os.Process, error) {
	if g.cgroup != "" {
		if err := os.Mkdir(g.cgroup, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
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
// ended and was not waited for. It returns when nothing is left.
func (g *group) sweep() error {
	if g.cgroup != "" {
		return removeCgroup(g.cgroup)
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
