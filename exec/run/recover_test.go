package run

import (
	"bufio"
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/balanceai/balance/exec/supervise"
	"github.com/balanceai/balance/exec/task"
	"github.com/balanceai/balance/mesh/wire"
)

// node is a daemon in a process of its own, to be killed.
type node struct {
	t      *testing.T
	lab    *lab // the machine's next life
	ledger string
	order  string
}

func newNode(t *testing.T, o task.Order) *node {
	t.Helper()
	n := &node{t: t, lab: newLab(t), ledger: filepath.Join(t.TempDir(), "ledger"), order: filepath.Join(t.TempDir(), "order")}
	_ = n.lab.Close()
	if err := writeOrder(n.order, o); err != nil {
		t.Fatal(err)
	}
	return n
}

// live runs the daemon until it says something, and kills it after a moment.
func (n *node) live(says string, moment time.Duration) {
	n.t.Helper()
	cmd := exec.Command(os.Args[0], n.lab.cfg.Dir, n.ledger, n.order, n.t.TempDir())
	cmd.Env = append(os.Environ(), modeVar+"=daemon")
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		n.t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		n.t.Fatal(err)
	}
	in := bufio.NewReader(out)
	for {
		line, err := in.ReadString('\n')
		if err != nil {
			n.t.Fatalf("the daemon ended before it said %q: %v", says, err)
		}
		if strings.Contains(line, says) {
			break
		}
	}
	time.Sleep(moment)
	_ = cmd.Process.Kill()
	_, _ = io.Copy(io.Discard, in)
	_ = cmd.Wait()
}

// next opens the next life in this process.
func (n *node) next() *lab {
	n.t.Helper()
	l, err := openLedgerFile(n.ledger)
	if err != nil {
		n.t.Fatal(err)
	}
	n.t.Cleanup(func() { l.file.Close() })
	n.lab.ledger, n.lab.cfg.Ledger = l, l
	n.lab.open()
	return n.lab
}

func count(list []string, s string) int {
	return len(slices.DeleteFunc(slices.Clone(list), func(x string) bool { return x != s }))
}

// The node dies at any moment of a run, again and again: there is one start and
// one end (TRUST, R1).
func TestNodeDiesAnytime(t *testing.T) {
	rounds := 12
	if testing.Short() {
		rounds = 3
	}
	for range rounds {
		starts := filepath.Join(t.TempDir(), "starts")
		o := order(spec("sh", "-c", "echo x >> "+starts+"; sleep 0.01; echo out; exit 3"))
		n := newNode(t, o)
		n.live("open", time.Duration(rand.IntN(40))*time.Millisecond)
		l := n.next()
		r := l.run(o)
		if f := r.account; f.ExitCode != 3 || r.stdout.String() != "out\n" {
			t.Errorf("%s, exit code %d: %q, stdout %q", f.State, f.ExitCode, f.Reason, r.stdout.String())
		}
		kinds := l.ledger.kinds(o.Run, nodeKey)
		for _, k := range []string{task.KindAccepted, task.KindFinished} {
			if count(kinds, k) != 1 {
				t.Errorf("the ledger has %v", kinds)
			}
		}
		if b, _ := os.ReadFile(starts); len(b) != 2 {
			t.Errorf("started %d times", len(b)/2)
		}
		_ = l.Close()
	}
}

// Each step at which a life can end, made by hand.
func TestUnfinished(t *testing.T) {
	s := spec("sh", "-c", "exit 9")
	s.Outputs = []string{"out"}
	accepted := func(l *lab, o task.Order) []*wire.Entry {
		if _, err := l.ledger.Accept(t.Context(), o.Entries...); err != nil {
			t.Fatal(err)
		}
		e, err := l.ledger.Append(t.Context(), task.Draft{Topic: o.Run, Kind: task.KindAccepted, Record: task.Accepted{Attempt: 1, Submit: o.Entries[0].Hash()}})
		if err != nil {
			t.Fatal(err)
		}
		return e
	}
	folder := func(l *lab, o task.Order) *live {
		x, _ := newLive(l.Runner, o.Run)
		x.attempt, x.from, x.spec, x.level = 1, o.From, s, level(&s, Grant{})
		if err := x.prepare(); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(x.work(), "out"), []byte("output"), 0o600); err != nil {
			t.Fatal(err)
		}
		return x
	}
	// ordered has the folder as a supervisor finds it.
	ordered := func(l *lab, o task.Order) *live {
		x := folder(l, o)
		accepted(l, o)
		order, err := x.order(&task.Finished{})
		if err != nil {
			t.Fatal(err)
		}
		if err := supervise.WriteOrder(x.dir, order); err != nil {
			t.Fatal(err)
		}
		return x
	}
	fence := func(x *live) {
		if mine, err := supervise.Fence(x.dir); err != nil || !mine {
			t.Fatal(mine, err)
		}
	}
	exit := task.Finished{Attempt: 1, State: task.Failed, ExitCode: 9}
	for name, test := range map[string]struct {
		prepare func(l *lab, o task.Order)
		code    int
		outputs bool
	}{
		"promised":               {func(l *lab, o task.Order) { _ = folder(l, o).journal.Close(); accepted(l, o) }, 9, false},
		"promised, folder lost":  {func(l *lab, o task.Order) { accepted(l, o) }, -1, false},
		"promised, journal lost": {func(l *lab, o task.Order) { accepted(l, o); os.Remove(l.journalPath(folder(l, o).id)) }, -1, true},
		"promised long ago": {func(l *lab, o task.Order) {
			_ = folder(l, o).journal.Close()
			accepted(l, o)
			l.cfg.Now = func() time.Time { return time.Now().Add(time.Hour) }
		}, -1, true},
		"ordered": {func(l *lab, o task.Order) { _ = ordered(l, o).journal.Close() }, 9, true},
		"fenced off": {func(l *lab, o task.Order) {
			x := folder(l, o)
			_ = x.journal.Close()
			accepted(l, o)
			fence(x)
		}, -1, true},
		"supervisor gone": {func(l *lab, o task.Order) {
			x := ordered(l, o)
			_ = x.journal.Close()
			fence(x)
		}, -1, true},
		"started": {func(l *lab, o task.Order) {
			x := ordered(l, o)
			x.tell(l.ledger.topics[o.Run][2])
			x.started(time.Now())
			eventually(t, "the start in the ledger", func() bool { return slices.Contains(l.ledger.kinds(o.Run, nodeKey), task.KindStarted) })
			_ = x.journal.Close()
			fence(x)
		}, -1, true},
		"exit known": {func(l *lab, o task.Order) {
			x := ordered(l, o)
			_ = x.journal.Close()
			fence(x)
			if err := os.WriteFile(filepath.Join(x.dir, "exit.json"), []byte(`{"Started":"2026-01-02T03:04:05Z","Code":9}`), 0o600); err != nil {
				t.Fatal(err)
			}
		}, 9, true},
		"end known": {func(l *lab, o task.Order) {
			x := folder(l, o)
			accepted(l, o)
			x.remember(exit)
			_ = x.journal.Close()
		}, 9, true},
		"end known badly": {func(l *lab, o task.Order) {
			x := ordered(l, o)
			fence(x)
			if err := os.WriteFile(x.exitPath(), []byte("\xa1"), 0o600); err != nil {
				t.Fatal(err)
			}
			_ = x.journal.Close()
		}, -1, true},
		"end in the ledger": {func(l *lab, o task.Order) {
			_ = folder(l, o).journal.Close()
			accepted(l, o)
			if _, err := l.ledger.Append(t.Context(), task.Draft{Topic: o.Run, Kind: task.KindFinished, Record: exit}); err != nil {
				t.Fatal(err)
			}
		}, 9, false},
		"end in the ledger, folder lost": {func(l *lab, o task.Order) {
			accepted(l, o)
			if _, err := l.ledger.Append(t.Context(), task.Draft{Topic: o.Run, Kind: task.KindFinished, Record: exit}); err != nil {
				t.Fatal(err)
			}
		}, 9, false},
	} {
		t.Run(name, func(t *testing.T) {
			l := newLab(t)
			o := order(s)
			test.prepare(l, o)
			_ = l.Close()
			l.open()
			r := l.run(o)
			if r.account.ExitCode != test.code || r.account.Outputs.IsZero() == test.outputs {
				t.Errorf("%+v", r.account)
			}
			if kinds := l.ledger.kinds(o.Run, nodeKey); kinds[0] != task.KindAccepted || count(kinds, task.KindFinished) != 1 {
				t.Errorf("the ledger has %v", kinds)
			}
			if !slices.Contains(r.kinds(), task.KindAccepted) {
				t.Errorf("events carried %v", r.kinds())
			}
		})
	}
	t.Run("not promised", func(t *testing.T) {
		l := newLab(t)
		o := order(s)
		_ = folder(l, o).journal.Close()
		_ = l.Close()
		l.open()
		if _, err := os.Stat(l.folder(o.Run)); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("its folder is still there: %v", err)
		}
		if r := l.run(o); r.account.ExitCode != 9 {
			t.Errorf("%+v", r.account)
		}
	})
}

func TestPrune(t *testing.T) {
	l := newLab(t)
	var ids []string
	for range 4 {
		o := order(spec("sh", "-c", "head -c 100000 /dev/zero > file; mkdir -p a/b; chmod 0 file"))
		l.run(o)
		ids = append(ids, o.Run)
		time.Sleep(5 * time.Millisecond)
	}
	going := order(spec("sh", "-c", "echo ready; sleep 60"))
	w := l.start(going)
	w.untilOutput("ready")
	prune := func(before time.Time, keep task.Bytes, want ...string) {
		t.Helper()
		if err := l.Prune(t.Context(), before, keep); err != nil {
			t.Fatal(err)
		}
		want = slices.Sorted(slices.Values(append(want, going.Run)))
		if got := l.folders(); !slices.Equal(got, want) {
			t.Errorf("%d folders are left, want %d", len(got), len(want))
		}
	}
	past := time.Now().Add(-time.Hour)
	prune(past, task.GiB, ids...)
	prune(past, 250_000, ids[2], ids[3])
	if err := os.Chtimes(l.journalPath(ids[2]), past, past); err != nil {
		t.Fatal(err)
	}
	prune(past.Add(time.Minute), task.GiB, ids[3])
	prune(past, 0)
	if _, err := os.Stat(l.journalPath(going.Run)); err != nil {
		t.Errorf("the run that goes on: %v", err)
	}
	// The ledger still has the end of what was pruned, and it does not run again.
	var r result
	if err := l.Follow(t.Context(), ids[0], 0, r.add); err != nil || r.finished == nil || r.account.State != task.Succeeded {
		t.Errorf("follow: %+v, %v", r.account, err)
	}
	_ = l.Cancel(t.Context(), going.Run, true)
	w.end()
}
