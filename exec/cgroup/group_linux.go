package cgroup

import (
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

// Start starts a process in the group, with start, which is called once and must
// start it on the calling thread. The caller has locked its goroutine to that.
func (g *Group) Start(attr *syscall.SysProcAttr, start func() error) error {
	if g.V2 != "" {
		dir, err := os.Open(g.V2)
		if err != nil {
			return err
		}
		defer dir.Close()
		attr.UseCgroupFD, attr.CgroupFD = true, int(dir.Fd())
	}
	if len(g.V1) == 0 {
		return start()
	}
	back, err := g.visit()
	if err != nil {
		return errors.Join(err, back())
	}
	return errors.Join(start(), back())
}

// visit moves this thread into the group, so that what it starts begins there:
// in version 1 a thread may be in another group than its process. back moves it
// back, with threads that the runtime has started from it meanwhile.
func (g *Group) visit() (back func() error, err error) {
	home := locate()
	back = func() error {
		var errs []error
		for _, c := range controllers {
			if dir := g.V1[c]; dir != "" {
				errs = append(errs, leave(dir, home[c]))
			}
		}
		return errors.Join(errs...)
	}
	tid := []byte(strconv.Itoa(unix.Gettid()))
	for _, c := range controllers {
		if dir := g.V1[c]; dir != "" {
			if err := os.WriteFile(filepath.Join(dir, "tasks"), tid, 0); err != nil {
				return back, fmt.Errorf("enter a control group: %w", err)
			}
		}
	}
	return back, nil
}

// leave moves all threads of this process from a group to another, until there
// are no more.
func leave(dir, to string) error {
	for {
		found := false
		for tid := range strings.FieldsSeq(read(filepath.Join(dir, "tasks"))) {
			if _, err := os.Stat("/proc/self/task/" + tid); err != nil {
				continue
			}
			found = true
			if err := os.WriteFile(filepath.Join(to, "tasks"), []byte(tid), 0); err != nil && !errors.Is(err, syscall.ESRCH) {
				return fmt.Errorf("leave a control group: %w", err)
			}
		}
		if !found {
			return nil
		}
	}
}

// folders returns the group's folders, each once.
func (g *Group) folders() []string {
	var out []string
	if g.V2 != "" {
		out = append(out, g.V2)
	}
	for _, c := range controllers {
		if dir := g.V1[c]; dir != "" && !slices.Contains(out, dir) {
			out = append(out, dir)
		}
	}
	return out
}

// Kill kills all that is in the group, without waiting. Nothing escapes it by
// forking.
func (g *Group) Kill() error {
	if g.V2 != "" {
		return ignoreGone(os.WriteFile(filepath.Join(g.V2, "cgroup.kill"), []byte("1"), 0))
	}
	dirs := g.folders()
	if len(dirs) == 0 {
		return nil
	}
	if freezer := g.V1["freezer"]; freezer != "" {
		state := filepath.Join(freezer, "freezer.state")
		_ = os.WriteFile(state, []byte("FROZEN"), 0)
		defer func() { _ = os.WriteFile(state, []byte("THAWED"), 0) }() // to die
	}
	for _, pid := range processes(dirs[0]) {
		_ = syscall.Kill(pid, syscall.SIGKILL)
	}
	return nil
}

// Freeze has all that is in the group stand still, or go on. It gives
// [errors.ErrUnsupported] where the kernel cannot.
func (g *Group) Freeze(still bool) error {
	file, word := filepath.Join(g.V2, "cgroup.freeze"), map[bool]string{true: "1", false: "0"}
	if g.V2 == "" {
		freezer := g.V1["freezer"]
		if freezer == "" {
			return errors.ErrUnsupported
		}
		file, word = filepath.Join(freezer, "freezer.state"), map[bool]string{true: "FROZEN", false: "THAWED"}
	}
	if err := ignoreGone(os.WriteFile(file, []byte(word[still]), 0)); err != nil {
		return fmt.Errorf("freeze a control group: %w", err)
	}
	return nil
}

func processes(dir string) []int {
	var out []int
	for s := range strings.FieldsSeq(read(filepath.Join(dir, "cgroup.procs"))) {
		if pid, err := strconv.Atoi(s); err == nil && pid > 1 && pid != os.Getpid() {
			out = append(out, pid)
		}
	}
	return out
}

// killTime bounds the wait for the end of what was killed.
const killTime = 5 * time.Second

// Remove kills all that is in the group and removes it, which the kernel allows
// only when nothing is in it.
func (g *Group) Remove() error {
	end := time.Now().Add(killTime)
	for pause := time.Millisecond; ; pause = min(2*pause, 50*time.Millisecond) {
		err := g.remove()
		if err == nil {
			return nil
		}
		if time.Now().After(end) {
			return err
		}
		if err := g.Kill(); err != nil {
			return err
		}
		time.Sleep(pause)
	}
}

// remove removes the group with those that the run has made in it.
func (g *Group) remove() error {
	var errs []error
	for _, dir := range g.folders() {
		removeBelow(dir)
		errs = append(errs, ignoreGone(os.Remove(dir)))
	}
	return errors.Join(errs...)
}

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

func ignoreGone(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// Events tells what the limits have done. It has to be asked before [Group.Remove].
func (g *Group) Events() Events {
	var e Events
	if g.V2 != "" {
		e.OOM = counter(read(filepath.Join(g.V2, "memory.events")), "oom_kill")
		e.PIDs = counter(read(filepath.Join(g.V2, "pids.events")), "max")
	}
	if dir := g.V1["memory"]; dir != "" {
		e.OOM += counter(read(filepath.Join(dir, "memory.oom_control")), "oom_kill")
	}
	if dir := g.V1["pids"]; dir != "" {
		e.PIDs += counter(read(filepath.Join(dir, "pids.events")), "max")
	}
	return e
}

// Processes returns those that are in the group now, or in one below it.
func (g *Group) Processes() []int {
	dirs := g.folders()
	if len(dirs) == 0 {
		return nil
	}
	var out []int
	_ = filepath.WalkDir(dirs[0], func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.IsDir() {
			out = append(out, processes(path)...)
		}
		return nil // what goes meanwhile has no processes
	})
	return out
}

// Usage tells what the group has used. It has to be asked before [Group.Remove].
func (g *Group) Usage() Usage {
	var u Usage
	if g.V2 != "" {
		u.CPU = time.Duration(counter(read(filepath.Join(g.V2, "cpu.stat")), "usage_usec")) * time.Microsecond
		u.Memory = number(filepath.Join(g.V2, "memory.peak")) // Linux 5.19
	}
	if dir := g.V1["cpu"]; dir != "" && u.CPU == 0 { // where cpuacct is in the same hierarchy, as everywhere
		u.CPU = time.Duration(number(filepath.Join(dir, "cpuacct.usage")))
	}
	if dir := g.V1["memory"]; dir != "" {
		u.Memory = number(filepath.Join(dir, "memory.max_usage_in_bytes"))
	}
	return u
}

func number(path string) uint64 {
	n, err := strconv.ParseUint(read(path), 10, 64)
	if err != nil {
		return 0
	}
	return n
}

// Left returns the groups of this node that an earlier life has left, by what is
// behind the prefix of their names, wherever that life was in the tree.
func (b *Base) Left() map[string]*Group {
	out := map[string]*Group{}
	for line := range lines("/proc/self/mountinfo") {
		_, point, kind, options := parseMount(line)
		if kind != "cgroup2" && kind != "cgroup" {
			continue
		}
		_ = filepath.WalkDir(point, func(path string, d fs.DirEntry, err error) error {
			if err != nil || !d.IsDir() {
				return nil //nolint:nilerr // what cannot be read is not this node's
			}
			name, ok := strings.CutPrefix(d.Name(), b.prefix)
			if !ok {
				return nil
			}
			if out[name] == nil {
				out[name] = &Group{V1: map[string]string{}}
			}
			if kind == "cgroup2" {
				out[name].V2 = path
			} else {
				for c := range strings.SplitSeq(options, ",") {
					if slices.Contains(controllers, c) {
						out[name].V1[c] = path
					}
				}
			}
			return fs.SkipDir
		})
	}
	return out
}
