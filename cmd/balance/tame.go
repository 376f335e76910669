package main

import (
	"io"

	"github.com/balanceai/balance/exec/task"
)

// tamed is a terminal to which a program of another machine writes. Text, colours
// and what progress bars need pass. What would do more to the terminal than that –
// answer in its person's name, change its title or its keys, write elsewhere on the
// screen – is shown as a dot and the text that is in it. See ECMA-48 for the form of
// what begins with ESC.
type tamed struct {
	w     io.Writer
	state byte   // 0, esc, '[' in a control sequence, or the first byte of a C1 control
	seq   []byte // parameters of the sequence so far
}

const (
	esc    = 0x1b
	leadC1 = 0xc2 // of U+0080 to U+009F in UTF-8
	maxSeq = 32
	dot    = "·"
)

// Write implements [io.Writer]. What is not complete yet waits for the next call.
func (t *tamed) Write(p []byte) (int, error) {
	out := make([]byte, 0, len(p))
	for _, b := range p {
		out = t.next(out, b)
	}
	if _, err := t.w.Write(out); err != nil {
		return 0, err
	}
	return len(p), nil
}

func (t *tamed) next(out []byte, b byte) []byte {
	switch state := t.state; {
	case state == esc && b == '[':
		t.state, t.seq = '[', t.seq[:0]
		return out
	case state == '[' && b >= 0x20 && b < 0x40 && len(t.seq) < maxSeq:
		t.seq = append(t.seq, b)
		return out
	case state == '[' && (b == 'm' || b == 'K') && plainParams(t.seq): // colours; erase the line
		t.state = 0
		return append(append(append(out, esc, '['), t.seq...), b)
	case state == leadC1 && b >= 0xa0:
		t.state = 0
		return append(out, leadC1, b)
	case state == leadC1 && b >= 0x80:
		t.state = 0
		return append(out, dot...)
	case state != 0:
		t.state = 0
		out = append(out, dot...)
		if state == '[' {
			out = append(append(out, '['), t.seq...)
		}
	}
	switch {
	case b == esc, b == leadC1:
		t.state = b
		return out
	case b < 0x20 && b != '\n' && b != '\t' && b != '\r' && b != '\b', b == 0x7f:
		return append(out, dot...)
	}
	return append(out, b)
}

// plainParams reports whether a sequence has only numbers.
func plainParams(seq []byte) bool {
	for _, b := range seq {
		if (b < '0' || b > '9') && b != ';' && b != ':' {
			return false
		}
	}
	return true
}

// ofRun is where what a run has written to a stream goes.
func (p *printer) ofRun(stream string) io.Writer {
	i, w, tty := 0, p.out, p.outTTY
	if stream == task.Stderr {
		i, w, tty = 1, p.err, p.errTTY
	}
	if !tty {
		return w
	}
	if p.tame[i] == nil {
		p.tame[i] = &tamed{w: w}
	}
	return p.tame[i]
}
