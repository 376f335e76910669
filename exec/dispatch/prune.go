package dispatch

import (
	"context"
	"errors"
	"os"
	"strings"
	"time"

	"github.com/balanceai/balance/exec/journal"
	"github.com/balanceai/balance/exec/task"
)

const journalSuffix = ".events"

// Prune removes the journals of runs that are over and to which nothing was
// added since a time. What the ledger has of them stays.
func (d *Dispatcher) Prune(ctx context.Context, before time.Time) error {
	files, err := os.ReadDir(d.cfg.Dir)
	if err != nil {
		return err
	}
	var errs []error
	for _, f := range files {
		id, ok := strings.CutSuffix(f.Name(), journalSuffix)
		if !ok || !task.ValidID(id) || d.active(id) != nil {
			continue
		}
		info, err := f.Info()
		if err != nil || !info.ModTime().Before(before) {
			continue
		}
		if st, err := d.status(ctx, id); err == nil && over(st) {
			errs = append(errs, journal.Remove(d.path(id)))
		}
	}
	return errors.Join(errs...)
}
