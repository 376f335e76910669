package run

import (
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"syscall"
	"time"

	"github.com/balanceai/balance/exec/task"
)

// The disk has no limit for a folder that works on every file system and for
// every user, so what a run has written is counted. That takes time with many
// files: it is done when the disk has filled by a part of the limit, and now and
// then for what others have freed meanwhile.
const (
	diskPeriod = 100 * time.Millisecond // between looks at the disk
	diskPart   = 8                      // of the limit, which can pass unseen at most on an otherwise quiet disk
	diskAtMost = 2 * time.Second        // between counts
	perFile    = task.KiB               // what a file takes besides its content
)

// watchDisk ends the run when its folders hold more than the limit. The caller
// calls stop when it has ended, which waits for a count that is under way.
func (x *live) watchDisk(limit task.Bytes) (stop func()) {
	done, over := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(over)
		tick := time.NewTicker(diskPeriod)
		defer tick.Stop()
		var counted time.Time
		var free task.Bytes
		for {
			select {
			case <-done:
				return
			case <-tick.C:
			}
			now, err := freeDisk(x.dir)
			if err == nil && now+limit/diskPart >= free && time.Since(counted) < diskAtMost {
				continue
			}
			counted, free = time.Now(), now
			if holds(limit, x.work(), x.temp()) {
				continue
			}
			x.stop(diskFull(limit), true)
			return
		}
	}()
	return func() {
		close(done)
		<-over
	}
}

func diskFull(limit task.Bytes) *end {
	return &end{state: task.Failed, cause: task.CauseDisk, code: exitDisk, reason: fmt.Sprintf("its limit of %v on the disk was reached", limit)}
}

// holds reports whether what is in folders is within a limit. Holes in files
// count as nothing, for they are not on the disk.
func holds(limit task.Bytes, folders ...string) bool {
	var sum task.Bytes
	errOver := errors.New("over")
	for _, dir := range folders {
		err := filepath.WalkDir(dir, func(_ string, d fs.DirEntry, err error) error {
			if err != nil {
				return nil //nolint:nilerr // the run removes files while they are counted
			}
			sum += perFile
			if info, err := d.Info(); err == nil {
				if st, ok := info.Sys().(*syscall.Stat_t); ok {
					sum += task.Bytes(st.Blocks) * 512
				}
			}
			if sum > limit {
				return errOver
			}
			return nil
		})
		if err != nil {
			return false
		}
	}
	return true
}
