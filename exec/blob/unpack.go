package blob

import (
	"context"
	"fmt"
	"io/fs"
	"os"
	"path"

	"github.com/balanceai/balance/mesh/wire"
)

// Unpack lays out a tree whose blobs are all here, below root. A tree that is
// one file becomes the file at; a folder's content goes into the folder at, "."
// for root itself. It makes files and folders alone, never replaces a file, and
// leaves what it has made when it fails.
func (s *Store) Unpack(ctx context.Context, tree wire.Hash, root *os.Root, at string) error {
	if err := s.unpack(ctx, tree, root, at); err != nil {
		return fmt.Errorf("unpack %s: %w", at, err)
	}
	return nil
}

func (s *Store) unpack(ctx context.Context, tree wire.Hash, root *os.Root, at string) error {
	t, err := s.Tree(tree)
	if err != nil {
		return err
	}
	if len(t) == 0 || t[0].Path != "" {
		if err := root.MkdirAll(at, 0o755); err != nil {
			return err
		}
	}
	made := "" // the folder of the last file
	for i := range t {
		name := path.Join(at, t[i].Path)
		folder := path.Dir(name)
		if t[i].Kind == Folder {
			folder = name
		}
		if folder != made {
			if err := root.MkdirAll(folder, 0o755); err != nil {
				return err
			}
			made = folder
		}
		if t[i].Kind == Folder {
			continue
		}
		if err := s.unpackFile(ctx, &t[i], root, name); err != nil {
			return err
		}
	}
	return nil
}

func (s *Store) unpackFile(ctx context.Context, f *File, root *os.Root, name string) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	from, err := s.Open(f.Hash)
	if err != nil {
		return err
	}
	defer from.Close()
	mode := fs.FileMode(0o644)
	if f.Kind == Executable {
		mode = 0o755
	}
	to, err := root.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, mode)
	if err != nil {
		return err
	}
	defer to.Close()
	n, err := copyUpTo(ctx, to, from, int64(f.Size))
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	if n != int64(f.Size) {
		return fmt.Errorf("%s: blob %s has %d bytes instead of %d: %w", name, f.Hash, n, f.Size, ErrMismatch)
	}
	return to.Close()
}
