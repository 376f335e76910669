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

// Read yields the events that come after number after, 0 for all. With follow
// it then waits for new ones until the journal is finished or ctx ends; else it
// stops at the newest. An error of yield ends it and is returned as it is.
func (j *Journal) Read(ctx context.Context, after uint64, follow bool, yield func(*task.Event) error) error {
	f, err := os.OpenFile(j.path, os.O_RDONLY|syscall.O_NOFOLLOW, 0)
	if err != nil {
		return fmt.Errorf("read journal: %w", err)
	}
	defer f.Close()
	size, _, _ := j.progress(0)
	off, err := seek(f, size, after)
	if err != nil {
		return fmt.Errorf("read journal: %w", err)
	}
	lines := reader{file: f, off: off}
	for {
		size, changed, end := j.progress(lines.off)
		switch {
		case size > lines.off:
			if err := lines.each(ctx, size, after, yield); err != nil {
				return err
			}
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

// each yields the events up to the offset limit, where a line ends.
func (r *reader) each(ctx context.Context, limit int64, after uint64, yield func(*task.Event) error) error {
	for {
		line, err := r.line(limit)
		if err != nil {
			return fmt.Errorf("read journal: %w", err)
		}
		if line == nil {
			return nil
		}
		e, err := decode(line)
		if err != nil {
			return fmt.Errorf("read journal: %w", err)
		}
		if e.Seq <= after {
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
