package dispatch

import (
	"bytes"
	"errors"
	"io"
	"strings"
	"testing"

	"github.com/balanceai/balance/exec/task"
)

func TestStdin(t *testing.T) {
	l := newLab(t)
	l.hydra.script = (*machine).start
	id := l.submit(bare())
	content := bytes.Repeat([]byte("0123456789"), 100_000)
	l.hydra.set(func() {}) // the run may not be there yet
	l.watch(id, func(e *task.Event) bool { return e.Type == task.EventStarted })
	l.hydra.set(func() { l.hydra.runs[id].slow = 333_333 }) // breaks once on the way
	if err := l.d.Stdin(t.Context(), id, bytes.NewReader(content)); err != nil {
		t.Fatal(err)
	}
	if r := l.hydra.runs[id]; !bytes.Equal(r.stdin.Bytes(), content) || !r.eof {
		t.Errorf("got %d bytes, eof %v", r.stdin.Len(), r.eof)
	}
	l.hydra.finish(id, task.Finished{State: task.Succeeded})
	l.end(id)
	if err := l.d.Stdin(t.Context(), "r-aaaaaaaaaaaaaaaa", strings.NewReader("x")); !errors.Is(err, task.ErrNoRun) {
		t.Errorf("unknown run: %v", err)
	}
}

func TestStdinBreaksOff(t *testing.T) {
	l := newLab(t)
	l.hydra.script = (*machine).start
	id := l.submit(bare())
	gone := errors.New("terminal gone")
	in := io.MultiReader(strings.NewReader("half"), iotestErr{gone})
	if err := l.d.Stdin(t.Context(), id, in); !errors.Is(err, gone) {
		t.Errorf("got %v", err)
	}
	if r := l.hydra.runs[id]; r.stdin.String() != "half" || !r.eof {
		t.Errorf("got %q, eof %v", r.stdin.String(), r.eof)
	}
	l.hydra.finish(id, task.Finished{State: task.Succeeded})
	if got := brief(l.end(id)); !strings.Contains(got, "(the standard input broke off: terminal gone)") {
		t.Errorf("got %s", got)
	}
}

// What a break takes with it is sent again, also while nothing more comes.
func TestStdinSendsAgain(t *testing.T) {
	pr, pw := io.Pipe()
	defer func() { _ = pw.Close() }()
	src := &source{in: pr}
	first := src.from(0)
	go func() { _, _ = pw.Write([]byte("line\n")) }()
	buf := make([]byte, 100)
	if n, err := first.Read(buf); string(buf[:n]) != "line\n" || err != nil {
		t.Fatalf("%q %v", buf[:n], err)
	}
	waiting := make(chan string)
	go func() { // the broken request still waits for the next line
		b := make([]byte, 100)
		n, _ := first.Read(b)
		waiting <- string(b[:n])
	}()
	if src.sent() != 5 || !src.has(2) || src.has(6) {
		t.Errorf("sent %d", src.sent())
	}
	second := src.from(2)
	if n, err := second.Read(buf); string(buf[:n]) != "ne\n" || err != nil {
		t.Errorf("again: %q %v", buf[:n], err)
	}
	_, _ = pw.Write([]byte("next\n"))
	_ = pw.Close()
	rest, err := io.ReadAll(second)
	if got := <-waiting; string(rest) != "next\n" || err != nil || got != "next\n" && got != "" {
		t.Errorf("rest %q %v, the other got %q", rest, err, got)
	}
	if _, err := src.from(0).Read(buf); err != nil || src.broken() != nil {
		t.Error(err, src.broken())
	}
}

func TestStdinWindow(t *testing.T) {
	const size = 5 * window / 2
	src := &source{in: io.LimitReader(zeros{}, size)}
	if n, err := io.Copy(io.Discard, src.from(0)); n != size || err != nil {
		t.Fatal(n, err)
	}
	if src.has(0) || !src.has(size-window) || len(src.tail) > 2*window+64<<10 {
		t.Errorf("keeps %d bytes", len(src.tail))
	}
	if _, err := src.from(0).Read(make([]byte, 1)); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("what is gone: %v", err)
	}
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }

type iotestErr struct{ err error }

func (e iotestErr) Read([]byte) (int, error) { return 0, e.err }

// An input that stays open goes on where the machine has got to, whoever sends it,
// and a break is no end.
func TestStdinOpen(t *testing.T) {
	l := newLab(t)
	l.hydra.script = (*machine).start
	spec := bare()
	spec.Stdin, spec.Open, spec.TTY = true, true, &task.Terminal{Rows: 2, Cols: 3}
	id := l.submit(spec)
	gone := errors.New("terminal gone")
	if err := l.d.Stdin(t.Context(), id, io.MultiReader(strings.NewReader("one "), iotestErr{gone})); err != nil {
		t.Errorf("left: %v", err)
	}
	if r := l.hydra.runs[id]; r.stdin.String() != "one " || r.eof {
		t.Errorf("got %q, eof %v", r.stdin.String(), r.eof)
	}
	got, after, err := l.d.Now(t.Context(), id)
	if err != nil || after == 0 || got.TTY == nil || *got.TTY != *spec.TTY {
		t.Errorf("%+v after %d: %v", got, after, err)
	}
	if err := l.d.Resize(t.Context(), id, task.Terminal{Rows: 7, Cols: 8}); err != nil || l.hydra.runs[id].size.Cols != 8 {
		t.Errorf("size %+v, %v", l.hydra.runs[id].size, err)
	}
	if err := l.d.Stdin(t.Context(), id, strings.NewReader("two")); err != nil {
		t.Fatal(err)
	}
	if r := l.hydra.runs[id]; r.stdin.String() != "one two" || !r.eof {
		t.Errorf("got %q, eof %v", r.stdin.String(), r.eof)
	}
	l.hydra.finish(id, task.Finished{State: task.Succeeded})
	l.end(id)
	var files strings.Builder
	if err := l.d.Files(t.Context(), id, "a/b", &files); err != nil || files.String() != id+":a/b" {
		t.Errorf("files %q, %v", files.String(), err)
	}
	if _, _, err := l.d.Now(t.Context(), id); !errors.Is(err, ErrOver) {
		t.Errorf("over: %v", err)
	}
}
