package tui

import (
	"cmp"
	"context"
	"fmt"
	"strings"

	tea "charm.land/bubbletea/v2"
)

// ledgerPage lists the entries of the ledger, newest first.
type ledgerPage struct {
	browser
	entries []Entry
	rows    []*entryRow
	topic   string // the only one that is asked for; empty: all
	asked   bool   // an answer is due
	known   bool
	failed  error
}

// ledgerLimit is how many entries are asked for.
const ledgerLimit = 500

// entryRow is an entry for the list and for filters.
type entryRow struct {
	*Entry
	id     string
	author string
	search string
}

func newLedgerPage(m *model) *ledgerPage {
	p := &ledgerPage{}
	p.browser = browser{
		m: m, row: &entryRow{}, changed: p.refresh, opened: p.open,
		sorts: []sorting{{"time", true}, {"topic", false}, {"author", false}, {"kind", false}},
	}
	p.by = p.sorts[0]
	return p
}

func (p *ledgerPage) enter() tea.Cmd { return p.askEntries() }

func (p *ledgerPage) tick() tea.Cmd { return p.askEntries() }

func (p *ledgerPage) askEntries() tea.Cmd {
	if p.asked {
		return nil
	}
	p.asked = true
	topic := p.topic
	return p.m.request(func(ctx context.Context) tea.Msg {
		entries, err := p.m.backend.Ledger(ctx, topic, ledgerLimit)
		return entriesAnswer{topic, entries, err}
	})
}

type entriesAnswer struct {
	topic   string
	entries []Entry
	err     error
}

func (a entriesAnswer) apply(m *model) tea.Cmd {
	p := m.ledger
	p.asked = false
	if a.topic != p.topic {
		return p.askEntries()
	}
	if p.failed = a.err; a.err == nil {
		p.entries, p.known = a.entries, true
		p.refresh()
	}
	return nil
}

func (p *ledgerPage) refresh() {
	all := make([]*entryRow, len(p.entries))
	for i := range p.entries {
		e := &p.entries[i]
		r := &entryRow{Entry: e, author: p.m.nodeName(e.Author)}
		r.id = cmp.Or(e.Hash, fmt.Sprintf("%s %v %d", e.Topic, e.Author, e.Seq))
		r.search = strings.ToLower(strings.Join([]string{e.Topic, r.author, e.Kind, e.Summary, e.Hash}, "\n"))
		all[i] = r
	}
	p.rows = arrange(&p.browser, all, p.compare)
}

func (p *ledgerPage) compare(a, b *entryRow) int {
	switch p.by.key {
	case "topic":
		return cmp.Compare(a.Topic, b.Topic)
	case "author":
		return cmp.Compare(a.author, b.author)
	case "kind":
		return cmp.Compare(a.Kind, b.Kind)
	default:
		return a.Time.Compare(b.Time)
	}
}

func (p *ledgerPage) draw(c *canvas, a area) {
	switch {
	case !p.known && p.failed == nil:
		c.notice(a, text{{dim, "Asking for the ledger" + c.th.tail}})
		return
	case len(p.entries) == 0:
		c.notice(a, text{{plain, "The ledger has no entries" + p.where() + "."}}, text{{dim, "Membership, offers and runs are written here as they happen."}})
		return
	case len(p.rows) == 0:
		c.notice(a, noMatch("entry")...)
		return
	}
	table := a
	if a.w >= 130 {
		table.w -= min(max(a.w*3/10, 44), 70)
	}
	drawTable(c, table, p.columns(), &p.list, p.by)
	if e := p.selected(); e != nil && table.w < a.w {
		drawPane(c, area{table.x + table.w, a.y, a.w - table.w, a.h}, p.pane(e, a.w-table.w-4))
	}
}

func (p *ledgerPage) where() string {
	if p.topic == "" {
		return ""
	}
	return " in topic " + p.topic
}

func (p *ledgerPage) columns() []column {
	col := func(draw func(cell, *entryRow)) func(cell) {
		return func(k cell) { draw(k, p.rows[k.row]) }
	}
	return []column{
		{title: "TIME", min: 8, max: 19, rank: 3, sort: "time", draw: col(func(k cell, e *entryRow) {
			at := e.Time.In(p.m.zone)
			layout := "2006-01-02 15:04:05"
			if k.w < len(layout) {
				layout = "15:04:05"
			}
			k.text(dim, at.Format(layout))
		})},
		{title: "TOPIC", min: 8, max: 18, rank: 1, sort: "topic", draw: col(func(k cell, e *entryRow) { k.text(plain, fitRun(e.Topic, k.w)) })},
		{title: "KIND", min: 8, max: 12, rank: 0, sort: "kind", draw: col(func(k cell, e *entryRow) { k.text(strong, e.Kind) })},
		{title: "AUTHOR", min: 8, max: 16, rank: 2, sort: "author", draw: col(func(k cell, e *entryRow) { k.text(plain, e.author) })},
		{title: "SEQ", min: 5, rank: 5, right: true, draw: col(func(k cell, e *entryRow) { k.right(dim, fmt.Sprint(e.Seq)) })},
		{title: "WHAT", min: 28, max: 120, rank: 4, draw: col(func(k cell, e *entryRow) { k.text(plain, e.Summary) })},
		{title: "HASH", min: 10, rank: 6, draw: col(func(k cell, e *entryRow) { k.text(dim, e.Hash[:min(len(e.Hash), 10)]) })},
	}
}

// pane is all of an entry.
func (p *ledgerPage) pane(e *entryRow, w int) []text {
	lines := []text{
		{{strong, e.Kind}},
		nil,
		row("topic", e.Topic),
		row("author", e.author),
		row("", e.Author.String()),
		row("number", fmt.Sprint(e.Seq)),
		row("time", e.Time.In(p.m.zone).Format("2006-01-02 15:04:05 -0700")),
		nil,
	}
	for _, part := range wrapWords(clean(e.Summary), w) {
		lines = append(lines, text{{plain, part}})
	}
	lines = append(lines, nil, title("SHA-256"))
	for h := e.Hash; h != ""; {
		n := min(32, len(h))
		lines = append(lines, text{{dim, h[:n]}})
		h = h[n:]
	}
	return lines
}

func (p *ledgerPage) selected() *entryRow {
	if i := p.index(); i >= 0 {
		return p.rows[i]
	}
	return nil
}

func (p *ledgerPage) bindings() []binding {
	if p.editing {
		return p.browser.bindings()
	}
	var out []binding
	if e := p.selected(); e != nil && p.m.status(e.Topic) != nil {
		out = append(out, binding{[]string{"enter", "right", "l"}, "open run", "the run that the entry is about", p.open})
	}
	only := "only this topic"
	if p.topic != "" {
		only = "every topic"
	}
	out = append(out, binding{[]string{"t"}, only, "the topic of the selected entry alone, or all", p.toggleTopic})
	return append(out, p.browser.bindings()...)
}

func (p *ledgerPage) open() tea.Cmd {
	if e := p.selected(); e != nil && p.m.status(e.Topic) != nil {
		return p.m.openRun(e.Topic)
	}
	return nil
}

func (p *ledgerPage) toggleTopic() tea.Cmd {
	e := p.selected()
	switch {
	case p.topic != "":
		p.topic = ""
	case e != nil:
		p.topic = e.Topic
	}
	return p.askEntries()
}

func (p *ledgerPage) command() string {
	if p.topic != "" {
		return "balance ledger list --topic " + quote(p.topic)
	}
	return "balance ledger list"
}

func (p *ledgerPage) problem() string {
	return cmp.Or(p.browser.problem(), complain("read the ledger", p.failed))
}

// The fields of an entry for filters.

func (e *entryRow) rowID() string { return e.id }

func (e *entryRow) keys() (texts, numbers []string) {
	return []string{"topic", "author", "kind"}, []string{"seq"}
}

func (e *entryRow) all() string { return e.search }

func (e *entryRow) text(key string) (string, bool) {
	switch key {
	case "topic":
		return e.Topic, true
	case "author":
		return strings.ToLower(e.author), true
	case "kind":
		return strings.ToLower(e.Kind), true
	}
	return "", false
}

func (e *entryRow) num(key string) (float64, bool) { return float64(e.Seq), key == "seq" }
