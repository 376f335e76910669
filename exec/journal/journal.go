// Package journal is the append-only file of a run's events.
//
// A journal is a file of JSON lines, one [task.Event] a line, with the same
// bytes on disk as on the wire. It has one writer, which numbers the events
// from 1 on, and any number of readers. An event is in the file before any
// reader can see it, so what a reader saw survives the program: one that saw
// number n asks for what comes after n and misses nothing.
//
// Of a long output a journal keeps the beginning and the newest part. From the
// first event on that says so ([task.Event.Part]) output goes into files of its
// own, parts, of which the newest ones are kept; all else stays. A part is named
// by the number of its first event, in a folder beside the journal. Numbers that
// are gone are passed over.
//
// Readers read from the files. A slow one holds up nobody and costs no memory,
// and nothing of a journal is kept in memory but lengths: a place in the
// middle is found by bisection of a file.
//
// Nothing is synced to disk. A journal survives the end of the program, and a
// power cut may take its tail; what must survive that is in the ledger.
package journal

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"syscall"

	"github.com/balanceai/balance/exec/task"
)

// Parts is how many parts of the newest output are kept.
const Parts = 6

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
	tail    *os.File // the last part, for writing; nil: there is none
	parts   []part   // the oldest first; readers share it, so that it is not written to
	tailing int64    // size of the last one, as size
	last    uint64   // number of the newest event; 0 for none
	line    bytes.Buffer
	changed chan struct{} // closed at the next change; nil while nobody waits
}

// part is a file with some of the newest output.
type part struct {
	first uint64 // number of its first event
	size  int64
}

// partsDir is the folder of the parts of the journal at path. There is none
// before the first.
func partsDir(path string) string { return path + ".parts" }

func partPath(path string, first uint64) string {
	return filepath.Join(partsDir(path), strconv.FormatUint(first, 10))
}

// listParts returns the parts of the journal at path, the oldest first.
func listParts(path string) ([]part, error) {
	entries, err := os.ReadDir(partsDir(path))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	var out []part
	for _, e := range entries {
		if first, err := strconv.ParseUint(e.Name(), 10, 64); err == nil && e.Type().IsRegular() {
			out = append(out, part{first: first})
		}
	}
	slices.SortFunc(out, func(a, b part) int { return cmp.Compare(a.first, b.first) })
	return out, nil
}

// Remove removes the journal at path, which nobody has open.
func Remove(path string) error {
	return errors.Join(os.RemoveAll(partsDir(path)), os.Remove(path))
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
	e, size, err := whole(j.file)
	if err != nil {
		return err
	}
	j.size = size
	if e != nil {
		j.last = e.Seq
	}
	if err := j.loadParts(); err != nil {
		return err
	}
	if e != nil && e.Type == task.EventFinished {
		return j.endLocked(ErrFinished)
	}
	return nil
}

// loadParts looks at the parts. One without an event is that of an Append that did
// not come to its end.
func (j *Journal) loadParts() error {
	parts, err := listParts(j.path)
	if err != nil {
		return err
	}
	for _, p := range parts {
		f, err := os.OpenFile(partPath(j.path, p.first), os.O_RDWR|syscall.O_NOFOLLOW, 0)
		if err != nil {
			return err
		}
		e, size, err := whole(f)
		if err != nil {
			f.Close()
			return err
		}
		if e == nil {
			f.Close()
			if err := os.Remove(f.Name()); err != nil {
				return err
			}
			continue
		}
		if j.tail != nil {
			j.tail.Close()
		}
		p.size, j.tail, j.tailing = size, f, size
		j.parts, j.last = append(j.parts, p), max(j.last, e.Seq)
	}
	return nil
}

// whole cuts a torn last line off a file, and returns the last event and the
// length.
func whole(f *os.File) (*task.Event, int64, error) {
	info, err := f.Stat()
	if err != nil {
		return nil, 0, err
	}
	e, size, err := lastEvent(f, info.Size())
	if err == nil && size < info.Size() {
		err = f.Truncate(size)
	}
	return e, size, err
}

// Last returns the number of the newest event, 0 for none.
func (j *Journal) Last() uint64 {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.last
}

// Newest returns the newest event, nil for none.
func (j *Journal) Newest() (*task.Event, error) {
	x, _, _ := j.progress(0)
	e, err := lastOf(j.path, x.size)
	if n := len(x.parts); n > 0 && err == nil {
		var o *task.Event
		if o, err = lastOf(partPath(j.path, x.parts[n-1].first), x.parts[n-1].size); e == nil || o != nil && o.Seq > e.Seq {
			e = o
		}
	}
	if err != nil {
		return nil, fmt.Errorf("read journal: %w", err)
	}
	return e, nil
}

func lastOf(path string, size int64) (*task.Event, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NOFOLLOW, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	e, _, err := lastEvent(f, size)
	return e, err
}

// Finished reports whether no more events will come.
func (j *Journal) Finished() bool {
	j.mu.Lock()
	defer j.mu.Unlock()
	return errors.Is(j.end, ErrFinished)
}

// Append numbers the event, sets e.Seq, and writes it. After the one that says that
// the run has finished the journal is finished: readers that follow reach the end.
// When it fails, as it does when the disk is full, the journal is as it was and the
// next Append may succeed.
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
	if err := j.store(&numbered); err != nil {
		return fmt.Errorf("append to journal: %w", err)
	}
	e.Seq = numbered.Seq
	j.last = e.Seq
	j.wakeLocked()
	if e.Type == task.EventFinished { // at once: who reads it may ask if there is more
		_ = j.endLocked(ErrFinished) // what is in it is written
	}
	return nil
}

// store writes the line of an event where it belongs.
func (j *Journal) store(e *task.Event) error {
	if e.Type != task.EventOutput || j.tail == nil && !e.Part {
		return writeAt(j.file, j.line.Bytes(), &j.size)
	}
	if e.Part {
		return j.turn(e.Seq)
	}
	return writeAt(j.tail, j.line.Bytes(), &j.tailing)
}

func writeAt(f *os.File, line []byte, size *int64) error {
	if _, err := f.WriteAt(line, *size); err != nil {
		_ = f.Truncate(*size) // gives the space back; readers stop there in any case
		return err
	}
	*size += int64(len(line))
	return nil
}

// turn begins a part with the line. The oldest makes room for it first.
func (j *Journal) turn(first uint64) error {
	parts := slices.Clone(j.parts)
	if n := len(parts); n > 0 {
		parts[n-1].size = j.tailing
	} else if err := os.Mkdir(partsDir(j.path), 0o700); err != nil && !errors.Is(err, os.ErrExist) {
		return err
	}
	if len(parts) == Parts {
		if err := os.Remove(partPath(j.path, parts[0].first)); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
		parts = parts[1:]
		j.parts = parts
	}
	f, err := os.OpenFile(partPath(j.path, first), os.O_RDWR|os.O_CREATE|os.O_TRUNC|syscall.O_NOFOLLOW, 0o600)
	if err != nil {
		return err
	}
	var size int64
	if err := writeAt(f, j.line.Bytes(), &size); err != nil {
		f.Close()
		os.Remove(f.Name())
		return err
	}
	if j.tail != nil {
		j.tail.Close()
	}
	j.tail, j.tailing, j.parts = f, size, append(parts, part{first: first})
	return nil
}

// Skip leaves out numbers. It is for a writer that cannot know which numbers
// readers saw before a power cut took the tail of the journal.
func (j *Journal) Skip(n uint64) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.last += n
}

// Close closes a journal that may go on when it is opened again. Readers that
// follow get [ErrClosed]. On a finished journal it does nothing.
func (j *Journal) Close() error {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.endLocked(ErrClosed)
}

func (j *Journal) endLocked(why error) error {
	if j.end != nil {
		return nil
	}
	j.end = why
	j.wakeLocked()
	if j.tail != nil {
		j.tail.Close() // what is in it is written
	}
	return j.file.Close()
}

func (j *Journal) wakeLocked() {
	if j.changed != nil {
		close(j.changed)
		j.changed = nil
	}
}

// extent is how far readers may read.
type extent struct {
	size  int64
	parts []part
	last  uint64
}

// progress returns how far readers may read and whether the journal has ended.
// For a reader that is at number seen, which is the newest, changed is closed when
// there is more.
func (j *Journal) progress(seen uint64) (x extent, changed <-chan struct{}, end error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.last == seen && j.end == nil && j.changed == nil {
		j.changed = make(chan struct{})
	}
	x = extent{size: j.size, parts: j.parts, last: j.last}
	if n := len(j.parts); n > 0 {
		x.parts = slices.Clone(j.parts)
		x.parts[n-1].size = j.tailing
	}
	return x, j.changed, j.end
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
