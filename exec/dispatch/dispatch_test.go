package dispatch

import (
	"bytes"
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
	"github.com/balanceai/balance/exec/place"
	"github.com/balanceai/balance/exec/task"
	"github.com/balanceai/balance/mesh/identity"
	"github.com/balanceai/balance/mesh/wire"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

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
		Self: l.ledger.key.ID(), Owner: "alice", Dir: filepath.Join(t.TempDir(), "runs"),
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
		l.cfg.Log = slog.New(slog.NewTextHandler(t.Output(), nil))
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
	l.d.times = times{connect: 50 * time.Millisecond, retryMin: time.Millisecond, retryMax: 5 * time.Millisecond, lost: 10 * time.Millisecond}
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

func TestRefusalMovesOn(t *testing.T) {
	l := newLab(t)
	full := []task.Reason{{Rule: "memory", Text: "needs 8 GiB of memory; 3 GiB are free", Need: 8, Have: 3, Ever: true}}
	l.hydra.refusal = full
	id := l.submit(bare())
	want := "placed@hydra (hydra refused: needs 8 GiB of memory; 3 GiB are free) placed@io started@io one two three succeeded"
	if got := brief(l.end(id)); got != want {
		t.Errorf("got %s", got)
	}
	why, err := l.d.Why(t.Context(), id)
	if err != nil || len(why) != 2 {
		t.Fatalf("why %+v, %v", why, err)
	}
	if why[0].Node != "hydra" || !slices.Equal(why[0].Refusal, full) || why[1].Node != "io" || why[1].Refusal != nil {
		t.Errorf("why %+v", why)
	}
	if v := why[1].Ranking; len(v) != 3 || v[2].Name != "hydra" || v[2].Fits || !slices.Equal(v[2].Reasons, full) {
		t.Errorf("second ranking %+v", v)
	}
	if kinds := l.ledger.kinds(id); count(kinds, task.KindRefused) != 1 {
		t.Errorf("ledger %q", kinds)
	}
}

func TestAllRefuse(t *testing.T) {
	l := newLab(t)
	for _, m := range []*machine{l.hydra, l.io, l.juno} {
		m.refusal = []task.Reason{{Rule: "terms", Text: "no"}}
	}
	id := l.submit(bare())
	want := "placed@hydra (hydra refused: no) placed@io (io refused: no) placed@juno unplaced"
	events := l.end(id)
	if got := brief(events); got != want {
		t.Errorf("got %s", got)
	}
	if got := events[len(events)-1].Message; got != "no machine fits: hydra no; io no; juno no" {
		t.Errorf("reasons %s", got)
	}
	if st := l.status(id); st.State != task.Unplaced || st.Attempt != 4 {
		t.Errorf("status %+v", st)
	}
}

// A machine cannot stop a run with the length of its refusal.
func TestEndlessRefusal(t *testing.T) {
	l := newLab(t)
	for range 1000 {
		l.hydra.refusal = append(l.hydra.refusal, task.Reason{Rule: "no", Text: strings.Repeat("né", 600)})
	}
	l.byID[l.hydra.id()] = refuser{l.hydra}
	got := brief(l.end(l.submit(bare())))
	if !strings.HasSuffix(got, "succeeded") || len(got) > 30_000 {
		t.Errorf("got %d bytes: %.100s", len(got), got)
	}
}

// refuser refuses without a record, which could not hold its reasons.
type refuser struct{ *machine }

func (r refuser) Start(context.Context, task.Order, func(*task.Event) error) error {
	return &task.Refusal{Reasons: r.refusal}
}

func TestAttemptsAreBounded(t *testing.T) {
	var nodes []fleet.Node
	l := newLab(t, func(c *Config) {
		executor := c.Executor
		c.Executor = func(id identity.ID) Executor {
			if e := executor(id); e != nil {
				return e
			}
			return refuser{&machine{refusal: []task.Reason{{Rule: "terms", Text: "no"}}}}
		}
		c.View = func() []fleet.Node { return nodes }
	})
	for i := range byte(2 * maxAttempts) {
		n := l.hydra.node(8)
		n.ID, n.Name = identity.ID{200, i}, fmt.Sprintf("n%d", i)
		nodes = append(nodes, n)
	}
	events := l.end(l.submit(bare()))
	if got := strings.Count(brief(events), "placed@"); got != maxAttempts {
		t.Errorf("%d attempts", got)
	}
	if last := events[len(events)-1]; last.State != task.Unplaced || !strings.Contains(last.Message, "was not asked any more") {
		t.Errorf("last event %+v", last)
	}
}

func TestPinned(t *testing.T) {
	l := newLab(t)
	spec := bare()
	spec.Node = "juno"
	if got := brief(l.end(l.submit(spec))); !strings.HasPrefix(got, "placed@juno started@juno") {
		t.Errorf("got %s", got)
	}
	spec.Node = "nobody"
	if _, err := l.d.Submit(t.Context(), spec); !errors.Is(err, place.ErrNoNode) {
		t.Errorf("unknown machine: %v", err)
	}
	if _, err := l.d.Submit(t.Context(), task.Spec{}); err == nil {
		t.Error("a spec without a command was taken")
	}
}

// A machine that was never reached is passed over; one that may have the order
// is not.
func TestUnreachableMachine(t *testing.T) {
	l := newLab(t)
	l.hydra.dead = true
	got := brief(l.end(l.submit(bare())))
	if !strings.HasPrefix(got, "placed@hydra (hydra was not reached: the machine cannot be reached: no route) placed@io") || !strings.HasSuffix(got, "succeeded") {
		t.Errorf("got %s", got)
	}
}

func TestSilentMachineKeepsTheRun(t *testing.T) {
	l := newLab(t, func(c *Config) { c.LostAfter = 50 * time.Millisecond })
	l.hydra.deaf = true // accepts, and the answer is lost
	id := l.submit(bare())
	l.watch(id, func(e *task.Event) bool { return e.State == task.Lost })
	if st := l.status(id); st.State != task.Lost {
		t.Errorf("status %+v", st)
	}
	l.hydra.set(func() { l.hydra.deaf = false })
	got := brief(l.end(id))
	if !strings.HasPrefix(got, "placed@hydra (hydra is out of reach: the connection to it has broken: ") ||
		!strings.HasSuffix(got, "; the run may go on there) (hydra is back) started@hydra one two three succeeded") {
		t.Errorf("got %s", got)
	}
	if l.hydra.count(id) != 1 || l.io.count(id) != 0 {
		t.Errorf("%d and %d starts", l.hydra.count(id), l.io.count(id))
	}
	if st := l.status(id); st.State != task.Succeeded {
		t.Errorf("status %+v", st)
	}
	if why, err := l.d.Why(t.Context(), id); err != nil || len(why) != 1 || len(why[0].Ranking) != 3 {
		t.Errorf("why %+v, %v", why, err)
	}
}

// The stream breaks after each event in turn, and at all of them.
func TestBrokenStreams(t *testing.T) {
	for breaks := 1; breaks <= 5; breaks++ {
		l := newLab(t)
		l.hydra.breaks = breaks
		id := l.submit(bare())
		if breaks == 1 { // it then never gets further than the sign of life
			l.watch(id, func(e *task.Event) bool { return e.Type == task.EventStarted })
			l.hydra.set(func() { l.hydra.breaks = 2 })
		}
		if got := brief(l.end(id)); got != allOfIt {
			t.Errorf("broken after %d: %s", breaks, got)
		}
		if n := l.hydra.count(id); n != 1 {
			t.Errorf("broken after %d: %d starts", breaks, n)
		}
	}
}

func TestNodeDownAndUp(t *testing.T) {
	l := newLab(t)
	l.d.times.lost = time.Hour
	l.hydra.script = func(m *machine, run string) { m.start(run); m.output(run, "one\n") }
	id := l.submit(bare())
	l.watch(id, func(e *task.Event) bool { return e.Type == task.EventOutput })

	l.hydra.set(func() { l.hydra.dead = true })
	l.d.NodeDown(l.io.id()) // another one
	l.d.NodeDown(l.hydra.id())
	l.watch(id, func(e *task.Event) bool { return e.State == task.Lost })
	if st := l.status(id); st.State != task.Lost {
		t.Errorf("down: %+v", st)
	}

	l.hydra.set(func() { l.hydra.dead = false })
	l.d.NodeUp(l.hydra.id())
	l.watch(id, func(e *task.Event) bool { return strings.HasSuffix(e.Message, "is back") })
	if st := l.status(id); st.State != task.Running {
		t.Errorf("back: %+v", st)
	}
	l.hydra.output(id, "two\n")
	l.hydra.finish(id, task.Finished{State: task.Failed, ExitCode: 7})
	events := l.end(id)
	if got := brief(events); !strings.HasSuffix(got, "(hydra is back) two failed") || strings.Count(got, "one") != 1 {
		t.Errorf("got %s", got)
	}
	if last := events[len(events)-1]; *last.ExitCode != 7 {
		t.Errorf("last event %+v", last)
	}
}

// A machine that has forgotten a run which it had begun is no reason to start
// it elsewhere.
func TestForgottenRun(t *testing.T) {
	l := newLab(t)
	l.hydra.script = (*machine).start
	id := l.submit(bare())
	l.watch(id, func(e *task.Event) bool { return e.Type == task.EventStarted })
	l.hydra.set(func() { l.hydra.runs = map[string]*machineRun{}; l.hydra.breaks = 1 })
	l.watch(id, func(e *task.Event) bool { return e.State == task.Lost && strings.Contains(e.Message, "no such run") })
	if l.hydra.count(id) != 1 || l.io.count(id) != 0 {
		t.Error("it was started again")
	}
}

func TestCancel(t *testing.T) {
	l := newLab(t)
	l.hydra.script = (*machine).start
	id := l.submit(bare())
	l.watch(id, func(e *task.Event) bool { return e.Type == task.EventStarted })
	for _, force := range []bool{false, true} {
		if err := l.d.Cancel(t.Context(), id, force); err != nil && !errors.Is(err, ErrOver) {
			t.Fatal(err)
		}
	}
	if got := brief(l.end(id)); got != "placed@hydra started@hydra cancelled" {
		t.Errorf("got %s", got)
	}
	if kinds := l.ledger.kinds(id); count(kinds, task.KindCancel) != 1 {
		t.Errorf("ledger %q", kinds)
	}
	if err := l.d.Cancel(t.Context(), "r-aaaaaaaaaaaaaaaa", false); !errors.Is(err, task.ErrNoRun) {
		t.Errorf("unknown run: %v", err)
	}
}

// A cancelled run whose machine is away is cancelled when that is back.
func TestCancelWhileLost(t *testing.T) {
	l := newLab(t)
	l.hydra.script = (*machine).start
	id := l.submit(bare())
	l.watch(id, func(e *task.Event) bool { return e.Type == task.EventStarted })
	l.hydra.set(func() { l.hydra.dead = true })
	l.d.NodeDown(l.hydra.id())
	l.watch(id, func(e *task.Event) bool { return e.State == task.Lost })
	if err := l.d.Cancel(t.Context(), id, true); err != nil {
		t.Fatal(err)
	}
	_ = l.d.Close() // the wish survives
	l.hydra.set(func() { l.hydra.dead = false })
	l.up()
	if got := brief(l.end(id)); !strings.HasSuffix(got, "cancelled") {
		t.Errorf("got %s", got)
	}
}

// A run that no machine has is cancelled at once.
func TestCancelBetweenMachines(t *testing.T) {
	l := newLab(t)
	cancelled, asked := make(chan struct{}), make(chan struct{})
	l.hydra.refusal = []task.Reason{{Rule: "terms", Text: "no"}}
	l.byID[l.hydra.id()] = &gated{machine: l.hydra, asked: asked, gate: cancelled}
	id := l.submit(bare())
	<-asked
	if err := l.d.Cancel(t.Context(), id, false); err != nil {
		t.Fatal(err)
	}
	close(cancelled)
	if got := brief(l.end(id)); got != "placed@hydra cancelled" {
		t.Errorf("got %s", got)
	}
	if why, err := l.d.Why(t.Context(), id); err != nil || len(why) != 2 || len(why[0].Refusal) != 1 || why[1].Node != "" {
		t.Errorf("why %+v, %v", why, err)
	}
	if st := l.status(id); st.State != task.Cancelled {
		t.Errorf("status %+v", st)
	}
}

// gated takes orders when it is told to.
type gated struct {
	*machine
	asked chan struct{} // closed when there is one
	gate  chan struct{}
}

func (g *gated) Start(ctx context.Context, o task.Order, yield func(*task.Event) error) error {
	close(g.asked)
	select {
	case <-g.gate:
	case <-ctx.Done():
		return ctx.Err()
	}
	return g.machine.Start(ctx, o, yield)
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
func (stuck) Close() error               { return nil }

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

func TestStdin(t *testing.T) {
	l := newLab(t)
	l.hydra.script = (*machine).start
	id := l.submit(bare())
	content := bytes.Repeat([]byte("0123456789"), 100_000)
	l.hydra.set(func() {}) // the run may not be there yet
	l.watch(id, func(e *task.Event) bool { return e.Type == task.EventStarted })
	l.hydra.set(func() { l.hydra.runs[id].slow = 333_333 }) // breaks once on the way
	if err := l.d.Stdin(t.Context(), id, bytes.NewReader(content)); err != nil {
		t.Fatal(err)
	}
	if r := l.hydra.runs[id]; !bytes.Equal(r.stdin.Bytes(), content) || !r.eof {
		t.Errorf("got %d bytes, eof %v", r.stdin.Len(), r.eof)
	}
	l.hydra.finish(id, task.Finished{State: task.Succeeded})
	l.end(id)
	if err := l.d.Stdin(t.Context(), "r-aaaaaaaaaaaaaaaa", strings.NewReader("x")); !errors.Is(err, task.ErrNoRun) {
		t.Errorf("unknown run: %v", err)
	}
}

func TestStdinBreaksOff(t *testing.T) {
	l := newLab(t)
	l.hydra.script = (*machine).start
	id := l.submit(bare())
	gone := errors.New("terminal gone")
	in := io.MultiReader(strings.NewReader("half"), iotestErr{gone})
	if err := l.d.Stdin(t.Context(), id, in); !errors.Is(err, gone) {
		t.Errorf("got %v", err)
	}
	if r := l.hydra.runs[id]; r.stdin.String() != "half" || !r.eof {
		t.Errorf("got %q, eof %v", r.stdin.String(), r.eof)
	}
	l.hydra.finish(id, task.Finished{State: task.Succeeded})
	if got := brief(l.end(id)); !strings.Contains(got, "(the standard input broke off: terminal gone)") {
		t.Errorf("got %s", got)
	}
}

// What a break takes with it is sent again, also while nothing more comes.
func TestStdinSendsAgain(t *testing.T) {
	pr, pw := io.Pipe()
	defer func() { _ = pw.Close() }()
	src := &source{in: pr}
	first := src.from(0)
	go func() { _, _ = pw.Write([]byte("line\n")) }()
	buf := make([]byte, 100)
	if n, err := first.Read(buf); string(buf[:n]) != "line\n" || err != nil {
		t.Fatalf("%q %v", buf[:n], err)
	}
	waiting := make(chan string)
	go func() { // the broken request still waits for the next line
		b := make([]byte, 100)
		n, _ := first.Read(b)
		waiting <- string(b[:n])
	}()
	if src.sent() != 5 || !src.has(2) || src.has(6) {
		t.Errorf("sent %d", src.sent())
	}
	second := src.from(2)
	if n, err := second.Read(buf); string(buf[:n]) != "ne\n" || err != nil {
		t.Errorf("again: %q %v", buf[:n], err)
	}
	_, _ = pw.Write([]byte("next\n"))
	pw.Close()
	rest, err := io.ReadAll(second)
	if got := <-waiting; string(rest) != "next\n" || err != nil || got != "next\n" && got != "" {
		t.Errorf("rest %q %v, the other got %q", rest, err, got)
	}
	if _, err := src.from(0).Read(buf); err != nil || src.broken() != nil {
		t.Error(err, src.broken())
	}
}

func TestStdinWindow(t *testing.T) {
	const size = 5 * window / 2
	src := &source{in: io.LimitReader(zeros{}, size)}
	if n, err := io.Copy(io.Discard, src.from(0)); n != size || err != nil {
		t.Fatal(n, err)
	}
	if src.has(0) || !src.has(size-window) || len(src.tail) > 2*window+64<<10 {
		t.Errorf("keeps %d bytes", len(src.tail))
	}
	if _, err := src.from(0).Read(make([]byte, 1)); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("what is gone: %v", err)
	}
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }

type iotestErr struct{ err error }

func (e iotestErr) Read([]byte) (int, error) { return 0, e.err }

// What a machine makes up does not reach the user.
func TestHostileMachine(t *testing.T) {
	forged := func(author *memLedger, topic, kind string, record any) []byte {
		entries, err := author.Append(t.Context(), task.Draft{Topic: topic, Kind: kind, Record: record})
		if err != nil {
			t.Fatal(err)
		}
		return entries[0].Encode()
	}
	for name, event := range map[string]func(l *lab, run string) task.Event{
		"finish without account": func(*lab, string) task.Event { return task.Event{Type: task.EventFinished} },
		"another's account": func(l *lab, run string) task.Event {
			b := forged(newLedger(99), run, task.KindFinished, task.Finished{Attempt: 1, State: task.Succeeded})
			return task.Event{Type: task.EventFinished, Entries: [][]byte{b}}
		},
		"account of another run": func(l *lab, run string) task.Event {
			b := forged(l.hydra.ledger, "r-bbbbbbbbbbbbbbbb", task.KindFinished, task.Finished{Attempt: 1, State: task.Succeeded})
			return task.Event{Type: task.EventFinished, Entries: [][]byte{b}}
		},
		"account of another attempt": func(l *lab, run string) task.Event {
			b := forged(l.hydra.ledger, run, task.KindFinished, task.Finished{Attempt: 2, State: task.Succeeded})
			return task.Event{Type: task.EventFinished, Entries: [][]byte{b}}
		},
		"account without an end": func(l *lab, run string) task.Event {
			b := forged(l.hydra.ledger, run, task.KindFinished, task.Finished{Attempt: 1, State: task.Unplaced})
			return task.Event{Type: task.EventFinished, Entries: [][]byte{b}}
		},
		"a submit of its own": func(l *lab, run string) task.Event {
			b := forged(l.hydra.ledger, run, task.KindSubmit, task.Submit{Spec: bare()})
			return task.Event{Type: task.EventOutput, Entries: [][]byte{b}}
		},
		"garbage": func(*lab, string) task.Event { return task.Event{Type: task.EventOutput, Entries: [][]byte{{1}}} },
		"many entries": func(*lab, string) task.Event {
			return task.Event{Type: task.EventOutput, Entries: make([][]byte, 1000)}
		},
	} {
		t.Run(name, func(t *testing.T) {
			l := newLab(t)
			l.hydra.script = (*machine).start
			id := l.submit(bare())
			l.watch(id, func(e *task.Event) bool { return e.Type == task.EventStarted })
			l.hydra.emit(id, event(l, id))
			requests := func() int { l.hydra.mu.Lock(); defer l.hydra.mu.Unlock(); return l.hydra.requests }
			before := requests()
			l.eventually("asked again", func() bool { return requests() >= before+3 })
			if st := l.status(id); st.State != task.Running || st.Receipt {
				t.Errorf("status %+v", st)
			}
			if got := brief(l.watch(id, func(e *task.Event) bool { return e.Type == task.EventStarted })); got != "placed@hydra started@hydra" {
				t.Errorf("got %s", got)
			}
		})
	}
}

// Events are rewritten in this node's words.
func TestEventsAreTheSubmitters(t *testing.T) {
	l := newLab(t)
	l.hydra.script = func(m *machine, run string) {
		m.start(run)
		m.emit(run, task.Event{Type: task.EventOutput, Node: "evil", Attempt: 9, Stream: "\x1b[2J", Data: "x", State: task.Succeeded, Message: "m", Source: 77})
		m.emit(run, task.Event{Type: task.EventPlaced, Node: "evil"})
		m.emit(run, task.Event{Type: "from the future"})
		m.emit(run, task.Event{Type: task.EventNote, Message: strings.Repeat("m", 10_000)})
		m.output(run, strings.Repeat("\x01", 900_000))
		m.finish(run, task.Finished{State: task.Succeeded})
	}
	events := l.end(l.submit(bare()))
	if len(events) != 6 || !strings.Contains(events[4].Message, "sends more than the run may keep") {
		t.Fatalf("got %s", brief(events))
	}
	out := events[2]
	if out.Node != "hydra" || out.Attempt != 1 || out.Stream != task.Stdout || out.State != "" || out.Message != "" {
		t.Errorf("output %+v", out)
	}
	if len(events[3].Message) != maxMessage {
		t.Errorf("note of %d bytes", len(events[3].Message))
	}
}

func TestOutputIsBounded(t *testing.T) {
	l := newLab(t)
	l.hydra.script = func(m *machine, run string) {
		m.start(run)
		m.output(run, strings.Repeat("x", 1000))
		m.output(run, strings.Repeat("y", 1000))
		m.output(run, strings.Repeat("z", 10))
		m.finish(run, task.Finished{State: task.Succeeded})
	}
	gate, asked := make(chan struct{}), make(chan struct{})
	l.byID[l.hydra.id()] = &gated{machine: l.hydra, asked: asked, gate: gate}
	id := l.submit(bare())
	<-asked
	l.d.active(id).room = 1000 + 3*eventCost
	close(gate)
	got := brief(l.end(id))
	if strings.Contains(got, "yy") || strings.Contains(got, "zz") || !strings.Contains(got, "xxx") ||
		!strings.Contains(got, "(hydra sends more than the run may keep: the rest is left out)") {
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
