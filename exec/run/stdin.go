package run

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/balanceai/balance/exec/task"
)

// stdin is the pipe to a program's standard input.
type stdin struct {
	read  *os.File // the program's end, until it has it
	write *os.File

	newest atomic.Int64 // number of the newest upload, the only one that may write

	mu    sync.Mutex
	have  int64 // bytes that the pipe has taken
	ended bool  // nothing more is wanted
}

func newStdin() (*stdin, error) {
	r, w, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	return &stdin{read: r, write: w}, nil
}

// close ends it with the run.
func (s *stdin) close() {
	s.read.Close()
	s.write.Close() // whoever writes stops
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ended = true
}

// Stdin passes in to the program as its standard input, no faster than the
// program reads, and closes that when in ends with io.EOF. offset says which
// byte of the whole input comes first. What the machine has already is left
// out; where something is missing before offset, a [*task.OffsetError] says
// where to go on. The newest upload counts; older ones end.
//
// What a program no longer reads is dropped.
func (r *Runner) Stdin(ctx context.Context, run string, offset int64, in io.Reader) error {
	x, err := r.going(ctx, run)
	if errors.Is(err, task.ErrNoRun) {
		_, err := r.journal(ctx, run)
		return err // nil: the run has ended
	}
	if err != nil {
		return err
	}
	if x.stdin == nil {
		return fmt.Errorf("standard input of %s: the run takes none", run)
	}
	if err := x.stdin.copy(ctx, offset, in); err != nil {
		return fmt.Errorf("standard input of %s: %w", run, err)
	}
	return nil
}

// errNewer ends an upload for another one.
var errNewer = errors.New("another upload has taken over")

func (s *stdin) copy(ctx context.Context, offset int64, in io.Reader) error {
	mine := s.newest.Add(1)
	s.kick()
	defer context.AfterFunc(ctx, s.kick)()
	buf := make([]byte, chunk)
	for first := true; ; first = false {
		n := 0
		var err error
		if !first { // an upload that cannot go on is told before it sends anything
			n, err = in.Read(buf)
		}
		if done, err := s.put(ctx, mine, offset, buf[:n]); done || err != nil {
			return err
		}
		offset += int64(n)
		if errors.Is(err, io.EOF) {
			return s.end(mine)
		}
		if err != nil {
			return err
		}
	}
}

// kick wakes an upload that waits for the program, to see whether it still
// should.
func (s *stdin) kick() { _ = s.write.SetWriteDeadline(time.Unix(1, 0)) }

// put writes what the program has not got. It is done when nothing more is
// wanted.
func (s *stdin) put(ctx context.Context, mine, offset int64, b []byte) (done bool, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ended {
		return true, nil
	}
	if offset > s.have {
		return false, &task.OffsetError{Offset: s.have}
	}
	b = b[min(s.have-offset, int64(len(b))):]
	for {
		_ = s.write.SetWriteDeadline(time.Time{}) // before the questions, so that no kick is lost
		if s.newest.Load() != mine {
			return false, errNewer
		}
		if ctx.Err() != nil {
			return false, ctx.Err()
		}
		n, err := s.write.Write(b)
		s.have += int64(n)
		b = b[n:]
		switch {
		case errors.Is(err, os.ErrDeadlineExceeded):
		case errors.Is(err, syscall.EPIPE), errors.Is(err, os.ErrClosed):
			s.ended = true
			return true, nil
		default:
			return false, err
		}
	}
}

// end closes the program's standard input.
func (s *stdin) end(mine int64) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.newest.Load() != mine {
		return errNewer
	}
	s.ended = true
	return s.write.Close()
}
