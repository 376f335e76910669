package run

import (
	"bufio"
	"context"
	"errors"
	"io"
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/balanceai/balance/exec/isolate"
	"github.com/balanceai/balance/exec/task"
	"github.com/balanceai/balance/mesh/identity"
)

const otherRank = "r-bbbbbbbbbbbbbbbb"

// rankOf is an order for rank 1 of two, whose leader is on a machine of a
// stranger.
func rankOf(s task.Spec) task.Order {
	id := task.NewID()
	s.Member = &task.Member{
		Gang: "r-aaaaaaaaaaaaaaaa", Rank: 1, Runs: []string{otherRank, id}, Nodes: []identity.ID{strangers.ID(), nodeKey.ID()},
	}
	return orderOf(id, s, 1)
}

// lead is the leader, on another machine: it answers each connection with a
// line.
func lead(_ context.Context, node identity.ID, run string, c net.Conn) error {
	if node != strangers.ID() || run != otherRank {
		return errors.New("asked for another rank")
	}
	_, err := io.WriteString(c, "the leader\n")
	return err
}

func isReady(r *result) bool { return has(r, task.EventReady) }

func has(r *result, kind string) bool {
	return slices.ContainsFunc(r.events, func(e *task.Event) bool { return e.Type == kind })
}

// A rank whose port is taken says so, and holds nobody up.
func TestRankWithoutItsPort(t *testing.T) {
	l := newLab(t)
	ln, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	s, id := spec("true"), task.NewID()
	s.Member = &task.Member{Gang: id, Runs: []string{id}, Nodes: []identity.ID{nodeKey.ID()}, Port: ln.Addr().(*net.TCPAddr).Port}
	r := l.run(orderOf(id, s, 1))
	if r.account.State != task.Failed || !strings.Contains(r.account.Reason, "address already in use") {
		t.Errorf("account %+v", r.account)
	}
}

// A rank that could start says so and waits; then it knows who it is and meets
// the others on loopback.
func TestRank(t *testing.T) {
	l := newLab(t)
	o := rankOf(spec("bash", "-c", `echo $RANK of $WORLD_SIZE, $BALANCE_RANK of $BALANCE_SIZE, $LOCAL_RANK of $LOCAL_WORLD_SIZE, $BALANCE_GANG
[ $BALANCE_HOSTS = $BALANCE_LEADER,127.0.0.1:$BALANCE_PORT ] && [ $BALANCE_LEADER = $MASTER_ADDR:$MASTER_PORT ] && echo agreed
cat < /dev/tcp/$MASTER_ADDR/$MASTER_PORT`))
	w := l.start(o)
	w.until("readiness", isReady)
	time.Sleep(20 * time.Millisecond)
	w.until("no start", func(r *result) bool { return !has(r, task.EventStarted) })
	for range 2 { // told again, it goes on as it is
		if err := l.Go(t.Context(), o.Run); err != nil && !errors.Is(err, task.ErrNoRun) {
			t.Fatal(err)
		}
	}
	want := "1 of 2, 1 of 2, 0 of 1, r-aaaaaaaaaaaaaaaa\nagreed\nthe leader\n"
	if r := w.end(); r.account.State != task.Succeeded || r.stdout.String() != want {
		t.Errorf("%+v, output %q", r.account, r.stdout.String())
	}
}

// The gang's machines reach a rank, also after its node was started again, and
// nobody else does.
func TestRankIsReached(t *testing.T) {
	l := newLab(t)
	o := rankOf(bad("echo"))
	w := l.start(o)
	w.until("readiness", isReady)
	if err := l.Go(t.Context(), o.Run); err != nil {
		t.Fatal(err)
	}
	if _, err := l.Dial(t.Context(), o.Run, userKey.ID()); !errors.Is(err, task.ErrNoRun) {
		t.Errorf("who is not of the gang: %v", err)
	}
	l.echo(o.Run)
	_ = l.Close()
	<-w.done
	l.open()
	eventually(t, "the rank to be taken up", func() bool { return len(l.Held()) == 1 })
	l.echo(o.Run)
	if err := l.Cancel(t.Context(), o.Run, true); err != nil {
		t.Fatal(err)
	}
	eventually(t, "its end", func() bool {
		_, err := l.Dial(t.Context(), o.Run, strangers.ID())
		return errors.Is(err, task.ErrNoRun)
	})
}

// echo has the rank say something back to the leader's machine.
func (l *lab) echo(run string) {
	l.t.Helper()
	c, err := l.Dial(l.t.Context(), run, strangers.ID())
	if err != nil {
		l.t.Fatal(err)
	}
	defer c.Close()
	if _, err := io.WriteString(c, "hello\n"); err != nil {
		l.t.Fatal(err)
	}
	if line, err := bufio.NewReader(c).ReadString('\n'); err != nil || line != "hello\n" {
		l.t.Fatalf("got %q, %v", line, err)
	}
}

func TestRankIsRefused(t *testing.T) {
	for name, tc := range map[string]struct {
		change func(*lab, *task.Order)
		says   string
	}{
		"no way to the others": {func(l *lab, _ *task.Order) { l.Runner.cfg.Join = nil }, "no ranks"},
		"a sandbox": {func(l *lab, _ *task.Order) {
			l.admit = func(Ask) (Grant, []task.Reason) { return Grant{Isolation: isolate.Sandbox}, nil }
		}, "does not meet the others"},
		"another's rank": {func(_ *lab, o *task.Order) {
			s := spec("true")
			s.Member = &task.Member{Gang: o.Run, Runs: []string{o.Run}, Nodes: []identity.ID{strangers.ID()}}
			*o = orderOf(o.Run, s, 1)
		}, "not the machine of rank 0"},
	} {
		t.Run(name, func(t *testing.T) {
			l := newLab(t)
			o := rankOf(spec("true"))
			tc.change(l, &o)
			err := l.Start(t.Context(), o, func(*task.Event) error { return nil })
			var refusal *task.Refusal
			if !errors.As(err, &refusal) || !strings.Contains(err.Error(), tc.says) {
				t.Errorf("got %v", err)
			}
		})
	}
}
