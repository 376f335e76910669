package supervise

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
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

// Log reads the log of a run, which may still grow.
type Log struct {
	file io.ReaderAt
	next int64 // offset in the file of the next frame
	buf  []byte
	have []byte // of buf: read from the file and not returned
}

// OpenLog opens a log at a place that [Log.Place] has given, or 0.
func OpenLog(dir string, place int64) (*Log, error) {
	f, err := os.Open(filepath.Join(dir, logFile))
	if err != nil {
		return nil, fmt.Errorf("open log: %w", err)
	}
	return &Log{file: f, next: place, buf: make([]byte, 4<<10)}, nil
}

// Close closes the file.
func (l *Log) Close() error {
	if c, ok := l.file.(io.Closer); ok {
		return c.Close()
	}
	return nil
}

// Place returns where the next frame begins.
func (l *Log) Place() int64 { return l.next }

// Next returns the next frame, which is valid until the next call, or io.EOF
// where there is no whole one yet.
func (l *Log) Next() (Frame, error) {
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
	m, err := l.file.ReadAt(l.buf[have:], l.next+int64(have))
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
