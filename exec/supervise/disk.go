package supervise

import (
	"errors"
	"io/fs"
	"path/filepath"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// The disk has no limit for a folder that works on every file system and for
// every user, so what a run has written is counted. That takes time with many
// files: it is done when the disk has filled by a part of the limit, and now and
// then for what others have freed meanwhile.
const (
	diskPeriod = 100 * time.Millisecond // between looks at the disk
	diskPart   = 8                      // of the limit, which can pass unseen at most on an otherwise quiet disk
	diskAtMost = 2 * time.Second        // between counts
	perFile    = 1024                   // what a file takes besides its content
)

// Reserve is what is left of the disk to the node, in bytes: a run is not admitted
// without it, and what a run writes to its output does not take it.
const Reserve = 64 << 20

// lookAfter is how many bytes go into the log between two looks at the disk.
const lookAfter = 256 << 10

// hasRoom reports whether a log may grow. Two journals take as much as the log, on
// a machine that is submitter and executor.
func hasRoom(dir string, kept int64) bool {
	free, err := freeDisk(dir)
	return err != nil || free >= Reserve+2*uint64(kept) // if nobody knows, the write will tell
}

// watchDisk ends the run when its folders hold more than the limit. The caller
// calls stop when it has ended, which waits for a count that is under way.
func (s *server) watchDisk(o *Order) (stop func()) {
	done, over := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(over)
		tick := time.NewTicker(diskPeriod)
		defer tick.Stop()
		var counted time.Time
		var free uint64
		for {
			select {
			case <-done:
				return
			case <-tick.C:
			}
			now, err := freeDisk(".")
			if err == nil && now+o.Disk/diskPart >= free && time.Since(counted) < diskAtMost {
				continue
			}
			counted, free = time.Now(), now
			if holds(o.Disk, o.Fill...) {
				continue
			}
			s.end(o.DiskUp, true)
			return
		}
	}()
	return func() {
		close(done)
		<-over
	}
}

// freeDisk returns what programs of this user may still write to the file
// system that dir is on.
func freeDisk(dir string) (uint64, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return 0, err
	}
	return uint64(st.Bavail) * uint64(st.Bsize), nil //nolint:unconvert // the types differ between systems
}

// holds reports whether what is in folders is within a limit. Holes in files
// count as nothing, for they are not on the disk.
func holds(limit uint64, folders ...string) bool {
	var sum uint64
	errOver := errors.New("over")
	for _, dir := range folders {
		err := filepath.WalkDir(dir, func(_ string, d fs.DirEntry, err error) error {
			if err != nil {
				return nil //nolint:nilerr // the run removes files while they are counted
			}
			sum += perFile
			if info, err := d.Info(); err == nil {
				if st, ok := info.Sys().(*syscall.Stat_t); ok {
					sum += uint64(st.Blocks) * 512
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
