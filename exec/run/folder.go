package run

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"

	"github.com/balanceai/balance/exec/journal"
)

// The folder of a run has in it:
//
//	events  its journal
//	exit    how its program ended, where that is known before the ledger has it
//	work    where the program works
//	tmp     its TMPDIR
//
// To make one takes a disk longer than all else that comes before the start of
// a program, so some are made ahead, under names that begin with sparePrefix.
const (
	sparePrefix = "spare-"
	maxSpares   = 8
)

func (x *live) work() string     { return filepath.Join(x.dir, "work") }
func (x *live) temp() string     { return filepath.Join(x.dir, "tmp") }
func (x *live) exitPath() string { return filepath.Join(x.dir, "exit") }

func (r *Runner) folder(run string) string      { return filepath.Join(r.cfg.Dir, run) }
func (r *Runner) journalPath(run string) string { return filepath.Join(r.folder(run), "events") }

// makeFolder makes an empty folder for a run.
func makeFolder(dir string) error {
	for _, d := range []string{dir, filepath.Join(dir, "work"), filepath.Join(dir, "tmp")} {
		if err := os.Mkdir(d, 0o700); err != nil {
			return err
		}
	}
	return os.WriteFile(filepath.Join(dir, "events"), nil, 0o600)
}

// spares are folders for runs to come.
type spares struct {
	dir   string
	last  atomic.Int64 // number of the newest
	ready chan string
}

func newSpares(dir string) *spares { return &spares{dir: dir, ready: make(chan string, maxSpares)} }

// clear removes those of an earlier life.
func (s *spares) clear() error {
	folders, err := os.ReadDir(s.dir)
	if err != nil {
		return err
	}
	for _, f := range folders {
		if strings.HasPrefix(f.Name(), sparePrefix) {
			if err := os.RemoveAll(filepath.Join(s.dir, f.Name())); err != nil {
				return err
			}
		}
	}
	return nil
}

// add makes one, unless there are enough. Where that fails, the next run finds
// out why.
func (s *spares) add() {
	if len(s.ready) == maxSpares {
		return
	}
	dir := filepath.Join(s.dir, fmt.Sprint(sparePrefix, s.last.Add(1)))
	if err := makeFolder(dir); err != nil {
		os.RemoveAll(dir)
		return
	}
	select {
	case s.ready <- dir:
	default:
		os.RemoveAll(dir)
	}
}

// take makes a folder of one, if there is any.
func (s *spares) take(dir string) error {
	select {
	case spare := <-s.ready:
		return os.Rename(spare, dir)
	default:
		return makeFolder(dir)
	}
}

// prepare makes the folder of a run and what is open during its life. The
// ledger knows nothing of the run, so what is there is left over.
func (x *live) prepare() error {
	if err := os.RemoveAll(x.dir); err != nil {
		return err
	}
	if err := x.r.spares.take(x.dir); err != nil {
		return err
	}
	if x.spec.Stdin {
		var err error
		if x.stdin, err = newStdin(); err != nil {
			return err
		}
	}
	var err error
	x.journal, err = journal.Open(x.r.journalPath(x.id))
	return err
}

// discard undoes prepare for a run that was not promised after all.
func (x *live) discard() {
	if x.journal != nil {
		_ = x.journal.Close()
	}
	if x.stdin != nil {
		x.stdin.close()
	}
	os.RemoveAll(x.dir)
}
