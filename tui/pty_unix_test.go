//go:build unix

package tui

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/creack/pty"
	"golang.org/x/term"

	"github.com/balanceai/balance/exec/fleet"
)

// TestMain is also the program that the tests here run in a terminal of its
// own.
func TestMain(m *testing.M) {
	if os.Getenv("BALANCE_TUI_CHILD") == "" {
		os.Exit(m.Run())
	}
	f := newFakeNode()
	switch os.Getenv("BALANCE_TUI_CHILD") {
	case "busy":
		go f.flicker()
	case "hundred":
		f.mesh = manyNodes(100)
		go f.live()
	}
	if err := Run(context.Background(), f, Options{}); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(3)
	}
	os.Exit(0)
}

// flicker changes so much that a terminal's buffer fills up.
func (f *fakeNode) flicker() {
	for i := 0; ; i++ {
		next := testMesh()
		for n := range next.Nodes {
			next.Nodes[n].Owner = fmt.Sprint("owner-", i*7919+n)
		}
		f.pictures <- next
	}
}

// live sends a new picture each second, in which every machine has moved on.
func (f *fakeNode) live() {
	base := manyNodes(100).Nodes
	long := make([][]fleet.Sample, len(base))
	for i := range base {
		long[i] = append(slices.Clone(base[i].History), base[i].History...)
	}
	for step := 0; ; step++ {
		time.Sleep(time.Second)
		next := Mesh{Name: "live", Nodes: slices.Clone(base)}
		for i := range next.Nodes {
			n := &next.Nodes[i]
			n.LiveAt = time.Now()
			if len(long[i]) > 0 {
				at := step % fleet.HistoryLen
				n.History = slices.Clone(long[i][at : at+fleet.HistoryLen])
				n.History[fleet.HistoryLen-1].Time = time.Now()
			}
		}
		f.pictures <- next
	}
}

// BenchmarkLive shows 100 machines at 1 Hz in a terminal of 160×45, and tells
// what that costs.
func BenchmarkLive(b *testing.B) {
	for b.Loop() {
		ch := startChild(b, "hundred", 160, 45)
		ch.drain()
		ch.see("athena")
		start, drawn := time.Now(), ch.drawn()
		time.Sleep(15 * time.Second)
		seconds, bytes := time.Since(start).Seconds(), ch.drawn()-drawn
		if _, err := io.WriteString(ch.tty, "q"); err != nil {
			b.Fatal(err)
		}
		if err := ch.wait(20 * time.Second); err != nil {
			b.Fatal(err)
		}
		state := ch.cmd.ProcessState
		b.ReportMetric(100*(state.UserTime()+state.SystemTime()).Seconds()/seconds, "%cpu")
		b.ReportMetric(float64(bytes)/seconds, "B/s")
		b.ReportMetric(0, "ns/op")
	}
}

// child is the program in a terminal.
type child struct {
	t    testing.TB
	cmd  *exec.Cmd
	tty  *os.File
	done chan error

	before *term.State // of the terminal

	mu  sync.Mutex
	out strings.Builder
}

func startChild(t testing.TB, mode string, w, h uint16) *child {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), "BALANCE_TUI_CHILD="+mode, "TERM=xterm-256color", "LC_ALL=C.UTF-8")
	tty, slave, err := pty.Open()
	if err != nil && os.Getenv("BALANCE_REQUIRE") == "1" {
		t.Fatalf("this test needs a pseudo-terminal: %v", err)
	} else if err != nil {
		t.Skipf("this test needs a pseudo-terminal: %v", err)
	}
	defer slave.Close()
	before, err := term.GetState(int(tty.Fd())) // before the program can change it
	if err == nil {
		err = pty.Setsize(tty, &pty.Winsize{Cols: w, Rows: h})
	}
	cmd.Stdin, cmd.Stdout, cmd.Stderr = slave, slave, slave
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	ch := &child{t: t, cmd: cmd, tty: tty, before: before, done: make(chan error, 1)}
	go func() { ch.done <- cmd.Wait() }()
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = tty.Close()
	})
	return ch
}

// drain reads what the program draws, as a terminal does.
func (ch *child) drain() {
	go func() {
		b := make([]byte, 4096)
		for {
			n, err := ch.tty.Read(b)
			ch.mu.Lock()
			ch.out.Write(b[:n])
			ch.mu.Unlock()
			if err != nil {
				return
			}
		}
	}()
}

func (ch *child) see(want string) {
	ch.t.Helper()
	deadline := time.Now().Add(20 * time.Second)
	for {
		ch.mu.Lock()
		got := ch.out.String()
		ch.mu.Unlock()
		if strings.Contains(got, want) {
			return
		}
		if time.Now().After(deadline) {
			ch.t.Fatalf("%q was not drawn; the last of what was: %q", want, got[max(0, len(got)-500):])
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// tail is the last of what was drawn.
func (ch *child) tail() string {
	ch.mu.Lock()
	defer ch.mu.Unlock()
	got := ch.out.String()
	return got[max(0, len(got)-4000):]
}

// drawn returns how many bytes were drawn.
func (ch *child) drawn() int {
	ch.mu.Lock()
	defer ch.mu.Unlock()
	return ch.out.Len()
}

func (ch *child) wait(limit time.Duration) error {
	ch.t.Helper()
	select {
	case err := <-ch.done:
		return err
	case <-time.After(limit):
		ch.t.Fatal("the program does not end")
		return nil
	}
}

func TestTerminalResize(t *testing.T) {
	ch := startChild(t, "still", 60, 20)
	ch.drain()
	ch.see("athena")
	if err := pty.Setsize(ch.tty, &pty.Winsize{Cols: 160, Rows: 40}); err != nil {
		t.Fatal(err)
	}
	ch.see("OWNER") // has no room in 60 columns
	if _, err := io.WriteString(ch.tty, "q"); err != nil {
		t.Fatal(err)
	}
	if err := ch.wait(20 * time.Second); err != nil {
		t.Errorf("exit: %v", err)
	}
}

// TestSignalsRestoreTheTerminal ends the program from outside: the terminal is
// as it was before.
func TestSignalsRestoreTheTerminal(t *testing.T) {
	for _, sig := range []syscall.Signal{syscall.SIGTERM, syscall.SIGHUP, syscall.SIGINT} {
		t.Run(sig.String(), func(t *testing.T) {
			ch := startChild(t, "still", 80, 24)
			ch.drain()
			ch.see("athena")
			if err := ch.cmd.Process.Signal(sig); err != nil {
				t.Fatal(err)
			}
			if err := ch.wait(20 * time.Second); err != nil {
				t.Errorf("exit: %v; %s", err, ch.tail())
			}
			ch.see("\x1b[?1049l")
			if after, err := term.GetState(int(ch.tty.Fd())); err != nil || *after != *ch.before {
				t.Errorf("the terminal is %+v (%v), was %+v", after, err, ch.before)
			}
		})
	}
}

// TestStalledTerminal stops reading what the program draws, as Ctrl-S does: it
// must end all the same, and set the terminal back.
func TestStalledTerminal(t *testing.T) {
	ch := startChild(t, "busy", 200, 60)
	time.Sleep(3 * time.Second) // until the buffer is full and the program writes no more
	if err := ch.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if err := ch.wait(giveUpAfter + 20*time.Second); err == nil {
		t.Error("the program ended by itself: the terminal did not stall")
	}
	if after, err := term.GetState(int(ch.tty.Fd())); err != nil || *after != *ch.before {
		t.Errorf("the terminal is %+v (%v), was %+v", after, err, ch.before)
	}
}

func TestNoColor(t *testing.T) {
	t.Setenv("NO_COLOR", "1")
	ch := startChild(t, "still", 80, 24)
	ch.drain()
	ch.see("athena")
	ch.see("quit")
	if out := ch.tail(); strings.Contains(out, "\x1b[38;") || strings.Contains(out, "\x1b[9") {
		t.Errorf("colours were drawn: %q", out)
	}
}
