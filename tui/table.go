package tui

import "slices"

// column is one column of a table. Columns are dropped by rank, the highest
// first, until the others fit; what room is left widens those that can use it.
type column struct {
	title    string
	titled   func(w int) string // instead of title, where that depends on the width
	min, max int                // cells
	rank     int                // one column has 0, and always stays
	right    bool               // title and values end together
	tight    bool               // one space before it instead of two: it belongs to the column before
	sort     string             // key to sort by; empty: cannot
	draw     func(cell)
}

// cell is where a column draws: its place, its row, and which line of the row.
type cell struct {
	c        *canvas
	x, y, w  int
	row, sub int
}

func (k cell) text(st style, s string)  { k.c.put(k.x, k.y, k.w, st, s) }
func (k cell) right(st style, s string) { k.c.putRight(k.x, k.y, k.w, st, s) }

func (k cell) bar(percent float64, live bool) { k.c.putBar(k.x, k.y, k.w, percent, live) }

// after returns the rest of the cell, n cells behind what was drawn.
func (k cell) after(n int) cell {
	x := k.c.lines[k.y].x + n
	k.w -= x - k.x
	k.x = x
	return k
}

// placed is a column that has got its cells.
type placed struct {
	*column
	x, w int
}

// placeColumns chooses and places columns in w cells.
func placeColumns(columns []column, w int) []placed {
	keep := make([]placed, 0, len(columns))
	highest := 0
	for i := range columns {
		highest = max(highest, columns[i].rank)
	}
	for limit := highest + 1; limit > 0; limit-- {
		keep = keep[:0]
		for i := range columns {
			if columns[i].rank < limit {
				keep = append(keep, placed{column: &columns[i], w: columns[i].min})
			}
		}
		if end := layOut(keep); end <= w || len(keep) <= 1 {
			widen(keep, w-end)
			layOut(keep)
			break
		}
	}
	if len(keep) == 1 {
		keep[0].w = min(keep[0].w, w)
	}
	return keep
}

// layOut gives columns their place and returns where the last one ends.
func layOut(columns []placed) int {
	x := 0
	for i := range columns {
		if i > 0 && columns[i].tight {
			x++
		} else if i > 0 {
			x += 2
		}
		columns[i].x = x
		x += columns[i].w
	}
	return x
}

// widen spends spare cells, on the lowest ranks first.
func widen(columns []placed, spare int) {
	byRank := make([]*placed, len(columns))
	for i := range columns {
		byRank[i] = &columns[i]
	}
	slices.SortFunc(byRank, func(a, b *placed) int { return a.rank - b.rank })
	for _, p := range byRank {
		more := min(max(p.max-p.w, 0), max(spare, 0))
		p.w += more
		spare -= more
	}
}

// list is a list of rows, each of one or more lines, of which one row is
// selected. The selection is an id, so that it stays on its row when rows come,
// go and move.
type list struct {
	ids     []string
	heights []int // lines of each row; nil: one each
	chosen  string
	top     int // first line that is shown
	page    int // lines shown last time
}

// set replaces the rows. Where the selected one is gone, the one that takes its
// place is selected.
func (l *list) set(ids []string, heights []int) {
	was := l.index()
	l.ids, l.heights = ids, heights
	if l.index() < 0 && len(ids) > 0 {
		l.chosen = ids[min(max(was, 0), len(ids)-1)]
	}
}

// index returns the place of the selected row, or -1.
func (l *list) index() int { return slices.Index(l.ids, l.chosen) }

// move selects the row that is n further down.
func (l *list) move(n int) {
	if len(l.ids) > 0 {
		l.chosen = l.ids[min(max(l.index()+n, 0), len(l.ids)-1)]
	}
}

func (l *list) height(i int) int {
	if l.heights == nil {
		return 1
	}
	return l.heights[i]
}

// window shows h lines around the selected row: it calls draw with each visible
// line of each row.
func (l *list) window(h int, draw func(row, sub, y int)) {
	l.page = h
	first, total := 0, 0 // line of the selected row, lines in all
	at := l.index()
	for i := range l.ids {
		if i == at {
			first = total
		}
		total += l.height(i)
	}
	if at >= 0 {
		last := first + l.height(at) - 1
		l.top = max(min(l.top, first), min(last-h+1, first))
	}
	l.top = max(min(l.top, total-h), 0)
	y := -l.top
	for i := 0; i < len(l.ids) && y < h; i++ {
		for sub := range l.height(i) {
			if y >= 0 && y < h {
				draw(i, sub, y)
			}
			y++
		}
	}
}

// sorting is what a table is sorted by.
type sorting struct {
	key  string
	desc bool
}

// drawTable draws the titles and the visible rows of a table.
func drawTable(c *canvas, a area, columns []column, l *list, by sorting) {
	const margin = 2 // the marker of the selected row
	at := placeColumns(columns, a.w-margin-1)
	drawTitles(c, area{a.x + margin, a.y, a.w - margin, 1}, at, by)
	l.window(a.h-1, func(row, sub, y int) {
		y += a.y + 1
		chosen := l.ids[row] == l.chosen
		if chosen {
			c.row(y)
			c.put(a.x, y, 1, accent, c.th.glyph.marker)
			if sub == 0 {
				c.cursor(a.x, y)
			}
		}
		for _, p := range at {
			p.draw(cell{c, a.x + margin + p.x, y, p.w, row, sub})
		}
		if chosen {
			c.endRow(a.x+a.w, y)
		}
		c.hit(area{a.x, y, a.w, 1}, hitRow, l.ids[row])
	})
}

func drawTitles(c *canvas, a area, columns []placed, by sorting) {
	for _, p := range columns {
		title := p.title
		if p.titled != nil {
			title = p.titled(p.w)
		}
		if p.sort != "" && p.sort == by.key {
			arrow := c.th.glyph.asc
			if by.desc {
				arrow = c.th.glyph.desc
			}
			title += arrow
		}
		if p.right {
			c.putRight(a.x+p.x, a.y, p.w, head, title)
		} else {
			c.put(a.x+p.x, a.y, p.w, head, title)
		}
		if p.sort != "" {
			c.hit(area{a.x + p.x, a.y, p.w, 1}, hitColumn, p.sort)
		}
	}
}
