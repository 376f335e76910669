package run

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/balanceai/balance/exec/task"
)

// chaosKills is how many kills there are: BALANCE_CHAOS, or a few.
func chaosKills() int {
	if n, err := strconv.Atoi(os.Getenv("BALANCE_CHAOS")); err == nil {
		return n
	}
	return 15
}

// Whoever is killed in dispatch, at whatever moment, and the node started again:
// no run is lost, none is doubled, nothing stays behind, and a run is followed
// again soon (TRUST, R1). Some nodes and supervisors are paused for a while first
// (R6).
func TestChaos(t *testing.T) {
	kills := chaosKills()
	var again []time.Duration
	for kill := range kills {
		c := newChaos(t, kill)
		c.life()
		if took := c.finish(); took > 0 {
			again = append(again, took)
		}
	}
	slices.Sort(again)
	if n := len(again); n > 0 {
		t.Logf("%d kills; %d runs followed again, p50 %v, p99 %v", kills, n, again[n/2], again[n*99/100])
		if p99 := again[n*99/100]; p99 > 5*time.Second {
			t.Errorf("p99 %v", p99)
		}
	}
}

// chaos is a run in which somebody is killed.
type chaos struct {
	*node
	o      task.Order
	starts string // a line for each start
	victim int
	n      int    // its number
	full   string // a file that fills the disk while it is there; empty: it is not filled
}

// Victims.
const (
	theNode = iota
	theSupervisor
	theProgram
	aPause           // of the node
	aSupervisorPause // the program goes on, until nobody reads what it writes
	victims
)

// pause is for how long somebody stands still: half a second to five, and now and
// then, where there is time, up to a minute.
func pause(n int) time.Duration {
	if n%100 >= 98 { // of each kind one
		return 5*time.Second + rand.N(55*time.Second)
	}
	return 500*time.Millisecond + rand.N(4500*time.Millisecond)
}

func newChaos(t *testing.T, n int) *chaos {
	starts := filepath.Join(t.TempDir(), "starts")
	o := order(spec("sh", "-c", "echo $$ >> "+starts+"; for i in 1 2 3 4 5 6 7 8; do echo line $i; sleep 0.01; done; exit 3"))
	return &chaos{node: newNode(t, o), o: o, starts: starts, victim: n % victims, n: n}
}

// life runs a node and ends it, after somebody else was killed or not.
func (c *chaos) life() {
	c.t.Helper()
	cmd := exec.Command(os.Args[0], c.lab.cfg.Dir, c.ledger, c.order, c.t.TempDir())
	cmd.Env = append(os.Environ(), modeVar+"=daemon")
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		c.t.Fatal(err)
	}
	if line, err := bufio.NewReader(out).ReadString('\n'); err != nil || line != "open\n" {
		c.t.Fatalf("the node says %q, %v", line, err)
	}
	time.Sleep(rand.N(120 * time.Millisecond))
	if c.full != "" {
		fill(c.t, c.full)
		time.Sleep(rand.N(20 * time.Millisecond))
	}
	supervisor, program := worksIn(c.lab.folder(c.o.Run)), worksIn(filepath.Join(c.lab.folder(c.o.Run), "work"))
	switch c.victim {
	case theSupervisor:
		signalAll(supervisor, syscall.SIGKILL)
	case theProgram:
		signalAll(program, syscall.SIGKILL)
	case aPause, aSupervisorPause:
		pids := []int{cmd.Process.Pid}
		if c.victim == aSupervisorPause {
			pids = supervisor
		}
		signalAll(pids, syscall.SIGSTOP)
		time.Sleep(pause(c.n))
		signalAll(pids, syscall.SIGCONT)
		time.Sleep(rand.N(20 * time.Millisecond))
	}
	if c.full != "" && rand.N(2) == 0 {
		_ = os.Remove(c.full)
	}
	_ = cmd.Process.Kill()
	_ = out.Close()
	_ = cmd.Wait()
}

func signalAll(pids []int, sig syscall.Signal) {
	for _, pid := range pids {
		_ = syscall.Kill(pid, sig)
	}
}

// finish takes the run to its end in another life, and looks at what has become
// of it. It returns how long the run, if it still went on, was not followed.
func (c *chaos) finish() (took time.Duration) {
	c.t.Helper()
	begin := time.Now()
	l := c.next()
	defer func() { _ = l.Close() }()
	if c.full != "" {
		time.AfterFunc(rand.N(200*time.Millisecond), func() { _ = os.Remove(c.full) })
	}
	ctx, cancel := context.WithTimeout(c.t.Context(), 30*time.Second)
	defer cancel()
	r := &result{}
	err := l.Start(ctx, c.o, func(e *task.Event) error {
		if took == 0 {
			took = time.Since(begin)
		}
		return r.add(e)
	})
	b, _ := os.ReadFile(c.starts)
	if no := (*task.Refusal)(nil); errors.As(err, &no) && c.full != "" && no.Reasons[0].Rule == "disk" && len(b) == 0 {
		return took // it came when the disk was full
	}
	if err != nil || r.finished == nil {
		c.t.Fatalf("the run is lost: %v", err)
	}
	if n := bytes.Count(b, []byte("\n")); n > 1 {
		c.t.Errorf("started %d times", n)
	}
	kinds := l.ledger.kinds(c.o.Run, nodeKey)
	if count(kinds, task.KindAccepted) != 1 || count(kinds, task.KindFinished) != 1 {
		c.t.Errorf("the ledger has %v", kinds)
	}
	c.truth(r)
	eventually(c.t, "the end of all its processes", func() bool {
		return len(worksIn(l.folder(c.o.Run))) == 0 && len(worksIn(filepath.Join(l.folder(c.o.Run), "work"))) == 0
	})
	return took
}

// truth holds that the account says what happened.
func (c *chaos) truth(r *result) {
	c.t.Helper()
	want := ""
	for i := range 8 {
		want += fmt.Sprintln("line", i+1)
	}
	out := r.stdout.String()
	switch f := r.account; {
	case f.State == task.Succeeded:
		c.t.Errorf("a success that nobody saw: %+v", f)
	case f.ExitCode == 3:
		if out != want && f.Usage.Dropped == 0 {
			c.t.Errorf("stdout %q", out)
		}
		if int(f.Usage.Output) != len(want) || int(f.Usage.Output-f.Usage.Dropped) != len(out) {
			c.t.Errorf("usage %+v of %d bytes, stdout %q", f.Usage, len(want), out)
		}
	case c.victim == theSupervisor && f.ExitCode == unseen && f.Reason == killed:
	case c.victim == theProgram && f.ExitCode == exitSignalBase+int(syscall.SIGKILL):
	default:
		c.t.Errorf("victim %d: %s, exit code %d: %q", c.victim, f.State, f.ExitCode, f.Reason)
	}
	rest := want
	for line := range strings.Lines(out) {
		before, after, there := strings.Cut(rest, line)
		if !there || before != "" && c.full == "" {
			c.t.Errorf("stdout %q", out)
		}
		rest = after
	}
}

// The same where the disk is full at that moment, and has room again before or after
// (TRUST, R5): what is missing is said to be.
func TestChaosFullDisk(t *testing.T) {
	dir := t.TempDir()
	need(t, os.Getuid() == 0 && syscall.Mount("none", dir, "tmpfs", 0, "size=72m") == nil, "root, to mount a small file system")
	t.Cleanup(func() { _ = syscall.Unmount(dir, syscall.MNT_DETACH) })
	for kill := range max(2*victims, chaosKills()/5) {
		c := newChaos(t, kill)
		c.lab.cfg.Dir = filepath.Join(dir, strconv.Itoa(kill))
		c.full = filepath.Join(dir, "full")
		c.life()
		c.finish()
		if err := os.RemoveAll(c.lab.cfg.Dir); err != nil {
			t.Fatal(err)
		}
	}
}

// A supervisor that is killed while its program writes more than is kept leaves what
// it had kept, each byte once.
func TestChaosFlood(t *testing.T) {
	for range max(3, chaosKills()/20) {
		l := newLab(t)
		s := bad("flood", "256")
		s.Limits.Output = task.MiB
		o := order(s)
		l.start(o).until("some output", func(r *result) bool { return r.stdout.Len() > 0 })
		time.Sleep(rand.N(300 * time.Millisecond))
		signalAll(worksIn(l.folder(o.Run)), syscall.SIGKILL)
		var f flood
		if err := l.Follow(t.Context(), o.Run, 0, new(flood).take); err != nil { // to the end
			t.Fatal(err)
		}
		if err := l.Follow(t.Context(), o.Run, 0, f.take); err != nil {
			t.Fatal(err)
		}
		if f.finished.Message != killed && f.finished.State != task.Succeeded {
			t.Errorf("%+v", f.finished)
		}
		// One gap is the node's, where the supervisor has died as it began a part.
		if f.gapped > 2 || f.came+f.missing != f.next || f.came > int64(task.MiB) {
			t.Errorf("%d bytes are there and %d are missing of %d, with %d gaps", f.came, f.missing, f.next, f.gapped)
		}
	}
}

// worksIn returns the processes of which the working directory is a folder.
func worksIn(dir string) (pids []int) {
	links, _ := filepath.Glob("/proc/[0-9]*/cwd")
	for _, link := range links {
		if at, err := os.Readlink(link); err == nil && at == dir {
			if pid, err := strconv.Atoi(filepath.Base(filepath.Dir(link))); err == nil {
				pids = append(pids, pid)
			}
		}
	}
	return pids
}
