package journal

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
	"pgregory.net/rapid"

	"github.com/balanceai/balance/exec/task"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func open(t testing.TB, path string) *Journal {
	t.Helper()
	j, err := Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = j.Close() })
	return j
}

func output(text string) *task.Event {
	e := &task.Event{Type: task.EventOutput, Run: "r-abcdefghijklmnop", Time: time.Unix(1_700_000_000, 0).UTC(), Stream: task.Stdout}
	e.SetOutput([]byte(text))
	return e
}

func add(t testing.TB, j *Journal, e *task.Event) {
	t.Helper()
	if err := j.Append(e); err != nil {
		t.Fatal(err)
	}
}

// read returns what a reader gets, as "1:text".
func read(t testing.TB, j *Journal, after uint64, follow bool) []string {
	t.Helper()
	var got []string
	err := j.Read(t.Context(), after, follow, func(e *task.Event) error {
		got = append(got, fmt.Sprintf("%d:%s", e.Seq, e.Output()))
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return got
}

func TestAppendRead(t *testing.T) {
	path := filepath.Join(t.TempDir(), "events")
	j := open(t, path)
	for i, text := range []string{"one\n", "\xff\x00", "", "<&> \u2028 é"} {
		e := output(text)
		add(t, j, e)
		if e.Seq != uint64(i+1) {
			t.Fatalf("event %d got number %d", i+1, e.Seq)
		}
	}
	want := "1:one\n|2:\xff\x00|3:|4:<&> \u2028 é"
	for after, from := range []int{0, 1, 2, 3, 4, 4} {
		got := strings.Join(read(t, j, uint64(after), false), "|")
		if all := strings.Split(want, "|"); got != strings.Join(all[from:], "|") {
			t.Errorf("after %d: %q", after, got)
		}
	}
	info, err := os.Stat(path)
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}
}

func TestSkip(t *testing.T) {
	path := filepath.Join(t.TempDir(), "events")
	j := open(t, path)
	add(t, j, output("a"))
	j.Skip(1000)
	add(t, j, output("b"))
	_ = j.Close()
	j = open(t, path)
	add(t, j, output("c"))
	for after, want := range map[uint64]string{0: "1:a|1002:b|1003:c", 1: "1002:b|1003:c", 500: "1002:b|1003:c", 1002: "1003:c", 1003: ""} {
		if got := strings.Join(read(t, j, after, false), "|"); got != want {
			t.Errorf("after %d: %q", after, got)
		}
	}
}

// Whatever was written, a reader that begins after any number gets exactly what
// follows, also from a journal that was opened again.
func TestEveryPlace(t *testing.T) {
	dir := t.TempDir()
	rapid.Check(t, func(rt *rapid.T) {
		path := filepath.Join(dir, fmt.Sprint(rand.Uint64()))
		j := open(t, path)
		sizes := rapid.SliceOfN(rapid.IntRange(0, 40_000), 0, 40).Draw(rt, "sizes")
		for i, n := range sizes {
			if rapid.IntRange(0, 9).Draw(rt, "reopen") == 0 {
				_ = j.Close()
				j = open(t, path)
			}
			add(t, j, output(strings.Repeat(string(rune('a'+i%26)), n)))
		}
		after := rapid.Uint64Range(0, uint64(len(sizes))+2).Draw(rt, "after")
		next := after
		err := j.Read(t.Context(), after, false, func(e *task.Event) error {
			if next++; e.Seq != next || len(e.Data) != sizes[next-1] {
				return fmt.Errorf("event %d has %d bytes, want %d of %d", e.Seq, len(e.Data), next, sizes[next-1])
			}
			return nil
		})
		if err != nil || next != max(after, uint64(len(sizes))) {
			rt.Fatalf("after %d: ended at %d of %d: %v", after, next, len(sizes), err)
		}
		_ = j.Close()
	})
}

func finished() *task.Event { return &task.Event{Type: task.EventFinished, State: task.Succeeded} }

func TestFollow(t *testing.T) {
	j := open(t, filepath.Join(t.TempDir(), "events"))
	const events = 500
	var wg sync.WaitGroup
	for reader := range 8 {
		wg.Go(func() {
			next := uint64(reader)
			err := j.Read(t.Context(), next, true, func(e *task.Event) error {
				if next++; e.Seq != next {
					return fmt.Errorf("got %d, want %d", e.Seq, next)
				}
				return nil
			})
			if err != nil || next != events {
				t.Errorf("reader %d ended at %d: %v", reader, next, err)
			}
		})
	}
	for i := range events - 1 {
		add(t, j, output(strings.Repeat("x", i*17%5000)))
	}
	add(t, j, finished())
	wg.Wait()
	if err := j.Append(output("late")); !errors.Is(err, ErrFinished) {
		t.Errorf("append after the end: %v", err)
	}
	if got := read(t, j, events-1, true); len(got) != 1 {
		t.Errorf("read after the end: %q", got)
	}
}

func TestReaderLeaves(t *testing.T) {
	j := open(t, filepath.Join(t.TempDir(), "events"))
	add(t, j, output("x"))
	enough := errors.New("enough")
	if err := j.Read(t.Context(), 0, true, func(*task.Event) error { return enough }); !errors.Is(err, enough) {
		t.Errorf("yield's error came back as %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	err := j.Read(ctx, 0, true, func(*task.Event) error { cancel(); return nil })
	if !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
	_ = j.Close()
	if err := j.Read(t.Context(), 0, true, func(*task.Event) error { return nil }); !errors.Is(err, ErrClosed) {
		t.Errorf("closed: %v", err)
	}
}

// A slow reader holds up nobody.
func TestSlowReader(t *testing.T) {
	j := open(t, filepath.Join(t.TempDir(), "events"))
	add(t, j, output("first"))
	inside, leave := make(chan struct{}), make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		_ = j.Read(t.Context(), 0, true, func(e *task.Event) error {
			if e.Seq == 1 {
				close(inside)
				<-leave
			}
			return nil
		})
	})
	<-inside
	for range 1000 {
		add(t, j, output("more"))
	}
	if got := read(t, j, 0, false); len(got) != 1001 {
		t.Errorf("the other reader got %d events", len(got))
	}
	add(t, j, finished())
	close(leave)
	wg.Wait()
}

func TestReopenFinished(t *testing.T) {
	path := filepath.Join(t.TempDir(), "events")
	j := open(t, path)
	add(t, j, output("x"))
	if over, err := Ended(path); over || err != nil {
		t.Errorf("ended: %v, %v", over, err)
	}
	add(t, j, finished())
	if over, err := Ended(path); !over || err != nil {
		t.Errorf("ended: %v, %v", over, err)
	}
	if _, err := Ended(path + "x"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("no journal: %v", err)
	}
	_ = j.Close()
	j = open(t, path)
	if !j.Finished() || j.Last() != 2 {
		t.Errorf("finished %v, last %d", j.Finished(), j.Last())
	}
	if got := read(t, j, 1, true); len(got) != 1 {
		t.Errorf("follow after the end: %q", got)
	}
}

// piece is an event of a long output, the first of a part or not.
func piece(text string, first bool) *task.Event {
	e := output(text)
	e.Part = first
	return e
}

// Of a long output the beginning and the newest parts are kept, and all that is no
// output, whatever was written and wherever the program was started again.
func TestParts(t *testing.T) {
	dir := t.TempDir()
	rapid.Check(t, func(rt *rapid.T) {
		path := filepath.Join(dir, fmt.Sprint(rand.Uint64()), "events")
		if err := os.Mkdir(filepath.Dir(path), 0o700); err != nil {
			rt.Fatal(err)
		}
		j := open(t, path)
		part := map[uint64]int{} // of each event; -1: it stays
		parts := 0
		for i, kind := range rapid.SliceOfN(rapid.IntRange(0, 9), 0, 120).Draw(rt, "kinds") {
			e := piece(fmt.Sprint(i), kind < 3)
			in := parts
			switch {
			case kind == 9:
				e, in = &task.Event{Type: task.EventNote, Message: "note"}, 0
			case kind < 3:
				parts++
				in = parts
			}
			if rapid.IntRange(0, 9).Draw(rt, "reopen") == 0 {
				_ = j.Close()
				j = open(t, path)
			}
			add(t, j, e)
			part[e.Seq] = in
		}
		after := rapid.Uint64Range(0, uint64(len(part))+1).Draw(rt, "after")
		var want, got []uint64
		for n := after + 1; n <= uint64(len(part)); n++ {
			if part[n] == 0 || part[n] > parts-Parts {
				want = append(want, n)
			}
		}
		err := j.Read(t.Context(), after, false, func(e *task.Event) error { got = append(got, e.Seq); return nil })
		if err != nil || !slices.Equal(got, want) {
			rt.Fatalf("after %d: %v, want %v: %v", after, got, want, err)
		}
		if e, err := j.Newest(); err != nil || len(part) > 0 && e.Seq != uint64(len(part)) {
			rt.Fatalf("newest %+v, %v", e, err)
		}
		if files, _ := os.ReadDir(partsDir(path)); len(files) > Parts {
			rt.Fatalf("%d parts", len(files))
		}
		_ = j.Close()
		if err := Remove(path); err != nil {
			rt.Fatal(err)
		}
		if left, _ := os.ReadDir(filepath.Dir(path)); len(left) > 0 {
			rt.Fatalf("%v is left", left)
		}
	})
}

// Whoever follows gets what is kept in order, however far behind.
func TestFollowParts(t *testing.T) {
	j := open(t, filepath.Join(t.TempDir(), "events"))
	const events = 3000
	var wg sync.WaitGroup
	for reader := range 8 {
		wg.Go(func() {
			seen := map[uint64]bool{}
			last := uint64(0)
			err := j.Read(t.Context(), 0, true, func(e *task.Event) error {
				if e.Seq <= last {
					return fmt.Errorf("%d after %d", e.Seq, last)
				}
				if last = e.Seq; reader > 3 && last%100 == 0 {
					time.Sleep(time.Millisecond)
				}
				seen[e.Seq] = true
				return nil
			})
			if err != nil || last != events {
				t.Errorf("reader %d ended at %d: %v", reader, last, err)
			}
			if err := j.Read(t.Context(), 0, false, func(e *task.Event) error {
				if !seen[e.Seq] {
					return fmt.Errorf("reader %d has missed %d", reader, e.Seq)
				}
				return nil
			}); err != nil {
				t.Error(err)
			}
		})
	}
	for i := 1; i <= events; i++ {
		e := piece(strings.Repeat("x", i*17%500), i%20 == 0)
		if i%50 == 7 {
			e = &task.Event{Type: task.EventNote, Message: "note"}
		}
		if i == events {
			e = finished()
		}
		add(t, j, e)
	}
	wg.Wait()
}

// A program that ends as it begins a part leaves any part of a line there.
func TestTornPart(t *testing.T) {
	path := filepath.Join(t.TempDir(), "events")
	j := open(t, path)
	add(t, j, output("head"))
	add(t, j, piece("first", true))
	_ = j.Close()
	line, err := os.ReadFile(partPath(path, 2))
	if err != nil {
		t.Fatal(err)
	}
	for n := range len(line) {
		if err := os.WriteFile(partPath(path, 2), line[:n], 0o600); err != nil {
			t.Fatal(err)
		}
		j := open(t, path)
		if j.Last() != 1 {
			t.Fatalf("cut at %d: last is %d", n, j.Last())
		}
		add(t, j, piece("again", true))
		if got := strings.Join(read(t, j, 0, false), "|"); got != "1:head|2:again" {
			t.Fatalf("cut at %d: %q", n, got)
		}
		_ = j.Close()
	}
}

// A program that ends in mid-write leaves any part of a line; a power cut may
// leave blocks of zeros.
func TestTornTail(t *testing.T) {
	dir := t.TempDir()
	j := open(t, filepath.Join(dir, "whole"))
	for range 3 {
		add(t, j, output("some text"))
	}
	_ = j.Close()
	whole, err := os.ReadFile(filepath.Join(dir, "whole"))
	if err != nil {
		t.Fatal(err)
	}
	line := len(whole) / 3
	check := func(name string, data []byte, want uint64) {
		t.Helper()
		path := filepath.Join(dir, "torn")
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
		j := open(t, path)
		if j.Last() != want {
			t.Fatalf("%s: last is %d, want %d", name, j.Last(), want)
		}
		add(t, j, output("next"))
		if got := read(t, j, want, false); len(got) != 1 || got[0] != fmt.Sprintf("%d:next", want+1) {
			t.Fatalf("%s: then %q", name, got)
		}
		_ = j.Close()
	}
	for n := range len(whole) + 1 {
		check(fmt.Sprintf("cut at %d", n), whole[:n], uint64(n/line))
	}
	check("zeros", append(bytes.Clone(whole), make([]byte, 100_000)...), 3)
	check("zeros and a newline", append(append(bytes.Clone(whole), make([]byte, 100_000)...), '\n'), 3)
	check("a line too long", append(append(bytes.Clone(whole), bytes.Repeat([]byte("x"), 2*MaxLine)...), '\n'), 3)
	check("nothing but damage", bytes.Repeat([]byte("x\n"), 1000), 0)
}

func TestDamageInTheMiddle(t *testing.T) {
	path := filepath.Join(t.TempDir(), "events")
	j := open(t, path)
	for range 3 {
		add(t, j, output("some text"))
	}
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	data[len(data)/2] = 0
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := j.Read(t.Context(), 0, false, func(*task.Event) error { return nil }); !errors.Is(err, ErrDamaged) {
		t.Errorf("read: %v", err)
	}
}

func TestSymlinkIsRefused(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "elsewhere"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("elsewhere", filepath.Join(dir, "events")); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(filepath.Join(dir, "events")); err == nil {
		t.Error("opened a journal through a link")
	}
}

func TestTooLong(t *testing.T) {
	j := open(t, filepath.Join(t.TempDir(), "events"))
	if err := j.Append(output(strings.Repeat("x", MaxLine))); !errors.Is(err, ErrTooLong) {
		t.Errorf("got %v", err)
	}
	long := strings.Repeat("\x01", 32<<10) // six bytes of JSON each
	add(t, j, output(long))
	if got := read(t, j, 0, false); len(got) != 1 || got[0] != "1:"+long {
		t.Error("the longest chunk does not come back")
	}
}

func FuzzDecode(f *testing.F) {
	var line bytes.Buffer
	e := output("text")
	e.Seq = 7
	if err := encode(&line, e); err != nil {
		f.Fatal(err)
	}
	f.Add(line.Bytes())
	f.Add([]byte(`{"seq":1,"type":"finished","exit_code":0,"entries":["AA=="],"source":3}`))
	f.Add([]byte(`{"seq":-1}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		e, err := decode(data)
		if err != nil {
			if !errors.Is(err, ErrDamaged) {
				t.Errorf("untyped error %v", err)
			}
			return
		}
		var once, twice bytes.Buffer
		if err := encode(&once, e); err != nil {
			if errors.Is(err, ErrTooLong) {
				return
			}
			t.Fatalf("%q cannot be written again: %v", data, err)
		}
		again, err := decode(once.Bytes())
		if err != nil {
			t.Fatal(err)
		}
		if err := encode(&twice, again); err != nil || !bytes.Equal(once.Bytes(), twice.Bytes()) {
			t.Errorf("%q and %q, %v", once.Bytes(), twice.Bytes(), err)
		}
	})
}

// FuzzOpen opens a file of any bytes: it becomes a journal that works.
func FuzzOpen(f *testing.F) {
	f.Add([]byte("{\"seq\":1,\"type\":\"output\"}\n{\"seq\":2,"))
	f.Add([]byte("\n\n\x00\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		path := filepath.Join(t.TempDir(), "events")
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
		j := open(t, path)
		if j.Finished() || j.Last() == 1<<64-1 {
			return
		}
		e := output("next")
		add(t, j, e)
		again := open(t, path)
		if again.Last() != e.Seq {
			t.Errorf("last is %d, want %d", again.Last(), e.Seq)
		}
	})
}

func BenchmarkAppend(b *testing.B) {
	text := strings.Repeat("a line of a log, as programs write them: 12345\n", 700)[:32<<10]
	binary := strings.Repeat("\xff\x00", 16<<10)
	for name, data := range map[string]string{"line": "hello\n", "text": text, "binary": binary} {
		b.Run(name, func(b *testing.B) {
			j := open(b, filepath.Join(b.TempDir(), "events"))
			b.SetBytes(int64(len(data)))
			for b.Loop() {
				add(b, j, output(data))
			}
		})
	}
}

func BenchmarkRead(b *testing.B) {
	j := open(b, filepath.Join(b.TempDir(), "events"))
	text := strings.Repeat("a line of a log, as programs write them: 12345\n", 700)[:32<<10]
	for range 320 {
		add(b, j, output(text))
	}
	b.SetBytes(320 * 32 << 10)
	for b.Loop() {
		if err := j.Read(b.Context(), 0, false, func(*task.Event) error { return nil }); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkSeek resumes near the end of a long journal.
func BenchmarkSeek(b *testing.B) {
	j := open(b, filepath.Join(b.TempDir(), "events"))
	for range 200_000 {
		add(b, j, output("a line of a log, as programs write them: 12345\n"))
	}
	for b.Loop() {
		if err := j.Read(b.Context(), 150_000, false, func(*task.Event) error { return context.Canceled }); !errors.Is(err, context.Canceled) {
			b.Fatal(err)
		}
	}
}
