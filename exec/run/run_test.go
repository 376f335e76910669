package run

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/balanceai/balance/exec/task"
	"github.com/balanceai/balance/mesh/identity"
	"github.com/balanceai/balance/mesh/wire"
)

func TestRun(t *testing.T) {
	l := newLab(t)
	o := order(spec("sh", "-c", "echo out; echo err >&2; pwd; exit 7"))
	r := l.run(o)
	if got := r.stdout.String(); got != "out\n"+filepath.Join(l.Runner.cfg.Dir, o.Run, "work")+"\n" {
		t.Errorf("stdout %q", got)
	}
	if got := r.stderr.String(); got != "err\n" {
		t.Errorf("stderr %q", got)
	}
	if first := r.events[0]; first.Type != task.EventStarted || first.Seq != 1 || first.State != task.Running || first.Node != "hydra" || first.Run != o.Run || first.Attempt != 1 {
		t.Errorf("first event %+v", first)
	}
	if r.finished.State != task.Failed || *r.finished.ExitCode != 7 || r.finished.Message != "" {
		t.Errorf("finished %+v", r.finished)
	}
	if u := r.account.Usage; u.MaxRSS == 0 || u.Output != task.Bytes(r.stdout.Len()+4) || u.Dropped != 0 {
		t.Errorf("usage %+v", u)
	}
	want := []string{task.KindAccepted, task.KindStarted, task.KindFinished}
	if got := r.kinds(); !slices.Equal(got, want) {
		t.Errorf("events carried %v", got)
	}
	if got := l.ledger.kinds(o.Run, nodeKey); !slices.Equal(got, want) {
		t.Errorf("the ledger has %v", got)
	}
	if got := l.ledger.kinds(o.Run, userKey); len(got) != 2 {
		t.Errorf("of the submitter the ledger has %v", got)
	}
	for after := range len(r.events) + 1 {
		var again result
		if err := l.Follow(t.Context(), o.Run, uint64(after), again.add); err != nil || len(again.events) != len(r.events)-after {
			t.Errorf("after %d: %d events, %v", after, len(again.events), err)
		}
	}
}

// slowStart is a ledger that takes its time for the start of a run.
type slowStart struct {
	*ledger
	gate chan struct{}
}

func (l slowStart) Append(ctx context.Context, drafts ...task.Draft) ([]*wire.Entry, error) {
	if drafts[0].Kind == task.KindStarted {
		<-l.gate
	}
	return l.ledger.Append(ctx, drafts...)
}

// What a program writes does not wait for the ledger, and the end does.
func TestOutputDoesNotWaitForTheLedger(t *testing.T) {
	l := newLab(t)
	gate := make(chan struct{})
	l.Runner.cfg.Ledger = slowStart{l.ledger, gate}
	w := l.start(order(spec("echo", "out")))
	w.until("the output", func(r *result) bool { return r.stdout.String() == "out\n" })
	if kinds := w.r.kinds(); len(kinds) != 0 {
		t.Errorf("entries that are not durable were sent: %v", kinds)
	}
	close(gate)
	r := w.end()
	if got := r.kinds(); !slices.Equal(got, []string{task.KindAccepted, task.KindStarted, task.KindFinished}) {
		t.Errorf("events carried %v", got)
	}
}

func TestEnds(t *testing.T) {
	l := newLab(t)
	files := map[string]string{"script": "#!/bin/sh\necho ran\nexit 3\n", "text": "no program", "lost": "#!/no/such/interpreter\n"}
	in, err := l.theirs.Pack(t.Context(), writeFiles(t, files))
	if err != nil {
		t.Fatal(err)
	}
	in.Path = "in"
	limited := spec("sleep", "60")
	limited.Limits.Time = 50 * time.Millisecond
	path := spec("script")
	path.Env = map[string]string{"PATH": "/no/such:relative"}
	for name, test := range map[string]struct {
		spec   task.Spec
		state  task.State
		code   int
		reason string
	}{
		"true":           {spec("true"), task.Succeeded, 0, ""},
		"false":          {spec("false"), task.Failed, 1, ""},
		"absolute":       {spec("/bin/sh", "-c", "exit 42"), task.Failed, 42, ""},
		"of the work":    {spec("./in/script"), task.Failed, 3, ""},
		"without a dot":  {spec("in/script"), task.Failed, 3, ""},
		"not found":      {spec("no-such-program"), task.Failed, 127, "cannot start no-such-program: no such file or directory"},
		"not in PATH":    {path, task.Failed, 127, "cannot start script: no such file or directory"},
		"no such path":   {spec("in/none"), task.Failed, 127, "cannot start in/none: no such file or directory"},
		"no program":     {spec("in/text"), task.Failed, 126, "cannot start in/text: permission denied"},
		"a folder":       {spec("./in"), task.Failed, 126, "cannot start ./in: permission denied"},
		"no interpreter": {spec("in/lost"), task.Failed, 127, "cannot start in/lost: no such file or directory"},
		"signal":         {bad("signal"), task.Failed, 143, "signal: terminated"},
		"killed":         {spec("sh", "-c", "kill -9 $$"), task.Failed, 137, "signal: killed"},
		"time limit":     {limited, task.Failed, 124, "time limit 50ms reached"},
	} {
		t.Run(name, func(t *testing.T) {
			test.spec.Inputs = []task.Input{in}
			r := l.run(order(test.spec))
			if f := r.account; f.State != test.state || f.ExitCode != test.code || f.Reason != test.reason {
				t.Errorf("%s, exit code %d: %q", f.State, f.ExitCode, f.Reason)
			}
			if r.finished.Message != test.reason {
				t.Errorf("the event says %q", r.finished.Message)
			}
		})
	}
}

func TestCancel(t *testing.T) {
	l := newLab(t)
	if err := l.Cancel(t.Context(), task.NewID(), true); !errors.Is(err, task.ErrNoRun) {
		t.Errorf("no run: %v", err)
	}
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
			if f := r.account; f.State != task.Cancelled || f.ExitCode != test.code || f.Reason != "cancelled by its submitter" {
				t.Errorf("%s, exit code %d: %q", f.State, f.ExitCode, f.Reason)
			}
			if test.code == 3 && !strings.HasSuffix(r.stdout.String(), "bye\n") {
				t.Errorf("stdout %q", r.stdout.String())
			}
			if err := l.Cancel(t.Context(), o.Run, true); err != nil {
				t.Errorf("after its end: %v", err)
			}
		})
	}
}

func TestInputsAndOutputs(t *testing.T) {
	l := newLab(t)
	folder, err := l.theirs.Pack(t.Context(), writeFiles(t, map[string]string{"a": "first\n", "b/c": "second\n"}))
	if err != nil {
		t.Fatal(err)
	}
	file, err := l.theirs.Pack(t.Context(), filepath.Join(writeFiles(t, map[string]string{"x": "#!/bin/sh\ncat in/a in/b/c | tee out.txt\n"}), "x"))
	if err != nil {
		t.Fatal(err)
	}
	folder.Path, file.Path = "in", "tools/run"
	s := spec("./tools/run")
	s.Inputs, s.Outputs = []task.Input{folder, file}, []string{"*.txt", "none"}
	r := l.run(order(s))
	if r.stdout.String() != "first\nsecond\n" {
		t.Errorf("stdout %q", r.stdout.String())
	}
	if want := []string{"bringing 53 B of inputs", "output: none is not there"}; !slices.Equal(r.notes, want) {
		t.Errorf("notes %q", r.notes)
	}
	if u := r.account.Usage; u.OutBytes != 13 || u.InBytes < 53 {
		t.Errorf("usage %+v", u)
	}
	if r.finished.Outputs != r.account.Outputs.String() {
		t.Errorf("outputs %s and %s", r.finished.Outputs, r.account.Outputs)
	}
	to := t.TempDir()
	root, err := os.OpenRoot(to)
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	if err := l.Runner.cfg.Blobs.Unpack(t.Context(), r.account.Outputs, root, "."); err != nil {
		t.Fatal(err)
	}
	if b, err := os.ReadFile(filepath.Join(to, "out.txt")); err != nil || string(b) != "first\nsecond\n" {
		t.Errorf("output %q, %v", b, err)
	}
}

func TestInputsThatDoNotCome(t *testing.T) {
	l := newLab(t)
	in, err := l.theirs.Pack(t.Context(), writeFiles(t, map[string]string{"a": "x"}))
	if err != nil {
		t.Fatal(err)
	}
	in.Path = "in"
	s := spec("true")
	s.Inputs = []task.Input{in}
	fetch := l.fetch
	l.fetch = func(context.Context, wire.Hash, int64) (io.ReadCloser, error) { return nil, os.ErrNotExist }
	if f := l.run(order(s)).account; f.State != task.Failed || f.ExitCode != -1 || !strings.HasPrefix(f.Reason, "inputs: in: ") {
		t.Errorf("%s, exit code %d: %q", f.State, f.ExitCode, f.Reason)
	}
	// The submitter is away; then the run is cancelled.
	l.fetch = func(context.Context, wire.Hash, int64) (io.ReadCloser, error) { return nil, io.ErrUnexpectedEOF }
	o := order(s)
	w := l.start(o)
	w.until("the note", func(r *result) bool { return len(r.notes) == 1 })
	if kinds := w.r.kinds(); !slices.Equal(kinds, []string{task.KindAccepted}) {
		t.Errorf("the note carries %v", kinds)
	}
	if err := l.Cancel(t.Context(), o.Run, false); err != nil {
		t.Fatal(err)
	}
	if f := w.end().account; f.State != task.Cancelled || f.ExitCode != -1 {
		t.Errorf("%s, exit code %d: %q", f.State, f.ExitCode, f.Reason)
	}
	// What claims less than it has is not brought.
	l.fetch = fetch
	s.Inputs[0].Size = 0
	if f := l.run(order(s)).account; f.State != task.Failed || !strings.Contains(f.Reason, "larger than allowed") {
		t.Errorf("%s, exit code %d: %q", f.State, f.ExitCode, f.Reason)
	}
}

func TestEnvironment(t *testing.T) {
	t.Setenv("SECRET_OF_THE_NODE", "x")
	l := newLab(t)
	l.admit = func(Ask) (Grant, []task.Reason) { return Grant{Devices: []string{"GPU-1", "GPU-2"}}, nil }
	s := spec("env")
	s.Env = map[string]string{"MINE": "1", "LANG": "tlh", "BALANCE_RUN": "other", "CUDA_VISIBLE_DEVICES": "0,1,2,3", "HIP_VISIBLE_DEVICES": "0"}
	o := order(s)
	dir := filepath.Join(l.Runner.cfg.Dir, o.Run)
	want := []string{
		"BALANCE_ATTEMPT=1", "BALANCE_NODE=hydra", "BALANCE_RUN=" + o.Run, "CUDA_VISIBLE_DEVICES=GPU-1,GPU-2", "HOME=" + dir + "/work", "LANG=tlh", "MINE=1",
		"NVIDIA_VISIBLE_DEVICES=GPU-1,GPU-2", "PATH=" + os.Getenv("PATH"), "ROCR_VISIBLE_DEVICES=GPU-1,GPU-2", "TMPDIR=" + dir + "/tmp",
	}
	r := l.run(o)
	if got := strings.Split(strings.TrimSpace(r.stdout.String()), "\n"); !slices.Equal(got, want) {
		t.Errorf("environment %q", got)
	}
	var accepted task.Accepted
	at := slices.IndexFunc(r.events, func(e *task.Event) bool { return len(e.Entries) > 0 })
	e, err := wire.ParseEntry(r.events[at].Entries[0])
	if err != nil {
		t.Fatal(err)
	}
	if err := wire.Unmarshal(e.Payload, &accepted); err != nil || len(accepted.Devices) != 2 || accepted.Submit != o.Entries[0].Hash() {
		t.Errorf("accepted %+v, %v", accepted, err)
	}
	if u := r.account.Usage; u.GPUMS != 2*u.WallMS {
		t.Errorf("usage %+v", u)
	}
	l.admit = func(Ask) (Grant, []task.Reason) { return Grant{}, nil }
	r = l.run(order(spec("env")))
	for _, line := range []string{"CUDA_VISIBLE_DEVICES=\n", "ROCR_VISIBLE_DEVICES=\n", "NVIDIA_VISIBLE_DEVICES=void\n"} {
		if !strings.Contains(r.stdout.String(), line) {
			t.Errorf("without a GPU: %q", r.stdout.String())
		}
	}
}

// What a run holds is held when the next is admitted, and free when its end is
// seen.
func TestHeld(t *testing.T) {
	l := newLab(t)
	l.admit = func(a Ask) (Grant, []task.Reason) {
		if len(a.Held) > 0 {
			return Grant{}, []task.Reason{{Rule: "gpus", Text: "is taken", Ever: true}}
		}
		return Grant{Devices: []string{"GPU-1"}}, nil
	}
	s := spec("sh", "-c", "echo ready; read x")
	s.Stdin = true
	s.Needs = task.Needs{GPUs: 1, CPU: 2000}
	o := order(s)
	w := l.start(o)
	w.untilOutput("ready")
	held := l.Held()
	if len(held) != 1 || held[0].Run != o.Run || held[0].From != userKey.ID() || held[0].Needs.CPU != 2000 || held[0].Needs.Memory != task.DefaultMemory || held[0].Devices[0] != "GPU-1" || held[0].Since.IsZero() {
		t.Errorf("held %+v", held)
	}
	_ = refusal(t, l.Start(t.Context(), order(s), nothing))
	if err := l.Stdin(t.Context(), o.Run, 0, strings.NewReader("\n")); err != nil {
		t.Fatal(err)
	}
	w.end()
	for range 20 { // the next one may come as soon as the end is seen
		l.run(order(spec("true")))
	}
	if held := l.Held(); len(held) != 0 {
		t.Errorf("held %+v", held)
	}
}

func TestSettle(t *testing.T) {
	l := newLab(t)
	o := order(spec("true"))
	receipt := func(by identity.Key, run string) *wire.Entry {
		return sign(by, o.Entries, task.Draft{Topic: run, Kind: task.KindReceipt, Record: task.Receipt{Attempt: 1}})
	}
	if err := l.Settle(t.Context(), o.Run, nil); !errors.Is(err, task.ErrNoRun) {
		t.Errorf("before the run: %v", err)
	}
	l.run(o)
	if id, err := l.Submitter(t.Context(), o.Run); err != nil || id != userKey.ID() {
		t.Errorf("submitter %v, %v", id, err)
	}
	for name, e := range map[string]*wire.Entry{"another author": receipt(strangers, o.Run), "another run": receipt(userKey, task.NewID()), "this node": receipt(nodeKey, o.Run)} {
		if err := l.Settle(t.Context(), o.Run, []*wire.Entry{e}); err == nil {
			t.Errorf("%s: taken", name)
		}
	}
	if err := l.Settle(t.Context(), o.Run, []*wire.Entry{receipt(userKey, o.Run)}); err != nil {
		t.Fatal(err)
	}
	if got := l.ledger.kinds(o.Run, userKey); len(got) != 3 || got[2] != task.KindReceipt {
		t.Errorf("the ledger has %v", got)
	}
}

// The node stops, and the run goes on: a follower resumes where it was, and sees
// every byte once.
func TestClose(t *testing.T) {
	l := newLab(t)
	o := order(stdinSpec("sh", "-c", "i=0; while [ $i -lt 300 ]; do echo $i; i=$((i+1)); sleep 0.01; done; cat; exit 7"))
	w := l.start(o)
	w.untilOutput("20\n")
	if err := l.Stdin(t.Context(), o.Run, 0, io.MultiReader(strings.NewReader("some "), &failing{io.ErrUnexpectedEOF})); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Fatal(err)
	}
	for range 3 {
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
		<-w.done
		if err := l.Start(t.Context(), order(spec("true")), nothing); !errors.Is(err, task.ErrBroken) {
			t.Errorf("start: %v", err)
		}
		l.open()
		seen := w.r.events[len(w.r.events)-1].Seq
		w.done = make(chan struct{})
		go func() {
			defer close(w.done)
			w.err = l.Follow(context.Background(), o.Run, seen, func(e *task.Event) error {
				w.mu.Lock()
				defer w.mu.Unlock()
				return w.r.add(e)
			})
		}()
		w.mu.Lock()
		n := w.r.stdout.Len()
		w.mu.Unlock()
		w.until("more output", func(r *result) bool { return r.stdout.Len() > n+100 })
	}
	if err := l.Stdin(t.Context(), o.Run, 5, strings.NewReader("input\n")); err != nil {
		t.Fatal(err)
	}
	var want strings.Builder
	for i := range 300 {
		fmt.Fprintln(&want, i)
	}
	want.WriteString("some input\n")
	r := w.end()
	if r.account.ExitCode != 7 || r.stdout.String() != want.String() {
		t.Errorf("%+v; %d bytes of %d", r.account, r.stdout.Len(), want.Len())
	}
	if u := r.account.Usage; u.Output != task.Bytes(want.Len()) || u.Dropped != 0 {
		t.Errorf("usage %+v", u)
	}
}

// The node stops while it cannot write the end: the next life does.
func TestCloseWhileFull(t *testing.T) {
	l := newLab(t)
	o := order(stdinSpec("sh", "-c", "echo ready; read x; exit 5"))
	w := l.start(o)
	w.untilOutput("ready")
	l.ledger.fail(errors.New("the disk is full"))
	if err := l.Stdin(t.Context(), o.Run, 0, strings.NewReader("\n")); err != nil {
		t.Fatal(err)
	}
	eventually(t, "its end", func() bool { return len(l.Held()) == 0 })
	_ = l.Close()
	<-w.done
	if w.err == nil || w.r.finished != nil {
		t.Errorf("it finished without an account: %v", w.err)
	}
	l.ledger.fail(nil)
	l.open()
	if r := l.run(o); r.account.ExitCode != 5 {
		t.Errorf("%+v", r.account)
	}
}

// A follower that leaves ends nothing.
func TestFollowerLeaves(t *testing.T) {
	l := newLab(t)
	o := order(spec("sh", "-c", "echo ready; sleep 0.1; echo more"))
	enough := errors.New("enough")
	if err := l.Start(t.Context(), o, func(*task.Event) error { return enough }); !errors.Is(err, enough) {
		t.Fatal(err)
	}
	var r result
	if err := l.Follow(t.Context(), o.Run, 0, r.add); err != nil || r.stdout.String() != "ready\nmore\n" {
		t.Errorf("%q, %v", r.stdout.String(), err)
	}
}

func TestNothingLeaks(t *testing.T) {
	l := newLab(t)
	files := func() int {
		names, err := os.ReadDir("/proc/self/fd")
		need(t, err == nil, "/proc")
		return len(names)
	}
	s := spec("cat")
	s.Stdin = true
	one := func() {
		o := order(s)
		w := l.start(o)
		if err := l.Stdin(t.Context(), o.Run, 0, bytes.NewReader([]byte("x"))); err != nil && !errors.Is(err, task.ErrNoRun) {
			t.Fatal(err)
		}
		w.until("the end", func(r *result) bool {
			if r.finished == nil {
				_ = l.Stdin(t.Context(), o.Run, 0, bytes.NewReader([]byte("x")))
			}
			return r.finished != nil
		})
		w.end()
		l.run(order(spec("no-such-program")))
	}
	one()
	before := files()
	for range 20 {
		one()
	}
	eventually(t, fmt.Sprintf("%d open files", before), func() bool { return files() <= before+2 })
}
