package run

import (
	"bufio"
	"bytes"
	"context"
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

// Whoever is killed in dispatch, at whatever moment, and the node started again:
// no run is lost, none is doubled, nothing stays behind, and a run is followed
// again soon (TRUST, R1). Some nodes are paused for a while first (R6). BALANCE_CHAOS says how many kills.
func TestChaos(t *testing.T) {
	kills := 12
	if n, err := strconv.Atoi(os.Getenv("BALANCE_CHAOS")); err == nil {
		kills = n
	}
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
}

// Victims.
const (
	theNode = iota
	theSupervisor
	theProgram
	aPause // of the node
	victims
)

func newChaos(t *testing.T, n int) *chaos {
	starts := filepath.Join(t.TempDir(), "starts")
	o := order(spec("sh", "-c", "echo $$ >> "+starts+"; for i in 1 2 3 4 5 6 7 8; do echo line $i; sleep 0.01; done; exit 3"))
	return &chaos{node: newNode(t, o), o: o, starts: starts, victim: n % victims}
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
	switch c.victim {
	case theSupervisor:
		for _, pid := range worksIn(c.lab.folder(c.o.Run)) {
			_ = syscall.Kill(pid, syscall.SIGKILL)
		}
	case theProgram:
		for _, pid := range worksIn(filepath.Join(c.lab.folder(c.o.Run), "work")) {
			_ = syscall.Kill(pid, syscall.SIGKILL)
		}
	case aPause:
		_ = cmd.Process.Signal(syscall.SIGSTOP)
		time.Sleep(rand.N(500 * time.Millisecond))
		_ = cmd.Process.Signal(syscall.SIGCONT)
		time.Sleep(rand.N(20 * time.Millisecond))
	}
	_ = cmd.Process.Kill()
	_ = out.Close()
	_ = cmd.Wait()
}

// finish takes the run to its end in another life, and looks at what has become
// of it. It returns how long the run, if it still went on, was not followed.
func (c *chaos) finish() (took time.Duration) {
	c.t.Helper()
	begin := time.Now()
	l := c.next()
	defer func() { _ = l.Close() }()
	ctx, cancel := context.WithTimeout(c.t.Context(), 30*time.Second)
	defer cancel()
	r := &result{}
	err := l.Start(ctx, c.o, func(e *task.Event) error {
		if took == 0 {
			took = time.Since(begin)
		}
		return r.add(e)
	})
	if err != nil || r.finished == nil {
		c.t.Fatalf("the run is lost: %v", err)
	}
	b, _ := os.ReadFile(c.starts)
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
		if out != want {
			c.t.Errorf("stdout %q", out)
		}
	case c.victim == theSupervisor && f.ExitCode == unseen && f.Reason == killed:
	case c.victim == theProgram && f.ExitCode == exitSignalBase+int(syscall.SIGKILL):
	default:
		c.t.Errorf("victim %d: %s, exit code %d: %q", c.victim, f.State, f.ExitCode, f.Reason)
	}
	if !strings.HasPrefix(want, out) {
		c.t.Errorf("stdout %q", out)
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
