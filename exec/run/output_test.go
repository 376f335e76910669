package run

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	mathrand "math/rand/v2"
	"os"
	"path/filepath"
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

// Of an endless output the beginning and the end are kept, and the account says how
// much that is, whoever looks and when.
func TestFlood(t *testing.T) {
	const written = 64 << 20
	l := newLab(t)
	s := bad("flood")
	s.Limits.Output = 2 * task.MiB
	o := order(s)
	var live, late flood
	if err := l.Start(t.Context(), o, live.take); err != nil {
		t.Fatal(err)
	}
	if err := l.Follow(t.Context(), o.Run, 0, late.take); err != nil {
		t.Fatal(err)
	}
	if live.next != written || live.came+live.missing != written {
		t.Errorf("who has followed got %d bytes and misses %d of %d", live.came, live.missing, live.next)
	}
	var r result
	if err := r.add(late.finished); err != nil {
		t.Fatal(err)
	}
	u := r.account.Usage
	if u.Output != written || u.Dropped != task.Bytes(late.missing) || late.came+late.missing != written {
		t.Errorf("usage %+v; there are %d bytes, and %d are missing", u, late.came, late.missing)
	}
	if r.account.State != task.Succeeded {
		t.Errorf("%+v", r.account)
	}
	if late.gapped != 1 || late.head < 400<<10 || late.came > 2<<20 || late.came < 2<<20*3/4 {
		t.Errorf("%d bytes are kept, with %d gaps, the first after %d", late.came, late.gapped, late.head)
	}
	if took := size(l.folder(o.Run)); took > 2*(2*task.MiB+256*task.KiB) {
		t.Errorf("it takes %v of the disk", took)
	}
	// The machine's limit counts too.
	l.admit = func(Ask) (Grant, []task.Reason) { return Grant{Limits: task.Limits{Output: 1000}}, nil }
	o = order(s)
	late = flood{}
	if err := l.Start(t.Context(), o, new(flood).take); err != nil {
		t.Fatal(err)
	}
	if err := l.Follow(t.Context(), o.Run, 0, late.take); err != nil || late.came > supervise.LeastLimit {
		t.Errorf("%d bytes with the machine's limit, %v", late.came, err)
	}
}

// flood is what a follower gets of a program that writes the same again and again.
type flood struct {
	gaps     task.Gaps
	came     int64
	missing  int64
	head     int64 // before the first gap
	next     int64
	gapped   int
	finished *task.Event
}

func (f *flood) take(e *task.Event) error {
	switch e.Type {
	case task.EventFinished:
		f.finished = e
		return nil
	case task.EventOutput:
	default:
		return nil
	}
	if n := f.gaps.Before(e); n > 0 {
		if f.gapped++; f.gapped == 1 {
			f.head = f.came
		}
		f.missing += n
	}
	line := floodText[e.Offset%int64(len(floodLine)):]
	if out := e.Output(); !bytes.Equal(out, []byte(line[:len(out)])) {
		return fmt.Errorf("at byte %d there is %.40q", e.Offset, out)
	}
	f.came += int64(len(e.Output()))
	f.next = e.Offset + int64(len(e.Output()))
	return nil
}

// A node that is killed while a run writes more than is kept, again and again, goes
// on with what is there: nothing that is kept is lost or doubled.
func TestFloodWithoutNode(t *testing.T) {
	s := bad("flood")
	s.Limits.Output = task.MiB
	o := order(s)
	n := newNode(t, o)
	for range 4 {
		n.live("open", time.Duration(mathrand.IntN(60))*time.Millisecond)
	}
	l := n.next()
	defer func() { _ = l.Close() }()
	var f flood
	if err := l.Start(t.Context(), o, f.take); err != nil {
		t.Fatal(err)
	}
	f = flood{}
	if err := l.Follow(t.Context(), o.Run, 0, f.take); err != nil {
		t.Fatal(err)
	}
	var r result
	if err := r.add(f.finished); err != nil {
		t.Fatal(err)
	}
	u := r.account.Usage
	if r.account.State != task.Succeeded || u.Output != 64<<20 || u.Dropped != task.Bytes(f.missing) || f.came != int64(u.Output-u.Dropped) {
		t.Errorf("%+v; there are %d bytes, and %d are missing", r.account, f.came, f.missing)
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
