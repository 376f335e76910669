package blob

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/balanceai/balance/exec/task"
	"github.com/balanceai/balance/mesh/wire"
)

// Kept is a file that somebody wants here whether or not a run needs it, such as
// the weights of a model. Other blobs are removed some time after their last
// use.
type Kept struct {
	Name string     `json:"name"`
	Hash wire.Hash  `json:"sha256"`
	Size task.Bytes `json:"size"`
	To   []string   `json:"to,omitempty"`  // owners besides the machine's own who may have it; "*" for all
	Own  bool       `json:"own"`           // put here by a person: never removed to save space
	Used time.Time  `json:"used,omitzero"` // last put, brought or asked for here
}

// kept is the folder that has a file for each [Kept], named by its hash.
const kept = "kept"

// maxName bounds the name of a kept file, in bytes.
const maxName = 200

// CheckName refuses what cannot be the name of a kept file on every machine and
// every terminal.
func CheckName(name string) error {
	odd := func(r rune) bool { return !unicode.IsGraphic(r) || r == '/' || r == '\\' }
	if name == "" || len(name) > maxName || !utf8.ValidString(name) || strings.ContainsFunc(name, odd) || name[0] == '.' {
		return fmt.Errorf("file name %.80q: want up to %d bytes, no slashes, no dot at the start", name, maxName)
	}
	return nil
}

// Add stores a file and keeps it.
func (s *Store) Add(ctx context.Context, path, name string, to []string) (Kept, error) {
	k, err := s.add(ctx, path, name, to)
	if err != nil {
		return Kept{}, fmt.Errorf("keep %s: %w", path, err)
	}
	return k, nil
}

func (s *Store) add(ctx context.Context, path, name string, to []string) (Kept, error) {
	f, err := os.Open(path)
	if err != nil {
		return Kept{}, err
	}
	defer f.Close()
	info, err := f.Stat()
	switch {
	case err != nil:
		return Kept{}, err
	case !info.Mode().IsRegular() || info.Size() == 0:
		return Kept{}, errors.New("want a file that is not empty")
	}
	h, n, err := s.put(ctx, f, int64(unlimited.Size))
	if err != nil {
		return Kept{}, err
	}
	k := Kept{Name: cmp.Or(name, filepath.Base(path)), Hash: h, Size: task.Bytes(n), To: to, Own: true}
	return k, s.Keep(k)
}

// Keep notes that a blob that is here is kept.
func (s *Store) Keep(k Kept) error {
	if err := CheckName(k.Name); err != nil {
		return err
	}
	if !s.has(k.Hash, int64(k.Size)) {
		return fmt.Errorf("keep %s: %w", k.Name, fs.ErrNotExist)
	}
	b, err := json.Marshal(k)
	if err != nil {
		return err
	}
	dir := filepath.Join(s.dir, kept)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	f, err := os.CreateTemp(dir, "new-*")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name()) // fails once it is renamed
	_, err = f.Write(b)
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	return os.Rename(f.Name(), filepath.Join(dir, k.Hash.String()))
}

// Kept returns what is kept and here, by name. A file whose blob was damaged or
// taken away does not count.
func (s *Store) Kept() ([]Kept, error) {
	entries, err := os.ReadDir(filepath.Join(s.dir, kept))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("read what is kept: %w", err)
	}
	var list []Kept
	for _, e := range entries {
		h, err := wire.ParseHash(e.Name())
		if err != nil {
			continue // half written
		}
		if k, ok := s.Find(h); ok {
			list = append(list, k)
		}
	}
	slices.SortFunc(list, func(a, b Kept) int { return cmp.Or(cmp.Compare(a.Name, b.Name), slices.Compare(a.Hash[:], b.Hash[:])) })
	return list, nil
}

// Find returns the kept file of a hash.
func (s *Store) Find(h wire.Hash) (Kept, bool) {
	b, err := os.ReadFile(filepath.Join(s.dir, kept, h.String()))
	var k Kept
	if err != nil || json.Unmarshal(b, &k) != nil || k.Hash != h {
		return Kept{}, false
	}
	info, err := os.Stat(s.path(h))
	if err != nil || info.Size() != int64(k.Size) {
		return Kept{}, false
	}
	k.Used = info.ModTime()
	return k, true
}

// Path returns where the content of a kept file is, to be read, and notes that it
// is used.
func (s *Store) Path(k Kept) string {
	s.has(k.Hash, int64(k.Size))
	return s.path(k.Hash)
}

// Unkeep forgets a kept file and removes its blob.
func (s *Store) Unkeep(h wire.Hash) error {
	if err := os.Remove(filepath.Join(s.dir, kept, h.String())); err != nil {
		return fmt.Errorf("forget a kept file: %w", err)
	}
	if err := os.Remove(s.path(h)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove a kept file: %w", err)
	}
	return nil
}

// Trim removes kept files that were brought and not put here by a person, those
// used the longest ago first, until what is kept needs no more than budget. Those
// in use stay; what runs have as inputs they have copies of. It returns what was
// removed.
func (s *Store) Trim(budget task.Bytes, used func(wire.Hash) bool) ([]Kept, error) {
	list, err := s.Kept()
	if err != nil {
		return nil, err
	}
	var sum task.Bytes
	for _, k := range list {
		sum += k.Size
	}
	slices.SortStableFunc(list, func(a, b Kept) int { return a.Used.Compare(b.Used) })
	var gone []Kept
	for _, k := range list {
		if sum <= budget {
			break
		}
		if k.Own || used(k.Hash) {
			continue
		}
		if err := s.Unkeep(k.Hash); err != nil {
			return gone, err
		}
		sum -= k.Size
		gone = append(gone, k)
	}
	return gone, nil
}
