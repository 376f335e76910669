package cgroup

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

const (
	mib = 1 << 20
	gib = 1 << 30
)

// The test binary is also the program that is limited, when this is set.
const modeVar = "CGROUP_TEST_MODE"

func TestMain(m *testing.M) {
	switch os.Getenv(modeVar) {
	case "hog":
		var kept [][]byte
		for range 16 {
			kept = append(kept, bytes.Repeat([]byte{1}, 8<<20))
		}
		fmt.Println(len(kept))
		os.Exit(0)
	case "spin":
		for end := time.Now().Add(2 * time.Second); time.Now().Before(end); {
			runtime.KeepAlive(end)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// base is where this machine makes groups, which has to be able to limit all.
func base(t *testing.T) *Base {
	t.Helper()
	b := Find("balance-test-")
	t.Logf("groups: %+v", b.Can())
	if c := b.Can(); !c.Memory || !c.CPU || !c.PIDs {
		if os.Getenv("BALANCE_REQUIRE") == "1" {
			t.Fatalf("no limits by control groups: %+v", c)
		}
		t.Skipf("no limits by control groups: %+v", c)
	}
	return b
}

// within runs a command in a new group with limits.
func within(t *testing.T, b *Base, l Limits, mode string, command ...string) (*exec.Cmd, *Group) {
	t.Helper()
	g, err := b.Make(strconv.Itoa(int(time.Now().UnixNano())), l)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := g.Remove(); err != nil {
			t.Error(err)
		}
	})
	if mode != "" {
		command = []string{"/proc/self/exe"}
	}
	cmd := exec.Command(command[0], command[1:]...) //nolint:noctx // the group is killed
	cmd.Env = append(os.Environ(), modeVar+"="+mode)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	cmd.Stdout = new(bytes.Buffer)
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if err := g.Start(cmd.SysProcAttr, cmd.Start); err != nil {
		t.Fatal(err)
	}
	return cmd, g
}

// A program that wants more memory than it may have is killed, and the group
// tells that it was for that (TRUST, R17).
func TestMemory(t *testing.T) {
	b := base(t)
	for range 3 {
		cmd, g := within(t, b, Limits{Memory: 32 * mib}, "hog")
		err := cmd.Wait()
		if exit := (*exec.ExitError)(nil); !errors.As(err, &exit) || exit.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL {
			t.Errorf("it ended with %v", err)
		}
		if e := g.Events(); e.OOM == 0 || e.PIDs != 0 {
			t.Errorf("%+v", e)
		}
		if u := g.Usage(); b.Can().Version == 1 && (u.Memory < 16*mib || u.Memory > 40*mib) {
			t.Errorf("%+v", u)
		}
	}
	cmd, g := within(t, b, Limits{Memory: gib}, "hog")
	if err := cmd.Wait(); err != nil || g.Events() != (Events{}) {
		t.Errorf("%v, %+v", err, g.Events())
	}
}

func TestCPU(t *testing.T) {
	cmd, _ := within(t, base(t), Limits{CPU: Core / 5}, "spin")
	if err := cmd.Wait(); err != nil {
		t.Error(err)
	}
	// Without the limit it would be two seconds, on an idle machine.
	if used := cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime(); used > time.Second {
		t.Errorf("it had %v of the CPU", used)
	}
}

// A fork bomb gets no further than its limit, and dies whole (TRUST, R16).
func TestPIDs(t *testing.T) {
	cmd, g := within(t, base(t), Limits{PIDs: 20}, "", "/bin/sh", "-c", "bomb() { bomb | bomb & }; bomb; sleep 600")
	eventually(t, "the limit", func() bool { return g.Events().PIDs > 0 })
	if n := len(processes(g.folders()[0])); n > 20 {
		t.Errorf("%d processes", n)
	}
	if err := g.Kill(); err != nil {
		t.Error(err)
	}
	_ = cmd.Wait() // killed
	eventually(t, "the end of all", func() bool { return g.remove() == nil })
}

// What leaves the session and has another parent is still in the group.
func TestKill(t *testing.T) {
	for name, first := range map[string]bool{"at once": false, "frozen": true} {
		t.Run(name, func(t *testing.T) {
			b := base(t)
			if first && b.v1["freezer"] == "" {
				t.Skip("no freezer of version 1")
			}
			if first {
				b.v2 = ""
			}
			testKill(t, b)
		})
	}
}

func testKill(t *testing.T, b *Base) {
	cmd, g := within(t, b, Limits{}, "", "/bin/sh", "-c", "trap '' TERM; setsid sh -c 'setsid sleep 600 & setsid sleep 600 &' & wait; sleep 600")
	eventually(t, "its children", func() bool { return len(processes(g.folders()[0])) >= 3 })
	if err := g.Remove(); err != nil {
		t.Error(err)
	}
	_ = cmd.Wait() // killed
	for _, dir := range g.folders() {
		if _, err := os.Stat(dir); !os.IsNotExist(err) {
			t.Errorf("%s is still there", dir)
		}
	}
}

// The thread that starts a run is in its old place again after that.
func TestBack(t *testing.T) {
	b := base(t)
	before := read("/proc/thread-self/cgroup")
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	g, err := b.Make("back", Limits{Memory: gib, CPU: Core, PIDs: 100})
	if err != nil {
		t.Fatal(err)
	}
	if err := g.Start(&syscall.SysProcAttr{}, func() error { return nil }); err != nil {
		t.Error(err)
	}
	if now := read("/proc/thread-self/cgroup"); now != before {
		t.Errorf("it is in\n%s\nand was in\n%s", now, before)
	}
	if err := g.Remove(); err != nil {
		t.Error(err)
	}
}

func TestLeft(t *testing.T) {
	b := base(t)
	_, g := within(t, b, Limits{Memory: gib}, "", "/bin/sleep", "600")
	found := false
	for _, other := range Find("balance-test-").Left() {
		a, b := g.folders(), other.folders()
		slices.Sort(a)
		slices.Sort(b)
		found = found || slices.Equal(a, b)
	}
	if !found {
		t.Error("an earlier life's group is not found")
	}
}

// A limit that the kernel does not take as it was asked for is an error, and
// nothing is left of the group.
func TestFailsClosed(t *testing.T) {
	b := base(t)
	if _, err := b.Make("closed", Limits{PIDs: 1 << 40}); err == nil || !strings.Contains(err.Error(), "pids.max") {
		t.Errorf("%v", err)
	}
	if len(b.Left()) != 0 {
		t.Errorf("left is %v", b.Left())
	}
	if _, err := (&Base{}).Make("none", Limits{Memory: gib}); err == nil {
		t.Error("no groups, and no error")
	}
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(30 * time.Second); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("still waiting for %s", what)
		}
	}
}
