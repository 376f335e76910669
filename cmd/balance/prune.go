package main

import (
	"context"
	"log/slog"
	"time"

	"github.com/balanceai/balance/exec/blob"
	"github.com/balanceai/balance/exec/dispatch"
	"github.com/balanceai/balance/exec/run"
	"github.com/balanceai/balance/exec/task"
)

// How long the files of ended runs are kept, and how much of them. The ledger
// keeps the facts.
const (
	keepFiles   = 30 * 24 * time.Hour
	keepFolders = 20 * task.GiB // of the runs on this machine
	prunePeriod = time.Hour
)

// prune removes old files of runs until ctx ends.
func prune(ctx context.Context, runner *run.Runner, submitted *dispatch.Dispatcher, blobs *blob.Store, log *slog.Logger) error {
	tick := time.NewTicker(prunePeriod)
	defer tick.Stop()
	for {
		before := time.Now().Add(-keepFiles)
		for what, err := range map[string]error{
			"runs":     runner.Prune(ctx, before, keepFolders),
			"journals": submitted.Prune(ctx, before),
			"files":    blobs.Prune(ctx, before),
		} {
			if err != nil && ctx.Err() == nil {
				log.Error("remove old files", "what", what, "error", err)
			}
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}
