package tui

import (
	"bytes"
	"context"
	"encoding/base64"
	"fmt"
	"io"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	tea "charm.land/bubbletea/v2"
	"github.com/charmbracelet/colorprofile"
	"github.com/charmbracelet/x/vt"
	"go.uber.org/goleak"

	"github.com/balanceai/balance/exec/fleet"
	"github.com/balanceai/balance/exec/task"
)

// terminal is an emulator with the real program in it.
type terminal struct {
	t    *testing.T
	keys *io.PipeWriter
	done chan error

	mu  sync.Mutex
	em  *vt.Emulator
	raw bytes.Buffer
}

// Write takes what the program draws. Without a tty line feeds are not
// translated by anyone else.
func (tm *terminal) Write(b []byte) (int, error) {
	tm.mu.Lock()
	defer tm.mu.Unlock()
	tm.raw.Write(b)
	if _, err := tm.em.Write(bytes.ReplaceAll(b, []byte("\n"), []byte("\r\n"))); err != nil {
		return 0, err
	}
	return len(b), nil
}

func start(t *testing.T, f *fakeNode, w, h int) *terminal {
	t.Helper()
	in, keys := io.Pipe()
	tm := &terminal{t: t, keys: keys, done: make(chan error, 1), em: vt.NewEmulator(w, h)}
	answers := make(chan struct{})
	go func() { // the emulator's answers to questions of the program
		defer close(answers)
		_, _ = io.Copy(io.Discard, tm.em)
	}()
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		options := []tea.ProgramOption{tea.WithInput(in), tea.WithOutput(tm), tea.WithWindowSize(w, h), tea.WithColorProfile(colorprofile.TrueColor)}
		tm.done <- run(ctx, f, Options{}, []string{"TERM=xterm-256color"}, options...)
	}()
	t.Cleanup(func() {
		cancel()
		if err := tm.wait(); err != nil {
			t.Errorf("the program ended with %v", err)
		}
		_ = keys.Close()
		_ = tm.em.InputPipe().(io.Closer).Close() // the emulator's own Close races with its Read
		<-answers
	})
	return tm
}

// wait returns what the program returned.
func (tm *terminal) wait() error {
	tm.t.Helper()
	select {
	case err := <-tm.done:
		tm.done <- err
		return err
	case <-time.After(20 * time.Second):
		tm.t.Fatal("the program does not end")
		return nil
	}
}

func (tm *terminal) screen() string {
	tm.mu.Lock()
	defer tm.mu.Unlock()
	return tm.em.String()
}

func (tm *terminal) output() string {
	tm.mu.Lock()
	defer tm.mu.Unlock()
	return tm.raw.String()
}

// send types keys, each as the bytes that a terminal sends.
func (tm *terminal) send(keys ...string) {
	tm.t.Helper()
	for _, k := range keys {
		if _, err := io.WriteString(tm.keys, k); err != nil {
			tm.t.Fatal(err)
		}
	}
}

const (
	keyEnter = "\r"
	keyEsc   = "\x1b"
	keyTab   = "\t"
	keyDown  = "\x1b[B"
	keyUp    = "\x1b[A"
)

func click(x, y int) string { return fmt.Sprintf("\x1b[<0;%d;%dM\x1b[<0;%d;%dm", x+1, y+1, x+1, y+1) }

// see waits until everything is on the screen.
func (tm *terminal) see(want ...string) {
	tm.t.Helper()
	tm.until(fmt.Sprintf("%q", want), func(screen string) bool {
		return !slices.ContainsFunc(want, func(s string) bool { return !strings.Contains(screen, s) })
	})
}

func (tm *terminal) until(what string, ok func(screen string) bool) {
	tm.t.Helper()
	deadline := time.Now().Add(20 * time.Second)
	for !ok(tm.screen()) {
		if time.Now().After(deadline) {
			tm.t.Fatalf("not seen: %s\n%s", what, tm.screen())
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// find returns where a text is on the screen.
func (tm *terminal) find(s string) (x, y int) {
	tm.t.Helper()
	for y, l := range strings.Split(tm.screen(), "\n") {
		if before, _, ok := strings.Cut(l, s); ok {
			return len([]rune(before)), y
		}
	}
	tm.t.Fatalf("%q is not on the screen:\n%s", s, tm.screen())
	return 0, 0
}

// TestWalk goes through every page as a user does, and leaves.
func TestWalk(t *testing.T) {
	defer goleak.VerifyNone(t)
	t.Run("", func(t *testing.T) {
		f := newFakeNode()
		tm := start(t, f, 120, 30)
		tm.see("lab-prod", "8/10 up", "athena", "kallisto", "live")
		tm.send(keyEnter)
		tm.see("2h a run, 22:00-07:30", "GPU 1  H100", "r-m4a7zz")
		tm.send(keyEsc)
		tm.see("LAST")
		tm.send("2")
		tm.see("fix-flaky", "unplaced", "no machine")
		tm.send(keyDown, keyEnter)
		tm.see("following", "pkg39", "running")
		f.more <- task.Event{Seq: 1000, Type: task.EventOutput, Stream: task.Stdout, Data: "something new\n"}
		tm.see("something new")
		tm.send("g")
		tm.see("placed on draco", "paused")
		tm.send("/", "flaky", keyEnter)
		tm.see("4 lines")
		tm.send(keyTab)
		tm.see("attempt 2 went to athena", "which refused")
		tm.send("4")
		tm.see("wgbind", "accepted")
		tm.send("t")
		tm.see("every topic")
		tm.send("?")
		tm.see("Keys here", "leave; runs and the node go on")
		tm.send("?", "q")
		if err := tm.wait(); err != nil {
			t.Error(err)
		}
		for name, sequence := range map[string]string{
			"the alternate screen": "\x1b[?1049l", "the mouse": "\x1b[?1006l", "the kitty keyboard": "\x1b[<1u", "bracketed paste": "\x1b[?2004l",
		} {
			if !strings.Contains(tm.output(), sequence) {
				t.Errorf("%s was not switched back", name)
			}
		}
	})
}

func TestDispatchARun(t *testing.T) {
	f := newFakeNode()
	tm := start(t, f, 120, 30)
	tm.see("athena")
	tm.send(keyDown, "r") // run on boreas
	tm.see("boreas", "Goes to athena")
	tm.send("sh -c 'echo 1 > f'")
	tm.see("balance run -d --node boreas -- sh -c 'echo 1 > f'")
	tm.send(keyTab, keyTab, keyTab, "8x")
	tm.see("is no amount of memory")
	tm.send("\x7f", "G", keyEnter)
	tm.see("following", "fix-flaky")
	want := Draft{Command: []string{"sh", "-c", "echo 1 > f"}, Node: "boreas", Needs: task.Needs{Memory: 8 * task.GiB}}
	f.set(func() {
		if len(f.submitted) != 1 || !reflect.DeepEqual(f.submitted[0], want) {
			t.Errorf("submitted %+v, want %+v", f.submitted, want)
		}
		if len(f.drafts) == 0 {
			t.Error("no draft was ranked")
		}
	})
	tm.send(keyEsc)
	tm.see("SUBMITTED")
}

func TestNothingFits(t *testing.T) {
	f := newFakeNode()
	f.ranking = f.ranking[2:]
	tm := start(t, f, 80, 24)
	tm.see("athena")
	tm.send("3", "true")
	tm.see("No machine fits")
	tm.until("an answer about the draft", func(string) bool {
		f.mu.Lock()
		defer f.mu.Unlock()
		return slices.ContainsFunc(f.drafts, func(d Draft) bool { return len(d.Command) == 1 && d.Command[0] == "true" })
	})
	time.Sleep(100 * time.Millisecond) // until the answer is there
	tm.send(keyEnter)
	tm.see("the reasons are beside the form")
	f.set(func() {
		if len(f.submitted) > 0 {
			t.Errorf("submitted %v", f.submitted)
		}
	})
}

func TestStopARun(t *testing.T) {
	f := newFakeNode()
	tm := start(t, f, 80, 24)
	tm.see("athena")
	tm.send("2")
	tm.see("r-9zqaaa")
	tm.send("c")
	tm.see("Stop r-9zqaaa (python3 train.py", "ask it to stop")
	tm.send("n")
	tm.until("the question is gone", func(s string) bool { return !strings.Contains(s, "ask it to stop") })
	tm.send("c")
	tm.see("ask it to stop")
	tm.send("k")
	tm.see("was asked to stop")
	f.set(func() {
		if !reflect.DeepEqual(f.cancelled, []string{"r-9zqaaaab2cdefghi true"}) {
			t.Errorf("cancelled %q", f.cancelled)
		}
	})
}

// TestNodeGoesAway stops the node behind the screen, and starts it again.
func TestNodeGoesAway(t *testing.T) {
	f := newFakeNode()
	f.gone = fmt.Errorf("dial: %w", ErrNotRunning)
	tm := start(t, f, 80, 24)
	tm.see("does not answer", "balance up", "node not running")
	f.set(func() { f.gone = nil })
	tm.see("athena", "live")
	tm.send("2")
	tm.see("fix-flaky")
	f.set(func() { f.gone = fmt.Errorf("dial: %w", ErrNotRunning) })
	tm.see("The node is not running. Start it: balance up", "fix-flaky")
	f.set(func() { f.gone = io.ErrUnexpectedEOF })
	tm.see("Lost the node: unexpected EOF. Trying again.")
	f.set(func() { f.gone = nil })
	tm.see("live")
}

func TestMouse(t *testing.T) {
	f := newFakeNode()
	tm := start(t, f, 140, 40)
	tm.see("athena", "r-7k3fqz")
	x, y := tm.find("gemini")
	tm.send(click(x, y))
	tm.see("--node gemini")
	tm.send(click(x, y)) // the selected one: opens
	tm.see("i5-12400F", "Fleet › gemini")
	x, y = tm.find("Runs")
	tm.send(click(x, y))
	tm.see("SUBMITTED↓")
	x, y = tm.find("STATE")
	tm.send(click(x, y))
	tm.see("STATE↑")
	tm.send("\x1b[<65;5;10M") // wheel down
	tm.see("balance logs -f r-9zqaaa")
}

// TestSelectionStays holds the selection on its machine while others come, go
// and move.
func TestSelectionStays(t *testing.T) {
	f := newFakeNode()
	f.runs = nil
	tm := start(t, f, 80, 24)
	tm.see("athena")
	tm.send(keyDown, keyDown, keyDown)
	tm.see("--node draco")
	next := testMesh()
	next.Nodes = next.Nodes[2:] // athena and boreas have left
	f.pictures <- next
	tm.until("athena is gone", func(s string) bool { return !strings.Contains(s, "athena") })
	tm.see("--node draco")
	next.Nodes = slices.Concat(next.Nodes[:1], next.Nodes[2:])
	f.pictures <- next
	tm.see("--node fornax") // the one that took draco's place
}

func TestCopy(t *testing.T) {
	tm := start(t, newFakeNode(), 80, 24)
	tm.see("athena")
	tm.send("y")
	tm.see("copied: balance run --node athena")
	want := "\x1b]52;c;" + base64.StdEncoding.EncodeToString([]byte("balance run --node athena -- COMMAND"))
	tm.until("OSC 52", func(string) bool { return strings.Contains(tm.output(), want) })
}

func TestFilterAsTyped(t *testing.T) {
	f := newFakeNode()
	f.runs = nil
	tm := start(t, f, 80, 24)
	tm.see("athena", "juno")
	tm.send("/", "gpu>80")
	tm.see("1 of 10", "gemini")
	tm.until("athena is filtered out", func(s string) bool { return !strings.Contains(s, "athena") })
	tm.send(" colour:red")
	tm.see(`Filter: no field "colour": there are name, owner`)
	tm.send(keyEsc)
	tm.see("athena", "juno")
	tm.until("the filter is gone", func(s string) bool { return !strings.Contains(s, "of 10") })
}

// TestHostileText shows what a machine of bad intent may send: nothing of it
// reaches the terminal as anything but text.
func TestHostileText(t *testing.T) {
	f := newFakeNode()
	f.mesh.Nodes[0].Name = "ath\x1b]52;c;ZXZpbA==\x07ena\x1b[2J\u202e"
	f.mesh.Nodes[0].Owner = "\x1b[31mada\n\r\x9b1mX"
	f.mesh.Nodes[0].Offer.Labels = []string{"a\x1b[H", "\u202eb"}
	f.events = []task.Event{
		{Seq: 1, Run: f.runs[0].ID, Type: task.EventOutput, Data: "one\x1b[2J\x1b[H\x1b]0;title\x07two \u2066three\u2069\n"},
		{Seq: 2, Run: f.runs[0].ID, Type: task.EventOutput, Binary: []byte("\xff\xfe\x00\x9b2Jfour\n")},
		{Seq: 3, Run: f.runs[0].ID, Type: task.EventNote, Message: "five\x1bc"},
	}
	tm := start(t, f, 120, 30)
	tm.see("athena", "8/10 up")
	tm.send(keyEnter)
	tm.see("ada", "labels")
	tm.send("2", keyDown, keyEnter)
	tm.see("onetwo three", "four", "five")
	for _, bad := range []string{"ZXZpbA", "]0;title", "\x1bc", "\u202e", "\u2066"} {
		if strings.Contains(tm.output(), bad) {
			t.Errorf("%q reached the terminal", bad)
		}
	}
}

// TestFlood follows a run that writes a line of a megabyte and many short ones.
func TestFlood(t *testing.T) {
	f := newFakeNode()
	run := f.runs[0].ID
	f.events = []task.Event{{Seq: 1, Run: run, Type: task.EventOutput, Data: strings.Repeat("x", 1<<20) + "\n"}}
	for i := range 30_000 {
		f.events = append(f.events, task.Event{Seq: uint64(i + 2), Run: run, Type: task.EventOutput, Data: fmt.Sprintf("line %d\n", i)})
	}
	tm := start(t, f, 80, 24)
	tm.see("athena")
	tm.send("2", keyDown, keyEnter)
	tm.see("line 29999")
	tm.send("q")
	if err := tm.wait(); err != nil {
		t.Error(err)
	}
}

func TestMesh(t *testing.T) {
	f := newFakeNode()
	f.mesh.Nodes = f.mesh.Nodes[8:9]
	f.runs = nil
	tm := start(t, f, 80, 24)
	tm.see("This mesh has one machine", "balance invite", "balance join")
	tm.send("2")
	tm.see("No runs yet", "balance run -- hostname")
	f.pictures <- Mesh{Name: "lab-prod", Self: f.mesh.Self, Nodes: append([]fleet.Node{}, testMesh().Nodes[:3]...)}
	tm.send("1")
	tm.see("athena", "boreas", "cetus")
}
