package supervise

import (
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Kinds of frames.
const (
	Stdout byte = 1
	Stderr byte = 2
	Note   byte = 3 // of the supervisor, for people
)

// Chunk is the longest data of a frame, in bytes.
const Chunk = 32 << 10

// header of a frame: length of the data (4 bytes), kind (1), time in
// milliseconds (8), number of the first byte in all that the program wrote (8).
// Numbers are big-endian.
const header = 4 + 1 + 8 + 8

// Frame is a piece of a run's log.
type Frame struct {
	Kind   byte
	Time   time.Time
	Offset int64 // bytes of output before it, kept or not
	First  bool  // output of a new part of the log: from here on the part before it may be gone; not encoded
	Data   []byte
}

// ErrDamaged says that a log is not one.
var ErrDamaged = errors.New("log is damaged")

// AppendFrame encodes a frame.
func AppendFrame(b []byte, f Frame) []byte {
	return append(appendHeader(b, f, len(f.Data)), f.Data...)
}

func appendHeader(b []byte, f Frame, n int) []byte {
	b = binary.BigEndian.AppendUint32(b, uint32(n))
	b = append(b, f.Kind)
	b = binary.BigEndian.AppendUint64(b, uint64(f.Time.UnixMilli()))
	return binary.BigEndian.AppendUint64(b, uint64(f.Offset))
}

// partPath is the file of the part of a log that begins at a place. The head is at 0.
func partPath(dir string, base int64) string {
	name := logFile
	if base > 0 {
		name += "." + strconv.FormatInt(base, 10)
	}
	return filepath.Join(dir, name)
}

// logParts returns where the parts of a log begin, in order.
func logParts(dir string) ([]int64, error) {
	names, err := readNames(dir)
	if err != nil {
		return nil, err
	}
	var out []int64
	for _, name := range names {
		if name == logFile {
			out = append(out, 0)
		}
		text, ok := strings.CutPrefix(name, logFile+".")
		if base, err := strconv.ParseInt(text, 10, 64); ok && err == nil && base > 0 {
			out = append(out, base)
		}
	}
	slices.Sort(out)
	return out, nil
}

func readNames(dir string) ([]string, error) {
	f, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return f.Readdirnames(-1)
}

// Log reads the log of a run, which may still grow, and lose its older parts.
type Log struct {
	dir   string
	file  io.ReaderAt
	base  int64 // where that part begins
	next  int64 // where the next frame does
	first bool  // no output of the part was returned yet
	buf   []byte
	have  []byte // of buf: read from the file and not returned
}

// OpenLog opens a log at a place that [Log.Place] has given, or 0.
func OpenLog(dir string, place int64) (*Log, error) {
	l := &Log{dir: dir, buf: make([]byte, 4<<10)}
	for {
		parts, err := logParts(dir)
		if err != nil {
			return nil, fmt.Errorf("open log: %w", err)
		}
		base := int64(0)
		for _, at := range parts {
			if at <= place {
				base = at
			}
		}
		err = l.turn(base)
		if base > 0 && errors.Is(err, os.ErrNotExist) { // it has just gone
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("open log: %w", err)
		}
		l.first = base > 0 && place == base
		l.next = place
		return l, nil
	}
}

// turn opens the part that begins at a place.
func (l *Log) turn(base int64) error {
	f, err := os.Open(partPath(l.dir, base))
	if err != nil {
		return err
	}
	_ = l.Close()
	l.file, l.base, l.next, l.first, l.have = f, base, base, true, nil
	return nil
}

// Close closes the file.
func (l *Log) Close() error {
	if c, ok := l.file.(io.Closer); ok {
		return c.Close()
	}
	return nil
}

// Place returns where the next frame begins, in all that the log ever was.
func (l *Log) Place() int64 { return l.next }

// Next returns the next frame that there is, which is valid until the next call,
// or io.EOF where there is no whole one yet.
func (l *Log) Next() (Frame, error) {
	for {
		f, err := l.frame()
		if !errors.Is(err, io.EOF) {
			return f, err
		}
		next, err := l.following()
		if err != nil || next == 0 {
			return f, cmp.Or(err, io.EOF)
		}
		if f, err = l.frame(); !errors.Is(err, io.EOF) { // until there was a next part, there may have come more
			return f, err
		}
		if err := l.turn(next); err != nil && !errors.Is(err, os.ErrNotExist) {
			return f, fmt.Errorf("read log: %w", err)
		}
	}
}

// following returns where the part after the present one begins that is still
// there; 0 for none.
func (l *Log) following() (int64, error) {
	parts, err := logParts(l.dir)
	if err != nil {
		return 0, fmt.Errorf("read log: %w", err)
	}
	for _, base := range parts {
		if base > l.base && base >= l.next {
			return base, nil
		}
	}
	return 0, nil
}

// frame returns the next frame of the part.
func (l *Log) frame() (Frame, error) {
	if err := l.fill(header); err != nil {
		return Frame{}, err
	}
	n := int(binary.BigEndian.Uint32(l.have))
	f := Frame{
		Kind:   l.have[4],
		Time:   time.UnixMilli(int64(binary.BigEndian.Uint64(l.have[5:]))),
		Offset: int64(binary.BigEndian.Uint64(l.have[13:])),
	}
	if n == 0 || n > Chunk || f.Kind < Stdout || f.Kind > Note || f.Offset < 0 {
		return Frame{}, fmt.Errorf("%w: no frame at byte %d", ErrDamaged, l.next)
	}
	if err := l.fill(header + n); err != nil {
		return Frame{}, err
	}
	f.Data = l.have[header : header+n]
	l.have = l.have[header+n:]
	l.next += int64(header + n)
	if f.Kind != Note {
		f.First, l.first = l.first && l.base > 0, false
	}
	return f, nil
}

// fill has n bytes in have.
func (l *Log) fill(n int) error {
	if len(l.have) >= n {
		return nil
	}
	if len(l.buf) < n {
		l.buf = append(make([]byte, 0, 2*(header+Chunk)), l.have...)[:2*(header+Chunk)]
	} else {
		copy(l.buf, l.have)
	}
	have := len(l.have)
	m, err := l.file.ReadAt(l.buf[have:], l.next-l.base+int64(have))
	l.have = l.buf[:have+m]
	if len(l.have) >= n {
		return nil
	}
	if err == nil || errors.Is(err, io.EOF) {
		// What is not whole may have been cut off since, and be written anew.
		l.have = nil
		return io.EOF
	}
	return fmt.Errorf("read log: %w", err)
}
