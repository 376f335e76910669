//go:build !linux

package launch

import (
	"errors"
	"net"
	"os"
	"runtime"
)

// Open opens the files of a command.
func (c Command) Open() (*Opened, error) {
	if len(c.Files) > 0 {
		return nil, errors.New("not on " + runtime.GOOS)
	}
	return &Opened{}, nil
}

// Listener fails: there are no sandboxes here.
func Listener(*os.File) (net.Listener, error) { return nil, errors.ErrUnsupported }
