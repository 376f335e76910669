package run

import (
	"cmp"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/balanceai/balance/exec/cgroup"
	"github.com/balanceai/balance/exec/isolate"
	"github.com/balanceai/balance/exec/task"
)

// newSandboxLab is a machine that puts every run into a sandbox.
func newSandboxLab(t testing.TB) *lab {
	t.Helper()
	l := newLab(t)
	m := isolate.Detect(t.Context(), t.TempDir())
	switch {
	case m.Level() == isolate.Sandbox:
	case os.Getenv("BALANCE_REQUIRE") == "1":
		t.Fatal("no sandbox: " + m.Why)
	default:
		t.Skip("no sandbox: " + m.Why)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	l.cfg.Machine = m
	l.admit = func(Ask) (Grant, []task.Reason) { return Grant{Isolation: isolate.Sandbox}, nil }
	l.open()
	return l
}

// boxed returns a spec that runs this binary, as a sandbox has it, in a mode of
// misbehaviour.
func boxed(mode string, args ...string) task.Spec {
	s := spec(append([]string{"/.balance"}, args...)...)
	s.Env = map[string]string{modeVar: mode}
	return s
}

// A run in a sandbox begins, writes, takes its inputs and leaves its outputs, and
// ends as one without.
func TestSandboxEnds(t *testing.T) {
	l := newSandboxLab(t)
	in, err := l.theirs.Pack(t.Context(), writeFiles(t, map[string]string{"script": "#!/bin/sh\ncat in/text | tee out.txt\nexit 3\n", "text": "hello\n", "lost": "#!/no/such\n"}))
	if err != nil {
		t.Fatal(err)
	}
	in.Path = "in"
	limited := spec("sleep", "60")
	limited.Limits.Time = 200 * time.Millisecond
	for name, test := range map[string]struct {
		spec   task.Spec
		code   int
		reason string
	}{
		"true":           {spec("true"), 0, ""},
		"of the work":    {spec("./in/script"), 3, ""},
		"not found":      {spec("no-such-program"), 127, "cannot start no-such-program: no such file or directory"},
		"no program":     {spec("in/text"), 126, "cannot start in/text: permission denied"},
		"no interpreter": {spec("in/lost"), 127, "cannot start in/lost: no such file or directory"},
		"killed":         {spec("sh", "-c", "kill -9 $$"), 137, ""},
		"time limit":     {limited, 124, "time limit 200ms reached"},
	} {
		t.Run(name, func(t *testing.T) {
			test.spec.Inputs, test.spec.Outputs = []task.Input{in}, []string{"*.txt"}
			r := l.run(order(test.spec))
			if f := r.account; f.ExitCode != test.code || f.Reason != test.reason {
				t.Errorf("exit code %d: %q, stderr %q", f.ExitCode, f.Reason, r.stderr.String())
			}
			if test.code == 3 && (r.stdout.String() != "hello\n" || r.account.Usage.OutBytes != 6) {
				t.Errorf("%q, %+v", r.stdout.String(), r.account)
			}
		})
	}
}

func TestSandboxCancel(t *testing.T) {
	l := newSandboxLab(t)
	for name, test := range map[string]struct {
		command string
		force   bool
		code    int
	}{
		"polite":         {"trap 'echo bye; exit 3' TERM; echo ready; while true; do sleep 0.01; done", false, 3},
		"default":        {"echo ready; sleep 60; exit 3", false, 143},
		"ignored":        {"trap '' TERM; echo ready; sleep 60", false, 137},
		"ignored, force": {"trap '' TERM; echo ready; sleep 60", true, 137},
	} {
		t.Run(name, func(t *testing.T) {
			o := order(spec("sh", "-c", test.command))
			w := l.start(o)
			w.untilOutput("ready")
			if err := l.Cancel(t.Context(), o.Run, test.force); err != nil {
				t.Fatal(err)
			}
			r := w.end()
			if f := r.account; f.State != task.Cancelled || f.ExitCode != test.code {
				t.Errorf("%s, exit code %d: %q", f.State, f.ExitCode, f.Reason)
			}
			if test.code == 3 && !strings.HasSuffix(r.stdout.String(), "bye\n") {
				t.Errorf("stdout %q", r.stdout.String())
			}
		})
	}
}

// What a grandchild uses is in the account, also of one that outlives its parent
// and is waited for by nobody of the run.
func TestUsageOfAll(t *testing.T) {
	const spin = `while :; do i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done; set -- $(cat /proc/$$/stat); [ $((${14}+${15})) -ge 100 ] && break; done`
	for name, open := range map[string]func(testing.TB) *lab{"process": newLab, "sandbox": newSandboxLab} {
		t.Run(name, func(t *testing.T) {
			l := open(t)
			for what, command := range map[string]string{
				"waited for": "sh -c \"$0\"; exit 0",
				"orphan":     "(setsid sh -c \"$0; touch done\" &) ; while [ ! -e done ]; do sleep 0.1; done",
			} {
				s := spec("sh", "-c", command, spin)
				s.Limits.Memory = 256 * task.MiB
				if !l.control.Groups.Can().Memory {
					s.Limits.Memory = 0
				}
				r := l.run(order(s))
				u := r.account.Usage
				if r.account.ExitCode != 0 || u.CPUMS < 1000 || u.CPUMS > u.WallMS*4+1000 {
					t.Errorf("%s: exit code %d, %+v, stderr %q", what, r.account.ExitCode, u, r.stderr.String())
				}
				if s.Limits.Memory > 0 && (u.PeakMemory < 100*task.KiB || u.PeakMemory > s.Limits.Memory) {
					t.Errorf("%s: %v of memory", what, u.PeakMemory)
				}
			}
		})
	}
}

// Another owner's run on a machine that has no sandbox is refused, and says why.
func TestNoSandboxRefused(t *testing.T) {
	l := newLab(t)
	l.admit = func(Ask) (Grant, []task.Reason) { return Grant{Isolation: isolate.Sandbox}, nil }
	err := l.Start(t.Context(), order(spec("true")), func(*task.Event) error { return nil })
	if err == nil || !strings.Contains(err.Error(), "has no sandbox for the run") {
		t.Errorf("%v", err)
	}
}

// The limits of a run hold, and its account tells which it was (TRUST, R16, R17
// and T56).
func TestLimits(t *testing.T) {
	for name, open := range map[string]func(testing.TB) *lab{"process": newLab, "sandbox": newSandboxLab} {
		t.Run(name, func(t *testing.T) {
			l := open(t)
			can := l.control.Groups.Can()
			need(t, can.Memory && can.PIDs && can.CPU, "control groups with limits")
			testLimits(t, l, name == "sandbox")
		})
	}
}

func testLimits(t *testing.T, l *lab, walled bool) {
	memory := bad("hog")
	if walled {
		memory = boxed("hog")
	}
	memory.Limits.Memory = 64 * task.MiB
	bomb := spec("sh", "-c", "bomb() { bomb | bomb & }; bomb; sleep 1; exit 1")
	bomb.Limits.PIDs = 40
	filler := spec("sh", "-c", "while :; do head -c 1M /dev/zero >> $TMPDIR/file || exit; done")
	filler.Limits.Disk = 32 * task.MiB
	inodes := spec("sh", "-c", "i=0; while :; do : > $i; i=$((i+1)); done")
	inodes.Limits.Disk = 8 * task.MiB
	for name, test := range map[string]struct {
		spec   task.Spec
		code   int
		cause  string
		reason string
	}{
		"memory":     {memory, 137, task.CauseMemory, "out of memory: its limit is 64 MiB"},
		"pids":       {bomb, 0, task.CausePIDs, "its limit of 40 processes and threads was reached"},
		"disk":       {filler, 153, task.CauseDisk, "its limit of 32 MiB on the disk was reached"},
		"many files": {inodes, 153, task.CauseDisk, "its limit of 8 MiB on the disk was reached"},
	} {
		t.Run(name, func(t *testing.T) {
			f := l.run(order(test.spec)).account
			if f.State != task.Failed || f.Cause != test.cause || f.Reason != test.reason || f.ExitCode != cmp.Or(test.code, f.ExitCode) {
				t.Errorf("%+v", f)
			}
			if test.cause == task.CauseDisk {
				if size := sizeOf(t, l.cfg.Dir); size > 4*int64(test.spec.Limits.Disk)+64<<20 {
					t.Errorf("%d bytes are on the disk", size)
				}
			}
			noGroups(t, l)
		})
	}
}

// The host is none the worse for twenty fork bombs and twenty programs that want
// all memory: it starts others meanwhile, and nothing of them stays (TRUST, R16
// and R17).
func TestHostUnharmed(t *testing.T) {
	if os.Getenv("BALANCE_LAB") != "1" {
		t.Skip("bombs: set BALANCE_LAB=1")
	}
	l := newSandboxLab(t)
	can := l.control.Groups.Can()
	need(t, can.Memory && can.PIDs, "control groups with limits")
	stop := make(chan struct{})
	forks := make(chan error, 1)
	go func() {
		for {
			select {
			case <-stop:
				forks <- nil
				return
			default:
			}
			if err := exec.Command("/bin/true").Run(); err != nil { //nolint:noctx // it ends by itself
				forks <- err
				return
			}
			time.Sleep(20 * time.Millisecond)
		}
	}()
	for range 20 {
		memory := boxed("hog")
		memory.Limits.Memory = 64 * task.MiB
		bomb := spec("sh", "-c", "bomb() { bomb | bomb & }; bomb; sleep 0.3; exit 1")
		bomb.Limits.PIDs = 64
		for cause, s := range map[string]task.Spec{task.CauseMemory: memory, task.CausePIDs: bomb} {
			o := order(s)
			if f := l.run(o).account; f.Cause != cause {
				t.Errorf("%s: %+v", cause, f)
			}
			if left := programsOf(o.Run); len(left) > 0 {
				t.Errorf("%s: processes %v survive", cause, left)
			}
		}
	}
	close(stop)
	if err := <-forks; err != nil {
		t.Errorf("the host cannot start programs: %v", err)
	}
}

// Whatever a run does to stay, nothing of it is there when it has ended (TRUST,
// T48 and R18).
func TestSandboxNoSurvivors(t *testing.T) {
	l := newSandboxLab(t)
	for name, groups := range map[string]*cgroup.Base{"groups": l.control.Groups, "without groups": {}} {
		for _, force := range []bool{true, false} {
			t.Run(fmt.Sprintf("%s, force %v", name, force), func(t *testing.T) {
				l.control.Groups = groups
				o := order(boxed("stubborn", "pids"))
				w := l.start(o)
				w.untilOutput("ready")
				eventually(t, "its children", func() bool { return len(programsOf(o.Run)) >= 4 })
				if err := l.Cancel(t.Context(), o.Run, force); err != nil {
					t.Fatal(err)
				}
				if f := w.end().account; f.State != task.Cancelled || f.ExitCode != 137 {
					t.Errorf("%+v", f)
				}
				if left := programsOf(o.Run); len(left) > 0 {
					t.Errorf("%v survive", left)
				}
			})
		}
	}
}

func sizeOf(t *testing.T, dir string) (size int64) {
	t.Helper()
	err := filepath.Walk(dir, func(_ string, info os.FileInfo, err error) error {
		if err == nil {
			size += info.Size()
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return size
}

// A run gets out to the hosts that it was granted, by the proxy and by nothing
// else, and a run without gets nowhere (TRUST, T46 and T47).
func TestWayOut(t *testing.T) {
	l := newSandboxLab(t)
	in := boxed("visit", "http://example.invalid/", "http://127.0.0.1:9/", "http://refused.invalid/")
	in.Network = []string{"example.invalid", "127.0.0.1:9"}
	r := l.run(order(in))
	for _, want := range []string{
		"http://example.invalid/: 502", // granted: the proxy looks it up, and there is none
		"http://127.0.0.1:9/: 403",
		"http://refused.invalid/: 403 this run may not reach refused.invalid:80: add it to the manifest",
		"direct: no", "lookup: no",
	} {
		if !strings.Contains(r.stdout.String(), want) {
			t.Errorf("no %q in %s%s", want, r.stdout.String(), r.stderr.String())
		}
	}
	in.Network = nil
	if r := l.run(order(in)); strings.Contains(r.stdout.String(), ": 4") || strings.Contains(r.stdout.String(), ": 5") {
		t.Errorf("without a grant: %s", r.stdout.String())
	}
	in.Network = []string{"http://no-host"}
	if err := l.Start(t.Context(), order(in), func(*task.Event) error { return nil }); err == nil || !strings.Contains(err.Error(), "is no host") {
		t.Errorf("%v", err)
	}
	l.admit = func(Ask) (Grant, []task.Reason) { return Grant{Isolation: isolate.Sandbox, Network: []string{}}, nil }
	in.Network = []string{"example.invalid"}
	if err := l.Start(t.Context(), order(in), func(*task.Event) error { return nil }); err == nil || !strings.Contains(err.Error(), "grants no network") {
		t.Errorf("%v", err)
	}
}

// programsOf returns the processes that have the environment of a run.
func programsOf(run string) (pids []string) {
	files, _ := filepath.Glob("/proc/[0-9]*/environ") // the pattern is valid
	for _, file := range files {
		if b, err := os.ReadFile(file); err == nil && strings.Contains("\x00"+string(b), "\x00BALANCE_RUN="+run+"\x00") {
			pids = append(pids, filepath.Base(filepath.Dir(file)))
		}
	}
	return pids
}
