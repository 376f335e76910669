package supervise

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
	"unicode/utf8"
)

const first = 4 << 10 // bytes; what is read at once of a program that writes little

// The log is a head, which is kept, and parts with what was written last. Of the
// limit an eighth is for each of these and two for the head. When the last part
// is full the oldest goes.
const (
	Parts     = 6
	headParts = 2
)

// LeastLimit is the smallest limit of a log, so that a part holds what is read at
// once.
const LeastLimit = (headParts + Parts) * Chunk

// A program that writes byte by byte must not fill the disk, here or where each
// frame becomes an event: a piece counts for half of this at least.
const pieceCost = 256 // bytes

// output reads what a program writes and keeps it in the log as it comes. The
// program does not wait for room: what was written first and last is kept, what
// the disk cannot hold is dropped, and its account says how much is missing.
type output struct {
	dir     string
	part    int64  // bytes that one takes
	grown   func() // tells that there is more in the log
	readers []*os.File
	reading atomic.Int32
	done    chan struct{} // closed when all have ended

	mu      sync.Mutex
	file    *os.File // the newest part
	base    int64    // where it begins in all that the log ever was
	size    int64    // of that: where the next frame begins
	used    int64    // of the part
	blind   int64    // bytes since the last look at the disk that found room
	parts   []part   // the oldest first, without the head
	total   int64    // read
	dropped int64    // of that
	lost    int64    // of that, because of the disk, not noted yet
	why     error    // the disk did not hold it
}

// part is one of the newest parts of a log.
type part struct {
	base int64
	kept int64 // bytes of output
}

func newOutput(dir string, limit int64, grown func()) (*output, error) {
	f, err := newPart(dir, 0)
	if err != nil {
		return nil, err
	}
	return &output{dir: dir, part: max(limit, LeastLimit) / (headParts + Parts), grown: grown, file: f, done: make(chan struct{})}, nil
}

func newPart(dir string, base int64) (*os.File, error) {
	return os.OpenFile(partPath(dir, base), os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
}

// start reads the streams, standard output first, until they end.
func (o *output) start(streams ...*os.File) {
	o.readers = streams
	o.reading.Store(int32(len(streams)))
	for i, f := range streams {
		go o.read(Stdout+byte(i), f)
	}
}

// ended waits for the end of the streams, but not long.
func (o *output) ended(long time.Duration) bool {
	select {
	case <-o.done:
		return true
	default:
	}
	if long == 0 {
		return false
	}
	t := time.NewTimer(long)
	defer t.Stop()
	select {
	case <-o.done:
		return true
	case <-t.C:
	}
	return false
}

// cut stops reading, whoever still has the other ends.
func (o *output) cut() {
	for _, f := range o.readers {
		f.Close()
	}
	<-o.done
}

// sum returns, at the end, how much was written, and how much of that is not in
// the log.
func (o *output) sum() (total, dropped int64) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.lost > 0 && o.append(o.missing(), 0) == nil { // if not, the account says so
		o.lost = 0
	}
	return o.total, o.dropped
}

// read keeps one stream. A character that is cut in two by the end of a chunk
// goes into the next one. The header of a frame has its place before the data.
func (o *output) read(kind byte, f *os.File) {
	defer func() {
		f.Close()
		if o.reading.Add(-1) == 0 {
			close(o.done)
		}
	}()
	buf := make([]byte, header+first)
	held := 0
	for {
		n, err := f.Read(buf[header+held:])
		b := buf[:header+held+n]
		cut := 0
		if err == nil {
			cut = cutRune(b[header:])
		}
		o.write(kind, b[:len(b)-cut])
		rest := b[len(b)-cut:]
		if len(b) == len(buf) && len(buf) < header+Chunk {
			buf = make([]byte, header+Chunk)
		}
		held = copy(buf[header:], rest)
		if err != nil {
			return
		}
	}
}

// cutRune returns how many bytes at the end of b begin a character of UTF-8
// that does not end in b.
func cutRune(b []byte) int {
	for n := 1; n < utf8.UTFMax && n <= len(b); n++ {
		if tail := b[len(b)-n:]; utf8.RuneStart(tail[0]) {
			if !utf8.FullRune(tail) {
				return n
			}
			return 0
		}
	}
	return 0
}

// write keeps a piece of output, which has room for the header before it.
func (o *output) write(kind byte, frame []byte) {
	n := int64(len(frame) - header)
	if n <= 0 {
		return
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	appendHeader(frame[:0], Frame{Kind: kind, Time: time.Now(), Offset: o.total}, int(n))
	if o.lost > 0 { // the note goes with what comes after it, or not: it may be so short that a full disk holds it
		frame = append(o.missing(), frame...)
	}
	err := o.append(frame, max(n, (n+pieceCost)/2))
	o.total += n
	if err != nil {
		o.why = err
		if e := (*os.PathError)(nil); errors.As(err, &e) {
			o.why = e.Err
		}
		o.lost += n
		o.dropped += n
		return
	}
	o.lost = 0
	if last := len(o.parts) - 1; last >= 0 {
		o.parts[last].kept += n
	}
}

// append stores frames, in the next part where this one is full.
func (o *output) append(frames []byte, cost int64) error {
	full := o.part
	if len(o.parts) == 0 {
		full *= headParts
	}
	if o.blind += int64(len(frames)); o.blind > lookAfter {
		if !hasRoom(o.dir, o.total-o.dropped) {
			return syscall.ENOSPC
		}
		o.blind = 0
	}
	if o.used+cost > full && o.size > o.base {
		if err := o.turn(); err != nil {
			return err
		}
	}
	if _, err := o.file.WriteAt(frames, o.size-o.base); err != nil {
		_ = o.file.Truncate(o.size - o.base)
		return err
	}
	o.size += int64(len(frames))
	o.used += cost
	o.grown()
	return nil
}

// missing is a note of what the disk could not hold.
func (o *output) missing() []byte {
	text := fmt.Sprintf("%s of the output before this are missing: %v", bytesText(o.lost), o.why)
	return AppendFrame(nil, Frame{Kind: Note, Time: time.Now(), Offset: o.total, Data: []byte(text)})
}

// turn begins the next part. The oldest makes room for it first.
func (o *output) turn() error {
	if len(o.parts) == Parts {
		if err := os.Remove(partPath(o.dir, o.parts[0].base)); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
		o.dropped += o.parts[0].kept
		o.parts = slices.Delete(o.parts, 0, 1)
	}
	f, err := newPart(o.dir, o.size)
	if err != nil {
		return err
	}
	o.file.Close()
	o.file, o.base, o.used = f, o.size, 0
	o.parts = append(o.parts, part{base: o.base})
	return nil
}

// bytesText writes a number of bytes as people do.
func bytesText(n int64) string {
	for _, u := range []struct {
		size int64
		name string
	}{{1 << 40, "TiB"}, {1 << 30, "GiB"}, {1 << 20, "MiB"}, {1 << 10, "KiB"}} {
		if n >= u.size && n%u.size == 0 {
			return fmt.Sprintf("%d %s", n/u.size, u.name)
		}
	}
	return fmt.Sprintf("%d B", n)
}
