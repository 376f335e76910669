package run

import (
	"os"
	"runtime"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/balanceai/balance/exec/task"
)

// maxRSS returns the largest resident set of the program and of those that it
// waited for. See getrusage(2): Darwin counts bytes, others kibibytes.
func maxRSS(state *os.ProcessState) task.Bytes {
	usage, ok := state.SysUsage().(*syscall.Rusage)
	if !ok || usage.Maxrss < 0 {
		return 0
	}
	if runtime.GOOS == "darwin" {
		return task.Bytes(usage.Maxrss)
	}
	return task.Bytes(usage.Maxrss) * task.KiB
}

// freeDisk returns what programs of this user may still write to the file
// system that dir is on.
func freeDisk(dir string) (task.Bytes, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return 0, err
	}
	return task.Bytes(st.Bavail) * task.Bytes(st.Bsize), nil //nolint:unconvert // the types differ between systems
}
