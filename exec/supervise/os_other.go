//go:build !linux

package supervise

import (
	"errors"
	"net"
	"os"
	"path/filepath"
	"syscall"
)

const (
	cloexec = 0
	rssUnit = 1 // of ru_maxrss: bytes
)

func setCloexec(fds [2]int) {
	for _, fd := range fds {
		syscall.CloseOnExec(fd)
	}
}

func executable() (string, error) { return os.Executable() }

// adoptOrphans does nothing here: what the program leaves behind is not found.
func adoptOrphans() {}

// slim does nothing here.
func slim() {}

func dialIn(dir string) (net.Conn, error) { return net.Dial("unix", filepath.Join(dir, sockFile)) }

// ListenNet fails: there are no sandboxes here.
func ListenNet(string) (net.Listener, error) { return nil, errors.ErrUnsupported }
