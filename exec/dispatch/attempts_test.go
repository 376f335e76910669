package dispatch

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/balanceai/balance/exec/fleet"
	"github.com/balanceai/balance/exec/place"
	"github.com/balanceai/balance/exec/task"
	"github.com/balanceai/balance/mesh/identity"
	"github.com/balanceai/balance/mesh/wire"
)

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

// The values of secrets go to the machine beside what is signed. A dispatcher that
// was started again has forgotten them: where no machine has the run yet, it ends,
// and says to run it again.
func TestSecretsAreForgotten(t *testing.T) {
	l := newLab(t)
	spec := bare()
	spec.Secrets = []task.Secret{{Name: "KEY", Expose: true}}
	if _, err := l.d.Submit(t.Context(), spec); err == nil {
		t.Error("a run was taken without its secrets")
	}
	got := make(chan task.Secrets, 8)
	gone := errors.New("gone")
	l.cfg.Executor = func(identity.ID) Executor {
		return starter(func(o task.Order) error {
			got <- o.Secrets
			return errors.Join(task.ErrBroken, gone)
		})
	}
	_ = l.d.Close()
	l.up()
	id, err := l.d.SubmitWith(t.Context(), spec, task.Secrets{"KEY": "canary"})
	if err != nil {
		t.Fatal(err)
	}
	if s := <-got; s["KEY"] != "canary" {
		t.Errorf("the machine got %#v", map[string]string(s))
	}
	_ = l.d.Close()
	l.ledger.mu.Lock()
	for _, e := range l.ledger.topics[id] {
		if bytes.Contains(e.Encode(), []byte("canary")) {
			t.Errorf("%s has it", e.Kind)
		}
	}
	l.ledger.mu.Unlock()
	l.cfg.Executor = func(identity.ID) Executor {
		return starter(func(task.Order) error {
			return &task.Refusal{Reasons: []task.Reason{{Rule: "secrets", Text: "did not get them"}}}
		})
	}
	l.up()
	events := l.end(id)
	if text := brief(events); !strings.Contains(text, "has forgotten the secrets") || events[len(events)-1].State != task.Unplaced {
		t.Errorf("got %s", text)
	}
}

// starter is a machine that answers orders.
type starter func(task.Order) error

func (s starter) Start(_ context.Context, o task.Order, _ func(*task.Event) error) error { return s(o) }

func (starter) Reserve(context.Context, task.Bid, func(*task.Event) error) error {
	return task.ErrUnreachable
}

func (starter) Follow(context.Context, string, uint64, func(*task.Event) error) error {
	return task.ErrNoRun
}

func (starter) Stdin(context.Context, string, int64, io.Reader) error  { return task.ErrNoRun }
func (starter) Files(context.Context, string, string, io.Writer) error { return task.ErrNoRun }
func (starter) Resize(context.Context, string, task.Terminal) error    { return task.ErrNoRun }

func (starter) Cancel(context.Context, string, bool) error { return nil }

func (starter) Renew(context.Context, string, int, uint64) (uint64, error) { return 0, nil }

func (starter) Go(context.Context, string) error { return nil }

func (starter) Settle(context.Context, string, []*wire.Entry) error { return nil }
