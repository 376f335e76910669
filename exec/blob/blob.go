// Package blob keeps files by the hash of their content, and folders of files
// as listings of such hashes. It is how inputs travel to the machine that runs
// and how outputs come back.
//
// A blob is a file named by its SHA-256. It is written under another name and
// renamed when its content is verified, so a blob that is there is whole. A
// [Tree] is the listing of a file or a folder; it is a blob itself, and its
// hash stands for all that is in it. A tree has files and folders alone: no
// links, no devices, no owners, no times.
//
// What comes from another machine is hostile until it is verified: content by
// its hash, names by [task.CheckPath] and again by os.Root, amounts by the
// caller's [Limits].
//
// Blobs are not synced to disk. A power cut may leave one too short; the
// listing has its size, so it then counts as missing.
package blob

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/balanceai/balance/exec/task"
	"github.com/balanceai/balance/mesh/wire"
)

// Limits bound a tree that somebody else made.
type Limits struct {
	Size  task.Bytes // of all its files
	Files int        // and empty folders
}

// unlimited is for trees that were made or checked here.
var unlimited = Limits{math.MaxInt64, math.MaxInt}

// Errors for errors.Is.
var (
	ErrLimit    = errors.New("larger than allowed")
	ErrMismatch = errors.New("content does not match its hash")
	ErrForm     = errors.New("not a tree that any machine can hold")
)

// partial is the folder of files that are being written: blobs that are being
// fetched by their hash, others by a random name.
const partial = "partial"

// Store is a folder of blobs. It is safe for concurrent use, also by several
// programs of which one fetches.
type Store struct {
	dir string

	mu   sync.Mutex
	busy map[wire.Hash]chan struct{} // being fetched; closed when that ends
}

// Open opens the store in a folder, which it makes (0700) when it is not there.
func Open(dir string) (*Store, error) {
	if err := os.MkdirAll(filepath.Join(dir, partial), 0o700); err != nil {
		return nil, fmt.Errorf("open blobs: %w", err)
	}
	for i := range 256 {
		if err := os.Mkdir(filepath.Join(dir, fmt.Sprintf("%02x", i)), 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
			return nil, fmt.Errorf("open blobs: %w", err)
		}
	}
	return &Store{dir: dir, busy: map[wire.Hash]chan struct{}{}}, nil
}

func (s *Store) path(h wire.Hash) string {
	name := h.String()
	return filepath.Join(s.dir, name[:2], name)
}

// Open opens a blob to be read. One that is not there gives fs.ErrNotExist.
func (s *Store) Open(h wire.Hash) (*os.File, error) {
	f, err := os.Open(s.path(h))
	if err != nil {
		return nil, fmt.Errorf("open blob: %w", err)
	}
	return f, nil
}

// has reports whether a blob of a size is there, and marks it as used. An
// unknown size is negative.
func (s *Store) has(h wire.Hash, size int64) bool {
	info, err := os.Stat(s.path(h))
	if err != nil || size >= 0 && info.Size() != size {
		return false
	}
	now := time.Now()
	_ = os.Chtimes(s.path(h), now, now) // only Prune looks at it
	return true
}

// small is how much of a file is read before it is known whether the blob is
// there already.
const small = 256 << 10

// put stores what r gives, at most limit bytes.
func (s *Store) put(ctx context.Context, r io.Reader, limit int64) (wire.Hash, int64, error) {
	head, err := io.ReadAll(io.LimitReader(r, small))
	if err != nil {
		return wire.Hash{}, 0, err
	}
	if len(head) < small {
		if h := wire.Hash(sha256.Sum256(head)); s.has(h, int64(len(head))) {
			return h, int64(len(head)), nil
		}
	}
	f, err := os.CreateTemp(filepath.Join(s.dir, partial), "put-*")
	if err != nil {
		return wire.Hash{}, 0, err
	}
	defer os.Remove(f.Name()) // fails once it is renamed
	defer f.Close()
	sum := sha256.New()
	n, err := copyUpTo(ctx, io.MultiWriter(sum, f), io.MultiReader(bytes.NewReader(head), r), limit)
	if err != nil {
		return wire.Hash{}, 0, err
	}
	h := wire.Hash(sum.Sum(nil))
	return h, n, s.commit(f, h)
}

// commit gives a file that holds the content of h its name.
func (s *Store) commit(f *os.File, h wire.Hash) error {
	if err := f.Close(); err != nil {
		return err
	}
	return os.Rename(f.Name(), s.path(h))
}

// copyUpTo copies until r or ctx ends. It fails with [ErrLimit] where there is
// more than limit bytes. Between two files the system may share the content
// instead of copying it.
func copyUpTo(ctx context.Context, w io.Writer, r io.Reader, limit int64) (int64, error) {
	const step = 16 << 20
	var done int64
	for {
		n, err := io.CopyN(w, r, min(step, limit-done)+1)
		done += n
		switch {
		case done > limit:
			return done, ErrLimit
		case errors.Is(err, io.EOF):
			return done, nil
		case err != nil:
			return done, err
		case ctx.Err() != nil:
			return done, context.Cause(ctx)
		}
	}
}

// load reads a listing and verifies it.
func (s *Store) load(h wire.Hash, limits Limits) (Tree, error) {
	f, err := s.Open(h)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	sum := sha256.New()
	t, err := decode(io.TeeReader(f, sum), limits)
	if err != nil {
		return nil, fmt.Errorf("listing %s: %w", h, err)
	}
	if wire.Hash(sum.Sum(nil)) != h {
		return nil, fmt.Errorf("listing %s: %w", h, ErrMismatch)
	}
	return t, nil
}

// Prune removes the blobs that were last used before a time and are not kept, and
// what was left half written then.
func (s *Store) Prune(ctx context.Context, before time.Time) error {
	list, err := s.Kept()
	if err != nil {
		return err
	}
	spare := map[string]bool{}
	for _, k := range list {
		spare[s.path(k.Hash)] = true
		spare[filepath.Join(s.dir, kept, k.Hash.String())] = true
	}
	return filepath.WalkDir(s.dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || spare[path] {
			return err
		}
		info, err := d.Info()
		if err == nil && info.ModTime().Before(before) {
			err = os.Remove(path)
		}
		if errors.Is(err, fs.ErrNotExist) { // somebody else removed or renamed it
			err = nil
		}
		return errors.Join(err, ctx.Err())
	})
}
