//go:build linux || darwin

package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/creack/pty"
	"golang.org/x/term"
)

// seat is a laptop that offers nothing, and a tower that runs.
type seat struct {
	t      *testing.T
	laptop home
	nodes  map[home]*exec.Cmd
}

func newSeat(t *testing.T) *seat {
	t.Helper()
	dir := shortDir(t)
	s := &seat{t: t, laptop: home(filepath.Join(dir, "a")), nodes: map[home]*exec.Cmd{}}
	tower := home(filepath.Join(dir, "b"))
	s.balance("init", "--mesh", "lab", "--name", "laptop", "--owner", "ana", "--client")
	s.up(s.laptop)
	invite := filepath.Join(dir, "invite")
	if err := os.WriteFile(invite, []byte(s.balance("invite", "--owner", "ana")), 0o600); err != nil {
		t.Fatal(err)
	}
	s.balance("--home", string(tower), "join", "--name", "tower", invite)
	s.up(tower)
	awaitAll(t, s.laptop, 2)
	return s
}

func (s *seat) tower() home { return home(filepath.Join(filepath.Dir(string(s.laptop)), "b")) }

func (s *seat) env() []string {
	return []string{"BALANCE_HOME=" + string(s.laptop), "TERM=xterm-256color", "LANG=C.UTF-8", "PS1=ready> "}
}

func (s *seat) balance(args ...string) string {
	s.t.Helper()
	cmd := exec.Command("balance", args...)
	cmd.Env = append(os.Environ(), s.env()...)
	out, err := cmd.Output()
	if err != nil {
		s.t.Fatalf("balance %v: %v", args, err)
	}
	return strings.TrimSpace(string(out))
}

func (s *seat) up(h home) {
	s.t.Helper()
	cmd := exec.Command("balance", "--home", string(h), "up", "--listen", "127.0.0.1:0", "--no-multicast")
	startIn(s.t, cmd, h)
	s.nodes[h] = cmd
}

// again kills a node and starts it.
func (s *seat) again(h home) {
	s.t.Helper()
	_ = s.nodes[h].Process.Kill()
	_ = s.nodes[h].Wait()
	s.up(h)
}

// leaves waits for the end of the program in a terminal, and returns its exit
// code. The terminal must be what it was.
func (s *screenOf) leaves(before *term.State) int {
	s.t.Helper()
	_ = s.cmd.Wait()
	if after, err := term.GetState(int(s.tty.Fd())); err != nil || *after != *before {
		s.t.Errorf("the terminal is not what it was: %+v, before %+v, %v", after, before, err)
	}
	return s.cmd.ProcessState.ExitCode()
}

func (s *screenOf) state() *term.State {
	s.t.Helper()
	state, err := term.GetState(int(s.tty.Fd()))
	if err != nil {
		s.t.Fatal(err)
	}
	return state
}

func (s *screenOf) resize(cols, rows int) {
	s.t.Helper()
	s.mu.Lock()
	s.em.Resize(cols, rows)
	s.mu.Unlock()
	if err := pty.Setsize(s.tty, &pty.Winsize{Cols: uint16(cols), Rows: uint16(rows)}); err != nil {
		s.t.Fatal(err)
	}
}

// until types a line again and again until a text is on the screen.
func (s *screenOf) until(line, text string) {
	s.t.Helper()
	for range 40 {
		s.press(line)
		for range 10 {
			if strings.Contains(s.text(), text) {
				return
			}
			time.Sleep(50 * time.Millisecond)
		}
	}
	s.t.Fatalf("not on the screen within 20 s: %q\n%s", text, s.text())
}

// A person works in a shell on another machine, which is there again after
// either node was killed, and after the person has left it and come back at
// another terminal.
func TestTerminalOfRun(t *testing.T) {
	for _, level := range []string{"process", "sandbox"} {
		t.Run(level, func(t *testing.T) {
			if _, err := exec.LookPath("bwrap"); level == "sandbox" {
				need(t, err == nil, "bwrap")
			}
			testTerminalOfRun(t, level)
		})
	}
}

func testTerminalOfRun(t *testing.T, level string) {
	at := newSeat(t)
	s := openTerminal(t, 90, 30, at.env(), "balance", "run", "-it", "--isolation", level, "-e", "PS1=ready> ", "--", "sh")
	before := s.state()
	s.see("ready>")
	s.press("stty size; x=kept; test -t 1 && echo is-a-$((20+2))-terminal\r")
	s.see("30 90", "is-a-22-terminal")
	s.resize(70, 20)
	s.until("stty size\r", "20 70") // the size goes its own way

	// Ctrl-C is the program's.
	s.press("echo sleeping-$((4+1)); sleep 1000\r")
	s.see("sleeping-5")
	time.Sleep(200 * time.Millisecond) // for sleep to begin
	s.press("\x03")
	s.see("^C")
	s.press("echo slept-$?\r")
	s.see("slept-130")

	at.again(at.tower())
	s.press("clear; echo tower-$((1+1))\r")
	s.see("tower-2")
	at.again(at.laptop)
	s.press("echo laptop-$((1+2))\r")
	s.see("laptop-3")

	s.press("\x10\x11")
	s.see("detached", "balance attach r-")
	if code := s.leaves(before); code != 0 {
		t.Errorf("left with %d\n%s", code, s.text())
	}

	run := runIn(t, strings.ReplaceAll(s.text(), "\n", "")) // the line is longer than the screen
	s = openTerminal(t, 61, 17, at.env(), "balance", "attach", run)
	before = s.state()
	s.see("attached to " + run)
	s.until("stty size; echo $x-here\r", "17 61")
	s.see("kept-here")

	// Whoever comes last has the input, and both see what is written.
	other := openTerminal(t, 61, 17, at.env(), "balance", "attach", run)
	other.see("attached")
	other.press("echo from-the-$((3+1))-other\r")
	other.see("from-the-4-other")
	s.see("from-the-4-other")
	s.press("x")
	s.see("another upload")
	_ = other.cmd.Process.Signal(syscall.SIGTERM)
	if code := other.leaves(before); code != exitInterrupted {
		t.Errorf("killed, it ends with %d", code)
	}

	s = openTerminal(t, 61, 17, at.env(), "balance", "attach", "--detach-keys", "ctrl-a,x", run)
	before = s.state()
	s.see("attached")
	s.press("exit 3\r")
	if code := s.leaves(before); code != 3 {
		t.Errorf("exit code %d\n%s", code, s.text())
	}
}

// runIn finds the run that a text says to attach to.
func runIn(t *testing.T, text string) string {
	t.Helper()
	_, rest, ok := strings.Cut(text, "balance attach ")
	if !ok || len(rest) < 18 {
		t.Fatalf("no run in %q", text)
	}
	return rest[:18]
}

func TestDetacher(t *testing.T) {
	for _, test := range []struct{ in, out string }{
		{"ls\r", "ls\r"},
		{"\x10\x11", "!"},
		{"a\x10\x11b", "a!"},
		{"\x10", ""},
		{"\x10\x10", "\x10"},
		{"\x10\x10\x11", "\x10!"},
		{"\x10x\x11", "\x10x\x11"},
		{"\x11\x10\x11", "\x11!"},
	} {
		for cut := range len(test.in) + 1 { // however it is read
			d := detacher{keys: []byte{16, 17}}
			got, leaves := d.pass([]byte(test.in[:cut]))
			if !leaves {
				var more []byte
				more, leaves = d.pass([]byte(test.in[cut:]))
				got = append(got, more...)
			}
			if leaves {
				got = append(got, '!')
			}
			if string(got) != test.out {
				t.Errorf("%q, read as %d and the rest: %q, want %q", test.in, cut, got, test.out)
			}
		}
	}
}

func TestParseKeys(t *testing.T) {
	for in, want := range map[string]string{"ctrl-p,ctrl-q": "\x10\x11", "ctrl-a,x": "\x01x", "ctrl-]": "\x1d", "": "?", "ctrl-": "?", "ctrl-1": "?", "ab": "?", "a,,b": "?"} {
		keys, err := parseKeys(in)
		got := string(keys)
		if err != nil {
			got = "?"
		}
		if got != want {
			t.Errorf("%s: %s", in, fmt.Sprintf("%q, want %q", got, want))
		}
	}
}
