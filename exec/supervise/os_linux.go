package supervise

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"syscall"

	"golang.org/x/sys/unix"
)

const (
	cloexec = syscall.SOCK_CLOEXEC
	rssUnit = 1024 // of ru_maxrss
)

func setCloexec([2]int) {}

// executable returns this program, also when another version has taken its
// place.
func executable() (string, error) { return "/proc/self/exe", nil }

// adoptOrphans makes what the program leaves behind this process's children.
func adoptOrphans() { _ = unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) }

// dialIn connects to the socket in a folder, whose path may be longer than a
// socket's can be: see unix(7).
func dialIn(dir string) (net.Conn, error) {
	f, err := os.OpenFile(dir, unix.O_PATH|syscall.O_DIRECTORY, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if _, err := os.Stat(filepath.Join(dir, sockFile)); err != nil {
		return nil, err
	}
	return net.Dial("unix", fmt.Sprintf("/proc/self/fd/%d/%s", f.Fd(), sockFile))
}

// ListenNet listens where the supervisor of the run in a folder passes on what
// the run says on its way out. Whoever closes the listener stops that.
func ListenNet(dir string) (net.Listener, error) {
	f, err := os.OpenFile(dir, unix.O_PATH|syscall.O_DIRECTORY, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if err := os.Remove(filepath.Join(dir, netFile)); err != nil && !os.IsNotExist(err) {
		return nil, err
	}
	ln, err := net.ListenUnix("unix", &net.UnixAddr{Name: fmt.Sprintf("/proc/self/fd/%d/%s", f.Fd(), netFile), Net: "unix"})
	if err != nil {
		return nil, err
	}
	ln.SetUnlinkOnClose(false) // by that name it is another file later
	return ln, nil
}
