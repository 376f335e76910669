package main

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/balanceai/balance/cmd/balance/quick"
	"github.com/balanceai/balance/exec/policy"
)

// home is the one folder that holds a node's state.
//
//	identity.key wireguard.key   private keys
//	ledger.db                    the ledger and what is derived from it
//	policy.yaml                  what the machine offers, and to whom
//	blobs/ runs/ submitted/      files of runs
//	agents/ found/               agents that are installed, and that were found in the mesh
//	lock balance.sock proxy.sock of the daemon that runs
type home string

const (
	ledgerFile = "ledger.db"
	rulesFile  = policy.FileName
	lockFile   = "lock"
	socketFile = quick.Socket
	proxyFile  = "proxy.sock"
	blobsDir   = "blobs"
	runsDir    = "runs"      // of runs on this machine
	sandboxDir = "sandbox"   // what sandboxes need
	followDir  = "submitted" // of runs that this machine submitted
)

// findHome returns the home folder: the flag, else BALANCE_HOME, else the state
// folder of the XDG base directory specification.
func findHome(flag string, env func(string) string) (home, error) {
	dir, err := quick.Home(flag, env)
	if err != nil {
		return "", hint(err, "say where the state is: --home DIR or BALANCE_HOME")
	}
	abs, err := filepath.Abs(dir)
	return home(abs), err
}

func (h home) path(name string) string { return filepath.Join(string(h), name) }

// make creates the folder, or refuses one that others can enter.
func (h home) make() error {
	if err := os.MkdirAll(string(h), 0o700); err != nil {
		return fmt.Errorf("make the home folder: %w", err)
	}
	info, err := os.Lstat(string(h))
	switch {
	case err != nil:
		return err
	case !info.IsDir():
		return fmt.Errorf("home %s is not a folder", h)
	case info.Mode().Perm()&0o077 != 0:
		return hint(fmt.Errorf("home %s can be entered by others (mode %04o)", h, info.Mode().Perm()), "run: chmod 700 %s", h)
	}
	return nil
}

// joined reports whether the node belongs to a mesh.
func (h home) joined() bool {
	_, err := os.Stat(h.path(ledgerFile))
	return err == nil
}

var errRunning = errors.New("the node is running already")

// lock makes this process the home's only daemon until the file is closed.
func (h home) lock() (*os.File, error) {
	f, err := os.OpenFile(h.path(lockFile), os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open the lock: %w", err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		defer f.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			pid := make([]byte, 16)
			n, _ := f.Read(pid)
			return nil, hint(fmt.Errorf("%w in %s (process %s)", errRunning, h, strings.TrimSpace(string(pid[:n]))), "see it with: balance status; stop it with: balance down")
		}
		return nil, fmt.Errorf("lock the home folder: %w", err)
	}
	if err := errors.Join(f.Truncate(0), write(f, strconv.Itoa(os.Getpid())+"\n")); err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

func write(f *os.File, s string) error {
	_, err := f.WriteAt([]byte(s), 0)
	return err
}

// A Unix socket's path may have 107 bytes on Linux and 103 on macOS.
const maxSocketPath = 103

// withSocket calls do with a path of a socket that is short enough. On Linux a
// long one is reached through a descriptor of its folder.
func (h home) withSocket(name string, do func(path string) error) error {
	p := h.path(name)
	if len(p) <= maxSocketPath {
		return do(p)
	}
	if runtime.GOOS != "linux" {
		return hint(fmt.Errorf("the path of the home folder is too long for a socket: %s", h), "choose a shorter one with --home or BALANCE_HOME")
	}
	dir, err := os.Open(string(h))
	if err != nil {
		return err
	}
	defer dir.Close()
	return do(fmt.Sprintf("/proc/self/fd/%d/%s", dir.Fd(), name))
}

// listen opens a socket that its owner alone may connect to. The caller holds
// the lock, so one that is there is left over.
func (h home) listen(name string) (net.Listener, error) {
	if err := os.Remove(h.path(name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	var ln net.Listener
	err := h.withSocket(name, func(path string) (err error) {
		old := unix.Umask(0o177)
		defer unix.Umask(old)
		ln, err = net.Listen("unix", path)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("open the socket %s: %w", name, err)
	}
	// The path may go through a descriptor that is closed by now: up removes
	// the socket by its own path.
	ln.(*net.UnixListener).SetUnlinkOnClose(false)
	return ln, nil
}

func (h home) dial() (conn net.Conn, err error) {
	err = h.withSocket(socketFile, func(path string) (err error) {
		conn, err = net.Dial("unix", path)
		return err
	})
	return conn, err
}
