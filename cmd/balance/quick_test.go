package main

import (
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// Package quick is worth nothing if it waits for what it is there to avoid.
func TestQuickStartsBeforeTheRest(t *testing.T) {
	h := home(filepath.Join(shortDir(t), "a"))
	if out, err := exec.Command("balance", "--home", string(h), "init", "--mesh", "lab", "--name", "a", "--owner", "ana").CombinedOutput(); err != nil {
		t.Fatalf("init: %v\n%s", err, out)
	}
	startIn(t, exec.Command("balance", "--home", string(h), "up", "--listen", "127.0.0.1:0", "--no-multicast"), h)
	awaitOffer(t, h)
	trace := func(args ...string) string {
		t.Helper()
		cmd := exec.Command("balance", append([]string{"--home", string(h)}, args...)...)
		cmd.Env = append(cmd.Environ(), "GODEBUG=inittrace=1")
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		return string(out)
	}
	if out := trace("run", "-n", "--", "true"); strings.Contains(out, "init ") {
		t.Errorf("packages were initialised first:\n%s", out)
	}
	if out := trace("status"); !strings.Contains(out, "init os ") {
		t.Errorf("no trace of initialisation where there has to be one:\n%s", out)
	}
}

// A node that hangs up before it has said that it took the run may have taken it:
// it is not asked twice.
func TestQuickSubmitsOnce(t *testing.T) {
	dir := shortDir(t)
	l, err := net.Listen("unix", home(dir).path(socketFile))
	if err != nil {
		t.Fatal(err)
	}
	asked := make(chan int)
	go func() {
		n := 0
		for c, err := l.Accept(); err == nil; c, err = l.Accept() {
			_, _ = c.Read(make([]byte, 4096))
			_, _ = io.WriteString(c, "HTTP/1.0 200 OK\r\n")
			c.Close()
			n++
		}
		asked <- n
	}()
	out, err := exec.Command("balance", "--home", dir, "run", "-n", "--", "true").CombinedOutput()
	l.Close()
	if n := <-asked; n != 1 || err == nil || !strings.Contains(string(out), "balance ps") {
		t.Errorf("asked %d times, %v: %s", n, err, out)
	}
}

// FuzzQuickAnswer gives package quick what a daemon would never answer. What it
// makes nothing of goes to main, which then finds no daemon.
func FuzzQuickAnswer(f *testing.F) {
	const head = "HTTP/1.0 200 OK\r\nBalance-Run: r-aaaaaaaaaaaaaaaa\r\n\r\n"
	long := strings.Repeat("a", 5000)
	for _, answer := range []string{
		"", "\n", "HTTP/1.0 400 Bad Request\r\n\r\n", "HTTP/1.0 200 OK\r\nBalance-Run: " + long + "\r\n\r\n", "Balance-Run: " + long[:64] + "\n\n",
		head, head + "x", head + "x 1", head + "x 1 3\n", head + "? 1 0\n", head + "s 1 0\ns 2 0\n", head + long + "\n",
		head + "o 1 5\nhello", head + "o 1 5\nhel", head + "e 1 99999999999\nhello", head + "o 1 -1\nhello", head + "o 99999999999999999999999 1\nh",
		head + "o 1 1048577\n", head + "o 1 0\nx 2 300\n", head + "\x00\x00\n", head + "o 1 5\nhellox 2 7\n",
	} {
		f.Add([]byte(answer))
	}
	dir, err := os.MkdirTemp("", "bal") // a socket needs a short path
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(func() { _ = os.RemoveAll(dir) })
	h := home(dir)
	f.Fuzz(func(t *testing.T, answer []byte) {
		l, err := net.Listen("unix", h.path(socketFile))
		if err != nil {
			t.Fatal(err)
		}
		cmd := exec.Command("balance", "--home", dir, "run", "-n", "--", "true")
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		c, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		l.Close() // nobody else is answered
		_, _ = c.Write(answer)
		_ = c.(*net.UnixConn).CloseWrite()
		_, _ = io.Copy(io.Discard, c)
		c.Close()
		_ = cmd.Wait()
		if !cmd.ProcessState.Exited() {
			t.Errorf("%v after the answer %q", cmd.ProcessState, answer)
		}
	})
}
