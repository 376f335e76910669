package tui

import (
	"cmp"
	"slices"
	"strconv"
	"strings"
	"time"

	tea "charm.land/bubbletea/v2"

	"github.com/balanceai/balance/exec/task"
)

// runsPage lists the runs.
type runsPage struct {
	browser
	rows []*runRow
}

// runRow is a run for the list and for filters.
type runRow struct {
	*task.Status
	search string
}

func newRunsPage(m *model) *runsPage {
	p := &runsPage{}
	p.browser = browser{
		m: m, row: &runRow{}, changed: p.refresh, opened: p.open,
		sorts: []sorting{{"submitted", true}, {"state", false}, {"node", false}, {"what", false}},
	}
	p.by = p.sorts[0]
	return p
}

func (p *runsPage) enter() tea.Cmd { return p.m.askRuns() }

func (p *runsPage) tick() tea.Cmd { return p.m.askRuns() }

func (p *runsPage) refresh() {
	p.rows = arrange(&p.browser, p.m.runRows, p.compare)
}

func newRunRows(runs []task.Status) []*runRow {
	rows := make([]*runRow, len(runs))
	for i := range runs {
		s := &runs[i]
		rows[i] = &runRow{s, strings.ToLower(strings.Join([]string{s.ID, string(s.State), s.Node, what(s), s.Reason}, "\n"))}
	}
	return rows
}

func (p *runsPage) compare(a, b *runRow) int {
	switch p.by.key {
	case "state":
		return cmp.Compare(stateRank(a.State), stateRank(b.State))
	case "node":
		return cmp.Compare(a.Node, b.Node)
	case "what":
		return cmp.Compare(what(a.Status), what(b.Status))
	default:
		return a.Submitted.Compare(b.Submitted)
	}
}

// stateRank puts what goes on first.
func stateRank(s task.State) int {
	order := []task.State{task.Running, task.Placed, task.Waiting, task.Submitted, task.Lost, task.Failed, task.Unplaced, task.Cancelled, task.Succeeded}
	return slices.Index(order, s)
}

func (p *runsPage) draw(c *canvas, a area) {
	m := p.m
	switch {
	case m.runsAt.IsZero() && m.runsErr == nil:
		c.notice(a, text{{dim, "Asking for the runs" + m.th.tail}})
	case len(m.runs) == 0:
		c.notice(a,
			text{{plain, "No runs yet."}}, nil,
			text{{dim, "Start one here:      "}, {accent, "3"}},
			text{{dim, "or from a shell:     "}, {accent, "balance run -- hostname"}})
	case len(p.rows) == 0:
		c.notice(a, noMatch("run")...)
	default:
		table := a
		if a.w >= 130 {
			table.w = a.w - min(max(a.w*3/10, 44), 64)
		}
		drawTable(c, table, m.runColumns(p.rows), &p.list, p.by)
		if r := p.selected(); r != nil && table.w < a.w {
			drawPane(c, area{table.x + table.w, a.y, a.w - table.w, a.h}, m.runPane(r.Status, a.w-table.w-4))
		}
	}
}

// runsLive reports whether what is known of the runs can be taken for the
// present.
func (m *model) runsLive() bool { return m.connected() && m.runsErr == nil }

// runsTime is the time up to which the runs are known.
func (m *model) runsTime() time.Time {
	if m.runsLive() {
		return m.now
	}
	return m.runsAt
}

// runStyle is the style of what is said of a run, which is dim where it may
// have changed since.
func (m *model) runStyle(s *task.Status, st style) style {
	if !s.State.Final() && !m.runsLive() {
		return dim
	}
	return st
}

// runPane is a run in a narrow column.
func (m *model) runPane(s *task.Status, w int) []text {
	sign, st := m.th.stateGlyph(s.State)
	lines := []text{{{st, sign + " " + string(s.State)}}, nil}
	for _, part := range wrapWords(clean(what(s)), w) {
		lines = append(lines, text{{strong, part}})
	}
	if s.Agent != "" {
		for _, part := range wrapWords(clean(command(s.Command)), w) {
			lines = append(lines, text{{plain, part}})
		}
	}
	clock := func(t time.Time) string {
		if t.IsZero() {
			return none
		}
		return t.In(m.zone).Format("2006-01-02 15:04:05")
	}
	lines = append(lines, nil, row("run", s.ID), row("node", cmp.Or(s.Node, none)),
		row("attempt", strconv.Itoa(s.Attempt)), row("from", m.nodeName(s.Submitter)),
		row("submitted", clock(s.Submitted)), row("started", clock(s.Started)), row("finished", clock(s.Finished)),
		row("exit", exit(s)))
	if s.Reason != "" {
		lines = append(append(lines, nil), paragraph(m.th, s.Reason, w)...)
	}
	if s.Usage != nil {
		lines = append(append(lines, nil), paragraph(m.th, usageWords(s), w)...)
	}
	return lines
}

// runColumns describes a table of runs.
func (m *model) runColumns(rows []*runRow) []column {
	in := func(draw func(cell, *runRow)) func(cell) {
		return func(k cell) { draw(k, rows[k.row]) }
	}
	wide := 12
	for _, r := range rows {
		wide = min(max(wide, width(clean(what(r.Status)))), 80)
	}
	return []column{
		{title: "RUN", min: 8, max: 18, rank: 6, draw: in(func(k cell, r *runRow) { k.text(plain, fitRun(r.ID, k.w)) })},
		{title: "STATE", min: 11, rank: 1, sort: "state", draw: in(func(k cell, r *runRow) {
			sign, st := m.th.stateGlyph(r.State)
			k.text(m.runStyle(r.Status, st), sign)
			k.after(1).text(m.runStyle(r.Status, st), string(r.State))
		})},
		{title: "WHAT", min: 12, max: wide, rank: 0, sort: "what", draw: in(func(k cell, r *runRow) { k.text(m.runStyle(r.Status, strong), what(r.Status)) })},
		{title: "NODE", min: 8, max: 16, rank: 2, sort: "node", draw: in(func(k cell, r *runRow) { k.text(plain, cmp.Or(r.Node, none)) })},
		{title: "FOR", min: 7, rank: 3, right: true, draw: in(func(k cell, r *runRow) { k.right(m.runStyle(r.Status, plain), elapsed(r.Status, m.runsTime())) })},
		{title: "EXIT", min: 4, rank: 5, right: true, draw: in(func(k cell, r *runRow) {
			st := dim
			if r.State == task.Failed {
				st = hot
			}
			k.right(st, exit(r.Status))
		})},
		{title: "SUBMITTED", min: 11, rank: 4, right: true, sort: "submitted", draw: in(func(k cell, r *runRow) { k.right(dim, age(m.now.Sub(r.Submitted))) })},
		{title: "REASON", min: 12, max: 60, rank: 7, draw: in(func(k cell, r *runRow) { k.text(dim, r.Reason) })},
	}
}

func (p *runsPage) selected() *runRow {
	if i := p.index(); i >= 0 {
		return p.rows[i]
	}
	return nil
}

func (p *runsPage) bindings() []binding {
	own := p.browser.bindings()
	if p.editing {
		return own
	}
	out := []binding{{[]string{"enter", "right", "l"}, "open", "log, reasons and events of the run", p.open}}
	if r := p.selected(); r != nil && !r.State.Final() {
		out = append(out, binding{[]string{"c"}, "stop", "ask the run to stop", func() tea.Cmd { return p.m.askCancel(r.Status) }})
	}
	return append(out, own...)
}

func (p *runsPage) open() tea.Cmd {
	if r := p.selected(); r != nil {
		return p.m.openRun(r.ID)
	}
	return nil
}

func (p *runsPage) command() string {
	r := p.selected()
	switch {
	case r == nil:
		return "balance ps"
	case r.State.Final():
		return "balance logs " + shortRun(r.ID)
	default:
		return "balance logs -f " + shortRun(r.ID)
	}
}

func (p *runsPage) problem() string {
	return cmp.Or(p.browser.problem(), complain("read the runs", p.m.runsErr))
}

// The fields of a run for filters.

func (r *runRow) rowID() string { return r.ID }

func (r *runRow) keys() (texts, numbers []string) {
	return []string{"run", "state", "node", "agent", "command"}, []string{"exit"}
}

func (r *runRow) all() string { return r.search }

func (r *runRow) text(key string) (string, bool) {
	switch key {
	case "run":
		return r.ID, true
	case "state":
		return string(r.State), true
	case "node":
		return r.Node, true
	case "agent":
		return strings.ToLower(r.Agent), true
	case "command":
		return strings.ToLower(command(r.Command)), true
	}
	return "", false
}

func (r *runRow) num(key string) (float64, bool) {
	if key != "exit" || r.ExitCode == nil {
		return 0, false
	}
	return float64(*r.ExitCode), true
}
