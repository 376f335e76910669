package tui

import (
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/balanceai/balance/exec/fleet"
	"github.com/balanceai/balance/exec/task"
)

// silentAfter is how old a picture of the mesh may be and still count as live.
const silentAfter = 3500 * time.Millisecond

// troubled is a page that may have something to complain about.
type troubled interface{ problem() string }

// draw draws the whole frame: header, tabs, page, footer. Where there is little
// room the page gets all of it.
func (m *model) draw(c *canvas) {
	if m.w <= 0 || m.h <= 0 {
		return // the size is not known yet
	}
	body := area{0, 0, m.w, m.h}
	if m.w >= 40 && m.h >= 10 {
		m.drawHeader(c)
		m.drawTabs(c)
		body.y, body.h = 2, m.h-2
	}
	footer := 0
	switch {
	case m.h >= 30:
		footer = 3 // with a free line
	case m.h >= 16:
		footer = 2
	case m.h >= 5:
		footer = 1
	}
	body.h -= footer
	if m.helpFor != nil {
		m.help.draw(c, area{body.x + 1, body.y, body.w - 1, body.h}, m.helpText())
	} else {
		m.page().draw(c, body)
	}
	footer = min(footer, 2)
	m.drawFooter(c, area{0, m.h - footer, m.w, footer})
}

func (m *model) drawHeader(c *canvas) {
	sign, state, st := m.link()
	right := width(sign) + 1 + width(state) + 1
	x := c.put(1, 0, m.w-1, strong, "balance")
	if m.mesh.Name != "" {
		x = c.put(x+1, 0, m.w-x-1, accent, m.mesh.Name)
	}
	x += 2
	for _, s := range m.totals() {
		if x+width(s)+2 > m.w-right {
			break
		}
		x = c.put(x+1, 0, width(s), dim, s) + 2
	}
	if at := m.w - right; at > c.lines[0].x {
		c.put(at, 0, width(sign), st, sign)
		c.put(at+2, 0, width(state), dim, state)
	}
}

// link says how fresh the picture is.
func (m *model) link() (sign, state string, st style) {
	g := m.th.glyph
	switch {
	case m.connected():
		return g.up, "live", accent
	case errors.Is(m.watchErr, ErrNotRunning):
		return g.down, "node not running", hot
	case m.meshAt.IsZero():
		return g.stale, "connecting", dim
	default:
		return g.stale, age(m.now.Sub(m.meshAt)), warm
	}
}

// totals sums up the machines that are up.
func (m *model) totals() []string {
	if m.meshAt.IsZero() {
		return nil
	}
	up, gpus, runs := 0, 0, 0
	var used, vram task.Bytes
	for _, mc := range m.machines {
		if mc.State != fleet.Up {
			continue
		}
		up++
		gpus += len(mc.gpus)
		runs += max(mc.runs, 0)
		used += mc.vramUsed
		vram += mc.vram
	}
	out := []string{fmt.Sprintf("%d/%d up", up, len(m.machines))}
	if gpus > 0 {
		out = append(out, plural(gpus, "GPU"))
	}
	if vram > 0 {
		out = append(out, usedOf(used, vram)+" VRAM")
	}
	return append(out, plural(runs, "run"))
}

func plural(n int, noun string) string {
	if n == 1 {
		return "1 " + noun
	}
	return fmt.Sprintf("%d %ss", n, noun)
}

func (m *model) drawTabs(c *canvas) {
	x, gap, crumb := 0, 2, m.crumb()
	if m.w < 60 {
		gap, crumb = 0, ""
	}
	for s, t := range tabs {
		here := m.tab() == Screen(s)
		st, marker := dim, " "
		if here {
			st, marker = strong, m.th.glyph.marker
		}
		start := x
		x = c.put(x, 1, 1, accent, marker)
		x = c.put(x, 1, m.w-x, accent, t.key)
		x = c.put(x+1, 1, m.w-x-1, st, t.title)
		c.hit(area{start, 1, x - start, 1}, hitTab, t.key)
		if here {
			x = c.put(x, 1, m.w-x, dim, crumb)
		}
		x += gap
	}
	if b, ok := m.page().(browsing); ok && m.helpFor == nil {
		b.box().draw(c, area{x + 2, 1, m.w - x - 3, 1})
	}
}

// tab returns the tab that the screen belongs to.
func (m *model) tab() Screen {
	switch m.at {
	case nodeScreen:
		return Fleet
	case runScreen:
		return Runs
	default:
		return m.at
	}
}

// crumb names what was opened from the tab.
func (m *model) crumb() string {
	switch m.at {
	case nodeScreen:
		return " " + m.th.glyph.right + " " + m.nodeName(m.node.id)
	case runScreen:
		return " " + m.th.glyph.right + " " + shortRun(m.run.id)
	default:
		return ""
	}
}

// drawFooter shows what is asked, what has just happened or is wrong, else the
// command that does the same; and below it the keys.
func (m *model) drawFooter(c *canvas, a area) {
	if a.h == 0 {
		return
	}
	t := m.message()
	if t == nil && a.h > 1 && m.helpFor == nil {
		if cmd := m.page().command(); cmd != "" {
			t = text{{faint, "= "}, {dim, cmd}}
		}
	}
	if t != nil {
		c.putText(1, a.y, a.w-1, t)
		if a.h == 1 {
			return
		}
	}
	if m.ask == nil {
		m.drawKeys(c, area{1, a.y + a.h - 1, a.w - 1, 1})
	}
}

// message is the one line that matters most now, or nil.
func (m *model) message() text {
	switch {
	case m.ask != nil:
		t := text{{warm, m.ask.text + "  "}}
		for _, b := range m.ask.answers {
			t = append(t, span{accent, b.keys[0]}, span{plain, " " + b.label + "  "})
		}
		return t
	case m.now.Before(m.note.until):
		return text{{m.note.st, m.note.text}}
	case errors.Is(m.watchErr, ErrNotRunning):
		return text{{warm, "The node is not running. Start it: balance up"}}
	case m.watchErr != nil:
		return text{{warm, "Lost the node: " + m.watchErr.Error() + ". Trying again."}}
	}
	if p, ok := m.page().(troubled); ok {
		if s := p.problem(); s != "" {
			return text{{warm, s}}
		}
	}
	return nil
}

func (m *model) drawKeys(c *canvas, a area) {
	bindings := m.bindings()
	if m.helpFor != nil {
		bindings = m.helpBindings()
	}
	x := a.x
	for _, b := range bindings {
		if b.label == "" {
			continue
		}
		key := m.keyName(b.keys[0])
		if x+width(key)+1+width(b.label) > a.x+a.w {
			break
		}
		x = c.put(x, a.y, width(key), accent, key)
		x = c.put(x+1, a.y, width(b.label), dim, b.label) + 2
	}
}

func (m *model) keyName(key string) string {
	switch {
	case key == "enter":
		return m.th.glyph.enter
	case key == "right" && !m.ascii:
		return "→"
	case key == "pgdown":
		return "pgdn"
	}
	return key
}

// notice fills an area that has nothing to show with what to do about it.
func (c *canvas) notice(a area, lines ...text) {
	y := a.y + max(0, (a.h-len(lines))/3)
	for i, t := range lines {
		if y+i < a.y+a.h {
			c.putText(a.x+min(2, max(0, a.w-1)), y+i, a.w-2, t)
		}
	}
}

// complain words an error of a request that is made again by itself.
func complain(what string, err error) string {
	if err == nil || errors.Is(err, ErrNotRunning) {
		return ""
	}
	return "Cannot " + what + ": " + strings.TrimSuffix(err.Error(), ".") + ". Trying again."
}
