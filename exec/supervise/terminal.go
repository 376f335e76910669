package supervise

import (
	"os"

	"golang.org/x/sys/unix"
)

func setSize(f *os.File, size Size) error {
	return onFile(f, func(fd int) error {
		return unix.IoctlSetWinsize(fd, unix.TIOCSWINSZ, &unix.Winsize{Row: size.Rows, Col: size.Cols})
	})
}
