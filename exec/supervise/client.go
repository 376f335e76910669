package supervise

import (
	"bufio"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// Errors for errors.Is.
var (
	ErrGone    = errors.New("the supervisor is gone")       // and will not come back
	ErrNone    = errors.New("no supervisor has claimed it") // yet
	ErrVersion = errors.New("the supervisor speaks another version of its protocol: it is of another version of the program")
	ErrNewer   = errors.New("another upload has taken over") // of standard input
)

// Spare is a supervisor that waits for its run.
type Spare struct {
	conn *net.UnixConn
	proc *os.Process
}

// Ready starts a supervisor, which ends with this process unless it gets a run.
func Ready() (*Spare, error) {
	fds, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_STREAM|cloexec, 0)
	if err != nil {
		return nil, fmt.Errorf("start supervisor: %w", err)
	}
	setCloexec(fds)
	ours, theirs := os.NewFile(uintptr(fds[0]), "supervisor"), os.NewFile(uintptr(fds[1]), "control")
	defer ours.Close()
	defer theirs.Close()
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return nil, fmt.Errorf("start supervisor: %w", err)
	}
	defer null.Close()
	self, err := executable()
	if err != nil {
		return nil, fmt.Errorf("start supervisor: %w", err)
	}
	proc, err := os.StartProcess(self, []string{Name}, &os.ProcAttr{
		Dir: "/", Files: []*os.File{null, null, null, theirs}, Sys: &syscall.SysProcAttr{Setsid: true},
		Env: []string{"GOMAXPROCS=1", "GOGC=50", "GOTRACEBACK=none"}, // it has little to do, and is to be small
	})
	if err != nil {
		return nil, fmt.Errorf("start supervisor: %w", err)
	}
	conn, err := net.FileConn(ours)
	if err != nil {
		_ = proc.Kill()
		_, _ = proc.Wait()
		return nil, fmt.Errorf("start supervisor: %w", err)
	}
	go func() { _, _ = proc.Wait() }()
	return &Spare{conn: conn.(*net.UnixConn), proc: proc}, nil
}

// Close ends a supervisor that has no run.
func (s *Spare) Close() error { return s.conn.Close() }

// Private is what a supervisor keeps in memory, because it may be in no file.
type Private struct {
	Env  []string          `json:"env,omitempty"`  // for the program; see [launch.File]
	Keep map[string]string `json:"keep,omitempty"` // for the node, which gets it back with [Kept]
}

// Start gives it the run of which the order is in a folder, and what is private
// of it; nil for nothing. Where another supervisor has the run, the watch ends
// at once with [ErrNone].
func (s *Spare) Start(dir string, private *Private) (*Watch, error) {
	o, err := ReadOrder(dir)
	if err != nil {
		_ = s.conn.Close()
		return nil, fmt.Errorf("start supervisor: %w", err)
	}
	var say []byte
	if private != nil {
		b, err := json.Marshal(private)
		if err != nil {
			return nil, err
		}
		say = append(fmt.Appendf(nil, "%s%d\n", privateLine, len(b)), b...)
	}
	if _, err := s.conn.Write(fmt.Appendf(say, "%s %s\n", o.Token, dir)); err != nil {
		_ = s.conn.Close()
		return nil, fmt.Errorf("start supervisor: %w", err)
	}
	return newWatch(s.conn), nil
}

// Watch follows a supervisor.
type Watch struct {
	conn  net.Conn
	in    *bufio.Reader
	greet bool // it has said hello
}

func newWatch(conn net.Conn) *Watch { return &Watch{conn: conn, in: bufio.NewReaderSize(conn, 512)} }

// Dial finds the supervisor of the run in a folder. It gives [ErrNone] where no
// supervisor has claimed the run, and [ErrGone] where one did and has ended.
func Dial(dir string) (*Watch, error) {
	conn, err := dial(dir, "watch")
	if err != nil {
		return nil, err
	}
	return newWatch(conn), nil
}

// Kept returns what the supervisor of the run in a folder was given to keep.
func Kept(dir string) (map[string]string, error) {
	conn, err := dial(dir, "kept")
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	in := bufio.NewReader(conn)
	line, err := in.ReadString('\n')
	switch {
	case err != nil:
		return nil, ErrGone
	case line != hello+"\n":
		return nil, fmt.Errorf("%w: %.40q", ErrVersion, line)
	}
	var kept map[string]string
	if err := json.NewDecoder(in).Decode(&kept); err != nil {
		return nil, fmt.Errorf("ask supervisor: %w", err)
	}
	return kept, nil
}

func dial(dir, what string) (net.Conn, error) {
	conn, err := dialIn(dir)
	switch {
	case errors.Is(err, syscall.ECONNREFUSED):
		return nil, ErrGone
	case errors.Is(err, os.ErrNotExist):
		return nil, ErrNone
	case err != nil:
		return nil, fmt.Errorf("reach supervisor: %w", err)
	}
	if _, err := fmt.Fprintf(conn, "%s\n", what); err != nil {
		conn.Close()
		return nil, ErrGone
	}
	return conn, nil
}

// Happening is what a supervisor tells.
type Happening byte

// What can happen. Each may be told again.
const (
	Started Happening = 's'
	Grown   Happening = 'o' // the log has more
	Exited  Happening = 'x' // the exit is written
)

// Next waits for what happens, with the time of a start. The supervisor's end
// is [ErrGone], or [ErrNone] where it never had the run; another error says that
// the connection was closed here.
func (w *Watch) Next() (Happening, time.Time, error) {
	for {
		line, err := w.in.ReadString('\n')
		switch {
		case errors.Is(err, net.ErrClosed):
			return 0, time.Time{}, err
		case err != nil && !w.greet:
			return 0, time.Time{}, ErrNone
		case err != nil:
			return 0, time.Time{}, ErrGone
		}
		line = strings.TrimSuffix(line, "\n")
		if !w.greet {
			if line != hello {
				return 0, time.Time{}, fmt.Errorf("%w: %.40q", ErrVersion, line)
			}
			w.greet = true
			continue
		}
		what, rest, _ := strings.Cut(line, " ")
		switch h := Happening(what[0]); {
		case len(what) != 1:
		case h == Started:
			ms, err := strconv.ParseInt(rest, 10, 64)
			if err == nil {
				return h, time.UnixMilli(ms), nil
			}
		case h == Grown, h == Exited:
			return h, time.Time{}, nil
		}
	}
}

// End makes the run end: at once with force, else after the grace time. The
// first reason counts.
func (w *Watch) End(why End, force bool) error {
	b, err := json.Marshal(why)
	if err != nil {
		return err
	}
	how := 0
	if force {
		how = 1
	}
	_, err = fmt.Fprintf(w.conn, "end %d %s\n", how, b)
	return err
}

// Hold has all that the run has started stand still, or go on. Again is no
// mistake. An end lets it go on.
func (w *Watch) Hold(still bool) error {
	how := 0
	if still {
		how = 1
	}
	_, err := fmt.Fprintf(w.conn, "hold %d\n", how)
	return err
}

// Resize tells the program the size of its terminal.
func (w *Watch) Resize(size Size) error {
	_, err := fmt.Fprintf(w.conn, "size %d %d\n", size.Rows, size.Cols)
	return err
}

// Close stops following. The run goes on.
func (w *Watch) Close() error { return w.conn.Close() }

// Upload is the way to a run's standard input. The newest counts; older ones
// end.
type Upload struct {
	conn  net.Conn
	in    *bufio.Reader
	Begin int64 // what of the input comes next: so much the program has taken
	buf   []byte
}

// Input opens the way to the standard input of the run in a folder. It gives
// [ErrGone] where the run has ended or takes no more.
func Input(dir string) (*Upload, error) {
	conn, err := dial(dir, "stdin")
	if err != nil {
		return nil, err
	}
	u := &Upload{conn: conn, in: bufio.NewReaderSize(conn, 512)}
	line, err := u.in.ReadString('\n')
	if err == nil && line != hello+"\n" {
		conn.Close()
		return nil, fmt.Errorf("%w: %.40q", ErrVersion, line)
	}
	var begin [8]byte
	if err == nil {
		_, err = io.ReadFull(u.in, begin[:])
	}
	if err != nil {
		conn.Close()
		return nil, ErrGone
	}
	u.Begin = int64(binary.BigEndian.Uint64(begin[:]))
	return u, nil
}

// Send passes a piece of at most [Chunk] bytes on, no faster than the program
// reads. It reports whether nothing more is wanted.
func (u *Upload) Send(b []byte) (done bool, err error) {
	u.buf = append(binary.BigEndian.AppendUint32(u.buf[:0], uint32(len(b))), b...)
	return u.ask(u.buf)
}

// End closes the program's standard input.
func (u *Upload) End() error {
	_, err := u.ask(binary.BigEndian.AppendUint32(nil, uploadEnd))
	return err
}

func (u *Upload) ask(b []byte) (done bool, err error) {
	if _, err := u.conn.Write(b); err != nil {
		return true, closedHere(err)
	}
	answer, err := u.in.ReadByte()
	switch {
	case err != nil:
		return true, closedHere(err)
	case answer == answerNewer:
		return false, ErrNewer
	}
	return answer == answerEnded, nil
}

// closedHere leaves of an error what is not the supervisor's end.
func closedHere(err error) error {
	if errors.Is(err, net.ErrClosed) {
		return err
	}
	return nil
}

// Close gives the way up. What was sent is with the program, or will be.
func (u *Upload) Close() error { return u.conn.Close() }
