package tui

import (
	"fmt"
	"slices"
	"time"

	tea "charm.land/bubbletea/v2"
)

// browser is what the pages that list things share: the selection, the filter,
// the order.
type browser struct {
	list
	m       *model
	row     record         // any row, for the names of its fields
	changed func()         // lists the rows anew
	opened  func() tea.Cmd // opens the selected row
	sorts   []sorting      // what s goes through, in the direction that is wanted first
	by      sorting
	moved   time.Time // when the selection was moved last
	input   input     // the filter as it is typed
	editing bool
	filter  filter
	err     error // of what is typed
	shown   int   // rows that the filter lets through
	total   int   // rows in all
}

// record is a row of a browser.
type record interface {
	fields
	rowID() string
}

// arrange returns the rows that the filter lets through, in order, and makes
// them the list. While the selection is moved the order stays as it is.
func arrange[R record](b *browser, all []R, compare func(x, y R) int) []R {
	rows := make([]R, 0, len(all))
	byID := make(map[string]R, len(all))
	for _, r := range all {
		if b.filter.match(r) {
			rows = append(rows, r)
			byID[r.rowID()] = r
		}
	}
	slices.SortStableFunc(rows, func(x, y R) int {
		if b.by.desc {
			return compare(y, x)
		}
		return compare(x, y)
	})
	b.shown, b.total = len(rows), len(all)
	ids := make([]string, len(rows))
	for i, r := range rows {
		ids[i] = r.rowID()
	}
	if b.m.now.Sub(b.moved) < settleAfter {
		ids = keepOrder(b.ids, ids)
		for i, id := range ids {
			rows[i] = byID[id]
		}
	}
	b.set(ids, nil)
	return rows
}

// browsing is a page with a browser.
type browsing interface{ box() *browser }

func (b *browser) box() *browser { return b }

// settleAfter is how long the order stays as it is after the selection was
// moved, so that rows do not jump away from under it.
const settleAfter = 2 * time.Second

// parse reads the filter that is being typed. While it is wrong, the one before
// holds.
func (b *browser) parse() {
	f, err := parseFilter(b.input.String(), b.row)
	if b.err = err; err == nil {
		b.filter = f
	}
	b.changed()
}

// problem tells what is wrong with the filter.
func (b *browser) problem() string {
	if b.err == nil {
		return ""
	}
	return "Filter: " + b.err.Error()
}

// draw shows the filter and how many rows it lets through.
func (b *browser) draw(c *canvas, a area) {
	if !b.editing && len(b.input.value) == 0 {
		return
	}
	count := fmt.Sprintf("%d of %d", b.shown, b.total)
	x := c.put(a.x, a.y, min(2, a.w), accent, "/ ")
	room := max(a.w-2-len(count)-2, 8)
	b.input.draw(c, x, a.y, min(room, a.w-2), b.editing)
	c.putRight(c.lines[a.y].x+2, a.y, len(count), dim, count)
}

// bindings are the keys that every list has.
func (b *browser) bindings() []binding {
	by := func(n func() int) func() tea.Cmd {
		return func() tea.Cmd {
			b.wheel(n())
			return nil
		}
	}
	up := func() int { return -1 }
	down := func() int { return 1 }
	if b.editing {
		return []binding{
			{[]string{"enter"}, "keep the filter", "keep the filter and go back to the list", b.endEdit},
			{[]string{"esc"}, "clear", "clear the filter", b.clear},
			{[]string{"up"}, "", "row above", by(up)},
			{[]string{"down"}, "", "row below", by(down)},
		}
	}
	out := []binding{
		{[]string{"/"}, "filter", "filter: words, field:text, number>80, !not", b.edit},
		{[]string{"s"}, "sort", "sort by the next column", b.cycle},
		{[]string{"S"}, "", "turn the order around", b.reverse},
		{[]string{"up", "k"}, "", "row above", by(up)},
		{[]string{"down", "j"}, "", "row below", by(down)},
		{[]string{"pgup", "ctrl+b"}, "", "page up", by(func() int { return -b.page })},
		{[]string{"pgdown", "ctrl+f"}, "", "page down", by(func() int { return b.page })},
		{[]string{"home", "g"}, "", "first row", by(func() int { return -len(b.ids) })},
		{[]string{"end", "G"}, "", "last row", by(func() int { return len(b.ids) })},
	}
	if len(b.input.value) > 0 {
		out = append(out, binding{[]string{"esc"}, "clear filter", "clear the filter", b.clear})
	}
	return out
}

func (b *browser) typing() bool { return b.editing }

func (b *browser) typed(k tea.KeyPressMsg) (tea.Cmd, bool) {
	if !b.input.key(k) {
		return nil, false
	}
	b.parse()
	return nil, true
}

func (b *browser) pasted(s string) tea.Cmd {
	b.input.insert(s)
	b.parse()
	return nil
}

func (b *browser) wheel(n int) {
	b.move(n)
	b.moved = b.m.now
}

// click sorts by a title, and selects a row or opens the one that is selected.
func (b *browser) click(h hit) tea.Cmd {
	switch {
	case h.kind == hitColumn:
		b.sortBy(h.id)
	case h.kind == hitRow && b.chosen == h.id:
		return b.opened()
	case h.kind == hitRow:
		b.chosen, b.moved, b.editing = h.id, b.m.now, false
	}
	return nil
}

func (b *browser) edit() tea.Cmd {
	b.editing = true
	return nil
}

func (b *browser) endEdit() tea.Cmd {
	b.editing = false
	return nil
}

func (b *browser) clear() tea.Cmd {
	b.editing = false
	b.input.set("")
	b.parse()
	return nil
}

func (b *browser) cycle() tea.Cmd {
	next := 0
	for i, s := range b.sorts {
		if s.key == b.by.key {
			next = (i + 1) % len(b.sorts)
		}
	}
	b.by = b.sorts[next]
	b.resort()
	return nil
}

func (b *browser) reverse() tea.Cmd {
	b.by.desc = !b.by.desc
	b.resort()
	return nil
}

// resort applies a new order at once.
func (b *browser) resort() {
	b.moved = time.Time{}
	b.changed()
}

// sortBy sorts by the column whose title was clicked; the same again turns the
// order around.
func (b *browser) sortBy(key string) {
	if key == b.by.key {
		b.by.desc = !b.by.desc
	} else {
		for _, s := range b.sorts {
			if s.key == key {
				b.by = s
			}
		}
	}
	b.resort()
}

// keepOrder arranges ids, which are in their new order, in the order in which
// they were shown; new ones come last.
func keepOrder(shown, ids []string) []string {
	in := make(map[string]bool, len(ids))
	for _, id := range ids {
		in[id] = true
	}
	out := make([]string, 0, len(ids))
	for _, list := range [][]string{shown, ids} {
		for _, id := range list {
			if in[id] {
				out = append(out, id)
				delete(in, id)
			}
		}
	}
	return out
}

// noMatch is shown where the filter lets nothing through.
func noMatch(noun string) []text {
	return []text{
		{{plain, "No " + noun + " matches the filter."}},
		{{dim, "esc clears it; ? tells how it is written."}},
	}
}
