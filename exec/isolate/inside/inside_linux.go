package inside

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"

	"github.com/landlock-lsm/go-landlock/landlock"
	ll "github.com/landlock-lsm/go-landlock/landlock/syscall"
	"golang.org/x/sys/unix"

	"github.com/balanceai/balance/exec/isolate/launch"
)

func init() {
	if len(os.Args) == 3 && os.Args[0] == Name {
		os.Exit(enter())
	}
}

// enter becomes a run. It returns only where that fails.
func enter() int {
	plan, err1 := strconv.Atoi(os.Args[1])
	report, err2 := strconv.Atoi(os.Args[2])
	if errors.Join(err1, err2) != nil {
		return exitCannot
	}
	tell := os.NewFile(uintptr(report), "report")
	err := become(os.NewFile(uintptr(plan), "plan"), tell)
	fmt.Fprint(tell, launch.Failed, errnoOf(err), " ", err)
	return exitCannot
}

// exitCannot is the exit code of shells for a program that cannot be started.
const exitCannot = 126

// become turns this process into the run. It returns only where that fails.
func become(plan, report *os.File) error {
	// Landlock binds a thread, and the one that starts the program is the one
	// that the program goes on with.
	runtime.LockOSThread()
	data, err := io.ReadAll(plan)
	if err != nil {
		return err
	}
	var in Plan
	if err := json.Unmarshal(data, &in); err != nil {
		return err
	}
	if err := in.Limits.set(); err != nil {
		return err
	}
	if in.Door > 0 {
		if err := launch.SendListener(in.Door); err != nil {
			return fmt.Errorf("the way out: %w", err)
		}
	}
	if in.Private > 0 {
		var more []string
		if err := json.NewDecoder(os.NewFile(uintptr(in.Private), "private")).Decode(&more); err != nil {
			return fmt.Errorf("its secrets: %w", err)
		}
		in.Env = append(in.Env, more...)
	}
	if in.Terminal {
		if err := control(); err != nil {
			return fmt.Errorf("its terminal: %w", err)
		}
	}
	if in.Landlock {
		if err := enclose(in.Devices); err != nil {
			return fmt.Errorf("landlock: %w", err)
		}
	}
	program, err := launch.LookPath(in.Command[0], variable(in.Env, "PATH"), in.Dir)
	if err != nil {
		return err
	}
	// Nothing that was open outside stays open inside. The report closes by
	// itself when the program starts.
	if err := unix.CloseRange(launch.FirstFile, 1<<31-1, unix.CLOSE_RANGE_CLOEXEC); err != nil {
		return fmt.Errorf("close what is open: %w", err)
	}
	if _, err := io.WriteString(report, launch.Started); err != nil {
		return err
	}
	return syscall.Exec(program, in.Command, in.Env)
}

func variable(env []string, name string) string {
	for _, v := range env {
		if value, ok := strings.CutPrefix(v, name+"="); ok {
			return value
		}
	}
	return ""
}

// control makes a session of which standard input is the terminal. That of the
// program which builds the sandbox has none: a shell in here could not name its
// processes.
func control() error {
	if _, err := syscall.Setsid(); err != nil {
		return err
	}
	return unix.IoctlSetInt(0, unix.TIOCSCTTY, 0)
}

// set limits this process and those that it starts.
func (l Limits) set() error {
	for _, limit := range []struct {
		what  int
		value uint64
	}{
		{unix.RLIMIT_DATA, l.Memory},
		{unix.RLIMIT_FSIZE, l.File},
		{unix.RLIMIT_NPROC, uint64(l.Processes)},
	} {
		if limit.value == 0 {
			continue
		}
		if err := syscall.Setrlimit(limit.what, &syscall.Rlimit{Cur: limit.value, Max: limit.value}); err != nil {
			return fmt.Errorf("limit %d: %w", limit.what, err)
		}
	}
	return syscall.Setrlimit(unix.RLIMIT_CORE, &syscall.Rlimit{})
}

// enclose restricts this thread to the files that the sandbox is to have, by
// another mechanism than the one that has put them there.
//
// TCP is left alone: the network namespace has nothing to reach, and what a run
// serves to itself on its loopback is its own business.
func enclose(devices []string) error {
	config := landlock.V6
	config.HandledAccessNet = 0
	readable := []string{"/etc", "/proc", Name}
	for _, dir := range []string{"/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32", "/sys", "/var"} {
		if _, err := os.Stat(dir); err == nil {
			readable = append(readable, dir)
		}
	}
	rules := []landlock.Rule{
		landlock.PathAccess(landlock.AccessFSSet(ll.AccessFSReadDir), "/"),
		landlock.RWDirs(Work, Temp, "/dev/shm").WithRefer(),
		landlock.RWFiles("/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom", "/dev/tty").WithIoctlDev(),
		landlock.RWDirs("/dev/pts").WithIoctlDev(),
	}
	for _, path := range readable {
		rules = append(rules, readOnly(path))
	}
	for _, d := range devices {
		rules = append(rules, landlock.RWFiles(d).WithIoctlDev())
	}
	fd, flags, err := config.BestEffort().NewRulesetFD(rules...)
	if err != nil {
		return err
	}
	if fd < 0 {
		return errors.New("the kernel does not have it any more")
	}
	defer func() { _ = syscall.Close(fd) }()
	return ll.LandlockRestrictSelf(fd, flags)
}

func readOnly(path string) landlock.Rule {
	if info, err := os.Stat(path); err == nil && !info.IsDir() {
		return landlock.ROFiles(path)
	}
	return landlock.RODirs(filepath.Clean(path))
}

// errnoOf returns what the kernel has said, for [launch.Report].
func errnoOf(err error) int {
	if e, ok := errors.AsType[syscall.Errno](err); ok {
		return int(e)
	}
	return 0
}
