package run

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/balanceai/balance/exec/blob"
	"github.com/balanceai/balance/exec/task"
	"github.com/balanceai/balance/mesh/wire"
)

// finish writes the end of a run and forgets it. Its processes are gone.
func (x *live) finish(fin task.Finished) {
	x.r.release(x) // before anybody can know that it has ended
	defer x.r.drop(x)
	fin.Manifest, fin.Policy = x.spec.Manifest, x.grant.Policy
	if len(x.spec.Outputs) > 0 { // which may take long
		x.remember(fin)
		x.collect(&fin)
	}
	drafts := append(x.early, task.Draft{Topic: x.id, Kind: task.KindFinished, Record: fin})
	written := x.insist("ledger", func() error {
		entries, err := x.r.cfg.Ledger.Append(context.Background(), drafts...)
		if err != nil {
			x.remember(fin)
		}
		x.r.grew(x.from, entries...)
		x.tell(entries...)
		return err
	})
	if written {
		x.announce(fin)
	} else {
		_ = x.journal.Close() // what is in it is written
	}
}

// announce writes the end to the journal.
func (x *live) announce(fin task.Finished) {
	e := &task.Event{Type: task.EventFinished, State: fin.State, ExitCode: &fin.ExitCode, Message: fin.Reason, Entries: x.unsent}
	if !fin.Outputs.IsZero() {
		e.Outputs = fin.Outputs.String()
	}
	x.insist("journal", func() error { return x.append(e) })
	_ = x.journal.Close() // if it could not be written, for the next life
}

// retry is the pause before what must be written is tried again.
const retry = time.Second

// insist does what has to be done, however long the disk is full. Only when the
// Runner closes it leaves that to the next life, and returns false.
func (x *live) insist(where string, do func() error) bool {
	for first := true; ; first = false {
		err := do()
		if err == nil {
			return true
		}
		if first {
			x.r.cfg.Log.Error("cannot record the end of a run, will try again", "run", x.id, "where", where, "err", err)
		}
		select {
		case <-time.After(retry):
		case <-x.r.closing:
			return false
		}
	}
}

// collect packs the outputs.
func (x *live) collect(fin *task.Finished) {
	out, err := x.pack()
	if err != nil {
		out.Missing = append(out.Missing, err.Error())
	}
	fin.Outputs, fin.Usage.OutBytes = out.Tree, out.Size
	for _, text := range out.Missing {
		x.event(&task.Event{Type: task.EventNote, Message: "output: " + text})
	}
}

func (x *live) pack() (blob.Outputs, error) {
	root, err := os.OpenRoot(x.work())
	if err != nil {
		return blob.Outputs{}, err
	}
	defer root.Close()
	free, err := freeDisk(x.r.cfg.Dir)
	if err != nil {
		return blob.Outputs{}, err
	}
	limits := blob.Limits{Size: free - min(free, reserve), Files: maxFiles}
	return x.r.cfg.Blobs.PackOutputs(context.Background(), root, x.spec.Outputs, limits)
}

// remember notes how the program ended, so that the truth survives if this
// process does not live to write it to the ledger.
func (x *live) remember(fin task.Finished) {
	b, err := wire.Marshal(fin)
	if err == nil {
		err = os.WriteFile(x.exitPath(), b, 0o600)
	}
	if err != nil {
		x.r.cfg.Log.Warn("cannot note how a run ended", "run", x.id, "err", err)
	}
}

// remembered returns what an earlier life has noted.
func (x *live) remembered() (task.Finished, error) {
	b, err := os.ReadFile(x.exitPath())
	if err != nil {
		return task.Finished{}, err
	}
	var fin task.Finished
	if err := wire.Unmarshal(b, &fin); err != nil {
		return task.Finished{}, fmt.Errorf("%s: %w", x.exitPath(), err)
	}
	if fin.Attempt != x.attempt {
		return task.Finished{}, errors.New("of another attempt")
	}
	return fin, nil
}
