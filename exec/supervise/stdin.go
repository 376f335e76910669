package supervise

import (
	"encoding/binary"
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

// stdin is the way to a program's standard input: a pipe, or its terminal.
type stdin struct {
	write *os.File
	tty   bool

	newest atomic.Int64 // number of the newest upload, the only one that may write

	mu    sync.Mutex
	have  int64 // bytes that were taken
	ended bool  // nothing more is wanted
}

// Answers to an upload.
const (
	answerMore  = 'm' // go on
	answerEnded = 'e' // nothing more is wanted
	answerNewer = 'n' // another upload has taken over
)

// end of an upload, instead of a length.
const uploadEnd = ^uint32(0)

// kick wakes an upload that waits for the program, to see whether it still
// should.
func (s *stdin) kick() { _ = s.write.SetWriteDeadline(time.Unix(1, 0)) }

// serve takes an upload: pieces, each behind its length, of which the first
// begins at the offset that the answer says. Each is answered when the program
// has room for more.
func (s *stdin) serve(conn net.Conn, in io.Reader) {
	mine := s.newest.Add(1)
	s.kick()
	s.mu.Lock()
	begin := binary.BigEndian.AppendUint64(nil, uint64(s.have))
	s.mu.Unlock()
	if _, err := conn.Write(begin); err != nil {
		return
	}
	buf := make([]byte, Chunk)
	for {
		if _, err := io.ReadFull(in, buf[:4]); err != nil {
			return
		}
		n := binary.BigEndian.Uint32(buf)
		var answer byte
		switch {
		case n == uploadEnd:
			answer = s.end(mine)
		case n > Chunk:
			return
		default:
			if _, err := io.ReadFull(in, buf[:n]); err != nil {
				return
			}
			answer = s.put(mine, buf[:n])
		}
		if _, err := conn.Write([]byte{answer}); err != nil || answer != answerMore {
			return
		}
	}
}

// put writes what the program has not got.
func (s *stdin) put(mine int64, b []byte) byte {
	s.mu.Lock()
	defer s.mu.Unlock()
	for {
		_ = s.write.SetWriteDeadline(time.Time{}) // before the questions, so that no kick is lost
		if s.newest.Load() != mine {
			return answerNewer
		}
		if s.ended {
			return answerEnded
		}
		n, err := s.write.Write(b)
		s.have += int64(n)
		b = b[n:]
		switch {
		case err == nil:
			return answerMore
		case errors.Is(err, os.ErrDeadlineExceeded):
		case errors.Is(err, syscall.EPIPE), errors.Is(err, os.ErrClosed), errors.Is(err, syscall.EIO):
			s.ended = true
		default:
			return answerEnded
		}
	}
}

// end closes the program's standard input. A terminal stays: its other direction
// is the output.
func (s *stdin) end(mine int64) byte {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.newest.Load() != mine {
		return answerNewer
	}
	if !s.tty {
		s.ended = true
		s.write.Close()
	}
	return answerEnded
}
