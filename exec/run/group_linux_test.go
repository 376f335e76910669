package run

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/balanceai/balance/exec/cgroup"
	"github.com/balanceai/balance/exec/supervise"
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
		if lives(pid) {
			alive = append(alive, pid)
		}
	}
	return alive, all
}

// eachControl runs a test with control groups, where there are, and without.
func eachControl(t *testing.T, test func(t *testing.T, l *lab)) {
	t.Run("groups", func(t *testing.T) {
		l := newLab(t)
		need(t, l.control.Groups.Can().Kill, "a control group that it may write to")
		test(t, l)
		noGroups(t, l)
	})
	t.Run("without groups", func(t *testing.T) {
		l := newLab(t)
		l.control.Groups = &cgroup.Base{}
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

// noGroups checks that no run of the lab has a control group any more.
func noGroups(t *testing.T, l *lab) {
	t.Helper()
	left := l.control.Groups.Left()
	for _, run := range l.folders() {
		if g := left[run]; g != nil {
			t.Errorf("the group of %s is left over: %+v", run, g)
		}
	}
}

// groupOf returns where the control group of a run will be.
func groupOf(t *testing.T, l *lab, run string) string {
	t.Helper()
	g, err := l.control.Groups.Make(run, cgroup.Limits{})
	need(t, err == nil && g.V2 != "" && os.Getuid() == 0, "root and a control group (version 2)")
	if err := g.Remove(); err != nil {
		t.Fatal(err)
	}
	return g.V2
}

// A run that makes control groups of its own in its group.
func TestGroupsBelow(t *testing.T) {
	l := newLab(t)
	id := task.NewID()
	group := groupOf(t, l, id)
	o := orderOf(id, spec("sh", "-c", "mkdir -p $0/a/b; sleep 3600 >/dev/null 2>&1 & echo $! > $0/a/b/cgroup.procs; echo made", group), 1)
	if r := l.run(o); r.stdout.String() != "made\n" {
		t.Errorf("%q %q", r.stdout.String(), r.stderr.String())
	}
	if _, err := os.Stat(group); !os.IsNotExist(err) {
		t.Errorf("the group is still there: %v", err)
	}
}

// What a run without a supervisor has left in a control group dies, also what
// hides its environment.
func TestGroupsLeft(t *testing.T) {
	l := newLab(t)
	id := task.NewID()
	group := groupOf(t, l, id)
	if err := os.Mkdir(group, 0o755); err != nil {
		t.Fatal(err)
	}
	dir, err := os.Open(group)
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close()
	p, err := os.StartProcess("/bin/sleep", []string{"sleep", "3600"}, &os.ProcAttr{
		Env: []string{"NOTHING=1"}, Sys: &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: int(dir.Fd())},
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := l.control.KillLeft([]string{task.NewID(), id}); err != nil {
		t.Error(err)
	}
	state, err := p.Wait()
	if err != nil || state.ExitCode() != -1 {
		t.Errorf("it ended with %v, %v", state, err)
	}
	if _, err := os.Stat(group); !os.IsNotExist(err) {
		t.Errorf("its group: %v", err)
	}
}

// Another node's run of the same id on this machine is not touched.
func TestOthersStay(t *testing.T) {
	l := newLab(t)
	l.control.Groups = &cgroup.Base{}
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
	if err := l.control.KillLeft([]string{o.Run}); err != nil {
		t.Fatal(err)
	}
	time.Sleep(10 * time.Millisecond)
	if !lives(p.Pid) {
		t.Error("it was killed")
	}
}

// The node dies while the run goes on: the next life follows it, and misses
// nothing.
func TestNodeDies(t *testing.T) {
	pids := filepath.Join(t.TempDir(), "pids")
	o := order(bad("stubborn", pids))
	n := newNode(t, o)
	n.live("ready", 100*time.Millisecond)
	eventually(t, "its children", func() bool { _, all := reported(t, pids); return all == 3 })
	l := n.next()
	w := l.start(o)
	w.untilOutput("ready")
	if alive, all := reported(t, pids); len(alive) != 3 || all != 3 {
		t.Errorf("%d of %d live", len(alive), all)
	}
	if held := l.Held(); len(held) != 1 || held[0].Run != o.Run {
		t.Errorf("held %+v", held)
	}
	if err := l.Cancel(t.Context(), o.Run, false); err != nil {
		t.Fatal(err)
	}
	r := w.end()
	if f := r.account; f.State != task.Cancelled || f.ExitCode != 137 {
		t.Errorf("%s, exit code %d: %q", f.State, f.ExitCode, f.Reason)
	}
	if r.stdout.String() != "ready\n" || r.events[0].Type != task.EventStarted {
		t.Errorf("%d events, %q", len(r.events), r.stdout.String())
	}
	if alive, _ := reported(t, pids); len(alive) != 0 {
		t.Errorf("%d survive", len(alive))
	}
	if got := l.ledger.kinds(o.Run, nodeKey); count(got, task.KindStarted) > 1 {
		t.Errorf("the ledger has %v", got)
	}
}

// The supervisor is killed: so is all of the run, and its end is no success.
func TestSupervisorDies(t *testing.T) {
	eachControl(t, func(t *testing.T, l *lab) {
		pids := filepath.Join(t.TempDir(), "pids")
		w := l.start(order(bad("stubborn", pids)))
		w.untilOutput("ready")
		eventually(t, "its children", func() bool { _, all := reported(t, pids); return all == 3 })
		if err := syscall.Kill(l.supervisor(w.r.events[0].Run), syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		if f := w.end().account; f.State != task.Failed || f.ExitCode != -1 || f.Reason != killed {
			t.Errorf("%s, exit code %d: %q", f.State, f.ExitCode, f.Reason)
		}
		eventually(t, "the end of its processes", func() bool { alive, _ := reported(t, pids); return len(alive) == 0 })
	})
}

// The machine was started again while the run was going: its end says so, and
// nobody sees output twice.
func TestRebooted(t *testing.T) {
	l := newLab(t)
	o := order(spec("sh", "-c", "echo ready; sleep 60"))
	w := l.start(o)
	w.untilOutput("ready")
	order, err := supervise.ReadOrder(l.folder(o.Run))
	if err != nil {
		t.Fatal(err)
	}
	pid := l.supervisor(o.Run)
	_ = l.Close()
	<-w.done
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	order.Boot = "another"
	if err := supervise.WriteOrder(l.folder(o.Run), order); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(l.journalPath(o.Run), 0); err != nil { // as a power cut may
		t.Fatal(err)
	}
	l.open()
	var late result
	if err := l.Follow(t.Context(), o.Run, w.r.events[len(w.r.events)-1].Seq, late.add); err != nil {
		t.Fatal(err)
	}
	if f := late.account; f.State != task.Failed || f.ExitCode != -1 || f.Reason != rebooted || late.stdout.Len() != 0 {
		t.Errorf("%s, exit code %d: %q; %q", f.State, f.ExitCode, f.Reason, late.stdout.String())
	}
}

// supervisor returns the process id of the supervisor of a run: it works in the
// run's folder.
func (l *lab) supervisor(run string) int {
	l.t.Helper()
	pids := worksIn(l.folder(run))
	if len(pids) != 1 {
		l.t.Fatalf("supervisors of the run: %v", pids)
	}
	return pids[0]
}

// lives reports whether a process has not ended.
func lives(pid int) bool {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return false
	}
	rest := b[bytes.LastIndexByte(b, ')')+2:]
	return rest[0] != 'Z' && rest[0] != 'X'
}
