package supervise

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"
	"unicode/utf8"
)

const (
	first = 4 << 10 // bytes; what is read at once of a program that writes little

	// A program that writes byte by byte must not fill the disk, here or where
	// each frame becomes an event.
	pieceCost = 256       // bytes of a piece besides its data
	leastRoom = 256 << 20 // for pieces, twice
)

// output reads what a program writes and keeps it in the log as it comes. What
// exceeds the limit, and what the disk cannot hold, is read and dropped: the
// program goes on, and its account says how much is missing.
type output struct {
	limit   int64
	grown   func() // tells that there is more in the log
	readers []*os.File
	reading atomic.Int32
	done    chan struct{} // closed when all have ended

	mu      sync.Mutex
	file    *os.File
	size    int64 // of whole frames
	total   int64 // read
	dropped int64 // of that
	cost    int64 // of the pieces
	full    bool  // a limit was reached
	lost    int64 // of that, not stored since the last note
	why     error // it was not
}

func newOutput(dir string, limit int64, grown func()) (*output, error) {
	f, err := os.OpenFile(filepath.Join(dir, logFile), os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, err
	}
	return &output{limit: limit, grown: grown, file: f, done: make(chan struct{})}, nil
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
	o.tellLost()
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
	size := int64(len(frame) - header)
	if size <= 0 {
		return
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	room := min(size, o.limit-min(o.limit, o.total))
	why := "output limit of " + bytesText(o.limit) + " reached"
	if o.cost += size + pieceCost; o.cost > 2*max(o.limit, leastRoom) {
		room, why = 0, "the output comes in too many pieces"
	}
	if o.full {
		room = 0
	}
	if room > 0 {
		o.keep(kind, frame[:header+room])
	}
	o.total += size
	o.dropped += size - room
	if room < size && !o.full {
		o.full = true
		_ = o.append(AppendFrame(nil, Frame{Kind: Note, Time: time.Now(), Offset: o.total, Data: []byte(why + ": what follows is dropped")}))
	}
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

// keep stores what is within the limit.
func (o *output) keep(kind byte, frame []byte) {
	n := len(frame) - header
	appendHeader(frame[:0], Frame{Kind: kind, Time: time.Now(), Offset: o.total}, n)
	if err := o.append(frame); err != nil {
		o.why = err
		if e := (*os.PathError)(nil); errors.As(err, &e) {
			o.why = e.Err
		}
		o.lost += int64(n)
		o.dropped += int64(n)
		return
	}
	o.tellLost()
}

func (o *output) append(frame []byte) error {
	if _, err := o.file.WriteAt(frame, o.size); err != nil {
		_ = o.file.Truncate(o.size)
		return err
	}
	o.size += int64(len(frame))
	o.grown()
	return nil
}

// tellLost notes what the disk could not hold.
func (o *output) tellLost() {
	if o.lost == 0 {
		return
	}
	text := fmt.Sprintf("%s of the output before this are missing: %v", bytesText(o.lost), o.why)
	if o.append(AppendFrame(nil, Frame{Kind: Note, Time: time.Now(), Offset: o.total, Data: []byte(text)})) == nil {
		o.lost = 0
	}
}
