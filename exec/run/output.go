package run

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
	"unicode/utf8"

	"github.com/balanceai/balance/exec/task"
)

// chunk is the longest output of one event, in bytes.
const chunk = 32 << 10

// output reads what a program writes and journals it as it comes. What exceeds
// the limit, and what the disk cannot hold, is read and dropped: the program
// goes on, and its account says how much is missing.
type output struct {
	x       *live
	limit   task.Bytes
	readers [2]*os.File // standard output and error
	writers [2]*os.File // the program's ends
	reading atomic.Int32
	done    chan struct{} // closed when both have ended
	hurried chan struct{} // closed by hurry

	mu      sync.Mutex
	total   task.Bytes // read
	dropped task.Bytes // of that
	full    bool       // the limit was reached
	lost    task.Bytes // of that, for want of disk, since the last note
}

func newOutput(x *live) (*output, error) {
	o := &output{x: x, limit: task.DefaultOutput, done: make(chan struct{}), hurried: make(chan struct{})}
	if n := x.spec.Limits.Output; n > 0 {
		o.limit = n
	}
	if n := x.grant.Limits.Output; n > 0 {
		o.limit = min(o.limit, n)
	}
	for i := range o.readers {
		var err error
		if o.readers[i], o.writers[i], err = os.Pipe(); err != nil {
			o.parent()
			o.cut()
			return nil, err
		}
	}
	return o, nil
}

// parent closes the ends that the program has now.
func (o *output) parent() {
	for _, f := range o.writers {
		f.Close()
	}
}

// start reads until both pipes end.
func (o *output) start() {
	o.reading.Store(2)
	for i, stream := range []string{task.Stdout, task.Stderr} {
		go o.read(stream, o.readers[i])
	}
}

// ended waits for the end of both pipes, but not long. After hurry it does not
// wait.
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
	case <-o.hurried:
	case <-t.C:
	}
	return false
}

// hurry ends a wait for programs in the background.
func (o *output) hurry() { close(o.hurried) }

// cut stops reading, whoever still has the other ends.
func (o *output) cut() {
	for _, f := range o.readers {
		f.Close()
	}
	if o.reading.Load() > 0 {
		<-o.done
	}
}

// amount returns how much was written, and how much of that is not in the
// journal.
func (o *output) amount() (total, dropped task.Bytes) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.total, o.dropped
}

// read journals one stream. A character that is cut in two by the end of a
// chunk goes into the next one.
func (o *output) read(stream string, f *os.File) {
	defer func() {
		f.Close()
		if o.reading.Add(-1) == 0 {
			close(o.done)
		}
	}()
	buf := make([]byte, chunk)
	held := 0
	for {
		n, err := f.Read(buf[held:])
		b := buf[:held+n]
		if err == nil {
			b = b[:len(b)-cutRune(b)]
		}
		o.write(stream, b)
		held = copy(buf, buf[len(b):held+n])
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

// write journals a piece of output.
func (o *output) write(stream string, b []byte) {
	if len(b) == 0 {
		return
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	size := task.Bytes(len(b))
	room := min(size, o.limit-min(o.limit, o.total))
	o.total += size
	o.dropped += size - room
	if room > 0 {
		o.keep(stream, b[:room])
	}
	if room < size && !o.full {
		o.full = true
		_ = o.x.append(&task.Event{Type: task.EventNote, Message: fmt.Sprintf("output limit of %v reached: what follows is dropped", o.limit)})
	}
}

// keep journals what is within the limit.
func (o *output) keep(stream string, b []byte) {
	if o.lost > 0 {
		note := &task.Event{Type: task.EventNote, Message: fmt.Sprintf("the disk was full: %v of output are dropped", o.lost)}
		if o.x.append(note) == nil {
			o.lost = 0
		}
	}
	e := &task.Event{Type: task.EventOutput, Stream: stream}
	if bytes.IndexByte(b, 0) >= 0 {
		e.Binary = b // valid UTF-8 perhaps, but six times as long in JSON
	} else {
		e.SetOutput(b)
	}
	if err := o.x.append(e); err != nil {
		if !errors.Is(err, syscall.ENOSPC) {
			o.x.r.cfg.Log.Error("cannot journal the output of a run", "run", o.x.id, "err", err)
		}
		o.lost += task.Bytes(len(b))
		o.dropped += task.Bytes(len(b))
	}
}
