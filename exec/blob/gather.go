package blob

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/balanceai/balance/mesh/wire"
)

// Holder reads n bytes of a blob of another machine from an offset on. The
// reader must end when ctx does. Errors that wrap fs.ErrNotExist or
// fs.ErrPermission are final.
type Holder func(ctx context.Context, h wire.Hash, offset, n int64) (io.ReadCloser, error)

const (
	partSize  = 4 << 20 // bytes that are asked of a holder at a time
	perHolder = 2       // parts that one holder is asked for at a time, so that it need not wait for the next request
	maxBroken = 5       // failures in a row after which a holder is left alone
)

// Gather brings one large blob from all machines that hold it at once, a part
// of it from whichever is free next, so that each gives what it can. It returns
// how many bytes came.
//
// It goes on after breaks where it was, also in a later call. The whole is
// verified by its hash, while it comes. If a holder has sent something else,
// nobody can tell which one did: then each is asked alone, the first ones first.
func (s *Store) Gather(ctx context.Context, h wire.Hash, size int64, from []Holder) (int64, error) {
	came, err := s.gather(ctx, h, size, from)
	if err != nil {
		err = fmt.Errorf("gather blob %s: %w", h, err)
	}
	return came, err
}

func (s *Store) gather(ctx context.Context, h wire.Hash, size int64, from []Holder) (int64, error) {
	release, err := s.claim(ctx, h)
	if err != nil {
		return 0, err
	}
	defer release()
	if s.has(h, size) {
		return 0, nil
	}
	if len(from) == 0 {
		return 0, fs.ErrNotExist
	}
	sets := [][]Holder{from}
	if len(from) > 1 {
		for i := range from {
			sets = append(sets, from[i:i+1])
		}
	}
	var came int64
	for _, set := range sets {
		var n int64
		n, err = s.gatherFrom(ctx, h, size, set)
		came += n
		if !errors.Is(err, ErrMismatch) {
			break
		}
	}
	return came, err
}

// Gathered returns how many bytes of a blob that is being gathered are here.
func (s *Store) Gathered(h wire.Hash) int64 {
	marks, _ := os.ReadFile(s.partial(h) + ".marks") // none there: nothing has come
	return int64(bytes.Count(marks, []byte{1})) * partSize
}

func (s *Store) partial(h wire.Hash) string { return filepath.Join(s.dir, partial, h.String()) }

// gatherFrom brings a blob from holders that are all believed. What does not
// match its hash is thrown away.
func (s *Store) gatherFrom(ctx context.Context, h wire.Hash, size int64, from []Holder) (int64, error) {
	g, err := s.openGathering(h, size)
	if err != nil {
		return 0, err
	}
	defer g.close()
	err = g.run(ctx, from)
	switch {
	case err != nil:
		return g.came, err
	case wire.Hash(g.sum.Sum(nil)) != h:
		return g.came, errors.Join(ErrMismatch, os.Remove(g.marks.Name()), os.Remove(g.file.Name()))
	}
	return g.came, errors.Join(s.commit(g.file, h), os.Remove(g.marks.Name()))
}

// gathering is a blob of which parts have come. The parts are on disk under the
// blob's hash; a file beside it has a byte for each part, 1 if it is there.
type gathering struct {
	hash  wire.Hash
	size  int64
	file  *os.File
	marks *os.File
	sum   hash.Hash // of the parts before the first that is missing

	mu    sync.Mutex
	grown *sync.Cond // a part has come, or nobody brings any more
	parts []part
	came  int64
	ended bool
}

// part is a part of the blob.
type part struct {
	here  bool
	asked []int // holders that are being asked for it
}

func (s *Store) openGathering(h wire.Hash, size int64) (*gathering, error) {
	name := s.partial(h)
	g := &gathering{hash: h, size: size, sum: sha256.New(), parts: make([]part, (size+partSize-1)/partSize)}
	g.grown = sync.NewCond(&g.mu)
	var err error
	if g.file, err = os.OpenFile(name+".parts", os.O_RDWR|os.O_CREATE, 0o600); err != nil {
		return nil, err
	}
	if g.marks, err = os.OpenFile(name+".marks", os.O_RDWR|os.O_CREATE, 0o600); err != nil {
		g.file.Close()
		return nil, err
	}
	marks := make([]byte, len(g.parts))
	if _, err := g.marks.ReadAt(marks, 0); err != nil && !errors.Is(err, io.EOF) {
		g.close()
		return nil, err
	}
	for i, m := range marks {
		g.parts[i].here = m == 1
	}
	return g, nil
}

func (g *gathering) close() {
	g.file.Close() // may be closed already, by its commit
	g.marks.Close()
}

// run brings what is missing. Without an error every part is there and in sum.
func (g *gathering) run(ctx context.Context, from []Holder) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var holders sync.WaitGroup
	failed := make([]error, len(from)*perHolder)
	for i, holder := range from {
		for j := range perHolder {
			holders.Go(func() { failed[i*perHolder+j] = g.pull(ctx, i, holder) })
		}
	}
	go func() {
		holders.Wait()
		g.mu.Lock()
		g.ended = true
		g.grown.Broadcast()
		g.mu.Unlock()
	}()
	err := g.digest()
	cancel(err)
	holders.Wait()
	if err == nil {
		return nil
	}
	if cause := context.Cause(ctx); !errors.Is(cause, err) {
		return cause
	}
	return errors.Join(append([]error{err}, failed...)...)
}

// errMissing says that nobody brings what is missing.
var errMissing = errors.New("parts are missing")

// digest takes the parts into sum, in their order and as they come.
func (g *gathering) digest() error {
	for i := range g.parts {
		g.mu.Lock()
		for !g.parts[i].here && !g.ended {
			g.grown.Wait()
		}
		here := g.parts[i].here
		g.mu.Unlock()
		if !here {
			return errMissing
		}
		offset, n := g.bounds(i)
		if _, err := io.Copy(g.sum, io.NewSectionReader(g.file, offset, n)); err != nil {
			return err
		}
	}
	return nil
}

// bounds says where a part is.
func (g *gathering) bounds(i int) (offset, n int64) {
	offset = int64(i) * partSize
	return offset, min(partSize, g.size-offset)
}

// pull brings parts from one holder, of which it is given the number, until there is
// nothing left for it to do.
func (g *gathering) pull(ctx context.Context, holder int, from Holder) error {
	buf := make([]byte, min(partSize, g.size))
	backoff := firstBackoff
	for broken := 0; ; {
		i, ok := g.next(holder)
		if !ok {
			return nil
		}
		offset, n := g.bounds(i)
		err := read(ctx, buf[:n], from, g.hash, offset)
		if err = g.put(i, holder, buf[:n], err); err == nil {
			broken, backoff = 0, firstBackoff
			continue
		}
		if broken++; ctx.Err() != nil || broken == maxBroken || errors.Is(err, fs.ErrNotExist) || errors.Is(err, fs.ErrPermission) {
			return err
		}
		select {
		case <-time.After(backoff):
			backoff = min(2*backoff, maxBackoff)
		case <-ctx.Done():
			return err
		}
	}
}

func read(ctx context.Context, buf []byte, from Holder, h wire.Hash, offset int64) error {
	r, err := from(ctx, h, offset, int64(len(buf)))
	if err != nil {
		return err
	}
	defer r.Close()
	_, err = io.ReadFull(r, buf)
	return err
}

// next returns the first part that nobody is asked for. When there is none it
// returns one for which the fewest others are, who may be slow or may hang: whoever
// is first counts.
func (g *gathering) next(holder int) (int, bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	best := -1
	for i := range g.parts {
		p := &g.parts[i]
		if !p.here && !slices.Contains(p.asked, holder) && (best < 0 || len(p.asked) < len(g.parts[best].asked)) {
			best = i
		}
	}
	if best < 0 {
		return 0, false
	}
	g.parts[best].asked = append(g.parts[best].asked, holder)
	return best, true
}

// put keeps a part that has come without an error, and says what went wrong.
func (g *gathering) put(i, holder int, b []byte, err error) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	p := &g.parts[i]
	p.asked = slices.DeleteFunc(p.asked, func(n int) bool { return n == holder })
	if err != nil || p.here {
		return err
	}
	offset, _ := g.bounds(i)
	if _, err := g.file.WriteAt(b, offset); err != nil {
		return err
	}
	if _, err := g.marks.WriteAt([]byte{1}, int64(i)); err != nil {
		return err
	}
	p.here = true
	g.came += int64(len(b))
	g.grown.Broadcast()
	return nil
}
