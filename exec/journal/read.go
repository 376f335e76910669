package journal

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"syscall"

	"github.com/balanceai/balance/exec/task"
)

// Read yields the events that come after number after, 0 for all, as far as they
// are kept. With follow it then waits for new ones until the journal is finished
// or ctx ends; else it stops at the newest. An error of yield ends it and is
// returned as it is.
func (j *Journal) Read(ctx context.Context, after uint64, follow bool, yield func(*task.Event) error) error {
	x, _, _ := j.progress(0)
	r, err := j.reader(x, after)
	if err != nil {
		return fmt.Errorf("read journal: %w", err)
	}
	defer r.close()
	for seen := uint64(0); ; {
		x, changed, end := j.progress(seen)
		switch {
		case x.last > seen:
			if err := r.each(ctx, x, yield); err != nil {
				return err
			}
			seen = x.last
			continue
		case !follow || errors.Is(end, ErrFinished):
			return nil
		case end != nil:
			return fmt.Errorf("read journal: %w", end)
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// merged reads the two files of a journal as one: that of all that is kept, and
// one part after the other of the newest output.
type merged struct {
	path  string
	after uint64
	main  source
	part  source
	at    uint64 // number of the first event of the part; 0 before the first part
}

// source is a file with what was read of it.
type source struct {
	file  *os.File // nil: none
	lines reader
	event *task.Event // not yielded yet
}

func openSource(path string) (source, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NOFOLLOW, 0)
	if err != nil {
		return source{}, err
	}
	return source{file: f, lines: reader{file: f}}, nil
}

func (s *source) close() {
	if s.file != nil {
		_ = s.file.Close()
	}
}

// peek returns the next event up to the offset limit, nil for none.
func (s *source) peek(limit int64) (*task.Event, error) {
	if s.event == nil && s.file != nil {
		line, err := s.lines.line(limit)
		if err != nil || line == nil {
			return nil, err
		}
		if s.event, err = decode(line); err != nil {
			return nil, err
		}
	}
	return s.event, nil
}

// seek skips most of what nobody wants.
func (s *source) seek(size int64, after uint64) (err error) {
	s.lines.off, err = seek(s.file, size, after)
	return err
}

// reader returns a reader of what comes after a number.
func (j *Journal) reader(x extent, after uint64) (*merged, error) {
	r := &merged{path: j.path, after: after}
	var err error
	if r.main, err = openSource(j.path); err == nil {
		err = r.main.seek(x.size, after)
	}
	for i := len(x.parts) - 1; err == nil && i >= 0; i-- {
		if x.parts[i].first > after {
			continue
		}
		if err = r.open(x.parts[i].first); err == nil {
			err = r.part.seek(x.parts[i].size, after)
		}
		if errors.Is(err, os.ErrNotExist) { // it has just gone
			err = nil
		}
		break
	}
	if err != nil {
		r.close()
		return nil, err
	}
	return r, nil
}

func (r *merged) close() {
	r.main.close()
	r.part.close()
}

// open goes on with the part that begins with a number.
func (r *merged) open(first uint64) error {
	r.part.close()
	r.part, r.at = source{}, first
	var err error
	r.part, err = openSource(partPath(r.path, first))
	return err
}

// each yields the events up to an extent.
func (r *merged) each(ctx context.Context, x extent, yield func(*task.Event) error) error {
	for {
		s := &r.main
		e, err := s.peek(x.size)
		if err != nil {
			return fmt.Errorf("read journal: %w", err)
		}
		o, err := r.peekPart(x)
		switch {
		case err != nil:
			return fmt.Errorf("read journal: %w", err)
		case e == nil && o == nil:
			return nil
		case e == nil || o != nil && o.Seq < e.Seq:
			s, e = &r.part, o
		}
		s.event = nil
		if e.Seq <= r.after {
			continue
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := yield(e); err != nil {
			return err
		}
	}
}

// peekPart returns the next event of the parts, nil for none. Parts that are gone
// are passed over, but for the one that is open.
func (r *merged) peekPart(x extent) (*task.Event, error) {
	for {
		next, size := uint64(0), int64(-1)
		for _, p := range x.parts {
			if p.first == r.at {
				size = p.size
			}
			if p.first > r.at && next == 0 {
				next = p.first
			}
		}
		if size < 0 && r.part.file != nil {
			info, err := r.part.file.Stat()
			if err != nil {
				return nil, err
			}
			size = info.Size()
		}
		if e, err := r.part.peek(size); e != nil || err != nil || next == 0 {
			return e, err
		}
		if err := r.open(next); err != nil && !errors.Is(err, os.ErrNotExist) {
			return nil, err
		}
	}
}

// seek finds an offset at or before the first event after a number, and not far
// before it.
func seek(f io.ReaderAt, size int64, after uint64) (int64, error) {
	if after == 0 {
		return 0, nil
	}
	low, high := int64(0), size // the event before low is wanted by nobody; the one that starts at or after high is wanted
	for high-low > 4<<10 {
		mid := low + (high-low)/2
		r := reader{file: f, off: mid}
		if _, err := r.line(size); err != nil { // the rest of the line that mid is in
			return 0, err
		}
		start := r.next()
		line, err := r.line(size)
		if err != nil {
			return 0, err
		}
		if line == nil || start >= high {
			high = mid
			continue
		}
		e, err := decode(line)
		if err != nil {
			return 0, err
		}
		if e.Seq <= after {
			low = start
		} else {
			high = mid
		}
	}
	return low, nil
}

// reader reads lines of a file that grows.
type reader struct {
	file io.ReaderAt
	off  int64  // of the next byte to read from the file
	buf  []byte // read and not yet returned
	room []byte // memory behind buf
}

// next returns the offset of the line that the next call of line returns.
func (r *reader) next() int64 { return r.off - int64(len(r.buf)) }

// line returns the next line up to the offset limit, or nil when there is none.
// It is valid until the next call.
func (r *reader) line(limit int64) ([]byte, error) {
	for {
		if i := bytes.IndexByte(r.buf, '\n'); i >= 0 {
			line := r.buf[:i+1]
			r.buf = r.buf[i+1:]
			return line, nil
		}
		if r.off >= limit {
			if len(r.buf) > 0 {
				return nil, fmt.Errorf("%w: torn line at byte %d", ErrDamaged, r.next())
			}
			return nil, nil
		}
		if err := r.fill(limit); err != nil {
			return nil, err
		}
	}
}

// fill reads more of the line that buf begins with.
func (r *reader) fill(limit int64) error {
	have := len(r.buf)
	if have > MaxLine {
		return fmt.Errorf("%w: line at byte %d is longer than %d bytes", ErrDamaged, r.next(), MaxLine)
	}
	if have == len(r.room) {
		r.room = make([]byte, max(4<<10, 4*have))
	}
	copy(r.room, r.buf)
	part := r.room[have:]
	part = part[:min(int64(len(part)), limit-r.off)]
	n, err := r.file.ReadAt(part, r.off)
	if n < len(part) {
		return fmt.Errorf("%w: shorter than it was: %w", ErrDamaged, err)
	}
	r.buf = r.room[:have+n]
	r.off += int64(n)
	return nil
}
