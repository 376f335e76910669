package run

import (
	"os"
	"path/filepath"

	"github.com/balanceai/balance/exec/journal"
)

// The folder of a run has in it:
//
//	events  its journal, with its parts in events.parts; see package journal
//	grant   what the owner's rules have granted it
//	local   where it asks its node for models, if it does
//	exit    the account of its end, where that is known before the ledger has it
//	work    where the program works
//	tmp     its TMPDIR
//
// and what its supervisor has, see package supervise.

func (x *live) work() string     { return filepath.Join(x.dir, "work") }
func (x *live) temp() string     { return filepath.Join(x.dir, "tmp") }
func (x *live) exitPath() string { return filepath.Join(x.dir, "exit") }

func (x *live) grantPath() string { return filepath.Join(x.dir, "grant") }

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

// prepare makes the folder of a run and what is open during its life. The
// ledger knows nothing of the run, so what is there is left over.
func (x *live) prepare() error {
	if err := os.RemoveAll(x.dir); err != nil {
		return err
	}
	if err := x.r.spares.Take(x.dir); err != nil {
		return err
	}
	if err := x.saveGrant(); err != nil {
		return err
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
	os.RemoveAll(x.dir)
}
