package launch

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// Open opens the files of a command, for the caller to start it with and to
// close then. Where one of them reports, report is the other end of its pipe,
// which ends when the program has started, or was not; see [Report].
func (c Command) Open() (files []*os.File, report *os.File, err error) {
	defer func() {
		if err != nil {
			Close(files)
			if report != nil {
				report.Close()
			}
		}
	}()
	for _, f := range c.Files {
		var file *os.File
		switch {
		case f.Self:
			file, err = openPath(Self)
		case f.Report:
			report, file, err = os.Pipe()
		default:
			file, err = inMemory(f.Data)
		}
		if err != nil {
			return files, report, err
		}
		files = append(files, file)
	}
	return files, report, nil
}

// Close closes all of the files.
func Close(files []*os.File) {
	for _, f := range files {
		f.Close()
	}
}

// openPath opens a file to be named, not to be read.
func openPath(path string) (*os.File, error) {
	fd, err := unix.Open(path, unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: path, Err: err}
	}
	return os.NewFile(uintptr(fd), path), nil
}

// inMemory returns a file that has data in it.
func inMemory(data []byte) (*os.File, error) {
	fd, err := unix.MemfdCreate("balance", unix.MFD_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("memfd: %w", err)
	}
	f := os.NewFile(uintptr(fd), "memfd")
	if _, err = f.Write(data); err == nil {
		_, err = f.Seek(0, 0)
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}
