package blob

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"

	"github.com/balanceai/balance/mesh/wire"
)

// large is content of some parts and a rest.
func large(parts int) []byte {
	b := make([]byte, parts*partSize+12_345)
	r := rand.NewChaCha8([32]byte{byte(parts)})
	_, _ = r.Read(b)
	return b
}

// holder serves content as another machine would, and counts the bytes.
func holder(content []byte, served *atomic.Int64) Holder {
	return func(_ context.Context, _ wire.Hash, offset, n int64) (io.ReadCloser, error) {
		if served != nil {
			served.Add(n)
		}
		return io.NopCloser(bytes.NewReader(content[offset : offset+n])), nil
	}
}

func gathers(t *testing.T, s *Store, content []byte, from ...Holder) int64 {
	t.Helper()
	h := wire.Hash(sha256.Sum256(content))
	n, err := s.Gather(t.Context(), h, int64(len(content)), from)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := os.ReadFile(s.path(h)); err != nil || !bytes.Equal(got, content) {
		t.Fatalf("%d bytes, %v", len(got), err)
	}
	if left, err := os.ReadDir(filepath.Join(s.dir, partial)); err != nil || len(left) != 0 {
		t.Errorf("left over: %v, %v", left, err)
	}
	return n
}

func TestGather(t *testing.T) {
	content := large(9)
	var a, b atomic.Int64
	if n := gathers(t, open(t), content, holder(content, &a), holder(content, &b)); n != int64(len(content)) {
		t.Errorf("%d bytes came of %d", n, len(content))
	}
	if a.Load() == 0 || b.Load() == 0 {
		t.Errorf("one gave %d bytes, the other %d", a.Load(), b.Load())
	}
	for _, size := range []int{0, 1, partSize - 1, partSize, partSize + 1} {
		gathers(t, open(t), content[:size], holder(content, nil))
	}
	s := open(t)
	gathers(t, s, content, holder(content, nil))
	if n := gathers(t, s, content); n != 0 {
		t.Errorf("it came again: %d bytes", n)
	}
}

// Holders that hang do not keep the one waiting that does not.
func TestGatherFromAHolderThatHangs(t *testing.T) {
	content := large(5)
	hangs := func(ctx context.Context, _ wire.Hash, _, _ int64) (io.ReadCloser, error) {
		<-ctx.Done()
		return nil, ctx.Err()
	}
	gathers(t, open(t), content, hangs, holder(content, nil))
	gathers(t, open(t), content, hangs, hangs, hangs, holder(content, nil))
}

func TestGatherFromHoldersThatBreak(t *testing.T) {
	content := large(6)
	var asked atomic.Int64
	broken := func(ctx context.Context, h wire.Hash, offset, n int64) (io.ReadCloser, error) {
		switch asked.Add(1) % 3 {
		case 0:
			return nil, errors.New("broken")
		case 1:
			return holder(content, nil)(ctx, h, offset, n/2)
		}
		return holder(content, nil)(ctx, h, offset, n)
	}
	gone := func(context.Context, wire.Hash, int64, int64) (io.ReadCloser, error) { return nil, fs.ErrNotExist }
	gathers(t, open(t), content, broken, gone)
}

// What has come is not asked for again after a break, in this life or another.
func TestGatherGoesOn(t *testing.T) {
	content := large(7)
	h := wire.Hash(sha256.Sum256(content))
	s := open(t)
	half := func(ctx context.Context, h wire.Hash, offset, n int64) (io.ReadCloser, error) {
		if offset >= 3*partSize {
			return nil, fmt.Errorf("it has not got this: %w", fs.ErrNotExist)
		}
		return holder(content, nil)(ctx, h, offset, n)
	}
	if n, err := s.Gather(t.Context(), h, int64(len(content)), []Holder{half}); n != 3*partSize || !errors.Is(err, fs.ErrNotExist) {
		t.Fatalf("%d bytes came, %v", n, err)
	}
	again, err := Open(s.dir)
	if err != nil {
		t.Fatal(err)
	}
	if n := gathers(t, again, content, holder(content, nil)); n != int64(len(content))-3*partSize {
		t.Errorf("%d bytes came of %d: it did not go on where it was", n, len(content))
	}
}

// Of holders some of which lie, one that does not is enough.
func TestGatherFromLiars(t *testing.T) {
	content := large(6)
	wrong := bytes.Clone(content)
	wrong[5*partSize] ^= 1
	gathers(t, open(t), content, holder(wrong, nil), holder(content, nil))
	s := open(t)
	_, err := s.Gather(t.Context(), sha256.Sum256(content), int64(len(content)), []Holder{holder(wrong, nil), holder(wrong, nil)})
	if !errors.Is(err, ErrMismatch) {
		t.Errorf("from liars alone: %v", err)
	}
	if left, err := os.ReadDir(filepath.Join(s.dir, partial)); err != nil || len(left) != 0 {
		t.Errorf("left over: %v, %v", left, err)
	}
}

func TestGatherEnds(t *testing.T) {
	content := large(2)
	h := wire.Hash(sha256.Sum256(content))
	if _, err := open(t).Gather(t.Context(), h, int64(len(content)), nil); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("from nobody: %v", err)
	}
	ctx, cancel := context.WithCancelCause(t.Context())
	why := errors.New("enough")
	hangs := func(ctx context.Context, _ wire.Hash, _, _ int64) (io.ReadCloser, error) {
		cancel(why)
		<-ctx.Done()
		return nil, ctx.Err()
	}
	if _, err := open(t).Gather(ctx, h, int64(len(content)), []Holder{hangs}); !errors.Is(err, why) {
		t.Errorf("cancelled: %v", err)
	}
}
