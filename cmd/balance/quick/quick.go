// Package quick does the most common thing before the rest of the program has
// started: balance run -- COMMAND, in a script.
//
// The program is one binary, and most of it is the node: WireGuard, a network
// stack, SQLite, the terminal UI. Go initialises every package before main, also
// those that a command does not use, and that takes as long as it takes the
// daemon and another machine to run the command. So this package does its work
// when it is itself initialised. The language defines when that is: packages
// are initialised in the order of their import paths, each as soon as those that
// it imports are (The Go Programming Language Specification, "Program
// initialization"). Its path sorts before those of what is expensive, and it
// imports so little that it does not wait for them. A test holds that.
//
// It handles the plain case and nothing else: no flags, no terminal to talk to,
// no standard input to send, a run that is placed, writes, and ends by itself.
// On anything else it leaves the run to main, in [Rest], which goes on after the
// last event that was shown. So nothing is decided here that main could decide
// differently.
//
// It speaks to the daemon in a form that needs no decoding: POST [Path] with the
// words of the command, separated by NUL. The answer is a stream of frames, each
// a line "<kind> <number of the event> <n>", and after an output frame n bytes.
package quick

import (
	"bufio"
	"errors"
	"io"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
)

// Path of the request, and the header of the answer that names the run.
const (
	Path      = "/v1/quick"
	RunHeader = "Balance-Run"
)

// Kinds of frames.
const (
	Stdout = "o" // n bytes follow
	Stderr = "e" // n bytes follow
	Skip   = "s" // nothing to show
	Exit   = "x" // n is the exit code, and all has been said
	Other  = "?" // main knows what to do
)

// Socket is the name of the local API's socket in the home.
const Socket = "balance.sock"

// Rest is what is left to do of a run that was submitted here: nothing where
// Run is empty.
var Rest struct {
	Run         string
	Last        uint64      // number of the last event that was shown
	Interrupted atomic.Bool // the user wants it to stop
}

func init() {
	home, command, noStdin := parse(os.Args)
	if command == nil || !noStdin && !nobody(os.Stdin) || isTerminal(os.Stderr) {
		return
	}
	interrupts := make(chan os.Signal, 1)
	signal.Notify(interrupts, syscall.SIGINT)
	if code, done := run(home, command, interrupts); done {
		os.Exit(code)
	}
	signal.Stop(interrupts)
}

// parse recognises balance [--home DIR] run [-n] -- COMMAND [ARG…].
func parse(args []string) (home string, command []string, noStdin bool) {
	rest := args[1:]
	if len(rest) > 2 && rest[0] == "--home" {
		home, rest = rest[1], rest[2:]
	}
	if len(rest) < 3 || rest[0] != "run" {
		return "", nil, false
	}
	if rest = rest[1:]; rest[0] == "-n" {
		noStdin, rest = true, rest[1:]
	}
	if len(rest) < 2 || rest[0] != "--" {
		return "", nil, false
	}
	home, err := Home(home, os.Getenv)
	if err != nil {
		return "", nil, false
	}
	return home, rest[1:], noStdin
}

// Home finds the home folder: the flag, else BALANCE_HOME, else the state folder
// of the XDG base directory specification. The first two may be relative.
func Home(flag string, env func(string) string) (string, error) {
	if flag != "" {
		return flag, nil
	}
	if dir := env("BALANCE_HOME"); dir != "" {
		return dir, nil
	}
	base := env("XDG_STATE_HOME")
	if !strings.HasPrefix(base, "/") {
		user := env("HOME")
		if user == "" {
			return "", errors.New("there is no HOME in the environment")
		}
		base = user + "/.local/state"
	}
	return base + "/balance", nil
}

// nobody reports whether f is a device that has nothing to say, like /dev/null.
func nobody(f *os.File) bool {
	info, err := f.Stat()
	return err == nil && info.Mode()&os.ModeCharDevice != 0 && !isTerminal(f)
}

// run submits a command and shows what it writes, and returns its exit code. It
// is not done where something else has to be done than that.
func run(home string, command []string, interrupts <-chan os.Signal) (code int, done bool) {
	conn, err := dial(home + "/" + Socket)
	if err != nil {
		return 0, false
	}
	defer conn.Close()
	in, err := submit(conn, command)
	if err != nil {
		return 0, false
	}
	go func() {
		<-interrupts
		Rest.Interrupted.Store(true)
		_ = syscall.Shutdown(int(conn.Fd()), syscall.SHUT_RDWR) // ends the reading below
	}()
	for {
		kind, seq, n, err := frame(in)
		if err != nil {
			return 0, false
		}
		switch kind {
		case Skip:
		case Stdout, Stderr:
			if !show(kind, in, n) {
				return 0, false
			}
		case Exit:
			return n, true
		default:
			return 0, false
		}
		Rest.Last = seq
	}
}

// submit posts the run and reads the head of the answer. HTTP/1.0 has the answer
// end with the connection, so that its body is not divided once more.
func submit(conn io.ReadWriter, command []string) (*bufio.Reader, error) {
	body := strings.Join(command, "\x00")
	_, err := io.WriteString(conn, "POST "+Path+" HTTP/1.0\r\nHost: balance\r\nContent-Length: "+strconv.Itoa(len(body))+"\r\n\r\n"+body)
	if err != nil {
		return nil, err
	}
	in := bufio.NewReaderSize(conn, 64<<10)
	for {
		line, err := in.ReadString('\n')
		if err != nil {
			return nil, err
		}
		line = strings.TrimRight(line, "\r\n")
		if line == "" && Rest.Run == "" {
			return nil, errors.New("not submitted")
		}
		if line == "" {
			return in, nil
		}
		if id, ok := strings.CutPrefix(line, RunHeader+": "); ok {
			Rest.Run = id
		}
	}
}

// frame reads the line that begins a frame.
func frame(in *bufio.Reader) (kind string, seq uint64, n int, err error) {
	line, err := in.ReadString('\n')
	if err != nil {
		return "", 0, 0, err
	}
	kind, rest, _ := strings.Cut(strings.TrimSuffix(line, "\n"), " ")
	a, b, _ := strings.Cut(rest, " ")
	seq, err1 := strconv.ParseUint(a, 10, 64)
	n, err2 := strconv.Atoi(b)
	return kind, seq, n, errors.Join(err1, err2)
}

func show(kind string, in *bufio.Reader, n int) bool {
	b := make([]byte, n)
	if _, err := io.ReadFull(in, b); err != nil {
		return false
	}
	to := os.Stdout
	if kind == Stderr {
		to = os.Stderr
	}
	_, err := to.Write(b)
	return err == nil
}

// dial connects to a Unix socket. Package net would do it, for the price of its
// own start.
func dial(path string) (*os.File, error) {
	fd, err := syscall.Socket(syscall.AF_UNIX, syscall.SOCK_STREAM, 0)
	if err != nil {
		return nil, err
	}
	syscall.CloseOnExec(fd)
	if err := syscall.Connect(fd, &syscall.SockaddrUnix{Name: path}); err != nil {
		_ = syscall.Close(fd)
		return nil, err
	}
	return os.NewFile(uintptr(fd), path), nil
}
