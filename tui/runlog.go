package tui

import (
	"bytes"
	"strings"
	"time"

	"github.com/balanceai/balance/exec/task"
)

// What is kept of a run's output. The journal has more.
const (
	maxLine     = 4 << 10 // bytes of one line
	maxLogLines = 10_000
	maxLogBytes = 8 << 20
)

// runLog holds the newest lines of a run: its output and what happened to it.
// Lines are numbered from 0 and keep their number when old ones are dropped.
type runLog struct {
	lines []logLine
	first int // number of lines[0]
	bytes int
	open  [2]openLine // standard output, standard error
	gaps  task.Gaps
}

type lineKind uint8

const (
	lineStdout lineKind = iota
	lineStderr
	lineEvent
	lineNote
)

type logLine struct {
	kind lineKind
	at   time.Time
	text string // clean
	cut  int    // bytes of the line that are not kept
}

// openLine is the line of a stream that has no end yet.
type openLine struct {
	started bool
	n       int // its number
	raw     []byte
	cut     int
	back    bool // a carriage return came: what follows replaces the line
}

// add takes an event of the run.
func (l *runLog) add(e task.Event) {
	if e.Type == task.EventOutput {
		if n := l.gaps.Before(&e); n > 0 {
			l.push(logLine{kind: lineNote, at: e.Time, text: task.Dropped(n)})
		}
		kind := lineStdout
		if e.Stream == task.Stderr {
			kind = lineStderr
		}
		l.write(kind, e.Output(), e.Time)
		return
	}
	kind := lineEvent
	if e.Type == task.EventNote {
		kind = lineNote
	}
	l.push(logLine{kind: kind, at: e.Time, text: clean(eventWords(e))})
}

// eventWords puts an event into words.
func eventWords(e task.Event) string {
	var s string
	switch e.Type {
	case task.EventPlaced:
		s = "placed"
	case task.EventStarted:
		s = "started"
	case task.EventFinished:
		s = string(e.State)
		if e.ExitCode != nil && *e.ExitCode >= 0 && e.State != task.Succeeded {
			s += ", " + exitWords(*e.ExitCode)
		}
	case task.EventNote:
		return e.Message
	default:
		s = e.Type
	}
	if e.Node != "" {
		s += " on " + e.Node
	}
	if e.Message != "" {
		s += ": " + e.Message
	}
	return s
}

// write adds output of a stream: pieces of lines, and ends of lines.
func (l *runLog) write(kind lineKind, b []byte, at time.Time) {
	o := &l.open[kind]
	for len(b) > 0 {
		part, rest, ended := bytes.Cut(b, []byte{'\n'})
		if !o.started || o.n < l.first {
			*o = openLine{started: true, raw: o.raw[:0]}
			l.push(logLine{kind: kind, at: at})
			o.n = l.first + len(l.lines) - 1
		}
		o.write(part)
		line := &l.lines[o.n-l.first]
		l.bytes -= len(line.text)
		line.text, line.cut = cleanLine(o.raw), o.cut
		l.bytes += len(line.text)
		if !ended {
			break
		}
		o.started = false
		b = rest
	}
}

// write adds a piece that has no line break.
func (o *openLine) write(b []byte) {
	for len(b) > 0 {
		if o.back {
			o.raw, o.cut, o.back = o.raw[:0], 0, false
		}
		part, rest, back := bytes.Cut(b, []byte{'\r'})
		keep := min(len(part), max(0, maxLine-len(o.raw)))
		o.raw = append(o.raw, part[:keep]...)
		o.cut += len(part) - keep
		o.back = back
		b = rest
	}
}

// cleanLine makes a line of output safe to draw, with its tabs as the spaces
// that they stand for.
func cleanLine(raw []byte) string {
	if bytes.IndexByte(raw, '\t') < 0 {
		return clean(string(raw))
	}
	var b strings.Builder
	col := 0
	for i, part := range strings.Split(string(raw), "\t") {
		if i > 0 {
			n := 8 - col%8
			b.WriteString(spaces(n))
			col += n
		}
		part = clean(part)
		b.WriteString(part)
		col += width(part)
	}
	return b.String()
}

// push appends a line, and drops old ones where there are too many.
func (l *runLog) push(line logLine) {
	l.lines = append(l.lines, line)
	l.bytes += len(line.text)
	drop := 0
	if len(l.lines) > maxLogLines+maxLogLines/8 {
		drop = len(l.lines) - maxLogLines
	}
	for dropped := 0; l.bytes-dropped > maxLogBytes && drop < len(l.lines)-1; drop++ {
		dropped += len(l.lines[drop].text)
	}
	for _, old := range l.lines[:drop] {
		l.bytes -= len(old.text)
	}
	if drop > 0 {
		l.lines = append(l.lines[:0:0], l.lines[drop:]...)
		l.first += drop
	}
}

// end returns the number after the last line.
func (l *runLog) end() int { return l.first + len(l.lines) }

// line returns a line by its number.
func (l *runLog) line(n int) *logLine { return &l.lines[n-l.first] }

// find returns the first line from n on in one direction that contains query,
// which is lower case, going round once. -1: none.
func (l *runLog) find(query string, n, step int) int {
	for range l.lines {
		switch {
		case n < l.first:
			n = l.end() - 1
		case n >= l.end():
			n = l.first
		}
		if strings.Contains(strings.ToLower(l.line(n).text), query) {
			return n
		}
		n += step
	}
	return -1
}

// count returns how many lines contain query.
func (l *runLog) count(query string) int {
	n := 0
	for i := range l.lines {
		if strings.Contains(strings.ToLower(l.lines[i].text), query) {
			n++
		}
	}
	return n
}
