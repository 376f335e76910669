package launch

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"

	"golang.org/x/sys/unix"
)

// Open opens the files of a command. The caller starts it with them, and closes
// them then.
func (c Command) Open() (_ *Opened, err error) {
	o := &Opened{}
	defer func() {
		if err != nil {
			o.Close()
		}
	}()
	for _, f := range c.Files {
		var file *os.File
		switch {
		case f.Self:
			file, err = openPath(Self)
		case f.Report:
			o.Report, file, err = os.Pipe()
		case f.Door:
			o.Door, file, err = socketPair()
		default:
			file, err = inMemory(f.Data)
		}
		if err != nil {
			return nil, err
		}
		o.Files = append(o.Files, file)
	}
	return o, nil
}

func socketPair() (a, b *os.File, err error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("socketpair: %w", err)
	}
	return os.NewFile(uintptr(fds[0]), "door"), os.NewFile(uintptr(fds[1]), "door"), nil
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

// Listener takes the listener that has come out of a sandbox. It waits for it,
// and for the end of the program's start where none comes.
func Listener(door *os.File) (net.Listener, error) {
	room := make([]byte, unix.CmsgSpace(4))
	var n int
	for {
		var err error
		if _, n, _, _, err = unix.Recvmsg(int(door.Fd()), make([]byte, 1), room, unix.MSG_CMSG_CLOEXEC); err == nil {
			break
		} else if !errors.Is(err, unix.EINTR) {
			return nil, fmt.Errorf("take the run's listener: %w", err)
		}
	}
	messages, err := unix.ParseSocketControlMessage(room[:n])
	if err != nil || len(messages) != 1 {
		return nil, errors.New("take the run's listener: none has come")
	}
	fds, err := unix.ParseUnixRights(&messages[0])
	if err != nil || len(fds) != 1 {
		return nil, errors.New("take the run's listener: something else has come")
	}
	f := os.NewFile(uintptr(fds[0]), "listener")
	defer f.Close()
	return net.FileListener(f)
}

// SendListener listens at [ProxyAddr], in the network of this process, and sends
// the listener out through the door.
func SendListener(door int) error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("socket: %w", err)
	}
	defer func() { _ = unix.Close(fd) }()
	at := netip.MustParseAddrPort(ProxyAddr)
	if err := unix.Bind(fd, &unix.SockaddrInet4{Addr: at.Addr().As4(), Port: int(at.Port())}); err != nil {
		return fmt.Errorf("bind: %w", err)
	}
	if err := unix.Listen(fd, 128); err != nil {
		return fmt.Errorf("listen: %w", err)
	}
	return unix.Sendmsg(door, []byte{0}, unix.UnixRights(fd), nil, 0)
}
