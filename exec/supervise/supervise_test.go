package supervise

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"syscall"
	"testing"
	"time"
	"unicode/utf8"

	"pgregory.net/rapid"
)

// frames reads a whole log.
func frames(t testing.TB, dir string) (out []Frame) {
	t.Helper()
	l, err := OpenLog(dir, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	for {
		f, err := l.Next()
		if errors.Is(err, io.EOF) {
			return out
		}
		if err != nil {
			t.Fatal(err)
		}
		f.Data = bytes.Clone(f.Data)
		out = append(out, f)
	}
}

// What a program writes comes out byte for byte, and text as text, wherever the
// reads cut it.
func TestCharactersStayWhole(t *testing.T) {
	base := t.TempDir()
	rapid.Check(t, func(rt *rapid.T) {
		dir, err := os.MkdirTemp(base, "") //nolint:usetesting // one for each example
		if err != nil {
			rt.Fatal(err)
		}
		o, err := newOutput(dir, 1<<30, func() {})
		if err != nil {
			rt.Fatal(err)
		}
		text := rapid.Bool().Draw(rt, "text")
		var whole []byte
		if text {
			whole = []byte(rapid.StringOf(rapid.Rune()).Draw(rt, "written"))
		} else {
			whole = rapid.SliceOf(rapid.Byte()).Draw(rt, "written")
		}
		r, w, err := os.Pipe()
		if err != nil {
			rt.Fatal(err)
		}
		o.start(r)
		for rest := whole; len(rest) > 0; {
			n := rapid.IntRange(1, len(rest)).Draw(rt, "piece")
			if _, err := w.Write(rest[:n]); err != nil {
				rt.Fatal(err)
			}
			rest = rest[n:]
			runtime.Gosched()
		}
		w.Close()
		<-o.done
		o.file.Close()
		var got []byte
		for _, f := range frames(t, dir) {
			if f.Offset != int64(len(got)) {
				rt.Fatalf("byte %d is said to be %d", len(got), f.Offset)
			}
			if text && !utf8.Valid(f.Data) {
				rt.Fatalf("cut character: %q", f.Data)
			}
			got = append(got, f.Data...)
		}
		if !bytes.Equal(got, whole) {
			rt.Fatalf("%q became %q", whole, got)
		}
	})
}

// The beginning and the newest part of a long output are kept, within the limit,
// and who reads while it is written gets that at least.
func TestLogParts(t *testing.T) {
	base := t.TempDir()
	rapid.Check(t, func(rt *rapid.T) {
		dir, err := os.MkdirTemp(base, "") //nolint:usetesting // one for each example
		if err != nil {
			rt.Fatal(err)
		}
		const limit = LeastLimit
		o, err := newOutput(dir, limit, func() {})
		if err != nil {
			rt.Fatal(err)
		}
		defer func() { o.file.Close() }()
		live, err := OpenLog(dir, 0)
		if err != nil {
			rt.Fatal(err)
		}
		defer func() { _ = live.Close() }()
		byLive, end := map[int64]bool{}, int64(0)
		look := func() {
			for {
				f, err := live.Next()
				if errors.Is(err, io.EOF) {
					return
				}
				if err != nil || f.Offset < end || f.Data[0] != mark(f.Offset) {
					rt.Fatalf("frame at %d after %d: %v", f.Offset, end, err)
				}
				end = f.Offset + int64(len(f.Data))
				byLive[f.Offset] = true
			}
		}
		var at int64
		most := rapid.SampledFrom([]int{1, 300, Chunk}).Draw(rt, "most")
		repeat := rapid.IntRange(1, limit/max(most, pieceCost/2)).Draw(rt, "repeat")
		for _, n := range rapid.SliceOfN(rapid.IntRange(0, most), 0, 40).Draw(rt, "pieces") {
			for range repeat {
				o.write(Stdout, append(make([]byte, header), bytes.Repeat([]byte{mark(at)}, n)...))
				at += int64(n)
			}
			if rapid.IntRange(0, 20).Draw(rt, "look") == 0 {
				look()
			}
		}
		total, dropped := o.sum()
		var kept, onDisk int64
		for _, f := range frames(t, dir) {
			kept += int64(len(f.Data))
		}
		look()
		for _, f := range frames(t, dir) {
			if !byLive[f.Offset] {
				rt.Fatalf("who has followed has not got the frame at %d", f.Offset)
			}
		}
		parts, err := logParts(dir)
		if err != nil || len(parts) > 1+Parts {
			rt.Fatalf("parts %v, %v", parts, err)
		}
		for _, base := range parts {
			info, err := os.Stat(partPath(dir, base))
			if err != nil {
				rt.Fatal(err)
			}
			onDisk += info.Size()
		}
		if total != at || total-dropped != kept || kept > limit || onDisk > limit+o.part {
			rt.Fatalf("%d bytes written, %d read, %d dropped, %d kept, %d on disk", at, total, dropped, kept, onDisk)
		}
		if dropped > 0 && kept*2 < limit && most == Chunk {
			rt.Fatalf("only %d bytes are kept", kept)
		}
	})
}

// mark is what a test writes at an offset.
func mark(offset int64) byte { return byte(offset % 251) }

// Who reads on where a part is gone goes on with the oldest that is there.
func TestLogOvertakes(t *testing.T) {
	dir := t.TempDir()
	o, err := newOutput(dir, LeastLimit, func() {})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { o.file.Close() }()
	write := func(n int) {
		for range n {
			o.write(Stdout, append(make([]byte, header), bytes.Repeat([]byte("x"), 1000)...))
		}
	}
	write(100) // past the head
	l, err := OpenLog(dir, 0)
	if err != nil {
		t.Fatal(err)
	}
	for range 90 {
		if _, err := l.Next(); err != nil {
			t.Fatal(err)
		}
	}
	place := l.Place()
	_ = l.Close()
	write(1000)
	l, err = OpenLog(dir, place)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	f, err := l.Next()
	if err != nil || !f.First || f.Offset < 600_000 || l.Place() <= place {
		t.Errorf("%+v, %v", f, err)
	}
	firsts := 1
	for {
		f, err := l.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		if f.First {
			firsts++
		}
	}
	if firsts != Parts {
		t.Errorf("%d parts", firsts)
	}
}

// A log that is read while it is written, and cut off where the disk was full.
func TestLogGrows(t *testing.T) {
	dir := t.TempDir()
	o, err := newOutput(dir, 1<<20, func() {})
	if err != nil {
		t.Fatal(err)
	}
	defer o.file.Close()
	l, err := OpenLog(dir, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	for i := range 100 {
		if _, err := l.Next(); !errors.Is(err, io.EOF) {
			t.Fatalf("frame %d before it was written: %v", i, err)
		}
		torn := AppendFrame(nil, Frame{Kind: Stdout, Data: bytes.Repeat([]byte("torn"), i)})
		if _, err := o.file.WriteAt(torn[:len(torn)-1], o.size); err != nil {
			t.Fatal(err)
		}
		if i > 0 { // without data it is none
			if _, err := l.Next(); !errors.Is(err, io.EOF) {
				t.Fatalf("frame %d is torn: %v", i, err)
			}
		}
		if err := o.file.Truncate(o.size); err != nil {
			t.Fatal(err)
		}
		want := bytes.Repeat([]byte(fmt.Sprintf("%d,", i)), 300*(i%5)+1)
		o.write(Stderr, append(make([]byte, header), want...))
		f, err := l.Next()
		if err != nil || f.Kind != Stderr || !bytes.Equal(f.Data, want) || time.Since(f.Time) > time.Hour {
			t.Fatalf("frame %d: %+v, %v", i, f, err)
		}
		if l.Place() != o.size {
			t.Fatalf("at byte %d of %d", l.Place(), o.size)
		}
	}
}

// An order is claimed once.
func TestFence(t *testing.T) {
	dir := t.TempDir()
	if _, err := Dial(dir); !errors.Is(err, ErrNone) {
		t.Errorf("nobody: %v", err)
	}
	for _, want := range []bool{true, false} {
		if mine, err := Fence(dir); err != nil || mine != want {
			t.Errorf("%v, %v", mine, err)
		}
	}
	if _, err := Dial(dir); !errors.Is(err, ErrGone) {
		t.Errorf("fenced off: %v", err)
	}
	s, err := Ready()
	if err != nil {
		t.Fatal(err)
	}
	if err := WriteOrder(dir, &Order{Run: "r", Program: "/bin/true", Argv: []string{"true"}, Dir: dir}); err != nil {
		t.Fatal(err)
	}
	w, err := s.Start(dir, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = w.Close() }()
	if _, _, err := w.Next(); !errors.Is(err, ErrNone) {
		t.Errorf("it started what was fenced off: %v", err)
	}
}

func FuzzLog(f *testing.F) {
	whole := AppendFrame(nil, Frame{Kind: Stdout, Time: time.UnixMilli(1), Data: []byte("out")})
	f.Add(whole)
	f.Add(AppendFrame(whole, Frame{Kind: Note, Offset: 3, Data: []byte("note")}))
	f.Add(whole[:len(whole)-1])
	f.Add([]byte{0xff, 0xff, 0xff, 0xff})
	f.Fuzz(func(t *testing.T, b []byte) {
		l := &Log{file: bytes.NewReader(b), buf: make([]byte, 64)}
		var again []byte
		for {
			f, err := l.frame()
			if err != nil {
				break
			}
			again = AppendFrame(again, f)
		}
		if !bytes.HasPrefix(b, again) || int64(len(again)) != l.Place() {
			t.Errorf("%x was read as %x", b, again)
		}
	})
}

// A supervisor that comes late does not take the folder that another attempt has
// been given meanwhile.
func TestLateSupervisor(t *testing.T) {
	dir := t.TempDir()
	s, err := Ready()
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = s.Close() }()
	if err := s.proc.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	order := func() {
		if err := WriteOrder(dir, &Order{Run: "r", Program: "/bin/true", Argv: []string{"true"}, Dir: dir}); err != nil {
			t.Fatal(err)
		}
	}
	order()
	w, err := s.Start(dir, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = w.Close() }()
	order() // of the next attempt
	if err := s.proc.Signal(syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	if _, _, err := w.Next(); !errors.Is(err, ErrNone) {
		t.Errorf("it says: %v", err)
	}
	if _, err := Dial(dir); !errors.Is(err, ErrNone) {
		t.Errorf("the folder is taken: %v", err)
	}
}
