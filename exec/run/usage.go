package run

import (
	"golang.org/x/sys/unix"

	"github.com/balanceai/balance/exec/task"
)

// freeDisk returns what programs of this user may still write to the file
// system that dir is on.
func freeDisk(dir string) (task.Bytes, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return 0, err
	}
	return task.Bytes(st.Bavail) * task.Bytes(st.Bsize), nil //nolint:unconvert // the types differ between systems
}
