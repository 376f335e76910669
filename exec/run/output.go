package run

import (
	"errors"
	"io"
	"os"

	"github.com/balanceai/balance/exec/journal"
	"github.com/balanceai/balance/exec/supervise"
	"github.com/balanceai/balance/exec/task"
)

// output journals what a supervisor keeps of a program's output. The journal
// says how far it has got, so that a later life goes on there.
type output struct {
	x       *live
	log     *supervise.Log // nil until there is one
	started bool           // the journal has that the program was
}

// openOutput goes on where the journal of the run ends.
func (x *live) openOutput() (*output, error) {
	last, err := x.journal.Newest()
	if err != nil {
		return nil, err
	}
	o := &output{x: x}
	if last != nil && last.Place > 0 {
		o.started = true
		x.writing.Lock()
		x.place = last.Place
		x.writing.Unlock()
	}
	return o, nil
}

func (o *output) close() {
	if o.log != nil {
		_ = o.log.Close()
	}
}

// begin journals that the program was started.
func (o *output) begin() error {
	if o.started {
		return nil
	}
	o.started = true
	return o.write(&task.Event{Type: task.EventStarted, State: task.Running}, 1)
}

// drain journals what there is. The error is errLeft. After a power cut it does
// nothing: the journal may have lost what others have seen, and they would see
// it twice.
func (o *output) drain() error {
	if o.x.rebooted {
		return nil
	}
	if o.log == nil {
		log, err := supervise.OpenLog(o.x.dir, max(o.x.placed(), 1)-1)
		if errors.Is(err, os.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		o.log = log
	}
	for {
		f, err := o.log.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil { // what was journaled stays, and so does the account of the end
			o.x.r.cfg.Log.Error("cannot read what a run wrote", "run", o.x.id, "err", err)
			return nil
		}
		if err := o.write(event(f), o.log.Place()+1); err != nil {
			return err
		}
	}
}

// write waits for as long as the disk is full: what it holds up is in the log.
func (o *output) write(e *task.Event, place int64) error {
	if o.x.insist("journal", func() error { return o.x.appendAt(e, place) }) {
		return nil
	}
	return errLeft
}

// event makes an event of what a supervisor keeps.
func event(f supervise.Frame) *task.Event {
	e := &task.Event{Type: task.EventOutput, Stream: task.Stdout, Time: f.Time}
	switch f.Kind {
	case supervise.Note:
		return &task.Event{Type: task.EventNote, Message: string(f.Data), Time: f.Time}
	case supervise.Stderr:
		e.Stream = task.Stderr
	}
	e.Offset, e.Part = f.Offset, f.First
	if isText(f.Data) {
		e.SetOutput(f.Data)
	} else {
		e.Binary = append([]byte(nil), f.Data...)
	}
	return e
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

// The journal keeps as many parts as the log, so that both have the same.
const _ = uint(supervise.Parts-journal.Parts) + uint(journal.Parts-supervise.Parts)
