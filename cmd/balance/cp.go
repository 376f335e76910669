package main

import (
	"archive/tar"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"net/url"
	"os"
	"path"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"
)

func (a *app) cpCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "cp RUN:PATH [DEST]",
		Short: "Copy a file or folder out of the work folder of a run, also while it runs",
		Long: "Copy a file or folder out of the work folder of a run, while it runs and as long as its machine keeps it.\n\n" +
			"DEST is a folder to copy into, or the new name; the current folder if not given. RUN:. is all of the work folder.",
		Example: "  balance cp @last:model/weights.bin\n  balance cp r-k3x:. /tmp/all",
		Args:    cobra.RangeArgs(1, 2),
		RunE: func(cmd *cobra.Command, args []string) error {
			run, from, ok := strings.Cut(args[0], ":")
			if !ok || run == "" || from == "" {
				return fail("usage", "for example: balance cp @last:results.csv", "say RUN:PATH, not %q", args[0])
			}
			dest := "."
			if len(args) > 1 {
				dest = args[1]
			}
			from = path.Clean(from)
			name := path.Base(from)
			if from == "." {
				name = strings.TrimPrefix(run, "@")
			}
			return a.copyOut(cmd.Context(), run, from, target(dest, name))
		},
	}
}

// target is what a copy is called: in a folder that is there it has its own name.
func target(dest, name string) string {
	if info, err := os.Stat(dest); err == nil && info.IsDir() {
		return filepath.Join(dest, name)
	}
	return filepath.Clean(dest)
}

// copied is the answer of balance cp.
type copied struct {
	Path  string `json:"path"`
	Files int    `json:"files"`
	Bytes int64  `json:"bytes"`

	LeftOut []string `json:"left_out,omitempty"` // links that lead out of the work folder, sockets and the like
}

func (a *app) copyOut(ctx context.Context, run, from, to string) error {
	resp, err := a.client.do(ctx, http.MethodGet, runPath(run, "/files")+"?path="+url.QueryEscape(from), nil)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	done, err := unpackTar(resp.Body, to)
	if err != nil {
		return fmt.Errorf("copy %s: %w", from, err)
	}
	for _, name := range done.LeftOut {
		a.print.say("left out: %s is neither a file nor a folder of the run", clean(name, false))
	}
	return a.print.answer(done, func(w io.Writer) error { _, err := fmt.Fprintln(w, done.Path); return err })
}

// unpackTar lays out an archive of a machine as to, and nothing beside it.
func unpackTar(in io.Reader, to string) (copied, error) {
	done := copied{Path: to}
	root, err := os.OpenRoot(cmp.Or(filepath.Dir(to), "."))
	if err != nil {
		return done, err
	}
	defer root.Close()
	base := filepath.Base(to)
	for r := tar.NewReader(in); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return done, nil
		}
		if err != nil {
			return done, err
		}
		if !filepath.IsLocal(h.Name) {
			return done, fmt.Errorf("the machine names a file %q, which leaves its folder", h.Name)
		}
		name := filepath.Join(base, filepath.FromSlash(h.Name))
		switch h.Typeflag {
		case tar.TypeDir:
			err = root.MkdirAll(name, 0o777)
		case tar.TypeReg:
			done.Files++
			done.Bytes += h.Size
			err = writeFile(root, name, h, r)
		default:
			done.LeftOut = append(done.LeftOut, h.Name)
		}
		if err != nil {
			return done, err
		}
	}
}

func writeFile(root *os.Root, name string, h *tar.Header, r io.Reader) error {
	f, err := root.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o666&fs.FileMode(h.Mode)|0o600|0o111&fs.FileMode(h.Mode))
	if err != nil {
		return err
	}
	_, err = io.Copy(f, r)
	return errors.Join(err, f.Close())
}
