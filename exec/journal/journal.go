// Package journal is the append-only file of a run's events.
//
// A journal is one file of JSON lines, one [task.Event] a line, with the same
// bytes on disk as on the wire. It has one writer, which numbers the events
// from 1 on, and any number of readers. An event is in the file before any
// reader can see it, so what a reader saw survives the program: one that saw
// number n asks for what comes after n and misses nothing.
//
// Readers read from the file. A slow one holds up nobody and costs no memory,
// and nothing of a journal is kept in memory but its length: a place in the
// middle is found by bisection of the file.
//
// Nothing is synced to disk. A journal survives the end of the program, and a
// power cut may take its tail; what must survive that is in the ledger.
package journal

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"syscall"

	"github.com/balanceai/balance/exec/task"
)

// MaxLine bounds the encoding of one event.
const MaxLine = 1 << 20

// Errors for errors.Is.
var (
	ErrFinished = errors.New("journal is finished")
	ErrClosed   = errors.New("journal is closed")
	ErrDamaged  = errors.New("journal is damaged")
	ErrTooLong  = errors.New("event too long")
)

// Journal is an open journal. It is safe for concurrent use.
type Journal struct {
	path string

	mu      sync.Mutex
	file    *os.File // for writing; nil when the journal has ended
	end     error    // why it has ended: ErrFinished or ErrClosed
	size    int64    // of the whole lines: what readers may read
	last    uint64   // number of the newest event; 0 for none
	line    bytes.Buffer
	changed chan struct{} // closed at the next change; nil while nobody waits
}

// Open opens the journal at path, or creates it (0600). A torn last line, which
// the end of the program in mid-write leaves, is cut off. A journal whose last
// event says that the run has finished is finished.
func Open(path string) (*Journal, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|syscall.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open journal: %w", err)
	}
	j := &Journal{path: path, file: f}
	if err := j.load(); err != nil {
		f.Close()
		return nil, fmt.Errorf("open journal: %w", err)
	}
	return j, nil
}

// Ended reports whether the journal at path is finished. It changes nothing, so
// the journal may be open.
func Ended(path string) (bool, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NOFOLLOW, 0)
	if err != nil {
		return false, fmt.Errorf("look at journal: %w", err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return false, fmt.Errorf("look at journal: %w", err)
	}
	e, _, err := lastEvent(f, info.Size())
	if err != nil {
		return false, fmt.Errorf("look at journal: %w", err)
	}
	return e != nil && e.Type == task.EventFinished, nil
}

func (j *Journal) load() error {
	info, err := j.file.Stat()
	if err != nil {
		return err
	}
	e, size, err := lastEvent(j.file, info.Size())
	if err != nil {
		return err
	}
	if size < info.Size() {
		if err := j.file.Truncate(size); err != nil {
			return err
		}
	}
	j.size = size
	if e != nil {
		j.last = e.Seq
		if e.Type == task.EventFinished {
			return j.endLocked(ErrFinished)
		}
	}
	return nil
}

// Last returns the number of the newest event, 0 for none.
func (j *Journal) Last() uint64 {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.last
}

// Newest returns the newest event, nil for none.
func (j *Journal) Newest() (*task.Event, error) {
	f, err := os.OpenFile(j.path, os.O_RDONLY|syscall.O_NOFOLLOW, 0)
	if err != nil {
		return nil, fmt.Errorf("read journal: %w", err)
	}
	defer f.Close()
	size, _, _ := j.progress(0)
	e, _, err := lastEvent(f, size)
	if err != nil {
		return nil, fmt.Errorf("read journal: %w", err)
	}
	return e, nil
}

// Finished reports whether no more events will come.
func (j *Journal) Finished() bool {
	j.mu.Lock()
	defer j.mu.Unlock()
	return errors.Is(j.end, ErrFinished)
}

// Append numbers the event, sets e.Seq, and writes it. When it fails, as it
// does when the disk is full, the journal is as it was and the next Append
// may succeed.
func (j *Journal) Append(e *task.Event) error {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.end != nil {
		return fmt.Errorf("append to journal: %w", j.end)
	}
	numbered := *e
	numbered.Seq = j.last + 1
	if err := encode(&j.line, &numbered); err != nil {
		return fmt.Errorf("append to journal: %w", err)
	}
	if _, err := j.file.WriteAt(j.line.Bytes(), j.size); err != nil {
		_ = j.file.Truncate(j.size) // gives the space back; readers stop at j.size in any case
		return fmt.Errorf("append to journal: %w", err)
	}
	e.Seq = numbered.Seq
	j.last = e.Seq
	j.size += int64(j.line.Len())
	j.wakeLocked()
	return nil
}

// Skip leaves out numbers. It is for a writer that cannot know which numbers
// readers saw before a power cut took the tail of the journal.
func (j *Journal) Skip(n uint64) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.last += n
}

// Finish says that no more events will come: readers that follow reach the end.
func (j *Journal) Finish() error { return j.stop(ErrFinished) }

// Close closes a journal that may go on when it is opened again. Readers that
// follow get [ErrClosed]. On a finished journal it does nothing.
func (j *Journal) Close() error { return j.stop(ErrClosed) }

func (j *Journal) stop(why error) error {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.endLocked(why)
}

func (j *Journal) endLocked(why error) error {
	if j.end != nil {
		return nil
	}
	j.end = why
	j.wakeLocked()
	return j.file.Close()
}

func (j *Journal) wakeLocked() {
	if j.changed != nil {
		close(j.changed)
		j.changed = nil
	}
}

// progress returns how far readers may read and whether the journal has ended.
// For a reader that is at off, which is all there is, changed is closed when
// there is more.
func (j *Journal) progress(off int64) (size int64, changed <-chan struct{}, end error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.size == off && j.end == nil && j.changed == nil {
		j.changed = make(chan struct{})
	}
	return j.size, j.changed, j.end
}

// encode writes an event as a line.
func encode(line *bytes.Buffer, e *task.Event) error {
	line.Reset()
	enc := json.NewEncoder(line)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(e); err != nil {
		return err
	}
	if line.Len() > MaxLine {
		return fmt.Errorf("%w: %d bytes, the limit is %d", ErrTooLong, line.Len(), MaxLine)
	}
	return nil
}

// decode reads a line. Fields that it does not know are left out: a newer
// program may have written them.
func decode(line []byte) (*task.Event, error) {
	var e task.Event
	if err := json.Unmarshal(line, &e); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrDamaged, err)
	}
	if e.Seq == 0 || e.Type == "" {
		return nil, fmt.Errorf("%w: an event without a number or a type", ErrDamaged)
	}
	return &e, nil
}

// lastEvent finds the last whole event of a file, nil for none, and the length
// of the file up to its end.
func lastEvent(f io.ReaderAt, size int64) (*task.Event, int64, error) {
	for size > 0 {
		end, err := lineStart(f, size) // what follows the last newline is torn
		if err != nil || end == 0 {
			return nil, 0, err
		}
		start, err := lineStart(f, end-1)
		if err != nil {
			return nil, 0, err
		}
		if end-start <= MaxLine {
			line := make([]byte, end-start)
			if _, err := f.ReadAt(line, start); err != nil {
				return nil, 0, err
			}
			if e, err := decode(line); err == nil {
				return e, end, nil
			}
		}
		size = start
	}
	return nil, 0, nil
}

// lineStart returns the offset after the last newline before off; 0 for none.
func lineStart(f io.ReaderAt, off int64) (int64, error) {
	buf := make([]byte, 32<<10)
	for off > 0 {
		b := buf[:min(off, int64(len(buf)))]
		if _, err := f.ReadAt(b, off-int64(len(b))); err != nil {
			return 0, err
		}
		off -= int64(len(b))
		if i := bytes.LastIndexByte(b, '\n'); i >= 0 {
			return off + int64(i) + 1, nil
		}
	}
	return 0, nil
}
