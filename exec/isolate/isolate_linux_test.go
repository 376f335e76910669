package isolate

import (
	"bytes"
	"io"
	"maps"
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/balanceai/balance/exec/isolate/launch"
)

func TestMain(m *testing.M) {
	if mode := os.Getenv(modeVar); mode != "" {
		attempt(mode)
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// machine is what this machine can do, which has to be a sandbox.
func machine(t testing.TB) *Machine {
	t.Helper()
	m := Detect(t.Context(), t.TempDir())
	if m.Level() != Sandbox {
		if os.Getenv("BALANCE_REQUIRE") == "1" {
			t.Fatalf("no sandbox: %s", m.Why)
		}
		t.Skipf("no sandbox: %s", m.Why)
	}
	return m
}

// outcome is what became of a command.
type outcome struct {
	stdout, stderr string
	code           int
	err            error // why it was not started
}

// start runs a job to its end.
func start(t testing.TB, m *Machine, j Job) outcome {
	t.Helper()
	c, err := m.Command(j)
	if err != nil {
		t.Fatal(err)
	}
	open, err := c.Open()
	if err != nil {
		t.Fatal(err)
	}
	var stdout, stderr bytes.Buffer
	cmd := exec.CommandContext(t.Context(), c.Path)
	cmd.Args, cmd.Env, cmd.Dir, cmd.ExtraFiles, cmd.Stdout, cmd.Stderr = c.Args, append([]string{}, c.Env...), c.Dir, open.Files, &stdout, &stderr
	err = cmd.Run()
	open.CloseFiles()
	defer open.Close()
	if cmd.ProcessState == nil {
		t.Fatal(err)
	}
	o := outcome{stdout: stdout.String(), stderr: stderr.String(), code: cmd.ProcessState.ExitCode()}
	if open.Report != nil {
		said, err := io.ReadAll(open.Report)
		if err != nil {
			t.Fatal(err)
		}
		o.err = launch.Report(string(said))
	}
	return o
}

func job(t testing.TB, level string, command ...string) Job {
	return Job{Level: level, Command: command, Work: t.TempDir(), Temp: t.TempDir(), Env: map[string]string{"PATH": "/usr/bin:/bin"}}
}

func TestSandboxStarts(t *testing.T) {
	m := machine(t)
	j := job(t, Sandbox, "sh", "-c", "echo $GREETING; pwd; echo $HOME $TMPDIR; id -u; cat /etc/hostname 2>/dev/null; hostname; echo new > file; exit 3")
	j.Env["GREETING"] = "hello"
	o := start(t, m, j)
	if want := "hello\n/work\n/work /tmp\n1000\nrun\n"; o.stdout != want || o.code != 3 || o.err != nil {
		t.Errorf("%+v", o)
	}
	if b, err := os.ReadFile(j.Work + "/file"); err != nil || string(b) != "new\n" {
		t.Errorf("%q, %v", b, err)
	}
	o = start(t, m, job(t, Sandbox, "no-such-program"))
	if o.err == nil || o.err.Error() != "no such file or directory" {
		t.Errorf("%+v", o)
	}
	o = start(t, m, job(t, Sandbox, "sh", "-c", "kill -SEGV $$"))
	if o.code != 128+11 || o.err != nil {
		t.Errorf("%+v", o)
	}
}

// What the submitter sets reaches neither bubblewrap nor this program, which run
// outside or before the walls are there (TRUST, T53).
func TestEnvironmentStaysInside(t *testing.T) {
	m := machine(t)
	j := job(t, Sandbox, "sh", "-c", "echo $LD_PRELOAD")
	maps.Copy(j.Env, map[string]string{"LD_PRELOAD": "/work/evil.so", "GODEBUG": "inittrace=1"})
	c, err := m.Command(j)
	if err != nil {
		t.Fatal(err)
	}
	if all := strings.Join(append(c.Env, c.Args...), "\n"); strings.Contains(all, "evil") || strings.Contains(all, "inittrace") || strings.Contains(all, "echo") {
		t.Errorf("bubblewrap gets %s", all)
	}
	if o := start(t, m, j); !strings.Contains(o.stdout, "/work/evil.so") || strings.Contains(o.stderr, "init ") {
		t.Errorf("%+v", o)
	}
}

// No descriptor of the outside stays open inside.
func TestNothingStaysOpen(t *testing.T) {
	m := machine(t)
	if o := start(t, m, job(t, Sandbox, "sh", "-c", "cd /proc/self/fd; echo *")); o.stdout != "0 1 2 3\n" && o.stdout != "0 1 2\n" {
		t.Errorf("open are %+v", o)
	}
}

// BenchmarkStart is the time from the start of a program to its end, plain and
// in a sandbox.
func BenchmarkStart(b *testing.B) {
	m := machine(b)
	for _, level := range levels {
		b.Run(level, func(b *testing.B) {
			j := job(b, level, "/bin/true")
			for b.Loop() {
				if o := start(b, m, j); o.code != 0 {
					b.Fatalf("%+v", o)
				}
			}
		})
	}
}
