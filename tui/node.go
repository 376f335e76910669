package tui

import (
	tea "charm.land/bubbletea/v2"

	"github.com/balanceai/balance/exec/fleet"
	"github.com/balanceai/balance/mesh/identity"
)

// nodePage is all about one machine.
type nodePage struct {
	m      *model
	id     identity.ID
	list   list // its runs
	runs   []fleet.RunUse
	scroll scroller
}

func newNodePage(m *model) *nodePage { return &nodePage{m: m} }

func (p *nodePage) enter() tea.Cmd {
	p.scroll.top = 0
	p.list = list{}
	p.refresh()
	return p.m.askRuns()
}

func (p *nodePage) tick() tea.Cmd { return p.m.askRuns() }

func (p *nodePage) draw(c *canvas, a area) {
	m := p.m
	mc := m.byID[p.id]
	if mc == nil {
		c.notice(a, text{{plain, "This machine is no longer a member of the mesh."}}, text{{dim, "esc goes back"}})
		return
	}
	if n := len(p.runs); n > 0 && a.h > 8 {
		h := min(n+2, max(a.h/3, 4))
		a.h -= h
		p.drawRuns(c, area{a.x, a.y + a.h, a.w, h})
	}
	a.x, a.w = a.x+2, a.w-3
	if a.w < 90 {
		lines := append([]text{m.nameLine(mc), nil}, m.facts(mc)...)
		lines = append(append(lines, nil), m.charts(mc, a.w, 4*(2+len(mc.gpus)))...)
		p.scroll.draw(c, a, append(append(lines, nil), m.offer(mc, a.w)...))
		return
	}
	left := area{a.x, a.y, a.w / 2, a.h}
	lines := append([]text{m.nameLine(mc), nil}, m.facts(mc)...)
	lines = append(append(lines, nil), m.offer(mc, left.w-2)...)
	p.scroll.draw(c, left, lines)
	w := a.w - left.w - 3
	drawPane(c, area{left.x + left.w, a.y, w + 3, a.h}, m.charts(mc, w, a.h))
}

// refresh lists the runs on the machine.
func (p *nodePage) refresh() {
	p.runs = nil
	if mc := p.m.byID[p.id]; mc != nil {
		p.runs = sortedRuns(mc)
	}
	ids := make([]string, len(p.runs))
	for i, r := range p.runs {
		ids[i] = r.ID
	}
	p.list.set(ids, nil)
}

func (p *nodePage) drawRuns(c *canvas, a area) {
	m := p.m
	a.y++
	a.h--
	drawTable(c, a, []column{
		{title: "RUN", min: 9, max: 18, rank: 0, draw: func(k cell) { k.text(strong, fitRun(p.runs[k.row].ID, k.w)) }},
		{title: "OWNER", min: 8, max: 12, rank: 1, draw: func(k cell) { k.text(plain, p.runs[k.row].Owner) }},
		{title: "HOLDS", min: 14, max: 28, rank: 2, draw: func(k cell) { k.text(plain, held(p.runs[k.row])) }},
		{title: "FOR", min: 7, rank: 3, right: true, draw: func(k cell) { k.right(dim, duration(m.now.Sub(p.runs[k.row].Since))) }},
		{title: "WHAT", min: 10, max: 60, rank: 4, draw: func(k cell) {
			if s := m.status(p.runs[k.row].ID); s != nil {
				k.text(dim, what(s))
			}
		}},
	}, &p.list, sorting{})
}

func (p *nodePage) bindings() []binding {
	m := p.m
	out := []binding{{[]string{"r"}, "run here", "start a run on this machine", func() tea.Cmd {
		return m.runOn(m.nodeName(p.id))
	}}}
	if len(p.runs) > 0 {
		out = append(out,
			binding{[]string{"enter"}, "open run", "the selected run", p.openRun},
			binding{[]string{"up", "k"}, "", "run above", func() tea.Cmd { p.list.move(-1); return nil }},
			binding{[]string{"down", "j"}, "", "run below", func() tea.Cmd { p.list.move(1); return nil }})
	}
	return append(out, p.scroll.bindings()...)
}

func (p *nodePage) openRun() tea.Cmd {
	if p.m.status(p.list.chosen) == nil {
		p.m.say(dim, "only the two machines of a run know what it does")
		return nil
	}
	return p.m.openRun(p.list.chosen)
}

func (p *nodePage) command() string {
	return "balance run --node " + quote(p.m.nodeName(p.id)) + " -- COMMAND"
}

func (p *nodePage) click(h hit) tea.Cmd {
	if h.kind == hitRow {
		again := p.list.chosen == h.id
		p.list.chosen = h.id
		if again {
			return p.openRun()
		}
	}
	return nil
}

func (p *nodePage) wheel(n int) { p.scroll.top += n }
