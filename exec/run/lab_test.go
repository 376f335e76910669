package run

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/balanceai/balance/exec/blob"
	"github.com/balanceai/balance/exec/task"
	"github.com/balanceai/balance/mesh/identity"
	"github.com/balanceai/balance/mesh/wire"
)

// The test binary is also the program that misbehaves, when this is set.
const modeVar = "RUN_TEST_MODE"

func TestMain(m *testing.M) {
	if mode := os.Getenv(modeVar); mode != "" {
		misbehave(mode, os.Args[1:])
		os.Exit(0)
	}
	// Supervisors outlive the Runner, and the goroutines that wait for their end
	// are there as long.
	goleak.VerifyTestMain(m, goleak.IgnoreAnyFunction("github.com/balanceai/balance/exec/supervise.Ready.func1"))
}

var (
	meshID    = identity.MeshID{1, 2, 3}
	nodeKey   = identity.KeyFromSeed([32]byte{1})
	userKey   = identity.KeyFromSeed([32]byte{2})
	strangers = identity.KeyFromSeed([32]byte{3})
)

// ledger is a node's ledger in memory, and in a file where it has one. Entries
// are signed and verified as in a real one; it can fail on order.
type ledger struct {
	key identity.Key

	mu     sync.Mutex
	topics map[string][]*wire.Entry
	err    error    // of Append
	file   *os.File // one entry a line
	sync   bool     // to disk, each time
}

func newLedger() *ledger { return &ledger{key: nodeKey, topics: map[string][]*wire.Entry{}} }

func (l *ledger) Append(ctx context.Context, drafts ...task.Draft) ([]*wire.Entry, error) {
	return l.Record(ctx, nil, drafts...)
}

func (l *ledger) Record(_ context.Context, theirs []*wire.Entry, drafts ...task.Draft) ([]*wire.Entry, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.err != nil {
		return nil, l.err
	}
	for _, e := range theirs {
		if err := e.Verify(meshID); err != nil {
			return nil, err
		}
	}
	l.take(theirs)
	var out []*wire.Entry
	for _, d := range drafts {
		e := sign(l.key, l.topics[d.Topic], d)
		l.keep(e)
		out = append(out, e)
	}
	l.flush()
	return out, nil
}

// sign continues the author's chain in entries.
func sign(key identity.Key, entries []*wire.Entry, d task.Draft) *wire.Entry {
	payload, err := wire.Marshal(d.Record)
	if err != nil {
		panic(err)
	}
	b := wire.Body{Topic: d.Topic, Kind: d.Kind, Payload: payload, Millis: time.Now().UnixMilli()}
	for _, e := range entries {
		if e.Author == key.ID() && e.Topic == d.Topic {
			b.Seq, b.Prev = e.Seq+1, e.Hash()
		}
	}
	e, err := wire.NewEntry(key, meshID, b)
	if err != nil {
		panic(err)
	}
	return e
}

// take keeps those of others' entries that are new.
func (l *ledger) take(entries []*wire.Entry) (fresh []*wire.Entry) {
	for _, e := range entries {
		if !slices.ContainsFunc(l.topics[e.Topic], func(o *wire.Entry) bool { return o.Hash() == e.Hash() }) {
			l.keep(e)
			fresh = append(fresh, e)
		}
	}
	return fresh
}

func (l *ledger) keep(e *wire.Entry) {
	l.topics[e.Topic] = append(l.topics[e.Topic], e)
	if l.file != nil {
		fmt.Fprintf(l.file, "%x\n", e.Encode())
	}
}

// flush ends a transaction.
func (l *ledger) flush() {
	if l.sync {
		if err := l.file.Sync(); err != nil {
			panic(err)
		}
	}
}

func (l *ledger) Accept(_ context.Context, entries ...*wire.Entry) (fresh []*wire.Entry, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, e := range entries {
		if err := e.Verify(meshID); err != nil {
			return nil, err
		}
	}
	fresh = l.take(entries)
	l.flush()
	return fresh, nil
}

func (l *ledger) Entries(_ context.Context, topic string) ([]*wire.Entry, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Clone(l.topics[topic]), nil
}

func (l *ledger) fail(err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.err = err
}

// kinds returns what a node has written about a run.
func (l *ledger) kinds(run string, by identity.Key) []string {
	entries, _ := l.Entries(context.Background(), run)
	var out []string
	for _, e := range entries {
		if e.Author == by.ID() {
			out = append(out, e.Kind)
		}
	}
	return out
}

// lab is a machine that runs, and its submitter's blobs.
type lab struct {
	*Runner
	t      testing.TB
	cfg    Config
	ledger *ledger
	theirs *blob.Store

	mu    sync.Mutex
	admit func(Ask) (Grant, []task.Reason)
	fetch blob.Source
}

func newLab(t testing.TB) *lab {
	t.Helper()
	l := &lab{t: t, ledger: newLedger(), theirs: openBlobs(t)}
	l.admit = func(Ask) (Grant, []task.Reason) { return Grant{}, nil }
	l.fetch = func(_ context.Context, h wire.Hash, offset int64) (io.ReadCloser, error) {
		f, err := l.theirs.Open(h)
		if err != nil {
			return nil, err
		}
		_, err = f.Seek(offset, io.SeekStart)
		return f, err
	}
	l.cfg = Config{
		Dir: t.TempDir(), Self: nodeKey.ID(), Name: "hydra", Ledger: l.ledger, Blobs: openBlobs(t), Grace: 300 * time.Millisecond,
		Log: slog.New(slog.NewTextHandler(t.Output(), nil)),
		Admit: func(a Ask) (Grant, []task.Reason) {
			l.mu.Lock()
			defer l.mu.Unlock()
			return l.admit(a)
		},
		Fetch: func(ctx context.Context, from identity.ID, h wire.Hash, offset int64) (io.ReadCloser, error) {
			if from != userKey.ID() {
				return nil, errors.New("asked somebody else for a blob")
			}
			return l.fetch(ctx, h, offset)
		},
		Join: lead,
	}
	l.open()
	return l
}

func openBlobs(t testing.TB) *blob.Store {
	t.Helper()
	s, err := blob.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// open starts a Runner, after the one before it has closed.
func (l *lab) open() {
	l.t.Helper()
	r, err := Open(l.t.Context(), l.cfg)
	if err != nil {
		l.t.Fatal(err)
	}
	l.Runner = r
	l.t.Cleanup(func() {
		l.endAll()
		_ = r.Close()
	})
}

// endAll kills what a test has left running, and waits until it has ended.
func (l *lab) endAll() {
	eventually(l.t, "the end of all runs", func() bool {
		l.Runner.mu.Lock()
		runs := slices.Collect(maps.Keys(l.runs))
		closed := l.closed
		l.Runner.mu.Unlock()
		for _, run := range runs {
			_ = l.Cancel(context.Background(), run, true)
		}
		return closed || len(runs) == 0
	})
}

// spec returns a spec that runs a command.
func spec(command ...string) task.Spec {
	return task.Spec{Driver: task.DriverProcess, Command: command}
}

// bad returns a spec that runs this binary in a mode of misbehaviour.
func bad(mode string, args ...string) task.Spec {
	self, err := os.Executable()
	if err != nil {
		panic(err)
	}
	s := spec(append([]string{self}, args...)...)
	s.Env = map[string]string{modeVar: mode}
	return s
}

// order asks the machine to run a spec.
func order(s task.Spec) task.Order {
	return orderOf(task.NewID(), s, 1)
}

func orderOf(id string, s task.Spec, attempt int) task.Order {
	submit := sign(userKey, nil, task.Draft{Topic: id, Kind: task.KindSubmit, Record: task.Submit{Spec: s}})
	place := sign(userKey, []*wire.Entry{submit}, task.Draft{Topic: id, Kind: task.KindPlace, Record: task.Place{Attempt: attempt, Node: nodeKey.ID(), Name: "hydra"}})
	return task.Order{Run: id, Attempt: attempt, From: userKey.ID(), Entries: []*wire.Entry{submit, place}}
}

// result is what a follower saw of a run.
type result struct {
	events   []*task.Event
	stdout   bytes.Buffer
	stderr   bytes.Buffer
	notes    []string
	finished *task.Event
	account  task.Finished // signed
}

// add checks what every follower relies on.
func (r *result) add(e *task.Event) error {
	if len(r.events) > 0 && e.Seq <= r.events[len(r.events)-1].Seq {
		return fmt.Errorf("event %d after %d", e.Seq, r.events[len(r.events)-1].Seq)
	}
	if r.finished != nil {
		return fmt.Errorf("%s after finished", e.Type)
	}
	r.events = append(r.events, e)
	switch e.Type {
	case task.EventOutput:
		if e.Stream == task.Stderr {
			r.stderr.Write(e.Output())
		} else {
			r.stdout.Write(e.Output())
		}
	case task.EventNote:
		r.notes = append(r.notes, e.Message)
	case task.EventFinished:
		r.finished = e
	}
	for _, b := range e.Entries {
		entry, err := wire.ParseEntry(b)
		if err != nil {
			return err
		}
		if err := entry.Verify(meshID); err != nil || entry.Author != nodeKey.ID() {
			return fmt.Errorf("entry by %s: %w", entry.Author.Short(), err)
		}
		if entry.Kind == task.KindFinished {
			r.account = task.Finished{}
			if err := wire.Unmarshal(entry.Payload, &r.account); err != nil {
				return err
			}
		}
	}
	return nil
}

// kinds returns the kinds of the entries that events carried.
func (r *result) kinds() []string {
	var out []string
	for _, e := range r.events {
		for _, b := range e.Entries {
			entry, err := wire.ParseEntry(b)
			if err != nil {
				panic(err)
			}
			out = append(out, entry.Kind)
		}
	}
	return out
}

// run runs an order to its end.
func (l *lab) run(o task.Order) *result {
	l.t.Helper()
	r := &result{}
	if err := l.Start(l.t.Context(), o, r.add); err != nil {
		l.t.Fatalf("%v: %v", o.Run, err)
	}
	if r.finished == nil || r.finished.ExitCode == nil {
		l.t.Fatalf("the run has no end: %+v", r.finished)
	}
	if r.account.ExitCode != *r.finished.ExitCode || r.account.State != r.finished.State {
		l.t.Errorf("the event says %s %d, the ledger %+v", r.finished.State, *r.finished.ExitCode, r.account)
	}
	return r
}

// watcher follows a run in the background.
type watcher struct {
	l    *lab
	done chan struct{}
	err  error

	mu sync.Mutex
	r  result
}

// start starts an order and returns when the program runs.
func (l *lab) start(o task.Order) *watcher {
	l.t.Helper()
	w := &watcher{l: l, done: make(chan struct{})}
	go func() {
		defer close(w.done)
		w.err = l.Start(context.Background(), o, func(e *task.Event) error {
			w.mu.Lock()
			defer w.mu.Unlock()
			return w.r.add(e)
		})
	}()
	l.t.Cleanup(func() {
		l.endAll()
		_ = l.Close()
		<-w.done
	})
	return w
}

// until waits for what the run shows.
func (w *watcher) until(what string, ok func(*result) bool) {
	w.l.t.Helper()
	eventually(w.l.t, what, func() bool {
		w.mu.Lock()
		defer w.mu.Unlock()
		return ok(&w.r)
	})
}

func (w *watcher) untilOutput(text string) {
	w.l.t.Helper()
	w.until("output "+text, func(r *result) bool { return strings.Contains(r.stdout.String(), text) })
}

// end waits for the end of the run.
func (w *watcher) end() *result {
	w.l.t.Helper()
	select {
	case <-w.done:
	case <-time.After(30 * time.Second):
		w.l.t.Fatal("the run does not end")
	}
	if w.err != nil {
		w.l.t.Fatal(w.err)
	}
	return &w.r
}

func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(30 * time.Second); !ok(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("still waiting for %s", what)
		}
	}
}

// need skips a test where the machine lacks something, unless it must not.
func need(t *testing.T, ok bool, what string) {
	t.Helper()
	switch {
	case ok:
	case os.Getenv("BALANCE_REQUIRE") == "1":
		t.Fatal("needs " + what)
	default:
		t.Skip("needs " + what)
	}
}

// writeFiles makes files in a new folder.
func writeFiles(t testing.TB, files map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	for _, name := range slices.Sorted(maps.Keys(files)) {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		mode := os.FileMode(0o600)
		if strings.HasPrefix(files[name], "#!") {
			mode = 0o700
		}
		if err := os.WriteFile(path, []byte(files[name]), mode); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// folders returns the runs that have a folder.
func (l *lab) folders() []string {
	l.t.Helper()
	entries, err := os.ReadDir(l.cfg.Dir)
	if err != nil {
		l.t.Fatal(err)
	}
	var out []string
	for _, e := range entries {
		if task.ValidID(e.Name()) {
			out = append(out, e.Name())
		}
	}
	return out
}
