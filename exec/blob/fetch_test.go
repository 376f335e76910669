package blob

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/iotest"

	"github.com/balanceai/balance/exec/task"
	"github.com/balanceai/balance/mesh/wire"
)

// source serves the blobs of a store as another machine would.
func source(s *Store) Source {
	return func(_ context.Context, h wire.Hash, offset int64) (io.ReadCloser, error) {
		f, err := s.Open(h)
		if err != nil {
			return nil, err
		}
		_, err = f.Seek(offset, io.SeekStart)
		return f, err
	}
}

func TestFetch(t *testing.T) {
	a, b, from := open(t), open(t), t.TempDir()
	write(t, from, someFiles)
	write(t, from, map[string]string{"copy": someFiles["large"]})
	in := pack(t, a, from)
	n, err := b.Fetch(t.Context(), in.Tree, plenty, source(a))
	if err != nil {
		t.Fatal(err)
	}
	if n < 640_000 || n > 645_000 { // one copy of the large file, and the listing
		t.Errorf("%d bytes came", n)
	}
	if again := pack(t, b, from); again != in {
		t.Errorf("got %+v, want %+v", again, in)
	}
	if n, err := b.Fetch(t.Context(), in.Tree, plenty, nil); n != 0 || err != nil {
		t.Errorf("a second fetch brought %d bytes, %v", n, err)
	}
	left, err := os.ReadDir(filepath.Join(b.dir, partial))
	if err != nil || len(left) != 0 {
		t.Errorf("left over: %v, %v", left, err)
	}
}

// A source that breaks after every few bytes, and does not answer at times.
func TestFetchAfterBreaks(t *testing.T) {
	a, b, from := open(t), open(t), t.TempDir()
	write(t, from, map[string]string{"x": strings.Repeat("0123456789", 1000), "y": "short", "z": strings.Repeat("z", 3000)})
	in := pack(t, a, from)
	var asked atomic.Int64
	broken := errors.New("broken")
	from2 := func(ctx context.Context, h wire.Hash, offset int64) (io.ReadCloser, error) {
		n := asked.Add(1)
		if n%3 == 0 {
			return nil, broken
		}
		r, err := source(a)(ctx, h, offset)
		if err != nil {
			return nil, err
		}
		end := io.MultiReader(io.LimitReader(r, 2000), iotest.ErrReader(broken))
		if n%3 == 1 {
			end = io.LimitReader(r, 2000) // ends as if that were all
		}
		return struct {
			io.Reader
			io.Closer
		}{end, r}, nil
	}
	n, err := b.Fetch(t.Context(), in.Tree, plenty, from2)
	if err != nil {
		t.Fatal(err)
	}
	if n > 14_000 {
		t.Errorf("%d bytes came: it did not go on where it was", n)
	}
	if again := pack(t, b, from); again != in {
		t.Errorf("got %+v, want %+v", again, in)
	}
}

// What an earlier life of the program has left is used; what is wrong is not.
func TestFetchPartial(t *testing.T) {
	for name, left := range map[string]string{"good": "0123456", "whole": "0123456789", "wrong": "xyz", "wrong and whole": "xyzxyzxyzx", "too long": "0123456789a"} {
		a, b, from := open(t), open(t), t.TempDir()
		write(t, from, map[string]string{"x": "0123456789"})
		in := pack(t, a, filepath.Join(from, "x"))
		path := filepath.Join(b.dir, partial, hashOf("0123456789").String())
		if err := os.WriteFile(path, []byte(left), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := b.Fetch(t.Context(), in.Tree, plenty, source(a)); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if missing, err := b.Missing(in.Tree); err != nil || len(missing) != 0 {
			t.Errorf("%s: missing %v, %v", name, missing, err)
		}
	}
}

func TestFetchGivesUp(t *testing.T) {
	a, from := open(t), t.TempDir()
	write(t, from, map[string]string{"x": strings.Repeat("0123456789", 100), "y": "yy"})
	in := pack(t, a, from)
	liar := func(content string) Source {
		return func(ctx context.Context, h wire.Hash, offset int64) (io.ReadCloser, error) {
			if h == in.Tree {
				return source(a)(ctx, h, offset)
			}
			return io.NopCloser(strings.NewReader(content[min(int(offset), len(content)):])), nil
		}
	}
	for name, test := range map[string]struct {
		from   Source
		limits Limits
		want   error
	}{
		"no listing": {func(context.Context, wire.Hash, int64) (io.ReadCloser, error) { return nil, fs.ErrNotExist }, plenty, fs.ErrNotExist},
		"not ours":   {func(context.Context, wire.Hash, int64) (io.ReadCloser, error) { return nil, fs.ErrPermission }, plenty, fs.ErrPermission},
		"not a listing": {func(context.Context, wire.Hash, int64) (io.ReadCloser, error) {
			return io.NopCloser(strings.NewReader("hello")), nil
		}, plenty, ErrMismatch},
		"other content": {liar(strings.Repeat("x", 1000)), plenty, ErrMismatch},
		"endless":       {liar(strings.Repeat("x", 1<<20)), plenty, ErrMismatch},
		"too large":     {source(a), Limits{1001, 10}, ErrLimit},
		"too many":      {source(a), Limits{task.GiB, 1}, ErrLimit},
	} {
		if _, err := open(t).Fetch(t.Context(), in.Tree, test.limits, test.from); !errors.Is(err, test.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
	why := errors.New("the run was cancelled")
	ctx, cancel := context.WithCancelCause(t.Context())
	_, err := open(t).Fetch(ctx, in.Tree, plenty, func(context.Context, wire.Hash, int64) (io.ReadCloser, error) {
		cancel(why)
		return nil, io.ErrUnexpectedEOF
	})
	if !errors.Is(err, why) || !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("cancelled: %v", err)
	}
}

// Two runs that want the same blob at once bring it once.
func TestFetchTogether(t *testing.T) {
	a, b, from := open(t), open(t), t.TempDir()
	write(t, from, map[string]string{"x": strings.Repeat("0123456789", 100_000)})
	in := pack(t, a, from)
	var came atomic.Int64
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			n, err := b.Fetch(t.Context(), in.Tree, plenty, source(a))
			if err != nil {
				t.Error(err)
			}
			came.Add(n)
		})
	}
	wg.Wait()
	if came.Load() > 1_001_000 {
		t.Errorf("%d bytes came", came.Load())
	}
}

// A power cut may leave a blob too short.
func TestShortBlobIsMissing(t *testing.T) {
	a, b, from := open(t), open(t), t.TempDir()
	write(t, from, map[string]string{"x": "content"})
	in := pack(t, a, from)
	if _, err := b.Fetch(t.Context(), in.Tree, plenty, source(a)); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(b.path(hashOf("content")), 0); err != nil {
		t.Fatal(err)
	}
	if err := b.Unpack(t.Context(), in.Tree, openRoot(t, t.TempDir()), "."); !errors.Is(err, ErrMismatch) {
		t.Errorf("unpacked a damaged blob: %v", err)
	}
	if _, err := b.Fetch(t.Context(), in.Tree, plenty, source(a)); err != nil {
		t.Fatal(err)
	}
	if missing, err := b.Missing(in.Tree); err != nil || len(missing) != 0 {
		t.Errorf("missing %v, %v", missing, err)
	}
}
