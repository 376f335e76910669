package tui

import (
	"strings"
)

// canvas is one frame while it is drawn. Every line is written from left to
// right; what would reach over the right edge, or over what is there already,
// is cut. All text passes through [clean] on its way: nothing that another
// machine said can command the terminal.
type canvas struct {
	th      *theme
	w, h    int
	lines   []line
	hits    []hit
	cursorX int
	cursorY int  // -1: no cursor
	late    bool // something was drawn where a line was written already; a mistake that tests look for
}

// line is one row of cells in the making.
type line struct {
	b    []byte
	x    int    // cells written
	last string // the style that is set
	on   bool   // on the selected row
}

// hit is a rectangle that answers to the mouse.
type hit struct {
	area
	kind hitKind
	id   string
}

type hitKind int

const (
	hitTab    hitKind = iota // id is a tab's key
	hitRow                   // id is the row's
	hitColumn                // id is a sort key
	hitField                 // id is a field's label
	hitView                  // id is a view of the run screen
)

// area is a rectangle of cells.
type area struct{ x, y, w, h int }

// span is a piece of text in one style; a text is a line of them.
type span struct {
	st style
	s  string
}

type text []span

func newCanvas(th *theme, w, h int) *canvas {
	c := &canvas{th: th, w: w, h: h, lines: make([]line, h), cursorY: -1}
	backing := make([]byte, h*w*3)
	for y := range c.lines {
		c.lines[y].b = backing[y*w*3 : y*w*3 : (y+1)*w*3]
	}
	return c
}

// frame returns the lines as one string.
func (c *canvas) frame() string {
	n := 0
	for y := range c.lines {
		n += len(c.lines[y].b) + 4
	}
	var b strings.Builder
	b.Grow(n)
	for y := range c.lines {
		if y > 0 {
			b.WriteByte('\n')
		}
		b.Write(c.lines[y].b)
		if c.lines[y].last != "" {
			b.WriteString("\x1b[m")
		}
	}
	return b.String()
}

// put writes s at x, in at most w cells, and returns the cell after it.
func (c *canvas) put(x, y, w int, st style, s string) int {
	if y < 0 || y >= c.h {
		return x
	}
	c.pad(x, y)
	l := &c.lines[y]
	c.late = c.late || (x < l.x && w > 0 && s != "")
	s, n := fit(c.th.drawable(s), min(x+w, c.w)-l.x, c.th.tail)
	l.write(c.th.sequence(st, l.on), s, n)
	return l.x
}

// putRight writes s so that it ends before x+w.
func (c *canvas) putRight(x, y, w int, st style, s string) {
	s, n := fit(c.th.drawable(s), w, c.th.tail)
	c.put(x+w-n, y, n, st, s)
}

// putText writes spans one after the other.
func (c *canvas) putText(x, y, w int, t text) int {
	end := x + w
	for _, s := range t {
		x = c.put(x, y, end-x, s.st, s.s)
	}
	return x
}

// putBar draws a bar, which gets the colour of its heat, or dim.
func (c *canvas) putBar(x, y, w int, percent float64, live bool) {
	filled, rest := bar(percent, w, c.th.ascii)
	st := heat(percent)
	if !live {
		st = dim
	}
	x = c.put(x, y, w, st, filled)
	c.put(x, y, w, faint, rest)
}

// putSparkline draws the newest of values in one row.
func (c *canvas) putSparkline(x, y, w int, values []float64, live bool) {
	c.putText(x, y, w, heatChart(values, w, 1, c.th.ascii, live)[0])
}

// pad writes spaces up to x.
func (c *canvas) pad(x, y int) {
	l := &c.lines[y]
	if n := min(x, c.w) - l.x; n > 0 {
		l.write(c.th.sequence(plain, l.on), spaces(n), n)
	}
}

// row begins the selected row at y: what follows on that line is drawn on it,
// until endRow.
func (c *canvas) row(y int) { c.lines[y].on = true }

// endRow ends the selected row at cell x.
func (c *canvas) endRow(x, y int) {
	c.pad(x, y)
	c.lines[y].on = false
}

// cursor puts the terminal's own cursor at a cell, for screen readers and for
// typing.
func (c *canvas) cursor(x, y int) {
	if x >= 0 && x < c.w && y >= 0 && y < c.h {
		c.cursorX, c.cursorY = x, y
	}
}

func (c *canvas) hit(a area, kind hitKind, id string) {
	c.hits = append(c.hits, hit{a, kind, id})
}

// at returns what answers to the mouse at a cell.
func at(hits []hit, x, y int) (hit, bool) {
	for _, h := range hits {
		if x >= h.x && x < h.x+h.w && y >= h.y && y < h.y+h.h {
			return h, true
		}
	}
	return hit{}, false
}

func (l *line) write(sequence, s string, n int) {
	if n <= 0 {
		return
	}
	if sequence != l.last {
		l.b = append(l.b, sequence...)
		l.last = sequence
	}
	l.b = append(l.b, s...)
	l.x += n
}

func (t *theme) sequence(st style, on bool) string {
	if on {
		return t.on[st]
	}
	return t.off[st]
}

const blanks = "                                                                                "

func spaces(n int) string {
	if n <= len(blanks) {
		return blanks[:n]
	}
	return strings.Repeat(" ", n)
}
