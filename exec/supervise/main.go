package supervise

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"net"
	"os"
	"strconv"
	"strings"
	"time"
)

// Packages are initialised in the order of their paths as far as what they
// import allows, and this one imports little: in a supervisor nothing of the
// node has been initialised when this takes over. A test holds that. The thread
// is the process's first one, on which the program is started.
func init() {
	if len(os.Args) == 1 && os.Args[0] == Name {
		os.Exit(supervise())
	}
}

// control is the file on which a supervisor is told what to do: the token of the
// order and the folder that it is in, in a line. From then on it is a connection like the others.
const controlFd = 3

// supervise is the life of a supervisor. It ends at once when the node does
// before there is a run.
func supervise() int {
	f := os.NewFile(controlFd, "control")
	conn, err := net.FileConn(f)
	f.Close()
	if err != nil {
		return 1
	}
	adoptOrphans()
	warm()
	in := bufio.NewReaderSize(conn, 512)
	dir, private, err := readStart(in)
	if err != nil {
		return 0
	}
	token, dir, _ := strings.Cut(strings.TrimSuffix(dir, "\n"), " ")
	if err := os.Chdir(dir); err != nil {
		return 1
	}
	if o, err := ReadOrder("."); err != nil || o.Token != token {
		return 1 // the folder has been made anew meanwhile, for another attempt
	}
	ln, err := claim()
	if err != nil {
		return 1 // somebody else has it, or the folder cannot be written to
	}
	s := &server{watchers: map[*watcher]bool{}, private: private}
	go s.accept(ln)
	s.watch(conn, in)
	exit := s.run()
	for insist := time.Second; ; time.Sleep(insist) { // as long as the disk is full
		if err := writeExit(exit); err == nil || errors.Is(err, os.ErrNotExist) { // the folder may be gone
			break
		}
	}
	s.finish()
	persist()
	return 0
}

// privateLine begins the line before what is private of a run, with its length.
const privateLine = "private "

// maxPrivate bounds it.
const maxPrivate = 16 << 20

// readStart reads which run it is to be, and what is private of it.
func readStart(in *bufio.Reader) (dir string, private Private, err error) {
	line, err := in.ReadString('\n')
	if err != nil {
		return "", private, err
	}
	if text, ok := strings.CutPrefix(line, privateLine); ok {
		n, err := strconv.Atoi(strings.TrimSuffix(text, "\n"))
		if err != nil || n < 0 || n > maxPrivate {
			return "", private, errors.New("what is private of a run has no length")
		}
		b := make([]byte, n)
		if _, err := io.ReadFull(in, b); err != nil {
			return "", private, err
		}
		if err := json.Unmarshal(b, &private); err != nil {
			return "", private, err
		}
		if line, err = in.ReadString('\n'); err != nil {
			return "", private, err
		}
	}
	return line, private, nil
}

// warm has in memory what an order needs, while there is time.
func warm() {
	var o Order
	_ = json.Unmarshal([]byte(`{"Run":"","Argv":[""],"Stdin":false,"TTY":{"Rows":1},"Time":0,"TimeUp":{}}`), &o)
	_, _ = json.Marshal(&Exit{})
	children()
}

// claim makes the socket of the run. It listens already when it gets its name,
// so that whoever finds it refusing knows that its owner is gone.
func claim() (*net.UnixListener, error) {
	own := sockFile + "." + strconv.Itoa(os.Getpid())
	ln, err := net.ListenUnix("unix", &net.UnixAddr{Name: own, Net: "unix"})
	if err != nil {
		return nil, err
	}
	ln.SetUnlinkOnClose(false)
	err = os.Link(own, sockFile)
	os.Remove(own)
	if err != nil {
		_ = ln.Close()
		return nil, err
	}
	return ln, nil
}

// room is what the exit takes at most, in bytes. It is taken as soon as
// the program runs, so that a disk that fills cannot hide how it ended.
const room = 4 << 10

func reserveExit() error {
	return os.WriteFile(exitFile+".part", bytes.Repeat([]byte(" "), room), 0o600)
}

// writeExit writes the exit into its room.
func writeExit(e *Exit) error {
	b, err := json.Marshal(e)
	if err != nil {
		return err
	}
	f, err := os.OpenFile(exitFile+".part", os.O_WRONLY|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	if _, err := f.Write(b); err != nil {
		return err
	}
	return os.Rename(exitFile+".part", exitFile)
}

// persist has what a power cut may not take on the disk. The node, if there is
// one, has been told before: it writes the same to its ledger.
func persist() {
	paths := []string{exitFile, "."}
	parts, _ := logParts(".")
	for _, base := range parts {
		paths = append(paths, partPath(".", base))
	}
	for _, path := range paths {
		if f, err := os.Open(path); err == nil {
			_ = f.Sync()
			f.Close()
		}
	}
}
