package blob

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"path/filepath"
	"strings"
	"unicode/utf8"

	"github.com/balanceai/balance/exec/task"
	"github.com/balanceai/balance/mesh/wire"
)

// Kinds of entries in a [Tree].
const (
	Regular    Kind = 1
	Executable Kind = 2 // a file whose owner may execute it
	Folder     Kind = 3 // an empty one; others follow from the paths of files
)

// Kind says what an entry is.
type Kind uint8

// File is one entry of a [Tree].
type File struct {
	Path string     `cbor:"1,keyasint"` // with slashes, below the tree's own folder; empty where the tree is one file
	Kind Kind       `cbor:"2,keyasint"`
	Size task.Bytes `cbor:"3,keyasint,omitempty"`
	Hash wire.Hash  `cbor:"4,keyasint,omitzero"` // of the content; zero for a folder
}

// Tree is the listing of a folder, or of one file. Equal content gives equal
// trees: entries are sorted by the bytes of their paths.
//
// As bytes it is the line "balance tree 1\n" and then, for each entry, the
// length of its record in two bytes, the higher one first, and the record in
// the encoding of [wire.Marshal].
type Tree []File

const (
	treeHeader = "balance tree 1\n"

	// maxListing bounds the bytes of a listing, which a hostile machine could
	// else fill with paths as long as they may be. It is enough for some
	// 250,000 files.
	maxListing = 32 << 20
)

// Size returns how many bytes all files of the tree have.
func (t Tree) Size() task.Bytes {
	var n task.Bytes
	for i := range t {
		n += t[i].Size
	}
	return n
}

// encode returns the bytes of a tree.
func (t Tree) encode() ([]byte, error) {
	var c checker
	b := []byte(treeHeader)
	for i := range t {
		if err := c.add(&t[i]); err != nil {
			return nil, err
		}
		record, err := wire.Marshal(&t[i])
		if err != nil {
			return nil, err
		}
		b = binary.BigEndian.AppendUint16(b, uint16(len(record)))
		b = append(b, record...)
	}
	if len(b) > maxListing {
		return nil, fmt.Errorf("%w: a listing of %v", ErrLimit, task.Bytes(len(b)))
	}
	return b, nil
}

// decode reads the bytes of a tree. It refuses every byte form but the one that
// encode gives, every name that [task.CheckPath] refuses, and names that are
// one on a machine that does not tell upper from lower case.
func decode(r io.Reader, limits Limits) (Tree, error) {
	br := bufio.NewReader(io.LimitReader(r, maxListing+1))
	header := make([]byte, len(treeHeader))
	if _, err := io.ReadFull(br, header); err != nil || string(header) != treeHeader {
		return nil, fmt.Errorf("%w: it does not begin as one", ErrForm)
	}
	var t Tree
	var c checker
	var size task.Bytes
	record := make([]byte, math.MaxUint16)
	for {
		b, err := readRecord(br, record)
		if errors.Is(err, io.EOF) {
			return t, nil
		}
		if err != nil {
			return nil, err
		}
		var f File
		if err := wire.Unmarshal(b, &f); err != nil {
			return nil, fmt.Errorf("%w: %w", ErrForm, err)
		}
		if err := c.add(&f); err != nil {
			return nil, err
		}
		if size += f.Size; size > limits.Size || len(t) >= limits.Files {
			return nil, fmt.Errorf("%w: more than %v or %d files", ErrLimit, limits.Size, limits.Files)
		}
		t = append(t, f)
	}
}

// readRecord reads a length and a record into buf. It gives io.EOF only where
// the tree ends.
func readRecord(r io.Reader, buf []byte) ([]byte, error) {
	var length [2]byte
	if _, err := io.ReadFull(r, length[:]); err != nil {
		if errors.Is(err, io.EOF) {
			return nil, err
		}
		return nil, fmt.Errorf("%w: %w", ErrForm, err)
	}
	b := buf[:binary.BigEndian.Uint16(length[:])]
	if _, err := io.ReadFull(r, b); err != nil {
		return nil, fmt.Errorf("%w: cut off", ErrForm)
	}
	return b, nil
}

// checker refuses trees that could not be laid out on every machine as they
// are meant.
type checker struct {
	last  string
	count int
	seen  map[string]place // by path without case
}

// place is a path that is taken.
type place struct {
	path  string
	entry bool // an entry of the tree, so that nothing can be below it
}

func (c *checker) add(f *File) error {
	if err := f.check(); err != nil {
		return err
	}
	if c.count > 0 && (f.Path <= c.last || c.last == "") {
		return fmt.Errorf("%w: %q after %q", ErrForm, f.Path, c.last)
	}
	if c.seen == nil {
		c.seen = map[string]place{}
	}
	for i := range len(f.Path) {
		if f.Path[i] != '/' || strings.HasPrefix(c.last, f.Path[:i+1]) {
			continue
		}
		if err := c.take(place{path: f.Path[:i]}); err != nil {
			return err
		}
	}
	c.count++
	c.last = f.Path
	return c.take(place{path: f.Path, entry: true})
}

func (c *checker) take(p place) error {
	key := strings.ToLower(strings.ToUpper(p.path)) // also one for letters with two lower cases
	old, taken := c.seen[key]
	if taken && (old.path != p.path || old.entry || p.entry) {
		return fmt.Errorf("%w: %q and %q cannot be in one folder", ErrForm, old.path, p.path)
	}
	c.seen[key] = p
	return nil
}

func (f *File) check() error {
	if f.Path != "" {
		if err := task.CheckPath(f.Path); err != nil {
			return fmt.Errorf("%w: %w", ErrForm, err)
		}
		if !utf8.ValidString(f.Path) {
			return fmt.Errorf("%w: path %q is not UTF-8", ErrForm, f.Path)
		}
		if !filepath.IsLocal(filepath.FromSlash(f.Path)) {
			return fmt.Errorf("%w: path %q means something else on this system", ErrForm, f.Path)
		}
	}
	switch {
	case f.Kind == Folder && (f.Path == "" || f.Size != 0 || !f.Hash.IsZero()):
		return fmt.Errorf("%w: folder %q with content", ErrForm, f.Path)
	case f.Kind != Folder && f.Kind != Regular && f.Kind != Executable:
		return fmt.Errorf("%w: %q is of kind %d", ErrForm, f.Path, f.Kind)
	case f.Kind != Folder && f.Hash.IsZero():
		return fmt.Errorf("%w: file %q without a hash", ErrForm, f.Path)
	case f.Size > math.MaxInt64/2:
		return fmt.Errorf("%w: file %q of %v", ErrForm, f.Path, f.Size)
	}
	return nil
}

// Tree returns a listing that is here.
func (s *Store) Tree(h wire.Hash) (Tree, error) {
	return s.load(h, unlimited)
}

// Missing returns the blobs of a tree that are not here.
func (s *Store) Missing(tree wire.Hash) ([]wire.Hash, error) {
	t, err := s.Tree(tree)
	if err != nil {
		return nil, err
	}
	var out []wire.Hash
	for _, f := range s.missing(t) {
		out = append(out, f.Hash)
	}
	return out, nil
}

// missing returns an entry for each blob that is not here.
func (s *Store) missing(t Tree) []File {
	var out []File
	asked := map[wire.Hash]bool{}
	for _, f := range t {
		if f.Kind != Folder && !asked[f.Hash] && !s.has(f.Hash, int64(f.Size)) {
			out = append(out, f)
		}
		asked[f.Hash] = true
	}
	return out
}

// save stores the listing of a tree.
func (s *Store) save(ctx context.Context, t Tree) (wire.Hash, error) {
	b, err := t.encode()
	if err != nil {
		return wire.Hash{}, err
	}
	h, _, err := s.put(ctx, bytes.NewReader(b), maxListing)
	return h, err
}
