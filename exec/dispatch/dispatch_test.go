package dispatch

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/balanceai/balance/exec/blob"
	"github.com/balanceai/balance/exec/fleet"
	"github.com/balanceai/balance/exec/policy"
	"github.com/balanceai/balance/exec/task"
	"github.com/balanceai/balance/mesh/identity"
	"github.com/balanceai/balance/mesh/wire"
)

func TestMain(m *testing.M) {
	// A supervisor ends some time after the Runner that had it ready.
	goleak.VerifyTestMain(m, goleak.IgnoreAnyFunction("github.com/balanceai/balance/exec/supervise.Ready.func1"))
}

// lab is a dispatcher among machines. hydra fits best, then io, then juno.
type lab struct {
	t       testing.TB
	d       *Dispatcher
	cfg     Config
	ledger  *memLedger
	byID    map[identity.ID]Executor
	hydra   *machine
	io      *machine
	juno    *machine
	fetched []wire.Hash
	fetch   error
}

func (l *lab) Fetch(ctx context.Context, tree wire.Hash, _ blob.Limits, from blob.Source) (int64, error) {
	l.fetched = append(l.fetched, tree)
	body, err := from(ctx, tree, 0)
	if err != nil {
		return 0, err
	}
	defer body.Close()
	return io.Copy(io.Discard, body)
}

func newLab(t testing.TB, change ...func(*Config)) *lab {
	l := &lab{t: t, ledger: newLedger(1), hydra: newMachine(2, "hydra"), io: newMachine(3, "io"), juno: newMachine(4, "juno")}
	l.byID = map[identity.ID]Executor{l.hydra.id(): l.hydra, l.io.id(): l.io, l.juno.id(): l.juno}
	l.cfg = Config{
		Self: l.ledger.key.ID(), From: policy.Asker{Owner: "alice"}, Dir: filepath.Join(t.TempDir(), "runs"),
		Ledger: l.ledger, Runs: l.ledger.runs,
		View:     func() []fleet.Node { return []fleet.Node{l.io.node(16), l.juno.node(32), l.hydra.node(8)} },
		Executor: func(id identity.ID) Executor { return l.byID[id] },
		Blobs:    l,
		Source: func(identity.ID) blob.Source {
			return func(context.Context, wire.Hash, int64) (io.ReadCloser, error) {
				return io.NopCloser(strings.NewReader("x")), l.fetch
			}
		},
		LostAfter: time.Hour,
	}
	if testing.Verbose() {
		l.cfg.Log = slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelDebug}))
	}
	for _, f := range change {
		f(&l.cfg)
	}
	l.up()
	return l
}

// up starts a dispatcher, after a crash of the last one or for the first time.
func (l *lab) up() {
	l.t.Helper()
	l.ledger.mu.Lock()
	l.ledger.segment++
	l.ledger.mu.Unlock()
	var err error
	if l.d, err = New(l.cfg); err != nil {
		l.t.Fatal(err)
	}
	l.d.times = times{connect: 50 * time.Millisecond, retryMin: time.Millisecond, retryMax: 5 * time.Millisecond, lost: 10 * time.Millisecond, gang: 2 * time.Millisecond, look: 10 * time.Millisecond, probe: time.Second}
	if err := l.d.Resume(l.t.Context()); err != nil {
		l.t.Fatal(err)
	}
	l.t.Cleanup(func() { _ = l.d.Close() })
}

func bare() task.Spec {
	return task.Spec{Driver: task.DriverProcess, Command: []string{"true"}, Needs: task.Needs{CPU: 4 * task.Core}}
}

func (l *lab) submit(spec task.Spec) string {
	l.t.Helper()
	id, err := l.d.Submit(l.t.Context(), spec)
	if err != nil {
		l.t.Fatal(err)
	}
	return id
}

// watch returns a run's events up to the first for which stop is true.
func (l *lab) watch(id string, stop func(*task.Event) bool) []*task.Event {
	l.t.Helper()
	ctx, cancel := context.WithTimeout(l.t.Context(), 30*time.Second)
	defer cancel()
	var out []*task.Event
	enough := errors.New("enough")
	err := l.d.Events(ctx, id, 0, true, func(e *task.Event) error {
		out = append(out, e)
		if e.Seq != uint64(len(out)) || e.Run != id || e.Source != 0 || e.Entries != nil {
			l.t.Errorf("event %+v", e)
		}
		if stop(e) {
			return enough
		}
		return nil
	})
	if !errors.Is(err, enough) {
		l.t.Fatalf("run %s: %v after %s", id, err, brief(out))
	}
	return out
}

func (l *lab) end(id string) []*task.Event {
	l.t.Helper()
	return l.watch(id, func(e *task.Event) bool { return e.Type == task.EventFinished })
}

// brief writes events as a line: what a person would see.
func brief(events []*task.Event) string {
	var out []string
	for _, e := range events {
		text := e.Type
		switch e.Type {
		case task.EventPlaced, task.EventStarted:
			text += "@" + e.Node
		case task.EventOutput:
			text = strings.TrimSpace(e.Data)
		case task.EventNote:
			text = "(" + e.Message + ")"
		case task.EventFinished:
			text = string(e.State)
		}
		out = append(out, text)
	}
	return strings.Join(out, " ")
}

func (l *lab) status(id string) task.Status {
	l.t.Helper()
	st, err := l.d.status(l.t.Context(), id)
	if err != nil {
		l.t.Fatal(err)
	}
	return st
}

// eventually waits until a fact holds.
func (l *lab) eventually(what string, holds func() bool) {
	l.t.Helper()
	for deadline := time.Now().Add(30 * time.Second); !holds(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			l.t.Fatal("in vain: " + what)
		}
	}
}

const allOfIt = "placed@hydra started@hydra one two three succeeded"

func TestRun(t *testing.T) {
	l := newLab(t)
	id := l.submit(bare())
	events := l.end(id)
	if got := brief(events); got != allOfIt {
		t.Errorf("got %s", got)
	}
	last := events[len(events)-1]
	if last.ExitCode == nil || *last.ExitCode != 0 || last.Attempt != 1 || last.Node != "hydra" {
		t.Errorf("last event %+v", last)
	}
	st := l.status(id)
	if st.State != task.Succeeded || !st.Receipt || st.Node != "hydra" || st.Usage == nil {
		t.Errorf("status %+v", st)
	}
	want := []string{"submit", "place", "accepted", "started", "finished", "receipt"}
	if got := l.ledger.kinds(id); !slices.Equal(got, want) {
		t.Errorf("ledger %q", got)
	}
	l.eventually("settled", func() bool { return settled(l.hydra, id) })
	if got := l.hydra.ledger.kinds(id); !slices.Equal(got, want) {
		t.Errorf("ledger of the machine %q", got)
	}
	if got := brief(l.end(id)); got != allOfIt { // once more, when it is over
		t.Errorf("later: %s", got)
	}
	l.eventually("the driver to end", func() bool { return l.d.active(id) == nil })
	if err := l.d.Cancel(t.Context(), id, false); !errors.Is(err, ErrOver) {
		t.Errorf("cancel: %v", err)
	}
}

func TestEventsAfter(t *testing.T) {
	l := newLab(t)
	id := l.submit(bare())
	l.end(id)
	for after := range uint64(8) {
		n := 0
		err := l.d.Events(t.Context(), id, after, after%2 == 0, func(e *task.Event) error { n++; return nil })
		if err != nil || n != int(max(0, 6-int(after))) {
			t.Errorf("after %d: %d events, %v", after, n, err)
		}
	}
	for _, id := range []string{"r-aaaaaaaaaaaaaaaa", "../../etc", ""} {
		if err := l.d.Events(t.Context(), id, 0, false, func(*task.Event) error { return nil }); !errors.Is(err, task.ErrNoRun) {
			t.Errorf("run %q: %v", id, err)
		}
	}
}

func TestUnplaced(t *testing.T) {
	l := newLab(t)
	spec := bare()
	spec.Needs.CPU = 64 * task.Core
	id := l.submit(spec)
	events := l.end(id)
	last := events[len(events)-1]
	if len(events) != 1 || last.State != task.Unplaced || !strings.Contains(last.Message, "hydra needs 64 cores; 8 of 8 are free") {
		t.Errorf("events %s: %s", brief(events), last.Message)
	}
	ranking, err := l.d.Plan(t.Context(), spec)
	if err != nil || len(ranking) != 3 || ranking[0].Fits {
		t.Errorf("plan %v, %v", ranking, err)
	}
	why, err := l.d.Why(t.Context(), id)
	if err != nil || len(why) != 1 || why[0].Node != "" || len(why[0].Ranking) != 3 {
		t.Errorf("why %+v, %v", why, err)
	}
	if l.hydra.count(id) != 0 {
		t.Error("it was started")
	}
}

func TestOutputsComeBack(t *testing.T) {
	for name, failure := range map[string]error{"": nil, "gone": fs.ErrNotExist} {
		l := newLab(t)
		l.fetch = failure
		tree := wire.Hash{9}
		l.hydra.script = func(m *machine, run string) {
			m.start(run)
			m.finish(run, task.Finished{State: task.Succeeded, Outputs: tree})
		}
		id := l.submit(bare())
		events := l.end(id)
		got := brief(events)
		if last := events[len(events)-1]; last.Outputs != tree.String() || !slices.Equal(l.fetched, []wire.Hash{tree}) {
			t.Errorf("%s: %+v, fetched %v", name, last, l.fetched)
		}
		if told := strings.Contains(got, "(the outputs did not come back from hydra"); told != (failure != nil) || !strings.HasSuffix(got, "succeeded") {
			t.Errorf("%s: %s", name, got)
		}
	}
}

// stuck is a body that never comes.
type stuck struct{ ctx context.Context }

func (s stuck) Read([]byte) (int, error) { <-s.ctx.Done(); return 0, context.Cause(s.ctx) }

func (stuck) Close() error { return nil }

func TestStuckOutputsDoNotHoldTheEnd(t *testing.T) {
	l := newLab(t, func(c *Config) {
		c.LostAfter = 50 * time.Millisecond
		c.Source = func(identity.ID) blob.Source {
			return func(ctx context.Context, _ wire.Hash, _ int64) (io.ReadCloser, error) { return stuck{ctx}, nil }
		}
	})
	l.hydra.script = func(m *machine, run string) {
		m.start(run)
		m.finish(run, task.Finished{State: task.Succeeded, Outputs: wire.Hash{9}})
	}
	if got := brief(l.end(l.submit(bare()))); !strings.Contains(got, "nothing came for 50ms") {
		t.Errorf("got %s", got)
	}
}

// A full disk stops a run's progress here, not the run, and not the program.
func TestDiskFull(t *testing.T) {
	l := newLab(t)
	l.hydra.script = (*machine).start
	id := l.submit(bare())
	l.watch(id, func(e *task.Event) bool { return e.Type == task.EventStarted })
	l.ledger.setFull(true)
	if _, err := l.d.Submit(t.Context(), bare()); !errors.Is(err, errFull) {
		t.Errorf("submit: %v", err)
	}
	l.hydra.output(id, "one\n")
	l.hydra.finish(id, task.Finished{State: task.Succeeded})
	l.watch(id, func(e *task.Event) bool { return e.Type == task.EventOutput })
	time.Sleep(20 * time.Millisecond)
	l.ledger.setFull(false)
	if got := brief(l.end(id)); got != "placed@hydra started@hydra one succeeded" {
		t.Errorf("got %s", got)
	}
}

func TestCloseEndsNothing(t *testing.T) {
	l := newLab(t)
	l.hydra.script = (*machine).start
	id := l.submit(bare())
	followed := make(chan error, 1)
	go func() {
		followed <- l.d.Events(t.Context(), id, 0, true, func(*task.Event) error { return nil })
	}()
	l.watch(id, func(e *task.Event) bool { return e.Type == task.EventStarted })
	if err := l.d.Close(); err != nil {
		t.Fatal(err)
	}
	if err := <-followed; !errors.Is(err, ErrClosed) {
		t.Errorf("a follower got %v", err)
	}
	if _, err := l.d.Submit(t.Context(), bare()); !errors.Is(err, ErrClosed) {
		t.Errorf("submit: %v", err)
	}
	if len(l.hydra.runs[id].cancels) > 0 {
		t.Error("the run was cancelled")
	}
	l.up()
	l.hydra.finish(id, task.Finished{State: task.Succeeded})
	if got := brief(l.end(id)); got != "placed@hydra started@hydra succeeded" {
		t.Errorf("got %s", got)
	}
}

// The receipt of a run whose machine was away at the end reaches it later.
func TestSettledLater(t *testing.T) {
	l := newLab(t)
	away := &away{machine: l.hydra}
	l.byID[l.hydra.id()] = away
	id := l.submit(bare())
	l.end(id)
	l.eventually("a file that says so", func() bool { _, err := os.Lstat(l.d.unsettled(id)); return err == nil })
	_ = l.d.Close()
	l.cfg.Runs = func(context.Context) ([]task.Status, error) { return nil, nil } // it is not among the newest
	l.up()
	if settled(l.hydra, id) {
		t.Fatal("settled")
	}
	away.back.Store(true)
	l.d.NodeUp(l.hydra.id())
	l.eventually("settled", func() bool { return settled(l.hydra, id) && l.d.active(id) == nil })
	if _, err := os.Lstat(l.d.unsettled(id)); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the file is still there: %v", err)
	}
}

// away cannot be reached for the settlement.
type away struct {
	*machine
	back atomic.Bool
}

func (a *away) Settle(ctx context.Context, run string, entries []*wire.Entry) error {
	if !a.back.Load() {
		return task.ErrUnreachable
	}
	return a.machine.Settle(ctx, run, entries)
}

func TestJournalsArePrivate(t *testing.T) {
	l := newLab(t)
	id := l.submit(bare())
	l.end(id)
	for path, mode := range map[string]fs.FileMode{l.cfg.Dir: 0o700, l.d.path(id): 0o600} {
		if info, err := os.Stat(path); err != nil || info.Mode().Perm() != mode {
			t.Errorf("%s: %v %v", path, info.Mode(), err)
		}
	}
}

func BenchmarkRun(b *testing.B) {
	for _, at := range []int{1, 4} {
		b.Run(fmt.Sprintf("%d at a time", at), func(b *testing.B) {
			l := newLab(b)
			b.SetParallelism(at)
			b.RunParallel(func(pb *testing.PB) {
				for pb.Next() {
					l.end(l.submit(bare()))
				}
			})
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "runs/s")
		})
	}
}
