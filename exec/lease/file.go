package lease

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"time"
)

// file is, in the folder of a run, when its lease ends: nanoseconds of [Now], in
// decimal. It counts until the machine is started again.
const file = "lease"

// Write notes when the lease of the run in a folder ends, for the process that
// holds the run and does not talk to the giver.
func Write(dir string, until time.Duration) error {
	path := filepath.Join(dir, file)
	if err := os.WriteFile(path+".part", strconv.AppendInt(nil, int64(until), 10), 0o600); err != nil {
		return err
	}
	return os.Rename(path+".part", path)
}

// Read returns when the lease of the run in a folder ends.
func Read(dir string) (time.Duration, error) {
	b, err := os.ReadFile(filepath.Join(dir, file))
	if err != nil {
		return 0, err
	}
	n, err := strconv.ParseInt(string(b), 10, 64)
	if err != nil || n < 0 {
		return 0, fmt.Errorf("lease in %s: %.40q is no time", dir, b)
	}
	return time.Duration(n), nil
}

// Forget takes away what an earlier lease has left in a folder.
func Forget(dir string) error {
	err := os.Remove(filepath.Join(dir, file))
	if os.IsNotExist(err) {
		return nil
	}
	return err
}
