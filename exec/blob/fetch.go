package blob

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"os"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/balanceai/balance/mesh/wire"
)

// Source reads a blob of another machine from an offset on. The reader must end
// when ctx does. Errors that wrap fs.ErrNotExist or fs.ErrPermission are final;
// after others the blob is asked for again.
type Source func(ctx context.Context, h wire.Hash, offset int64) (io.ReadCloser, error)

// How a fetch goes on after a break.
const (
	atOnce       = 4 // blobs
	firstBackoff = 50 * time.Millisecond
	maxBackoff   = 5 * time.Second
)

// Fetch brings a tree: its listing and every blob that is missing, and verifies
// them. It returns how many bytes came. It goes on after breaks where it was,
// also in a later call, and gives up when ctx ends, the tree exceeds its
// limits, the source has not got what it should or sends something else, or
// this machine cannot store it.
func (s *Store) Fetch(ctx context.Context, tree wire.Hash, limits Limits, from Source) (int64, error) {
	var came atomic.Int64
	err := s.fetch(ctx, tree, limits, from, &came)
	if err != nil {
		err = fmt.Errorf("fetch tree %s: %w", tree, err)
	}
	return came.Load(), err
}

func (s *Store) fetch(ctx context.Context, tree wire.Hash, limits Limits, from Source, came *atomic.Int64) error {
	if err := s.fetchBlob(ctx, tree, unknown, from, came); err != nil {
		return err
	}
	t, err := s.load(tree, limits)
	if err != nil {
		return err
	}
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(atOnce)
	for _, f := range s.missing(t) {
		group.Go(func() error { return s.fetchBlob(ctx, f.Hash, int64(f.Size), from, came) })
	}
	return group.Wait()
}

// unknown is the size of a listing.
const unknown = -1

// fetchBlob brings one blob.
func (s *Store) fetchBlob(ctx context.Context, h wire.Hash, size int64, from Source, came *atomic.Int64) error {
	release, err := s.claim(ctx, h)
	if err != nil {
		return err
	}
	defer release()
	if s.has(h, size) {
		return nil
	}
	d, err := s.download(h, size)
	if err != nil {
		return err
	}
	defer d.file.Close()
	backoff := firstBackoff
	for again := false; ; {
		n, err := d.pull(ctx, from)
		came.Add(n)
		if err == nil {
			if d.verified() {
				return s.commit(d.file, h)
			}
			err = fmt.Errorf("blob %s: %w", h, ErrMismatch)
			// What an earlier call left may have been damaged: once more from the start.
			if err2 := d.restart(); again || err2 != nil {
				return errors.Join(err, err2)
			}
			again = true
			continue
		}
		if d.final(err) {
			return err
		}
		if n > 0 {
			backoff = firstBackoff
		}
		select {
		case <-time.After(backoff):
			backoff = min(2*backoff, maxBackoff)
		case <-ctx.Done():
			return fmt.Errorf("%w (last: %w)", context.Cause(ctx), err)
		}
	}
}

// claim waits until nobody else fetches a blob.
func (s *Store) claim(ctx context.Context, h wire.Hash) (release func(), err error) {
	for {
		s.mu.Lock()
		other, taken := s.busy[h]
		if !taken {
			mine := make(chan struct{})
			s.busy[h] = mine
			s.mu.Unlock()
			return func() {
				s.mu.Lock()
				delete(s.busy, h)
				s.mu.Unlock()
				close(mine)
			}, nil
		}
		s.mu.Unlock()
		select {
		case <-other:
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
}

// download is a blob of which a part has come. The part stays on disk under the
// blob's hash.
type download struct {
	hash   wire.Hash
	size   int64 // or unknown
	file   *os.File
	sum    hash.Hash // of the part
	have   int64     // length of the part
	failed error     // to write it
}

// download opens what an earlier call has left of a blob.
func (s *Store) download(h wire.Hash, size int64) (*download, error) {
	f, err := os.OpenFile(s.partial(h), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	d := &download{hash: h, size: size, file: f, sum: sha256.New()}
	if d.have, err = io.Copy(d.sum, f); err != nil {
		f.Close()
		return nil, err
	}
	return d, nil
}

func (d *download) verified() bool { return wire.Hash(d.sum.Sum(nil)) == d.hash }

func (d *download) restart() error {
	d.sum.Reset()
	d.have = 0
	if _, err := d.file.Seek(0, io.SeekStart); err != nil {
		return err
	}
	return d.file.Truncate(0)
}

// Write appends to the part.
func (d *download) Write(p []byte) (int, error) {
	n, err := d.file.Write(p)
	d.sum.Write(p[:n])
	d.have += int64(n)
	d.failed = err
	return n, err
}

// pull reads what is left of the blob. Without an error, all of it is here or
// more than there should be.
func (d *download) pull(ctx context.Context, from Source) (int64, error) {
	limit := d.size
	if limit == unknown {
		limit = maxListing
	}
	if d.verified() || d.have >= limit {
		return 0, nil
	}
	r, err := from(ctx, d.hash, d.have)
	if err != nil {
		return 0, fmt.Errorf("blob %s: %w", d.hash, err)
	}
	defer r.Close()
	n, err := copyUpTo(ctx, d, r, limit-d.have)
	switch {
	case errors.Is(err, ErrLimit):
		return n, nil
	case err != nil:
		return n, fmt.Errorf("blob %s: %w", d.hash, err)
	case d.size != unknown && d.have < d.size:
		return n, fmt.Errorf("blob %s: %w after %d of %d bytes", d.hash, io.ErrUnexpectedEOF, d.have, d.size)
	}
	return n, nil
}

// final reports whether to ask again is of no use.
func (d *download) final(err error) bool {
	return d.failed != nil || errors.Is(err, fs.ErrNotExist) || errors.Is(err, fs.ErrPermission)
}
