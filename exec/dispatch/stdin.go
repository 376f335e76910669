package dispatch

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"strings"
	"sync"

	"github.com/balanceai/balance/exec/task"
)

// Stdin gives a run its standard input, until in ends. It returns when the
// machine has all of it, or the run is over. The machine's pace is in's pace.
//
// After a break it goes on where the machine has got to. An input that breaks
// off is an input that ends: nobody else can continue it, and a program that
// waits for it would wait for ever. The run's events then say so. Where the spec
// leaves it open somebody else can, and in goes on where the machine has got to.
func (d *Dispatcher) Stdin(ctx context.Context, id string, in io.Reader) error {
	r, err := d.begun(ctx, id)
	if err != nil {
		return err
	}
	src := &source{in: in, open: r.spec.Open}
	if src.open {
		if src.read, err = r.taken(ctx); err != nil {
			return fmt.Errorf("standard input of run %s: %w", id, err)
		}
	}
	if err := r.send(ctx, src); err != nil {
		return fmt.Errorf("standard input of run %s: %w", id, err)
	}
	if err := src.broken(); err != nil && !src.open {
		_ = r.log(task.Event{Type: task.EventNote, Message: "the standard input broke off: " + err.Error()}) // unless the run is over
		return fmt.Errorf("standard input of run %s: %w", id, err)
	}
	return nil
}

// send sends an input, in as many requests as it takes.
func (r *run) send(ctx context.Context, src *source) error {
	node, _ := r.where()
	exec := r.d.cfg.Executor(node)
	offset, delay := src.sent(), r.d.times.retryMin
	for !r.journal.Finished() {
		err := exec.Stdin(ctx, r.id, offset, src.from(offset))
		var at *task.OffsetError
		switch {
		case err == nil, errors.Is(err, task.ErrNoRun), src.open && src.broken() != nil:
			return nil
		case ctx.Err() != nil:
			return ctx.Err()
		case errors.As(err, &at) && at.Offset != offset && src.has(at.Offset):
			offset = at.Offset
		case errors.Is(err, task.ErrBroken), errors.Is(err, task.ErrUnreachable):
			sleep(ctx, delay)
			delay = min(2*delay, r.d.times.retryMax)
			offset = src.sent() // the machine says from where it goes on, if not from there
		default:
			return err
		}
	}
	return nil
}

// taken asks the machine how much it has of an input that several send one after
// the other. Whoever sent before is heard no more.
func (r *run) taken(ctx context.Context) (int64, error) {
	node, _ := r.where()
	exec := r.d.cfg.Executor(node)
	for delay := r.d.times.retryMin; !r.journal.Finished(); delay = min(2*delay, r.d.times.retryMax) {
		err := exec.Stdin(ctx, r.id, math.MaxInt64, strings.NewReader("")) // which is never where it goes on
		var at *task.OffsetError
		switch {
		case errors.As(err, &at):
			return at.Offset, nil
		case ctx.Err() != nil:
			return 0, ctx.Err()
		case err != nil && !errors.Is(err, task.ErrBroken) && !errors.Is(err, task.ErrUnreachable):
			return 0, err
		}
		sleep(ctx, delay) // nil: it is about to say that it is over
	}
	return 0, ErrOver
}

// window is how much of an input is kept after it was read. It is what two
// sockets may hold, so that what a break takes with it can be sent again.
const window = 8 << 20

// source is an input of which the newest part can be read again.
type source struct {
	turn sync.Mutex // held by who reads in
	in   io.Reader
	open bool // a break is no end

	mu   sync.Mutex
	tail []byte // what was read last
	read int64  // bytes read in all, and what others have sent before
	end  error  // why there is no more
}

// from reads the input from an offset on, which it must have.
func (s *source) from(offset int64) io.Reader { return &sourceReader{s, offset} }

func (s *source) has(offset int64) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return offset <= s.read && offset >= s.read-int64(len(s.tail))
}

// sent returns how much of the input was read.
func (s *source) sent() int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.read
}

// broken returns why the input ended, if that was not its end.
func (s *source) broken() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if errors.Is(s.end, io.EOF) {
		return nil
	}
	return s.end
}

// keep keeps what was read.
func (s *source) keep(b []byte, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.tail) > 2*window { // seldom, as all that is kept moves
		s.tail = append(s.tail[:0], s.tail[len(s.tail)-window:]...)
	}
	s.tail = append(s.tail, b...)
	s.read += int64(len(b))
	s.end = err
}

// sourceReader reads for one request. Another may still be waiting for input
// when this one begins; what that gets, this one gets as well.
type sourceReader struct {
	*source
	offset int64
}

func (r *sourceReader) Read(p []byte) (int, error) {
	if n, err := r.kept(p); n > 0 || err != nil {
		return n, err
	}
	r.turn.Lock()
	defer r.turn.Unlock()
	if n, err := r.kept(p); n > 0 || err != nil {
		return n, err
	}
	n, err := r.in.Read(p)
	r.keep(p[:n], err)
	r.offset += int64(n)
	if err != nil && n == 0 {
		return r.kept(p)
	}
	return n, nil
}

// kept reads what was read before, if anything is left of it.
func (r *sourceReader) kept(p []byte) (int, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	behind := r.read - r.offset
	switch {
	case behind > int64(len(r.tail)):
		return 0, io.ErrUnexpectedEOF // of a request that another has overtaken
	case behind == 0 && r.end != nil && r.open:
		return 0, r.end
	case behind == 0 && r.end != nil:
		return 0, io.EOF
	}
	n := copy(p, r.tail[int64(len(r.tail))-behind:])
	r.offset += int64(n)
	return n, nil
}
