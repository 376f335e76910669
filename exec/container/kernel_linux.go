package container

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// setting says where the kernel keeps a limit, by version of control groups.
type setting struct {
	what           string
	controller, v1 string // of version 1
	v2             string
	want           uint64
}

// enforced reads from the kernel whether the limits hold for a process, whatever
// the engine says. One that has ended has nothing to be read any more.
func (l Limits) enforced(root string, pid int) error {
	text, err := os.ReadFile(filepath.Join(root, "proc", strconv.Itoa(pid), "cgroup"))
	if err != nil {
		return ended(err)
	}
	quota := uint64(l.quota())
	for _, s := range []setting{
		{"memory", "memory", "memory.limit_in_bytes", "memory.max", l.Memory},
		{"CPU time", "cpu", "cpu.cfs_quota_us", "cpu.max", quota},
		{"processes", "pids", "pids.max", "pids.max", uint64(l.PIDs)},
	} {
		if s.want == 0 {
			continue
		}
		if err := s.read(root, string(text)); err != nil {
			return err
		}
	}
	return nil
}

// read compares a limit with what is wanted. The nearest group that has it counts.
func (s *setting) read(root, groups string) error {
	file := ""
	if dir, ok := groupOf(groups, s.controller); ok {
		file = filepath.Join(root, "sys/fs/cgroup", s.controller, dir, s.v1)
	} else if dir, ok := groupOf(groups, ""); ok {
		file = filepath.Join(root, "sys/fs/cgroup", dir, s.v2)
	}
	b, err := os.ReadFile(file)
	if err != nil {
		return ended(fmt.Errorf("the limit of %s cannot be read back: %w", s.what, err))
	}
	field, _, _ := strings.Cut(strings.TrimSpace(string(b)), " ")
	const page = 64 << 10 // the largest there are
	got, err := strconv.ParseUint(field, 10, 64)
	if err != nil || got > s.want || s.want-got >= page {
		return fmt.Errorf("the kernel does not hold the limit of %s: it is %.40q, not %d", s.what, field, s.want)
	}
	return nil
}

// groupOf finds the path of a controller in the text of /proc/PID/cgroup; the
// empty one is that of version 2.
func groupOf(text, controller string) (dir string, ok bool) {
	for line := range strings.Lines(text) {
		f := strings.SplitN(strings.TrimSpace(line), ":", 3)
		if len(f) != 3 {
			continue
		}
		for c := range strings.SplitSeq(f[1], ",") {
			if c == controller {
				return filepath.Clean("/" + f[2]), true
			}
		}
	}
	return "", false
}

// errEnded says that there is nothing to read any more.
var errEnded = errors.New("the program has ended")

func ended(err error) error {
	if errors.Is(err, os.ErrNotExist) {
		return errors.Join(errEnded, err)
	}
	return err
}

// watchMemory watches whether something is killed in the memory group of a process
// for want of memory, where that is one of version 1: podman does not tell it there.
// The function that it returns says so at the end.
func watchMemory(root string, pid int) (killed func() bool) {
	var was atomic.Bool
	text, _ := os.ReadFile(filepath.Join(root, "proc", strconv.Itoa(pid), "cgroup"))
	group, ok := groupOf(string(text), "memory")
	dir := filepath.Join(root, "sys/fs/cgroup/memory", group)
	control, err := os.Open(filepath.Join(dir, "memory.oom_control"))
	if !ok || group == "/" || err != nil {
		return was.Load
	}
	event, err := unix.Eventfd(0, unix.EFD_CLOEXEC)
	if err != nil {
		control.Close()
		return was.Load
	}
	told := os.NewFile(uintptr(event), "out of memory")
	order := fmt.Sprintf("%d %d", event, control.Fd())
	if err := os.WriteFile(filepath.Join(dir, "cgroup.event_control"), []byte(order), 0); err != nil {
		control.Close()
		told.Close()
		return was.Load
	}
	go func() {
		defer control.Close()
		defer told.Close()
		for {
			if _, err := told.Read(make([]byte, 8)); err != nil {
				return
			}
			if _, err := os.Stat(dir); err != nil { // the end of the group is told as well
				return
			}
			was.Store(true)
		}
	}()
	return was.Load
}
