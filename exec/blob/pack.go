package blob

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"github.com/balanceai/balance/exec/task"
	"github.com/balanceai/balance/mesh/wire"
)

// Pack stores a file or a folder of this machine and returns what a spec says
// of it; the caller adds where it goes. The path itself may be a link. A link
// in a folder is taken as the file that it leads to when that is in the folder
// too; any other link, and whatever is neither file nor folder, is an error
// that names it.
func (s *Store) Pack(ctx context.Context, name string) (task.Input, error) {
	in, err := s.pack(ctx, name)
	if err != nil {
		return task.Input{}, fmt.Errorf("pack %s: %w", name, err)
	}
	return in, nil
}

func (s *Store) pack(ctx context.Context, name string) (task.Input, error) {
	name, err := filepath.EvalSymlinks(name)
	if err != nil {
		return task.Input{}, err
	}
	info, err := os.Stat(name)
	if err != nil {
		return task.Input{}, err
	}
	in := task.Input{Kind: task.KindFolder}
	folder, base := name, "."
	if !info.IsDir() {
		in.Kind = task.KindFile
		folder, base = filepath.Split(filepath.Clean(name))
		folder = cmp.Or(folder, ".")
	}
	root, err := os.OpenRoot(folder)
	if err != nil {
		return task.Input{}, err
	}
	defer root.Close()
	p := packer{store: s, root: root, limits: unlimited}
	if info.IsDir() {
		err = p.addFolder(ctx, base)
	} else {
		err = p.addFile(ctx, base, "")
	}
	if err != nil {
		return task.Input{}, err
	}
	in.Size = p.size
	in.Tree, err = p.save(ctx)
	return in, err
}

// Outputs are the files that a run leaves.
type Outputs struct {
	Tree    wire.Hash // zero when there are none
	Size    task.Bytes
	Missing []string // a sentence for each output that is not there or cannot be packed
}

// PackOutputs stores the outputs of a run that exist below its work folder. A
// pattern is a path of a file or folder, or one with *, ? or [ as [path.Match]
// has them. The files keep their paths.
func (s *Store) PackOutputs(ctx context.Context, root *os.Root, patterns []string, limits Limits) (Outputs, error) {
	p := packer{store: s, root: root, limits: limits, skip: true}
	for _, pattern := range patterns {
		names, err := match(root, pattern)
		if err != nil {
			return Outputs{}, fmt.Errorf("pack outputs: %w", err)
		}
		if len(names) == 0 {
			p.missing = append(p.missing, pattern+" is not there")
		}
		for _, name := range names {
			if err := p.add(ctx, name); err != nil {
				return Outputs{}, fmt.Errorf("pack outputs: %w", err)
			}
		}
	}
	if len(p.tree) == 0 {
		return Outputs{Missing: p.missing}, nil
	}
	h, err := p.save(ctx)
	if err != nil {
		return Outputs{}, fmt.Errorf("pack outputs: %w", err)
	}
	return Outputs{Tree: h, Size: p.tree.Size(), Missing: p.missing}, nil
}

func match(root *os.Root, pattern string) ([]string, error) {
	if _, err := root.Lstat(pattern); err == nil {
		return []string{pattern}, nil
	}
	names, err := fs.Glob(root.FS(), pattern)
	if err != nil {
		return nil, fmt.Errorf("output %q: %w", pattern, err)
	}
	return names, nil
}

// packer makes a tree of what is below a folder.
type packer struct {
	store   *Store
	root    *os.Root
	limits  Limits
	skip    bool // what cannot be packed is missing, not an error
	tree    Tree
	size    task.Bytes
	missing []string
}

// errKind is wrapped by errors about what has no place in a tree.
var errKind = errors.New("can be neither sent nor brought back")

// add packs a file, or a folder with all that is in it.
func (p *packer) add(ctx context.Context, name string) error {
	info, err := p.root.Lstat(name)
	if err == nil && info.Mode()&fs.ModeSymlink != 0 {
		info, err = p.linked(name)
	}
	if err == nil {
		switch {
		case info.IsDir():
			return p.addFolder(ctx, name)
		case info.Mode().IsRegular():
			err = p.addFile(ctx, name, name)
		default:
			err = fmt.Errorf("%s %w: it is neither a file nor a folder", name, errKind)
		}
	}
	if err != nil && p.skip && !errors.Is(err, ErrLimit) && ctx.Err() == nil {
		p.missing = append(p.missing, err.Error())
		return nil
	}
	return err
}

// linked returns the file behind a link. os.Root follows no link that leaves
// the folder.
func (p *packer) linked(name string) (fs.FileInfo, error) {
	info, err := p.root.Stat(name)
	if err != nil || !info.Mode().IsRegular() {
		return nil, fmt.Errorf("%s %w: it is a link that does not lead to a file in the same folder", name, errKind)
	}
	return info, nil
}

func (p *packer) addFolder(ctx context.Context, name string) error {
	f, err := p.root.Open(name)
	if err != nil {
		return err
	}
	entries, err := f.ReadDir(-1)
	f.Close()
	if err != nil {
		return err
	}
	if len(entries) == 0 && name != "." {
		return p.entry(File{Path: name, Kind: Folder})
	}
	for _, e := range entries {
		if err := p.add(ctx, path.Join(name, e.Name())); err != nil {
			return err
		}
	}
	return nil
}

// addFile packs a file under a name in the tree.
func (p *packer) addFile(ctx context.Context, name, as string) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	f, err := p.root.OpenFile(name, os.O_RDONLY|syscall.O_NONBLOCK, 0) // a pipe that has taken its place must not block
	if err != nil {
		return err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	if !info.Mode().IsRegular() {
		return fmt.Errorf("%s %w: it is no file", name, errKind)
	}
	left := p.limits.Size - p.size
	if task.Bytes(info.Size()) > left {
		return fmt.Errorf("%s: %w", name, ErrLimit)
	}
	h, n, err := p.store.put(ctx, f, int64(min(left, math.MaxInt64)))
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	kind := Regular
	if info.Mode().Perm()&0o100 != 0 {
		kind = Executable
	}
	p.size += task.Bytes(n)
	return p.entry(File{Path: as, Kind: kind, Size: task.Bytes(n), Hash: h})
}

func (p *packer) entry(f File) error {
	if err := f.check(); err != nil {
		return err
	}
	if len(p.tree) >= p.limits.Files {
		return fmt.Errorf("%w: more than %d files", ErrLimit, p.limits.Files)
	}
	p.tree = append(p.tree, f)
	return nil
}

// save sorts the tree and stores it. Patterns may have named a file twice.
func (p *packer) save(ctx context.Context) (wire.Hash, error) {
	byPath := func(a, b File) int { return strings.Compare(a.Path, b.Path) }
	slices.SortFunc(p.tree, byPath)
	p.tree = slices.CompactFunc(p.tree, func(a, b File) bool { return a.Path == b.Path })
	return p.store.save(ctx, p.tree)
}
