package dispatch

import (
	"os"
	"testing"
	"time"

	"github.com/balanceai/balance/exec/task"
)

func TestPruneKeepsWhatIsNotOverOrNew(t *testing.T) {
	l := newLab(t)
	ended, fresh := l.submit(bare()), l.submit(bare())
	l.end(ended)
	l.end(fresh)
	l.eventually("no run is active", func() bool { return l.d.active(ended) == nil && l.d.active(fresh) == nil })
	old := time.Now().Add(-time.Hour)
	foreign := l.d.path(task.NewID()) // a journal of which the ledger knows nothing
	if err := os.WriteFile(foreign, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{l.d.path(ended), foreign} {
		if err := os.Chtimes(path, old, old); err != nil {
			t.Fatal(err)
		}
	}

	if err := l.d.Prune(t.Context(), time.Now().Add(-time.Minute)); err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]bool{l.d.path(ended): false, l.d.path(fresh): true, foreign: true} {
		if _, err := os.Stat(path); (err == nil) != want {
			t.Errorf("%s: there is %v, want %v", path, err == nil, want)
		}
	}
	// As long as its machine has the rest, that is told, and else the end that the
	// ledger has.
	events := func() (out []*task.Event) {
		if err := l.d.Events(t.Context(), ended, 0, true, func(e *task.Event) error { out = append(out, e); return nil }); err != nil {
			t.Error(err)
		}
		return out
	}
	if got, want := brief(events()), "started@hydra one two three succeeded"; got != want {
		t.Errorf("a pruned run tells %q, want %q", got, want)
	}
	l.hydra.mu.Lock()
	delete(l.hydra.runs, ended)
	l.hydra.mu.Unlock()
	if got := brief(events()); got != "succeeded" {
		t.Errorf("a run that is nowhere tells %q", got)
	}
}
