package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/balanceai/balance/exec/agent"
	"github.com/balanceai/balance/mesh/wire"
)

// maxFetched bounds what is read of one file of an agent on a web server.
const maxFetched = 256 << 20

// install puts an agent into the agents folder of the home: from a folder or a
// manifest of this machine, or from a URL. An agent of that name makes way.
func (a *app) install(ctx context.Context, from, digest string) (*agent.Manifest, error) {
	if err := os.MkdirAll(a.home.path(agentsDir), 0o700); err != nil {
		return nil, err
	}
	part, err := os.MkdirTemp(a.home.path(agentsDir), ".new-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(part)
	m, err := a.copyAgent(ctx, from, digest, part)
	if err != nil {
		return nil, err
	}
	final, old := a.home.path(agentsDir+"/"+m.Name), part+"-old"
	if err := os.Rename(final, old); err == nil {
		defer os.RemoveAll(old)
	}
	return m, os.Rename(part, final)
}

// copyAgent copies a manifest and its inputs into a folder.
func (a *app) copyAgent(ctx context.Context, from, digest, to string) (*agent.Manifest, error) {
	isURL := strings.HasPrefix(from, "https://") || strings.HasPrefix(from, "http://")
	manifest := from
	if info, err := os.Stat(from); err == nil && info.IsDir() {
		manifest = filepath.Join(from, agent.FileName)
	}
	open := func(name string) (io.ReadCloser, error) {
		if isURL {
			return fetchBeside(ctx, from, name)
		}
		return os.Open(filepath.Join(filepath.Dir(manifest), name))
	}
	base := path.Base(filepath.ToSlash(manifest))
	if err := copyInto(filepath.Join(to, agent.FileName), func() (io.ReadCloser, error) { return open(base) }); err != nil {
		return nil, fmt.Errorf("read manifest: %w", err)
	}
	data, err := os.ReadFile(filepath.Join(to, agent.FileName))
	if err != nil {
		return nil, err
	}
	m, err := agent.Parse(manifest, data)
	if err != nil {
		return nil, err
	}
	if got := wire.Hash(m.Digest).String(); digest != "" && got != strings.TrimPrefix(digest, "sha256:") {
		return nil, fail("failure", "look at what has changed before you install it", "the manifest has the digest %s, not %s", got, digest)
	}
	files, err := m.Bundle()
	if err != nil {
		return nil, hint(err, "move the files into the folder, and name them there")
	}
	for _, name := range files {
		if info, err := os.Stat(filepath.Join(filepath.Dir(manifest), name)); !isURL && err == nil && info.IsDir() {
			err = os.CopyFS(filepath.Join(to, name), os.DirFS(filepath.Join(filepath.Dir(manifest), name)))
			if err != nil {
				return nil, err
			}
			continue
		}
		if err := copyInto(filepath.Join(to, name), func() (io.ReadCloser, error) { return open(name) }); err != nil {
			return nil, fmt.Errorf("input %s: %w", name, err)
		}
	}
	return m, nil
}

// copyInto writes what open gives to a new file.
func copyInto(to string, open func() (io.ReadCloser, error)) (err error) {
	in, err := open()
	if err != nil {
		return err
	}
	defer in.Close()
	if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
		return err
	}
	mode := os.FileMode(0o644)
	if f, ok := in.(*os.File); ok {
		if info, err := f.Stat(); err == nil {
			mode = info.Mode().Perm()
		}
	}
	out, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_EXCL, mode)
	if err != nil {
		return err
	}
	n, err := io.Copy(out, io.LimitReader(in, maxFetched+1))
	if err == nil && n > maxFetched {
		err = fmt.Errorf("more than %d bytes: keep large files with balance blobs", maxFetched)
	}
	return errors.Join(err, out.Close())
}

// fetchBeside reads a file that is beside the one at a URL.
func fetchBeside(ctx context.Context, at, name string) (io.ReadCloser, error) {
	u, err := url.Parse(at)
	if err != nil {
		return nil, fail("usage", "", "%v", err)
	}
	u = u.ResolveReference(&url.URL{Path: name})
	ctx, cancel := context.WithTimeout(ctx, 5*time.Minute)
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, u.String(), nil)
	if err != nil {
		cancel()
		return nil, err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		cancel()
		return nil, err
	}
	if resp.StatusCode != http.StatusOK {
		resp.Body.Close()
		cancel()
		return nil, fmt.Errorf("%s answers %s", u, resp.Status)
	}
	return cancelling{resp.Body, cancel}, nil
}

// cancelling ends what a body belongs to when it is closed.
type cancelling struct {
	io.ReadCloser
	cancel context.CancelFunc
}

func (c cancelling) Close() error {
	defer c.cancel()
	return c.ReadCloser.Close()
}

// importReply is what balance agent import prints.
type importReply struct {
	Kind string   `json:"kind"` // of the file: compose, docker-agent or goose
	File string   `json:"file"` // the manifest that was written
	Left []string `json:"left"` // a sentence for each part that has no counterpart
}

func (a *app) agentImportCommand() *cobra.Command {
	var service, out string
	cmd := &cobra.Command{
		Use:   "import FILE",
		Short: "Make an agent of a Compose file, a file of docker-agent or a recipe of goose",
		Long: "Make an agent of a Compose file with models, a file of docker-agent or a recipe of goose, as far as they map:\n" +
			"an agent.yaml beside it, which must not be there. For each part that does not map a sentence says so.",
		Example: "  balance agent import compose.yaml --service chat\n  balance agent import recipe.yaml",
		Args:    cobra.ExactArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			data, err := os.ReadFile(args[0])
			if err != nil {
				return fmt.Errorf("import: %w", err)
			}
			in, err := agent.Import(args[0], data, service)
			if err != nil {
				return err
			}
			if out == "" {
				out = filepath.Join(filepath.Dir(args[0]), agent.FileName)
			}
			if err := copyInto(out, func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(in.Manifest)), nil }); err != nil {
				return hint(err, "choose another place with --output")
			}
			return a.print.answer(importReply{in.Kind, out, slices.Concat([]string{}, in.Left)}, func(w io.Writer) error {
				fmt.Fprintln(w, out)
				for _, sentence := range in.Left {
					a.print.say("not taken over: %s", clean(sentence, false))
				}
				return nil
			})
		},
	}
	cmd.Flags().StringVar(&service, "service", "", "of a Compose file with several")
	cmd.Flags().StringVarP(&out, "output", "o", "", "the manifest (default: agent.yaml beside the file)")
	return cmd
}
