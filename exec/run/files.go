package run

import (
	"archive/tar"
	"context"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"syscall"

	"github.com/balanceai/balance/exec/task"
)

// Files writes a file or a folder of a run's work folder to w as a tar archive,
// while the run goes on or as long as the folder is kept. Names in it are relative
// to name, which is "." for itself. A link is the file that it leads to if that is
// in the work folder too, else it is in the archive as a link.
func (r *Runner) Files(ctx context.Context, run, name string, w io.Writer) error {
	if _, err := r.Submitter(ctx, run); err != nil {
		return err
	}
	if err := checkInside(name); err != nil {
		return err
	}
	root, err := os.OpenRoot(filepath.Join(r.folder(run), "work"))
	if err != nil {
		return fmt.Errorf("the work folder of %s is not kept any more: %w", run, cause(err))
	}
	defer root.Close()
	out := tar.NewWriter(w)
	a := archive{root, name, out}
	err = fs.WalkDir(root.FS(), name, func(at string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		return a.add(at, d)
	})
	if err != nil {
		return fmt.Errorf("files of %s: %w", run, err)
	}
	return out.Close()
}

// checkInside refuses what is not plainly in the work folder, or all of it.
func checkInside(name string) error {
	if name == "." {
		return nil
	}
	return task.CheckPath(name)
}

// archive takes files of a folder into a tar archive.
type archive struct {
	root *os.Root
	top  string
	to   *tar.Writer
}

func (a *archive) add(at string, d fs.DirEntry) error {
	name := "."
	if at != a.top {
		name = path.Clean("./" + at[len(a.prefix()):])
	}
	switch {
	case d.IsDir():
		return a.to.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: name, Mode: 0o755})
	case d.Type().IsRegular(), d.Type() == fs.ModeSymlink:
		return a.file(at, name)
	}
	return a.leaveOut(name) // a socket, a pipe
}

func (a *archive) prefix() string {
	if a.top == "." {
		return ""
	}
	return a.top + "/"
}

// file adds a file. What it was may have changed since: a pipe must not hold up
// who opens it.
func (a *archive) file(at, name string) error {
	f, err := a.root.OpenFile(at, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return a.leaveOut(name)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	if !info.Mode().IsRegular() {
		return a.leaveOut(name)
	}
	h := &tar.Header{Typeflag: tar.TypeReg, Name: name, Size: info.Size(), Mode: int64(info.Mode().Perm()), ModTime: info.ModTime()}
	if err := a.to.WriteHeader(h); err != nil {
		return err
	}
	if _, err := io.CopyN(a.to, f, info.Size()); err != nil { // what was added since is left out
		return fmt.Errorf("%s: it became shorter while it was read: %w", at, err)
	}
	return nil
}

// leaveOut tells of what is there and cannot be given.
func (a *archive) leaveOut(name string) error {
	return a.to.WriteHeader(&tar.Header{Typeflag: tar.TypeSymlink, Name: name, Linkname: "."})
}
