package run

import (
	"archive/tar"
	"bytes"
	"errors"
	"net"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/balanceai/balance/exec/container"
	"github.com/balanceai/balance/exec/task"
)

// startPodman starts an engine of the test alone, with one image in it.
func startPodman(t *testing.T) *container.Engine {
	t.Helper()
	podman, err1 := exec.LookPath("podman")
	busybox, err2 := exec.LookPath("busybox")
	_, err3 := exec.LookPath("runc")
	need(t, errors.Join(err1, err2, err3) == nil, "podman, runc and busybox")
	dir, err := os.MkdirTemp("", "engine") //nolint:usetesting // a socket needs a short path
	if err != nil {
		t.Fatal(err)
	}
	socket := filepath.Join(dir, "s")
	flags := []string{"--root", filepath.Join(dir, "root"), "--runroot", filepath.Join(dir, "run"), "--tmpdir", filepath.Join(dir, "tmp"), "--storage-driver", "vfs", "--cgroup-manager", "cgroupfs", "--runtime", "runc", "--events-backend", "none"}
	service := exec.Command(podman, append(flags, "system", "service", "-t", "0", "unix://"+socket)...)
	said, err := os.Create(filepath.Join(dir, "log")) // no pipe: what podman leaves behind would hold it open
	if err != nil {
		t.Fatal(err)
	}
	defer said.Close()
	service.Stderr = said
	service.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // without rights it is two processes
	if err := service.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = exec.Command(podman, append(flags, "rm", "-fa", "-t", "0")...).Run()
		_ = syscall.Kill(-service.Process.Pid, syscall.SIGKILL)
		_ = service.Wait()
		if t.Failed() {
			b, _ := os.ReadFile(said.Name())
			t.Logf("podman: %s", b)
		}
		endPause(dir)
		if err := os.RemoveAll(dir); err != nil {
			t.Log(err)
		}
	})
	eventually(t, "podman to answer", func() bool {
		c, err := net.Dial("unix", socket)
		if err == nil {
			c.Close()
		}
		return err == nil
	})
	load(t, flags, busybox)
	e, err := container.Find(t.Context(), []string{filepath.Join(dir, "none"), socket})
	if err != nil {
		t.Fatal(err)
	}
	if e.Name != "podman" || e.Rootless != (os.Getuid() != 0) {
		t.Fatalf("found %+v", e)
	}
	return e
}

// endPause ends the process with which podman without rights keeps its namespaces.
func endPause(dir string) {
	for _, name := range []string{filepath.Join(dir, "tmp/pause.pid"), filepath.Join(os.Getenv("XDG_RUNTIME_DIR"), "libpod/tmp/pause.pid")} {
		b, err := os.ReadFile(name)
		if pid, _ := strconv.Atoi(strings.TrimSpace(string(b))); err == nil && pid > 1 && os.Getuid() != 0 {
			_ = syscall.Kill(pid, syscall.SIGKILL)
		}
	}
}

// testImage is the image that the tests run: busybox, and nothing else.
const testImage = "localhost/box:1"

// load makes an engine an image of a program, and the libraries that it needs.
func load(t *testing.T, flags []string, busybox string) {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	add := func(h tar.Header, data []byte) {
		h.Mode, h.Size = 0o755, int64(len(data))
		if err := w.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(data); err != nil {
			t.Fatal(err)
		}
	}
	copied := func(path, name string) {
		data, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		add(tar.Header{Name: name}, data)
	}
	copied(busybox, "bin/busybox")
	libraries, _ := exec.Command("ldd", busybox).Output() // which fails where it needs none
	for word := range strings.FieldsSeq(string(libraries)) {
		if path.IsAbs(word) {
			copied(word, word[1:])
		}
	}
	for _, name := range []string{"sh", "cat", "echo", "id", "sleep", "touch", "stty", "grep", "dd", "tail", "kill"} {
		add(tar.Header{Typeflag: tar.TypeSymlink, Name: "bin/" + name, Linkname: "busybox"}, nil)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("podman", append(flags, "import", "-c", "ENV PATH=/bin", "-c", "VOLUME /data", "-", testImage)...)
	cmd.Stdin = &b
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
}

// newContainerLab is a machine that runs images.
func newContainerLab(t *testing.T) *lab {
	t.Helper()
	e := startPodman(t)
	l := newLab(t)
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	l.cfg.Containers = e
	l.open()
	return l
}

// imaged returns a spec that runs a program of the image.
func imaged(command ...string) task.Spec {
	s := spec(command...)
	s.Driver, s.Image = task.DriverImage, testImage
	return s
}

// none checks that there is no container of this node any more.
func (l *lab) none() {
	l.t.Helper()
	left, err := l.cfg.Containers.Left(l.t.Context(), l.cfg.Self.String())
	if err != nil || len(left) > 0 {
		l.t.Errorf("containers left: %v %v", left, err)
	}
}

// A run of an image begins, writes, takes its inputs and leaves its outputs, and
// ends as any other, with nothing left in the engine.
func TestContainerEnds(t *testing.T) {
	l := newContainerLab(t)
	in, err := l.theirs.Pack(t.Context(), writeFiles(t, map[string]string{"text": "hello\n"}))
	if err != nil {
		t.Fatal(err)
	}
	in.Path = "in"
	secret := filepath.Join(t.TempDir(), "canary")
	if err := os.WriteFile(secret, []byte("canary"), 0o644); err != nil {
		t.Fatal(err)
	}
	who := "1073741824" // whom the machine does not have
	if os.Getuid() != 0 {
		who = "0" // who is the user of the engine outside
	}
	limited := imaged("sleep", "60")
	limited.Limits.Time = 2 * time.Second
	for name, test := range map[string]struct {
		spec   task.Spec
		code   int
		reason string
		output string
	}{
		"outputs":     {imaged("sh", "-c", "cat in/text > out.txt; exit 3"), 3, "", ""},
		"not found":   {imaged("no-such-program"), 127, "cannot start no-such-program: no such file or directory", ""},
		"time limit":  {limited, 124, "time limit 2s reached", ""},
		"walls":       {imaged("sh", "-c", `test -e "$0" && echo seen; touch /x 2>/dev/null && echo root; touch /data/x && echo data; grep -c : /proc/net/dev; grep -E "CapEff|NoNewPrivs" /proc/self/status; id -u; pwd`, secret), 0, "", "data\n1\nCapEff:\t0000000000000000\nNoNewPrivs:\t1\n" + who + "\n/work\n"},
		"environment": {imaged("sh", "-c", "echo $PATH $HOME $TMPDIR $BALANCE_ATTEMPT"), 0, "", "/bin /work /tmp 1\n"},
	} {
		t.Run(name, func(t *testing.T) {
			s := test.spec
			s.Inputs, s.Outputs = []task.Input{in}, []string{"out.txt"}
			got := l.run(order(s))
			if got.account.ExitCode != test.code || test.reason != "" && got.account.Reason != test.reason {
				t.Errorf("ended with %d, %q: %s%s", got.account.ExitCode, got.account.Reason, &got.stdout, &got.stderr)
			}
			if test.output != "" && got.stdout.String() != test.output {
				t.Errorf("wrote %q, want %q", got.stdout.String(), test.output)
			}
			if name == "outputs" && got.account.Outputs.IsZero() {
				t.Error("no output came back")
			}
			l.none()
		})
	}
}

// withWord returns the processes of this machine that have a word in their command
// line.
func withWord(word string) []int {
	var out []int
	lines, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, name := range lines {
		b, err := os.ReadFile(name)
		pid, _ := strconv.Atoi(strings.Split(name, "/")[2])
		if err == nil && strings.Contains(string(b), word) && pid != os.Getpid() {
			out = append(out, pid)
		}
	}
	return out
}

// However a run of an image is made to end, and whoever dies meanwhile, its
// container is gone when its end is known.
func TestContainerGone(t *testing.T) {
	l := newContainerLab(t)
	for name, end := range map[string]func(o task.Order, w *watcher) (task.State, string){
		"cancelled": func(o task.Order, _ *watcher) (task.State, string) {
			if err := l.Cancel(t.Context(), o.Run, false); err != nil {
				t.Fatal(err)
			}
			return task.Cancelled, "TERM\n"
		},
		"cancelled by force": func(o task.Order, _ *watcher) (task.State, string) {
			if err := l.Cancel(t.Context(), o.Run, true); err != nil {
				t.Fatal(err)
			}
			return task.Cancelled, ""
		},
		"what stands for it killed": func(o task.Order, _ *watcher) (task.State, string) {
			stands := children(l.supervisor(o.Run))
			if len(stands) != 1 {
				t.Fatalf("the supervisor has started %v", stands)
			}
			if err := syscall.Kill(stands[0], syscall.SIGKILL); err != nil {
				t.Fatal(err)
			}
			return task.Failed, ""
		},
		"supervisor killed": func(o task.Order, _ *watcher) (task.State, string) {
			if err := syscall.Kill(l.supervisor(o.Run), syscall.SIGKILL); err != nil {
				t.Fatal(err)
			}
			return task.Failed, ""
		},
		"engine removed it": func(o task.Order, _ *watcher) (task.State, string) {
			if err := l.cfg.Containers.Remove(t.Context(), o.Run); err != nil {
				t.Fatal(err)
			}
			return task.Failed, ""
		},
	} {
		t.Run(name, func(t *testing.T) {
			word := "canary" + task.NewID()
			o := order(imaged("sh", "-c", `trap 'echo TERM; exit 0' TERM; echo ready; while true; do sleep 0.1; done`, word))
			w := l.start(o)
			w.untilOutput("ready")
			state, says := end(o, w)
			r := w.end()
			if r.account.State != state || !strings.HasSuffix(r.stdout.String(), says) {
				t.Errorf("ended as %s, %q: %q", r.account.State, r.account.Reason, r.stdout.String())
			}
			if left := withWord(word); len(left) > 0 {
				t.Errorf("processes left: %v", left)
			}
			l.none()
		})
	}
}

// children returns the processes that another one has started.
func children(pid int) []int {
	var out []int
	lists, _ := filepath.Glob(filepath.Join("/proc", strconv.Itoa(pid), "task/*/children"))
	for _, name := range lists {
		b, _ := os.ReadFile(name)
		for field := range strings.FieldsSeq(string(b)) {
			if child, err := strconv.Atoi(field); err == nil {
				out = append(out, child)
			}
		}
	}
	return out
}

// A run of an image goes on without its node, and the next one misses nothing. It
// gets its standard input to the end, and stands still while it is paused.
func TestContainerGoesOn(t *testing.T) {
	l := newContainerLab(t)
	s := imaged("sh", "-c", "echo ready; cat; echo over; exit 3")
	s.Stdin = true
	o := order(s)
	w := l.start(o)
	w.untilOutput("ready")
	_ = l.Close()
	<-w.done
	l.open()
	again := l.start(o)
	again.untilOutput("ready")
	if err := l.Pause(o.Run, "for a while"); err != nil {
		t.Fatal(err)
	}
	if err := l.Resume(o.Run); err != nil {
		t.Fatal(err)
	}
	if err := l.Stdin(t.Context(), o.Run, 0, strings.NewReader("some text\n")); err != nil {
		t.Fatal(err)
	}
	if r := again.end(); r.stdout.String() != "ready\nsome text\nover\n" || r.account.ExitCode != 3 {
		t.Errorf("%q, exit code %d: %q", r.stdout.String(), r.account.ExitCode, r.account.Reason)
	}
	l.none()
}

// What a run of an image is held to holds, by the kernel's word.
func TestContainerLimits(t *testing.T) {
	l := newContainerLab(t)
	s := imaged("sh", "-c", "echo ready; tail /dev/zero")
	s.Limits = task.Limits{Memory: 64 * task.MiB, CPU: task.Core / 2, PIDs: 64}
	if f := l.run(order(s)).account; f.State != task.Failed || f.ExitCode != 137 || f.Cause != task.CauseMemory {
		t.Errorf("%s, exit code %d, cause %q: %q", f.State, f.ExitCode, f.Cause, f.Reason)
	}
	l.none()
}

// A machine without an engine, an image that is not there, limits that the engine
// does not hold, and what there is not in a container: the run is refused.
func TestContainerRefused(t *testing.T) {
	l := newContainerLab(t)
	engine := *l.cfg.Containers
	limited := imaged("true")
	limited.Limits.Memory = task.GiB
	absent := imaged("true")
	absent.Image = "localhost/absent"
	gpu := imaged("true")
	gpu.Needs.GPUs = 1
	network := imaged("true")
	network.Network = []string{"example.org"}
	for name, test := range map[string]struct {
		spec task.Spec
		can  *container.Engine
		text string
	}{
		"no engine": {imaged("true"), nil, "no container runtime"},
		"no image":  {absent, &engine, "the image localhost/absent is not on this machine; podman pull localhost/absent"},
		"limits":    {limited, &container.Engine{Name: "podman", Socket: engine.Socket, Rootless: true}, "cannot hold a container to the limit of memory"},
		"GPU":       {gpu, &engine, "runs images without a GPU"},
		"network":   {network, &engine, "runs images without a network"},
	} {
		l.Runner.cfg.Containers = test.can
		err := l.Start(t.Context(), order(test.spec), func(*task.Event) error { return nil })
		if r := (*task.Refusal)(nil); !errors.As(err, &r) || !strings.Contains(err.Error(), test.text) {
			t.Errorf("%s: %v", name, err)
		}
	}
	l.none()
}

// An engine without rights, of a node without rights: the tests above as nobody.
func TestContainerRootless(t *testing.T) {
	need(t, os.Getuid() == 0, "root, to be nobody")
	const nobody = 65534
	dir, err := os.MkdirTemp("", "nobody") //nolint:usetesting // a socket needs a short path
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	program := filepath.Join(dir, "test")
	b, err := os.ReadFile("/proc/self/exe")
	if err == nil {
		err = os.WriteFile(program, b, 0o755)
	}
	if err == nil {
		err = errors.Join(os.Chmod(dir, 0o755), os.Chown(dir, nobody, nobody)) // who may be anybody in its namespaces
	}
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(program, "-test.v", "-test.run", "^TestContainer(Ends|Gone)$")
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "HOME="+dir, "TMPDIR="+dir, "XDG_RUNTIME_DIR="+dir, "BALANCE_REQUIRE=1", "USER=nobody")
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: nobody, Gid: nobody}}
	log, err := os.Create(filepath.Join(dir, "log"))
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	cmd.Stdout, cmd.Stderr = log, log
	err = cmd.Run()
	out, _ := os.ReadFile(log.Name())
	if err != nil || !strings.Contains(string(out), "--- PASS: TestContainerGone") {
		t.Errorf("%v\n%s", err, out)
	}
}
