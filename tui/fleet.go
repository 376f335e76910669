package tui

import (
	"cmp"
	"slices"
	"time"

	tea "charm.land/bubbletea/v2"
)

// fleetPage lists every machine.
type fleetPage struct {
	browser
	rows []*machine // as listed
	each bool       // each GPU has its line, also where they do not all fit
	fold bool       // no GPU has its own line
}

func newFleetPage(m *model) *fleetPage {
	p := &fleetPage{}
	p.browser = browser{
		m: m, row: &machine{}, changed: p.refresh, opened: p.open,
		sorts: []sorting{{"name", false}, {"gpu", true}, {"vram", true}, {"cpu", true}, {"mem", true}, {"rtt", false}, {"runs", true}, {"owner", false}, {"state", false}},
	}
	p.by = p.sorts[0]
	return p
}

func (p *fleetPage) enter() tea.Cmd { return nil }

// tick lists the machines anew, because the order may settle, and asks for the
// runs now and then: they are not what the page is about.
func (p *fleetPage) tick() tea.Cmd {
	p.refresh()
	if p.m.now.Sub(p.m.runsAt) < 5*time.Second {
		return nil
	}
	return p.m.askRuns()
}

func (p *fleetPage) refresh() { p.rows = arrange(&p.browser, p.m.machines, p.compare) }

func (p *fleetPage) compare(a, b *machine) int {
	switch p.by.key {
	case "gpu":
		return cmp.Compare(a.gpu, b.gpu)
	case "vram":
		return cmp.Compare(ratio(a.vramUsed, a.vram), ratio(b.vramUsed, b.vram))
	case "cpu":
		return cmp.Compare(a.cpu, b.cpu)
	case "mem":
		return cmp.Compare(a.memoryPercent(), b.memoryPercent())
	case "rtt":
		return cmp.Compare(a.Path.RTT, b.Path.RTT)
	case "runs":
		return cmp.Compare(a.runs, b.runs)
	case "owner":
		return cmp.Compare(a.Owner, b.Owner)
	case "state":
		return cmp.Compare(a.State, b.State)
	default:
		return cmp.Compare(a.Name, b.Name)
	}
}

// setHeights gives each GPU of a machine with several its own line, where that
// is wanted or all of them fit in h lines. It returns how many lines there are.
func (p *fleetPage) setHeights(h int) int {
	total := 0
	heights := make([]int, len(p.rows))
	for i, mc := range p.rows {
		heights[i] = 1
		if len(mc.gpus) > 1 {
			heights[i] += len(mc.gpus)
		}
		total += heights[i]
	}
	p.heights = nil
	if p.each || (!p.fold && total <= h) {
		p.heights = heights
		return total
	}
	return len(p.rows)
}

func (p *fleetPage) draw(c *canvas, a area) {
	m := p.m
	switch {
	case m.meshAt.IsZero():
		c.notice(a, m.waiting()...)
		return
	case len(p.rows) == 0:
		c.notice(a, noMatch("machine")...)
		return
	}
	table := a
	if a.w >= 130 {
		table.w = a.w - min(max(a.w*3/10, 44), 64)
	}
	lines := 1 + p.setHeights(table.h-1)
	drawTable(c, table, p.columns(table.w), &p.list, p.by)
	p.drawBelow(c, area{table.x, table.y + lines + 1, table.w, table.h - lines - 1})
	if mc := p.selected(); mc != nil && table.w < a.w {
		drawPane(c, area{table.x + table.w, a.y, a.w - table.w, a.h}, m.machinePane(mc, a.w-table.w-4, a.h))
	}
}

// drawBelow uses the room that a small mesh leaves: it says how to make the
// mesh larger, and shows the newest runs.
func (p *fleetPage) drawBelow(c *canvas, a area) {
	if len(p.m.machines) == 1 && a.h >= 5 {
		for i, t := range aloneText() {
			c.putText(a.x+2, a.y+i, a.w-2, t)
		}
		a.y, a.h = a.y+5, a.h-5
	}
	if rows := p.m.runRows; len(rows) > 0 && a.h >= 5 {
		rows = rows[:min(len(rows), a.h-1, 12)]
		l := list{}
		for _, r := range rows {
			l.ids = append(l.ids, r.ID)
		}
		drawTable(c, a, p.m.runColumns(rows), &l, sorting{})
	}
}

func aloneText() []text {
	return []text{
		{{plain, "This mesh has one machine. To add another one:"}},
		{{accent, "  balance invite"}, {dim, "      here, and on the other machine"}},
		{{accent, "  balance join CODE"}, {dim, "   then both are here"}},
	}
}

// waiting is shown until the first picture has come.
func (m *model) waiting() []text {
	if m.watchErr != nil {
		return []text{
			{{plain, "The node of this machine does not answer."}},
			nil,
			{{dim, "Start it:            "}, {accent, "balance up"}},
			{{dim, "Make a mesh:         "}, {accent, "balance init"}},
			{{dim, "Join one:            "}, {accent, "balance join CODE"}},
			nil,
			{{dim, "This screen goes on by itself when it does."}},
		}
	}
	return []text{{{dim, "Connecting to the node of this machine" + m.th.tail}}}
}

// drawPane draws a rule and the text beside it.
func drawPane(c *canvas, a area, lines []text) {
	for i := range a.h {
		c.put(a.x+1, a.y+i, 1, faint, c.th.glyph.rule)
		if i < len(lines) {
			c.putText(a.x+3, a.y+i, a.w-3, lines[i])
		}
	}
}

func (p *fleetPage) selected() *machine {
	if i := p.index(); i >= 0 {
		return p.rows[i]
	}
	return nil
}

func (p *fleetPage) bindings() []binding {
	own := p.browser.bindings()
	if p.editing {
		return own
	}
	var out []binding
	if p.selected() != nil {
		out = append(out,
			binding{[]string{"enter", "right", "l"}, "open", "all about the machine", p.open},
			binding{[]string{"r"}, "run here", "start a run on the machine", p.runHere})
	}
	if slices.ContainsFunc(p.rows, func(mc *machine) bool { return len(mc.gpus) > 1 }) {
		out = append(out, binding{[]string{"e"}, "each GPU", "a line for each GPU of a machine, or none", p.toggle})
	}
	return append(out, own...)
}

func (p *fleetPage) open() tea.Cmd {
	if mc := p.selected(); mc != nil {
		p.m.node.id = mc.ID
		return p.m.open(nodeScreen)
	}
	return nil
}

func (p *fleetPage) runHere() tea.Cmd {
	if mc := p.selected(); mc != nil {
		return p.m.runOn(mc.Name)
	}
	return nil
}

func (p *fleetPage) toggle() tea.Cmd {
	p.each = p.heights == nil
	p.fold = !p.each
	return nil
}

func (p *fleetPage) command() string {
	if mc := p.selected(); mc != nil {
		return "balance run --node " + quote(mc.Name) + " -- COMMAND"
	}
	return "balance nodes"
}

// click also opens the runs that are shown below the machines.
func (p *fleetPage) click(h hit) tea.Cmd {
	if h.kind == hitRow && p.m.status(h.id) != nil {
		return p.m.openRun(h.id)
	}
	return p.browser.click(h)
}
