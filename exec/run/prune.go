package run

import (
	"cmp"
	"context"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/balanceai/balance/exec/journal"
	"github.com/balanceai/balance/exec/task"
)

// Prune removes the folders, with journals and work folders, of runs that ended
// before a time, and then of those that ended first until the rest takes no
// more than keep. What the ledger has of them stays.
func (r *Runner) Prune(ctx context.Context, before time.Time, keep task.Bytes) error {
	runs, err := r.old()
	if err != nil {
		return fmt.Errorf("prune runs: %w", err)
	}
	var total task.Bytes
	for _, e := range runs { // the newest first
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if e.at.After(before) {
			if total += size(e.dir); total <= keep {
				continue
			}
		}
		if err := os.RemoveAll(e.dir); err != nil {
			return fmt.Errorf("prune runs: %w", err)
		}
	}
	return nil
}

// oldRun is the folder of a run that has ended.
type oldRun struct {
	dir string
	at  time.Time
}

func (r *Runner) old() ([]oldRun, error) {
	folders, err := os.ReadDir(r.cfg.Dir)
	if err != nil {
		return nil, err
	}
	var out []oldRun
	for _, f := range folders {
		path := r.journalPath(f.Name())
		info, err := os.Stat(path)
		if err != nil || !task.ValidID(f.Name()) {
			continue
		}
		r.mu.Lock()
		going := r.runs[f.Name()] != nil
		r.mu.Unlock()
		if going {
			continue
		}
		if over, err := journal.Ended(path); over && err == nil {
			out = append(out, oldRun{r.folder(f.Name()), info.ModTime()})
		}
	}
	slices.SortFunc(out, func(a, b oldRun) int { return cmp.Compare(b.at.UnixNano(), a.at.UnixNano()) })
	return out, nil
}

// size returns how much a folder takes of the disk, as far as that can be seen.
func size(dir string) task.Bytes {
	var sum task.Bytes
	_ = filepath.WalkDir(dir, func(_ string, d fs.DirEntry, err error) error {
		if err != nil {
			return fs.SkipDir
		}
		if info, err := d.Info(); err == nil && info.Mode().IsRegular() {
			sum += task.Bytes(info.Size())
		}
		return nil
	})
	return sum
}
