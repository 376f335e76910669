package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
)

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"balance": main, "flip": flip, "serve": service, "visit": visit, "send": send, "page": page, "engine": engine, "ask": askModel, "a2a": a2a, "allreduce": allreduce})
}

// TestScripts runs testdata/script/*.txtar: the real program, several nodes at
// a time, on loopback.
func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir:                 "testdata/script",
		RequireExplicitExec: true,
		RequireUniqueNames:  true,
		Setup: func(env *testscript.Env) error {
			// Homes are short, so that their sockets have short paths.
			home, err := os.MkdirTemp("", "bal") //nolint:usetesting // a socket needs a short path
			if err != nil {
				return err
			}
			env.Defer(func() { _ = os.RemoveAll(home) })
			nodes := &started{}
			env.Defer(nodes.stop)
			env.Values[nodesKey{}] = nodes
			root, err := filepath.Abs("../..")
			if err != nil {
				return err
			}
			env.Setenv("H", home)
			env.Setenv("EXAMPLES", filepath.Join(root, "examples"))
			env.Setenv("NO_COLOR", "1")
			for name, value := range goEnv() {
				env.Setenv(name, value)
			}
			return nil
		},
		Condition: func(cond string) (bool, error) {
			if cond == "e2e" { // it may ask a package registry
				return os.Getenv("BALANCE_LAB") == "1", nil
			}
			tool, ok := strings.CutPrefix(cond, "missing:")
			if !ok {
				return false, fmt.Errorf("unknown condition %q", cond)
			}
			_, err := exec.LookPath(tool)
			if err != nil && os.Getenv("BALANCE_REQUIRE") == "1" {
				return false, fmt.Errorf("this script needs %s", tool)
			}
			return err != nil, nil
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"code":   cmdCode,
			"up":     cmdUp,
			"signal": cmdSignal,
			"await":  cmdAwait,
			"join":   cmdJoin,
		},
	})
}

// flip changes a byte of a file where a text stands: flip FILE TEXT.
func flip() {
	b, err := os.ReadFile(os.Args[1])
	at := bytes.LastIndex(b, []byte(os.Args[2]))
	if err != nil || at < 0 {
		fmt.Fprintln(os.Stderr, "flip:", err, at)
		os.Exit(1)
	}
	b[at] ^= 1
	if err := os.WriteFile(os.Args[1], b, 0o600); err != nil {
		os.Exit(1)
	}
}

// page serves a text on an address, or gets it from there: a program that knows
// nothing of the mesh. page serve ADDR TEXT; page get ADDR
func page() {
	if os.Args[1] == "serve" {
		err := http.ListenAndServe(os.Args[2], http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, os.Args[3]) }))
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	resp, err := (&http.Client{Timeout: 20 * time.Second}).Get("http://" + os.Args[2])
	if err == nil {
		_, err = io.Copy(os.Stdout, resp.Body)
		resp.Body.Close()
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

type nodesKey struct{}

// started are the daemons of a script.
type started struct{ list []*daemonProcess }

type daemonProcess struct {
	home string
	cmd  *exec.Cmd
	done chan struct{}
}

func (s *started) stop() {
	for _, d := range s.list {
		_ = d.cmd.Process.Signal(syscall.SIGCONT)
		_ = d.cmd.Process.Kill()
		<-d.done
	}
}

// logs are the ends of the daemons' logs.
func (s *started) logs() string {
	var b strings.Builder
	for _, d := range s.list {
		text, _ := os.ReadFile(filepath.Join(d.home, "log"))
		fmt.Fprintf(&b, "\nlog of %s:\n%s", d.home, text[max(0, len(text)-4096):])
	}
	return b.String()
}

// cmdCode runs a command and checks its exit code: code N command arg…
func cmdCode(ts *testscript.TestScript, neg bool, args []string) {
	want, err := strconv.Atoi(args[0])
	if neg || err != nil || len(args) < 2 {
		ts.Fatalf("usage: code N command [arg…]")
	}
	err = ts.Exec(args[1], args[2:]...)
	got := 0
	if exit, ok := errors.AsType[*exec.ExitError](err); ok {
		got = exit.ExitCode()
	} else if err != nil {
		ts.Fatalf("%v", err)
	}
	if got != want {
		ts.Fatalf("exit code %d, want %d", got, want)
	}
}

// cmdUp starts the daemon of a home and waits until it answers: up HOME [flag…].
// Its log is in HOME/log.
func cmdUp(ts *testscript.TestScript, neg bool, args []string) {
	dir := ts.MkAbs(args[0])
	log, err := os.OpenFile(filepath.Join(dir, "log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	ts.Check(err)
	defer log.Close()
	flags := append([]string{"--home", dir, "up", "--listen", "127.0.0.1:0", "--no-multicast", "--log-level", "debug"}, args[1:]...)
	cmd := scriptCommand(ts, "balance", flags...)
	cmd.Dir, cmd.Stderr = dir, log
	ts.Check(cmd.Start())
	d := &daemonProcess{home: dir, cmd: cmd, done: make(chan struct{})}
	go func() { _ = cmd.Wait(); close(d.done) }()
	nodes := ts.Value(nodesKey{}).(*started)
	nodes.list = append(nodes.list, d)
	c := newClient(home(dir))
	for range 200 {
		var s statusReply
		if c.get(context.Background(), "/v1/status", &s) == nil {
			return
		}
		select {
		case <-d.done:
			text, _ := os.ReadFile(log.Name())
			ts.Fatalf("the node of %s ended:\n%s", dir, text)
		case <-time.After(50 * time.Millisecond):
		}
	}
	ts.Fatalf("the node of %s has not come up within 10 s", dir)
}

// scriptCommand is a command with the environment of a script.
func scriptCommand(ts *testscript.TestScript, name string, args ...string) *exec.Cmd {
	cmd := exec.Command(name, args...) // testscript.Main has put balance into PATH
	for _, name := range []string{"PATH", "HOME", "TMPDIR", "H", "NO_COLOR", "BALANCE_HOME", "DOCKER_HOST"} {
		cmd.Env = append(cmd.Env, name+"="+ts.Getenv(name))
	}
	cmd.Dir = ts.MkAbs(".")
	return cmd
}

// goEnv is where Go finds modules and keeps what it has built, for scripts that
// build something. Their HOME is another one.
var goEnv = sync.OnceValue(func() map[string]string {
	env := map[string]string{}
	out, err := exec.Command("go", "env", "-json", "GOCACHE", "GOMODCACHE", "GOPROXY", "GOSUMDB", "GONOSUMDB", "GOFLAGS").Output()
	if err == nil {
		_ = json.Unmarshal(out, &env) // who builds something finds out
	}
	return env
})

// cmdSignal sends a signal to the daemon of a home, and waits for its end if
// the signal ends it: signal NAME HOME.
func cmdSignal(ts *testscript.TestScript, neg bool, args []string) {
	sig, ok := map[string]syscall.Signal{"KILL": syscall.SIGKILL, "TERM": syscall.SIGTERM, "STOP": syscall.SIGSTOP, "CONT": syscall.SIGCONT}[args[0]]
	if !ok {
		ts.Fatalf("unknown signal %s", args[0])
	}
	dir := ts.MkAbs(args[1])
	nodes := ts.Value(nodesKey{}).(*started)
	for _, d := range nodes.list {
		select {
		case <-d.done:
			continue
		default:
		}
		if d.home != dir {
			continue
		}
		ts.Check(d.cmd.Process.Signal(sig))
		if sig == syscall.SIGKILL || sig == syscall.SIGTERM {
			<-d.done
		}
		return
	}
	ts.Fatalf("no node of %s runs", dir)
}

// cmdAwait repeats a command until its standard output matches: await PATTERN
// command arg…
func cmdAwait(ts *testscript.TestScript, neg bool, args []string) {
	pattern, err := regexp.Compile("(?m)" + args[0])
	ts.Check(err)
	var out []byte
	for end := time.Now().Add(time.Minute); time.Now().Before(end); {
		out, err = scriptCommand(ts, args[1], args[2:]...).CombinedOutput()
		if pattern.Match(out) {
			return
		}
		time.Sleep(100 * time.Millisecond)
	}
	logs := ts.Value(nodesKey{}).(*started).logs()
	ts.Fatalf("no %q within a minute (%v): %s%s", args[0], err, out, logs)
}

// cmdJoin brings a new node into the mesh of another: join DOOR HOME NAME OWNER
// [flag…].
func cmdJoin(ts *testscript.TestScript, neg bool, args []string) {
	ts.Check(ts.Exec("balance", "--home", ts.MkAbs(args[0]), "invite", "--owner", args[3]))
	code := strings.TrimSpace(ts.ReadFile("stdout"))
	path := filepath.Join(ts.Getenv("WORK"), fmt.Sprintf("invite-%s", args[2]))
	ts.Check(os.WriteFile(path, []byte(code), 0o600))
	ts.Check(ts.Exec("balance", append([]string{"--home", ts.MkAbs(args[1]), "join", "--name", args[2], path}, args[4:]...)...))
}

// shortDir is a folder whose path leaves room for a socket's.
func shortDir(t testing.TB) string {
	dir, err := os.MkdirTemp("", "bal") //nolint:usetesting // a socket needs a short path
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}

// startIn starts a daemon and waits until it answers. Its log is shown if the
// test fails.
func startIn(t testing.TB, cmd *exec.Cmd, h home) {
	t.Helper()
	log, err := os.OpenFile(h.path("log"), os.O_CREATE|os.O_APPEND|os.O_RDWR, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stderr = log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		if text, err := os.ReadFile(log.Name()); err == nil && t.Failed() {
			t.Logf("log of %s:\n%s", h, text)
		}
		log.Close()
	})
	c := newClient(h)
	for range 200 {
		var s statusReply
		if c.get(context.Background(), "/v1/status", &s) == nil {
			return
		}
		time.Sleep(50 * time.Millisecond)
	}
	t.Fatalf("the node of %s has not come up", h)
}

// awaitAll waits until a node sees as many machines up.
func awaitAll(t testing.TB, h home, want int) {
	t.Helper()
	c := newClient(h)
	var rows []nodeRow
	for range 600 {
		if c.get(context.Background(), "/v1/nodes", &rows) == nil {
			up := 0
			for _, r := range rows {
				if r.State == "up" && (r.Self || r.RTTMS != nil) {
					up++
				}
			}
			if up == want {
				return
			}
		}
		time.Sleep(50 * time.Millisecond)
	}
	t.Fatalf("%s does not see %d machines within 30 s: %+v", h, want, rows)
}

// awaitOffer waits until a node has said what its own machine offers.
func awaitOffer(t *testing.T, h home) {
	t.Helper()
	awaitNode(t, h, "", func(r nodeRow) bool { return r.Self && r.Offers })
}

// awaitNode waits until a node sees one, by its name or any, of which something
// holds.
func awaitNode(t testing.TB, h home, name string, holds func(nodeRow) bool) {
	t.Helper()
	var rows []nodeRow
	for range 600 {
		if newClient(h).get(context.Background(), "/v1/nodes", &rows) == nil {
			for _, r := range rows {
				if (name == "" || r.Name == name) && holds(r) {
					return
				}
			}
		}
		time.Sleep(50 * time.Millisecond)
	}
	t.Fatalf("%s does not see within 30 s what it should of %q: %+v", h, name, rows)
}

// need skips a test that this machine cannot run, unless it is one that has to.
func need(t *testing.T, ok bool, what string) {
	t.Helper()
	if ok {
		return
	}
	if os.Getenv("BALANCE_REQUIRE") == "1" {
		t.Fatalf("this test needs %s", what)
	}
	t.Skipf("this test needs %s", what)
}
