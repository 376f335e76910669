package run

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/balanceai/balance/exec/journal"
	"github.com/balanceai/balance/exec/supervise"
	"github.com/balanceai/balance/exec/task"
)

func TestOutput(t *testing.T) {
	l := newLab(t)
	binary := make([]byte, 1<<20)
	if _, err := rand.Read(binary); err != nil {
		t.Fatal(err)
	}
	line := append(bytes.Repeat([]byte("é"), 500_000), '\n')
	hostile := []byte("\x1b]0;title\x07\x1b[2J\u202e\x00\x00\r\n\xc3")
	for name, want := range map[string][]byte{"binary": binary, "long line": line, "hostile": hostile, "nothing": nil} {
		path := filepath.Join(t.TempDir(), "content")
		if err := os.WriteFile(path, want, 0o600); err != nil {
			t.Fatal(err)
		}
		r := l.run(order(spec("sh", "-c", "cat "+path+"; cat "+path+" >&2")))
		if !bytes.Equal(r.stdout.Bytes(), want) || !bytes.Equal(r.stderr.Bytes(), want) {
			t.Errorf("%s: %d and %d bytes", name, r.stdout.Len(), r.stderr.Len())
		}
		for _, e := range r.events {
			if len(e.Output()) > supervise.Chunk {
				t.Errorf("%s: an event of %d bytes", name, len(e.Output()))
			}
		}
	}
}

func TestFlood(t *testing.T) {
	const written = 64 << 20
	l := newLab(t)
	s := bad("flood")
	s.Limits.Output = task.MiB
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	o := order(s)
	r := l.run(o)
	runtime.ReadMemStats(&after)
	if r.stdout.Len() != 1<<20 || len(r.notes) != 1 || r.notes[0] != "output limit of 1 MiB reached: what follows is dropped" {
		t.Errorf("%d bytes, notes %q", r.stdout.Len(), r.notes)
	}
	if u := r.account.Usage; u.Output != written || u.Dropped != written-1<<20 {
		t.Errorf("usage %+v", u)
	}
	if f := r.account; f.State != task.Succeeded {
		t.Errorf("%+v", f)
	}
	if grown := int64(after.HeapSys) - int64(before.HeapSys); grown > 32<<20 {
		t.Errorf("the heap has grown by %d bytes", grown)
	}
	info, err := os.Stat(l.journalPath(o.Run))
	if err != nil || info.Size() > 2<<20 {
		t.Errorf("the journal has %d bytes, %v", info.Size(), err)
	}
	// The machine's limit counts too.
	l.admit = func(Ask) (Grant, []task.Reason) { return Grant{Limits: task.Limits{Output: 1000}}, nil }
	if r := l.run(order(s)); r.stdout.Len() != 1000 {
		t.Errorf("%d bytes with the machine's limit", r.stdout.Len())
	}
}

// A journal is not much longer than what it holds.
func TestPieces(t *testing.T) {
	for name, test := range map[string]struct {
		b    []byte
		most int64 // times its length
	}{
		"text": {bytes.Repeat([]byte("words\tand words\n"), 2000), 2},
		"nul":  {make([]byte, supervise.Chunk), 2},
		"bell": {bytes.Repeat([]byte("\a"), supervise.Chunk), 2},
		"some": {bytes.Repeat([]byte("\x1b[1m some color \x1b[0m"), 1000), 3},
	} {
		path := filepath.Join(t.TempDir(), "journal")
		j, err := journal.Open(path)
		if err != nil {
			t.Fatal(err)
		}
		if err := j.Append(event(supervise.Frame{Kind: supervise.Stdout, Data: test.b})); err != nil {
			t.Fatal(err)
		}
		_ = j.Close()
		info, err := os.Stat(path)
		if err != nil || info.Size() > test.most*int64(len(test.b)) {
			t.Errorf("%s: %d bytes became %d, %v", name, len(test.b), info.Size(), err)
		}
	}
}

func stdinSpec(command ...string) task.Spec {
	s := spec(command...)
	s.Stdin = true
	return s
}

func TestStdin(t *testing.T) {
	l := newLab(t)
	o := order(stdinSpec("cat"))
	w := l.start(o)
	w.until("the start", func(r *result) bool { return len(r.events) > 0 })
	pr, pw := io.Pipe()
	sent := make(chan error, 1)
	go func() { sent <- l.Stdin(t.Context(), o.Run, 0, pr) }()
	for _, part := range []string{"one ", "two "} {
		if _, err := pw.Write([]byte(part)); err != nil {
			t.Fatal(err)
		}
		w.untilOutput(part)
	}
	broken := errors.New("broken")
	pw.CloseWithError(broken)
	if err := <-sent; !errors.Is(err, broken) {
		t.Errorf("a broken upload: %v", err)
	}
	var gap *task.OffsetError
	if err := l.Stdin(t.Context(), o.Run, 20, strings.NewReader("x")); !errors.As(err, &gap) || gap.Offset != 8 {
		t.Errorf("a gap: %v", err)
	}
	// What is there already is left out.
	if err := l.Stdin(t.Context(), o.Run, 4, strings.NewReader("two three")); err != nil {
		t.Fatal(err)
	}
	if r := w.end(); r.stdout.String() != "one two three" || r.account.State != task.Succeeded {
		t.Errorf("%q, %+v", r.stdout.String(), r.account)
	}
	for name, run := range map[string]string{"ended": o.Run, "never was": task.NewID()} {
		if err := l.Stdin(t.Context(), run, 0, strings.NewReader("x")); (err == nil) != (name == "ended") {
			t.Errorf("a run that %s: %v", name, err)
		}
	}
	r := l.run(order(spec("cat")))
	if r.stdout.Len() != 0 || r.account.State != task.Succeeded {
		t.Errorf("without: %q, %+v", r.stdout.String(), r.account)
	}
}

func TestStdinWithoutReader(t *testing.T) {
	l := newLab(t)
	none := order(spec("sleep", "60"))
	w := l.start(none)
	w.until("the start", func(r *result) bool { return len(r.events) > 0 })
	if err := l.Stdin(t.Context(), none.Run, 0, strings.NewReader("x")); err == nil {
		t.Error("a run without standard input took some")
	}
	_ = l.Cancel(t.Context(), none.Run, true)
	w.end()

	// A program that closes its standard input, or ends, drops the rest.
	o := order(stdinSpec("sh", "-c", "read x; exec <&-; echo got $x; sleep 0.2"))
	w = l.start(o)
	if err := w.stdin(o.Run, io.MultiReader(strings.NewReader("first\n"), &endless{})); err != nil {
		t.Error(err)
	}
	if r := w.end(); r.stdout.String() != "got first\n" {
		t.Errorf("stdout %q", r.stdout.String())
	}
}

// stdin sends once the run is known.
func (w *watcher) stdin(run string, in io.Reader) error {
	w.until("the start", func(r *result) bool { return len(r.events) > 0 })
	return w.l.Stdin(w.l.t.Context(), run, 0, in)
}

// endless counts what is taken of it.
type endless struct {
	mu sync.Mutex
	n  int
}

func (e *endless) Read(p []byte) (int, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.n += len(p)
	clear(p)
	return len(p), nil
}

func (e *endless) taken() int {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.n
}

// The program's pace is the upload's pace, and a newer upload takes over from
// one that waits.
func TestStdinPressure(t *testing.T) {
	l := newLab(t)
	o := order(stdinSpec("sh", "-c", "echo ready; while [ ! -e go ]; do sleep 0.01; done; wc -c"))
	w := l.start(o)
	w.untilOutput("ready")
	in := &endless{}
	old := make(chan error, 1)
	go func() { old <- l.Stdin(t.Context(), o.Run, 0, in) }()
	eventually(t, "a full pipe", func() bool { return in.taken() > 64<<10 })
	time.Sleep(50 * time.Millisecond)
	if n := in.taken(); n > 256<<10 {
		t.Errorf("%d bytes are taken and nobody reads", n)
	}
	newer := make(chan error, 1)
	go func() { newer <- l.Stdin(t.Context(), o.Run, 0, bytes.NewReader(make([]byte, 300_000))) }()
	if err := <-old; !errors.Is(err, supervise.ErrNewer) {
		t.Errorf("the older upload: %v", err)
	}
	if err := os.WriteFile(filepath.Join(l.folder(o.Run), "work", "go"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := <-newer; err != nil {
		t.Fatal(err)
	}
	if r := w.end(); r.stdout.String() != "ready\n300000\n" {
		t.Errorf("stdout %q", r.stdout.String())
	}
}

// An upload that waits for the program ends with its context, and with the run.
func TestStdinEnds(t *testing.T) {
	l := newLab(t)
	o := order(stdinSpec("sleep", "60"))
	w := l.start(o)
	w.until("the start", func(r *result) bool { return len(r.events) > 0 })
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	done := make(chan error, 1)
	for _, end := range []func(){cancel, func() { _ = l.Cancel(t.Context(), o.Run, true) }} {
		in := &endless{}
		go func() { done <- l.Stdin(ctx, o.Run, 0, in) }()
		eventually(t, "a full pipe", func() bool { return in.taken() > 0 })
		end()
		select {
		case err := <-done:
			t.Log(err)
		case <-time.After(20 * time.Second):
			t.Fatal("the upload waits for ever")
		}
		ctx = t.Context()
	}
	w.end()
}

// Every byte arrives once, however often the upload breaks.
func TestStdinAfterBreaks(t *testing.T) {
	l := newLab(t)
	o := order(stdinSpec("cat"))
	w := l.start(o)
	w.until("the start", func(r *result) bool { return len(r.events) > 0 })
	whole := make([]byte, 300_000)
	for i := range whole {
		whole[i] = byte('a' + i*i%26)
	}
	broken := errors.New("broken")
	var at int64
	for n := 10_000; ; n += 30_000 {
		err := l.Stdin(t.Context(), o.Run, at, io.MultiReader(bytes.NewReader(whole[at:min(n, len(whole))]), &failing{broken}))
		if !errors.Is(err, broken) {
			t.Fatal(err)
		}
		if n >= len(whole) {
			break
		}
		at = int64(n) - 5000
	}
	if err := l.Stdin(t.Context(), o.Run, int64(len(whole)), strings.NewReader("")); err != nil {
		t.Fatal(err)
	}
	if r := w.end(); r.stdout.String() != string(whole) {
		t.Errorf("%d bytes came through", r.stdout.Len())
	}
}

type failing struct{ err error }

func (f *failing) Read([]byte) (int, error) { return 0, f.err }
