package tui

import (
	"strings"

	"github.com/charmbracelet/x/ansi"

	"github.com/balanceai/balance/exec/task"
)

// logView is the part of a log that is on the screen. While it follows, that is
// the end.
type logView struct {
	log    runLog
	follow bool
	wrap   bool
	times  bool
	at     position // first row shown
	left   int      // cells scrolled to the right, while lines are not wrapped
	w, h   int      // of the text, last time
	query  string   // lower case
	match  int      // line of the match that was jumped to; -1: none
	count  int      // lines that match
}

// position is a row of cells of a wrapped line.
type position struct{ line, row int }

// gutter is the room before a line: whether it is standard error.
const gutter = 2

// rows breaks a line into rows of cells.
func (v *logView) rows(n int) []string {
	s := v.text(n)
	if !v.wrap || width(s) <= v.w || v.w <= 0 {
		return []string{s}
	}
	var rows []string
	if isPlain(s) {
		for len(s) > v.w {
			rows, s = append(rows, s[:v.w]), s[v.w:]
		}
		return append(rows, s)
	}
	return strings.Split(ansi.Hardwrap(s, v.w, true), "\n")
}

// text is a line as it is shown.
func (v *logView) text(n int) string {
	l := v.log.line(n)
	s := l.text
	if l.cut > 0 {
		s += " [" + task.Bytes(l.cut).String() + " more]"
	}
	return s
}

// last returns the position from which the end of the log fills the view.
func (v *logView) last() position {
	room := v.h
	for n := v.log.end() - 1; n >= v.log.first; n-- {
		rows := len(v.rows(n))
		if rows >= room {
			return position{n, rows - room}
		}
		room -= rows
	}
	return position{v.log.first, 0}
}

// settle brings the position back to what exists.
func (v *logView) settle() {
	if v.follow {
		v.at = v.last()
	}
	if v.at.line < v.log.first {
		v.at = position{v.log.first, 0}
	}
	v.at.line = min(v.at.line, max(v.log.end()-1, v.log.first))
}

// scroll moves by rows. Reaching the end follows again.
func (v *logView) scroll(n int) {
	if len(v.log.lines) == 0 {
		return
	}
	v.settle()
	v.follow = false
	for ; n < 0 && v.at != (position{v.log.first, 0}); n++ {
		if v.at.row--; v.at.row < 0 {
			v.at.line--
			v.at.row = len(v.rows(v.at.line)) - 1
		}
	}
	last := v.last()
	for ; n > 0 && v.at.before(last); n-- {
		if v.at.row++; v.at.row >= len(v.rows(v.at.line)) {
			v.at = position{v.at.line + 1, 0}
		}
	}
	v.follow = !v.at.before(last)
}

func (p position) before(q position) bool {
	return p.line < q.line || (p.line == q.line && p.row < q.row)
}

// search looks for new text, from the first row shown on.
func (v *logView) search(query string) {
	v.query = strings.ToLower(query)
	v.match, v.count = -1, 0
	if v.query == "" {
		return
	}
	v.count = v.log.count(v.query)
	v.settle()
	v.jump(v.log.find(v.query, v.at.line, 1))
}

// next jumps to the next match in one direction.
func (v *logView) next(step int) {
	if v.query == "" {
		return
	}
	v.count = v.log.count(v.query)
	from := v.match
	if from < 0 {
		from = v.at.line - step
	}
	v.jump(v.log.find(v.query, from+step, step))
}

func (v *logView) jump(n int) {
	if v.match = n; n < 0 {
		return
	}
	v.follow = false
	v.at = position{max(n-v.h/3, v.log.first), 0}
	if last := v.last(); last.before(v.at) {
		v.at = last
	}
}

func (v *logView) draw(c *canvas, a area) {
	v.w, v.h = a.w-gutter, a.h
	if v.times {
		v.w -= len("15:04:05 ")
	}
	v.settle()
	y := a.y
	for n, skip := v.at.line, v.at.row; n < v.log.end() && y < a.y+a.h; n++ {
		rows := v.rows(n)
		for i := min(skip, len(rows)-1); i < len(rows) && y < a.y+a.h; i++ {
			v.drawRow(c, area{a.x, y, a.w, 1}, n, rows[i], i == 0)
			y++
		}
		skip = 0
	}
}

func (v *logView) drawRow(c *canvas, a area, n int, s string, first bool) {
	l := v.log.line(n)
	st, mark, markStyle := plain, " ", dim
	switch l.kind {
	case lineStderr:
		mark, markStyle = c.th.glyph.stderr, warm
	case lineEvent:
		st, mark = dim, c.th.glyph.bullet
	case lineNote:
		st, mark = warm, c.th.glyph.bullet
	}
	if n == v.match {
		mark, markStyle = c.th.glyph.marker, accent
		c.cursor(a.x, a.y)
	}
	x := c.put(a.x, a.y, 1, markStyle, mark) + 1
	if v.times {
		stamp := ""
		if first {
			stamp = l.at.Format("15:04:05")
		}
		c.put(x, a.y, 8, dim, stamp)
		x += 9
	}
	if !v.wrap && v.left > 0 {
		s = ansi.TruncateLeft(s, v.left, "")
	}
	v.drawFound(c, x, a.y, a.x+a.w, st, s)
}

// drawFound draws a row with what the search looks for marked.
func (v *logView) drawFound(c *canvas, x, y, end int, st style, s string) {
	low := strings.ToLower(s)
	if v.query == "" || len(low) != len(s) { // a letter whose lower case is of another length
		c.put(x, y, end-x, st, s)
		return
	}
	for {
		i := strings.Index(low, v.query)
		if i < 0 {
			c.put(x, y, end-x, st, s)
			return
		}
		x = c.put(x, y, end-x, st, s[:i])
		x = c.put(x, y, end-x, found, s[i:i+len(v.query)])
		s, low = s[i+len(v.query):], low[i+len(v.query):]
	}
}
