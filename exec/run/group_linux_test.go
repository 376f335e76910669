package run

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/balanceai/balance/exec/cgroup"
	"github.com/balanceai/balance/exec/task"
)

// reported returns those of the processes that have reported in a file and
// live, and how many have reported.
func reported(t *testing.T, path string) (alive []int, all int) {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil && !os.IsNotExist(err) {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(b)) {
		if !strings.HasSuffix(line, "\n") {
			continue
		}
		pid, err := strconv.Atoi(strings.TrimSpace(line))
		if err != nil {
			t.Fatal(err)
		}
		all++
		if state, _, _ := processState(pid); state != 0 && state != 'Z' {
			alive = append(alive, pid)
		}
	}
	return alive, all
}

// eachControl runs a test with control groups, where there are, and without.
func eachControl(t *testing.T, test func(t *testing.T, l *lab)) {
	t.Run("groups", func(t *testing.T) {
		l := newLab(t)
		need(t, l.control.can().Kill, "a control group that it may write to")
		test(t, l)
		if left := l.control.groups.Left(); len(left) != 0 {
			t.Errorf("groups left over: %v", left)
		}
	})
	t.Run("without groups", func(t *testing.T) {
		l := newLab(t)
		l.control.groups = &cgroup.Base{}
		test(t, l)
	})
}

// A run that ignores SIGTERM, forks twice and leaves its session: nothing
// survives (TRUST, T48 and R18).
func TestNoSurvivors(t *testing.T) {
	eachControl(t, func(t *testing.T, l *lab) {
		for _, force := range []bool{true, false} {
			pids := filepath.Join(t.TempDir(), "pids")
			o := order(bad("stubborn", pids))
			w := l.start(o)
			w.untilOutput("ready")
			eventually(t, "its children", func() bool { _, all := reported(t, pids); return all == 3 })
			if err := l.Cancel(t.Context(), o.Run, force); err != nil {
				t.Fatal(err)
			}
			if f := w.end().account; f.State != task.Cancelled || f.ExitCode != 137 {
				t.Errorf("%+v", f)
			}
			if alive, _ := reported(t, pids); len(alive) != 0 {
				t.Errorf("force %v: %d survive", force, len(alive))
			}
		}
	})
}

// What a program leaves in the background ends with it.
func TestNothingStays(t *testing.T) {
	eachControl(t, func(t *testing.T, l *lab) {
		pids := filepath.Join(t.TempDir(), "pids")
		if f := l.run(order(bad("leaver", pids))).account; f.State != task.Succeeded {
			t.Errorf("%+v", f)
		}
		// One that had not come as far as its report is gone as well.
		if alive, _ := reported(t, pids); len(alive) != 0 {
			t.Errorf("%d survive", len(alive))
		}
	})
}

// Somebody in the background holds the output: the run's end does not wait for
// long, but for a while.
func TestHeldOutput(t *testing.T) {
	eachControl(t, func(t *testing.T, l *lab) {
		r := l.run(order(bad("holder", "sleep", "3600")))
		if r.stdout.String() != "gone\n" || r.account.State != task.Succeeded {
			t.Errorf("%q, %+v", r.stdout.String(), r.account)
		}
		r = l.run(order(spec("sh", "-c", "(sleep 0.1; echo late) & echo early")))
		if r.stdout.String() != "early\nlate\n" {
			t.Errorf("%q", r.stdout.String())
		}
		o := order(bad("holder", "sleep", "3600"))
		w := l.start(o)
		w.untilOutput("gone")
		_ = l.Cancel(t.Context(), o.Run, false)
		w.end()
	})
}

// A run that makes control groups of its own in its group.
func TestGroupsBelow(t *testing.T) {
	l := newLab(t)
	g, err := l.control.groups.Make("where", cgroup.Limits{})
	need(t, err == nil && g.V2 != "" && os.Getuid() == 0, "root and a control group (version 2)")
	if err := g.Remove(); err != nil {
		t.Fatal(err)
	}
	id := task.NewID()
	group := strings.TrimSuffix(g.V2, "where") + id
	o := orderOf(id, spec("sh", "-c", "mkdir -p $0/a/b; sleep 3600 >/dev/null 2>&1 & echo $! > $0/a/b/cgroup.procs; echo made", group), 1)
	if r := l.run(o); r.stdout.String() != "made\n" {
		t.Errorf("%q %q", r.stdout.String(), r.stderr.String())
	}
	if _, err := os.Stat(group); !os.IsNotExist(err) {
		t.Errorf("the group is still there: %v", err)
	}
}

// What an earlier life has left in a control group dies with it, also what hides
// its environment.
func TestGroupsLeft(t *testing.T) {
	l := newLab(t)
	need(t, l.control.can().Kill, "a control group that it may write to")
	id := task.NewID()
	attr := &os.ProcAttr{Env: []string{"NOTHING=1"}}
	p, _, err := l.control.start(id, "/bin/sleep", []string{"sleep", "3600"}, attr, cgroup.Limits{}, false)
	if err != nil {
		t.Fatal(err)
	}
	if err := l.control.killLeft([]string{task.NewID(), id}); err != nil {
		t.Error(err)
	}
	state, err := p.Wait()
	if err != nil || state.ExitCode() != -1 {
		t.Errorf("it ended with %v, %v", state, err)
	}
	if left := l.control.groups.Left(); len(left) != 0 {
		t.Errorf("groups left over: %v", left)
	}
}

// Another node's run of the same id on this machine is not touched.
func TestOthersStay(t *testing.T) {
	l := newLab(t)
	l.control.groups = &cgroup.Base{}
	o := order(bad("leaver", filepath.Join(t.TempDir(), "pids")))
	p, err := os.StartProcess("/bin/sleep", []string{"sleep", "3600"}, &os.ProcAttr{
		Env: []string{"BALANCE_RUN=" + o.Run, "BALANCE_NODE=other"}, Sys: &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL},
	})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		_ = p.Kill()
		_, _ = p.Wait()
	}()
	l.run(o)
	if err := l.control.killLeft([]string{o.Run}); err != nil {
		t.Fatal(err)
	}
	time.Sleep(10 * time.Millisecond)
	if state, _, _ := processState(p.Pid); state == 'Z' || state == 0 {
		t.Error("it was killed")
	}
}

// The node dies while the run goes on: its processes are killed, its end is
// written, and it is not started again.
func TestNodeDies(t *testing.T) {
	pids := filepath.Join(t.TempDir(), "pids")
	o := order(bad("stubborn", pids))
	n := newNode(t, o)
	n.live("ready", 100*time.Millisecond)
	if alive, all := reported(t, pids); all != 3 || len(alive) == 0 {
		t.Fatalf("%d of %d left: not the case that is to be tested", len(alive), all)
	}
	l := n.next()
	if alive, _ := reported(t, pids); len(alive) != 0 {
		t.Errorf("%d survive", len(alive))
	}
	r := l.run(o)
	if f := r.account; f.State != task.Failed || f.ExitCode != -1 || f.Reason != nodeStopped {
		t.Errorf("%s, exit code %d: %q", f.State, f.ExitCode, f.Reason)
	}
	if r.stdout.String() != "ready\n" || r.events[0].Type != task.EventStarted {
		t.Errorf("%d events, %q", len(r.events), r.stdout.String())
	}
	if _, all := reported(t, pids); all != 3 {
		t.Error("it was started again")
	}
	// Whoever saw what a power cut took gets the end all the same.
	var late result
	if err := l.Follow(t.Context(), o.Run, 1000, late.add); err != nil || late.finished == nil {
		t.Errorf("a late follower: %v", err)
	}
}
