package run

import (
	"fmt"
	"os"
	"sync"
	"sync/atomic"
	"time"
	"unicode/utf8"

	"github.com/balanceai/balance/exec/task"
)

const (
	chunk = 32 << 10 // bytes; the longest output of one event
	first = 4 << 10  // bytes; what is read at once of a program that writes little

	// A program that writes byte by byte must not fill the disk with events.
	eventCost = 256            // bytes of an event besides its output
	leastRoom = 256 * task.MiB // for events, twice
)

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
	cost    task.Bytes // of the events
	full    bool       // a limit was reached
	lost    task.Bytes // of that, not stored since the last note
	why     error      // it was not
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

// sum returns, at the end, how much was written, and how much of that is not in
// the journal.
func (o *output) sum() (total, dropped task.Bytes) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.tellLost()
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
	buf := make([]byte, first)
	held := 0
	for {
		n, err := f.Read(buf[held:])
		b := buf[:held+n]
		if err == nil {
			b = b[:len(b)-cutRune(b)]
		}
		o.write(stream, b)
		rest := buf[len(b) : held+n]
		if held+n == len(buf) && len(buf) < chunk {
			buf = make([]byte, chunk)
		}
		held = copy(buf, rest)
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
	why := fmt.Sprintf("output limit of %v reached", o.limit)
	if o.cost += size + eventCost; o.cost > 2*max(o.limit, leastRoom) {
		room, why = 0, "the output comes in too many pieces"
	}
	if o.full {
		room = 0
	}
	o.total += size
	o.dropped += size - room
	if room > 0 {
		o.keep(stream, b[:room])
	}
	if room < size && !o.full {
		o.full = true
		_ = o.x.append(&task.Event{Type: task.EventNote, Message: why + ": what follows is dropped"})
	}
}

// isText reports whether b is shorter as text in JSON, where a control
// character takes six bytes, than in base64.
func isText(b []byte) bool {
	control := 0
	for _, c := range b {
		if c < ' ' && c != '\n' && c != '\r' && c != '\t' {
			control++
		}
	}
	return control <= len(b)/16
}

// keep journals what is within the limit.
func (o *output) keep(stream string, b []byte) {
	e := &task.Event{Type: task.EventOutput, Stream: stream}
	if isText(b) {
		e.SetOutput(b)
	} else {
		e.Binary = b
	}
	if err := o.x.append(e); err != nil {
		if o.lost == 0 {
			o.x.r.cfg.Log.Error("cannot journal the output of a run", "run", o.x.id, "err", err)
		}
		o.why = cause(err)
		o.lost += task.Bytes(len(b))
		o.dropped += task.Bytes(len(b))
		return
	}
	o.tellLost()
}

// tellLost notes what the disk could not hold.
func (o *output) tellLost() {
	if o.lost == 0 {
		return
	}
	note := &task.Event{Type: task.EventNote, Message: fmt.Sprintf("%v of the output before this are missing: %v", o.lost, o.why)}
	if o.x.append(note) == nil {
		o.lost = 0
	}
}
