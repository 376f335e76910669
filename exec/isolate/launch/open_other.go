//go:build !linux

package launch

import (
	"errors"
	"os"
	"runtime"
)

// Open opens the files of a command.
func (c Command) Open() (files []*os.File, report *os.File, err error) {
	if len(c.Files) > 0 {
		return nil, nil, errors.New("not on " + runtime.GOOS)
	}
	return nil, nil, nil
}

// Close closes all of the files.
func Close([]*os.File) {}
