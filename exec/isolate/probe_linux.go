package isolate

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	ll "github.com/landlock-lsm/go-landlock/landlock/syscall"

	"github.com/balanceai/balance/exec/isolate/launch"
)

// probeTime bounds the wait for the sandbox that is built to see whether one can
// be.
const probeTime = 10 * time.Second

// Detect finds out what this machine can do: it builds a sandbox and looks
// whether a program starts in it. What sandboxes need is kept in the folder dir,
// which is made.
func Detect(ctx context.Context, dir string) *Machine {
	m := &Machine{User: os.Getuid(), Group: os.Getgid(), System: system("/")}
	if v, err := ll.LandlockGetABIVersion(); err == nil {
		m.Landlock = v
	}
	if err := m.probe(ctx, dir); err != nil {
		m.Bubblewrap, m.Why = "", err.Error()
	}
	return m
}

func (m *Machine) probe(ctx context.Context, keep string) (err error) {
	if m.Bubblewrap, err = exec.LookPath("bwrap"); err != nil {
		return errors.New("bubblewrap is not installed: there is no bwrap on the PATH")
	}
	if m.Filter, err = Filter(); err != nil {
		return err
	}
	if err := os.MkdirAll(keep, 0o700); err != nil {
		return err
	}
	if m.Etc, err = makeEtc(keep, "/etc"); err != nil {
		return err
	}
	dir, err := os.MkdirTemp(keep, "probe-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	c, err := m.sandbox(Job{Command: []string{"/bin/true"}, Work: dir, Temp: dir})
	if err != nil {
		return err
	}
	open, err := c.Open()
	if err != nil {
		return err
	}
	defer open.Close()
	ctx, cancel := context.WithTimeout(ctx, probeTime)
	defer cancel()
	var said bytes.Buffer
	cmd := exec.CommandContext(ctx, c.Path)
	cmd.Args, cmd.Env, cmd.Dir, cmd.ExtraFiles, cmd.Stderr = c.Args, []string{}, c.Dir, open.Files, &said
	err = cmd.Run()
	open.CloseFiles()
	if text := strings.TrimSpace(said.String()); err != nil && text != "" {
		return errors.New(text)
	}
	if err != nil {
		return fmt.Errorf("bubblewrap: %w", err)
	}
	told, err := io.ReadAll(open.Report)
	if err != nil {
		return err
	}
	return launch.Report(string(told))
}

// system lists where programs and libraries are. What is a link stays one.
func system(root string) []Place {
	var out []Place
	for _, path := range []string{"/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32"} {
		file := filepath.Join(root, path)
		if link, err := os.Readlink(file); err == nil {
			out = append(out, Place{path, link})
		} else if info, err := os.Stat(file); err == nil && info.IsDir() {
			out = append(out, Place{Path: path})
		}
	}
	return out
}
