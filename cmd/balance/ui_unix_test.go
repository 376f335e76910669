//go:build linux || darwin

package main

import (
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/charmbracelet/x/vt"
	"github.com/creack/pty"
)

// screenOf is a terminal, emulated, with a program in it.
type screenOf struct {
	t   *testing.T
	tty *os.File
	cmd *exec.Cmd

	mu   sync.Mutex
	em   *vt.Emulator
	done chan struct{}
}

func openTerminal(t *testing.T, cols, rows int, env []string, args ...string) *screenOf {
	t.Helper()
	s := &screenOf{t: t, em: vt.NewEmulator(cols, rows), done: make(chan struct{})}
	s.cmd = exec.Command(args[0], args[1:]...)
	s.cmd.Env = append(os.Environ(), env...)
	var err error
	if s.tty, err = pty.StartWithSize(s.cmd, &pty.Winsize{Cols: uint16(cols), Rows: uint16(rows)}); err != nil {
		t.Fatal(err)
	}
	go func() { _, _ = io.Copy(s.tty, s.em) }() // what the terminal answers; ends with the emulator
	go func() {
		defer close(s.done)
		b := make([]byte, 32<<10)
		for {
			n, err := s.tty.Read(b)
			s.mu.Lock()
			_, _ = s.em.Write(b[:n])
			s.mu.Unlock()
			if err != nil {
				return // the program has closed its terminal
			}
		}
	}()
	t.Cleanup(func() {
		_ = s.cmd.Process.Kill()
		_ = s.cmd.Wait()
		s.tty.Close()
		<-s.done
		_ = s.em.InputPipe().(io.Closer).Close()
	})
	return s
}

func (s *screenOf) text() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.em.String()
}

// see waits until all the texts are on the screen.
func (s *screenOf) see(texts ...string) {
	s.t.Helper()
	for range 400 {
		screen, all := s.text(), true
		for _, text := range texts {
			all = all && strings.Contains(screen, text)
		}
		if all {
			return
		}
		time.Sleep(50 * time.Millisecond)
	}
	s.t.Fatalf("not on the screen within 20 s: %q\n%s", texts, s.text())
}

func (s *screenOf) press(keys string) {
	s.t.Helper()
	if _, err := io.WriteString(s.tty, keys); err != nil {
		s.t.Fatal(err)
	}
}

// A person at a terminal: look at the machines, type a command, watch it run,
// see why it ran there, look at the ledger, leave. The program is the real one,
// and so is the node.
func TestTerminalUI(t *testing.T) {
	dir := shortDir(t)
	h := home(filepath.Join(dir, "a"))
	env := []string{"BALANCE_HOME=" + string(h), "TERM=xterm-256color", "LANG=C.UTF-8"}
	if out, err := exec.Command("balance", "--home", string(h), "init", "--mesh", "lab", "--name", "hydra", "--owner", "ana").CombinedOutput(); err != nil {
		t.Fatalf("init: %v\n%s", err, out)
	}

	// Without a node it says how to start one.
	s := openTerminal(t, 80, 24, env, "balance")
	s.see("not running", "balance up")
	startIn(t, exec.Command("balance", "--home", string(h), "up", "--listen", "127.0.0.1:0", "--no-multicast"), h)

	s = openTerminal(t, 80, 24, env, "balance")
	s.see("lab", "hydra", "up")
	s.press("3")
	s.see("command")
	s.press("echo from-the-form")
	s.see("hydra", "leaves")
	s.press("\r")
	s.see("from-the-form", "succeeded")
	s.press("\t")
	s.see("this machine")
	s.press("4")
	s.see("receipt", "genesis")
	s.press("1")
	s.see("succeeded")
	s.press("?")
	s.see("quit")
	s.press("\x1b")
	time.Sleep(100 * time.Millisecond) // a lone escape is told from the start of a key by the pause after it
	s.press("q")
	if err := s.cmd.Wait(); err != nil {
		t.Errorf("left with %v\n%s", err, s.text())
	}
}
