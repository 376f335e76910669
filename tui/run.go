package tui

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	tea "charm.land/bubbletea/v2"

	"github.com/balanceai/balance/exec/task"
)

// runPage is one run: its log as it comes, why it is where it is, and what has
// happened to it.
type runPage struct {
	m         *model
	id        string
	follow    *follow // nil: not shown
	followErr error
	state     task.Status // the newest known, from the list or from events
	heard     time.Time   // when an event last said something of the state
	log       logView
	events    []text
	why       []Attempt
	whyErr    error
	view      runView
	scroll    scroller // of the views other than the log
	search    input
	searching bool
}

type runView int

const (
	viewLog runView = iota
	viewWhy
	viewEvents
)

var viewTitles = [...]string{viewLog: "log", viewWhy: "why here", viewEvents: "events"}

// maxEvents bounds the list of events: a run has few.
const maxEvents = 1000

func newRunPage(m *model) *runPage { return &runPage{m: m} }

// openRun shows a run.
func (m *model) openRun(id string) tea.Cmd {
	m.run.id = id
	return m.open(runScreen)
}

func (p *runPage) enter() tea.Cmd {
	*p = runPage{m: p.m, id: p.id, state: task.Status{ID: p.id}}
	p.log.follow, p.log.wrap, p.log.match = true, true, -1
	p.refresh()
	p.follow = p.m.newFollow(p.id)
	return tea.Batch(p.follow.read(p.m.backend), p.follow.next(), p.askWhy(), p.m.askRuns())
}

// leave ends what enter started.
func (p *runPage) leave() {
	if p.follow != nil {
		p.follow.stop()
		p.follow = nil
	}
}

func (p *runPage) tick() tea.Cmd {
	p.refresh()
	if p.whyErr != nil {
		return tea.Batch(p.m.askRuns(), p.askWhy())
	}
	return p.m.askRuns()
}

// refresh takes what the list of runs says, unless the events have just said
// something newer.
func (p *runPage) refresh() {
	s := p.m.status(p.id)
	switch {
	case s == nil:
	case s.State.Final(), !p.state.State.Final() && p.m.runsAt.Sub(p.heard) > retryAfter/2:
		p.state = *s
	}
}

func (p *runPage) askWhy() tea.Cmd {
	id := p.id
	return p.m.request(func(ctx context.Context) tea.Msg {
		why, err := p.m.backend.Why(ctx, id)
		return whyAnswer{id, why, err}
	})
}

type whyAnswer struct {
	run string
	why []Attempt
	err error
}

func (a whyAnswer) apply(m *model) tea.Cmd {
	if a.run == m.run.id {
		m.run.why, m.run.whyErr = a.why, a.err
	}
	return nil
}

// take adds events to the log and to the list, and brings the state up to date.
func (p *runPage) take(events []task.Event) tea.Cmd {
	var cmd tea.Cmd
	for _, e := range events {
		if e.Seq <= p.follow.last {
			continue // seen before the stream broke
		}
		p.follow.last = e.Seq
		p.followErr = nil
		e.Time = e.Time.In(p.m.zone)
		p.log.log.add(e)
		if e.Type == task.EventOutput {
			continue
		}
		p.note(e)
		if e.Type == task.EventPlaced || e.Type == task.EventNote {
			cmd = p.askWhy()
		}
	}
	return cmd
}

func (p *runPage) note(e task.Event) {
	s := &p.state
	p.heard = p.m.now
	s.State = cmp.Or(e.State, s.State)
	s.Node = cmp.Or(e.Node, s.Node)
	s.Attempt = max(e.Attempt, s.Attempt)
	switch e.Type {
	case task.EventStarted:
		s.Started = e.Time
	case task.EventNote:
		if e.State != "" {
			s.Reason = e.Message
		}
	case task.EventPlaced:
		s.Reason = ""
	case task.EventFinished:
		s.Finished, s.ExitCode = e.Time, e.ExitCode
		s.Reason = cmp.Or(e.Message, s.Reason)
	}
	if len(p.events) < maxEvents {
		p.events = append(p.events, text{{dim, e.Time.Format("15:04:05") + "  "}, {plain, clean(eventWords(e))}})
	}
}

func (p *runPage) draw(c *canvas, a area) {
	a.x, a.w = a.x+1, a.w-2
	if a.h > 6 {
		for _, t := range p.summary(a.h > 14) {
			c.putText(a.x, a.y, a.w, t)
			a.y, a.h = a.y+1, a.h-1
		}
		p.drawViews(c, area{a.x, a.y, a.w, 1})
		a.y, a.h = a.y+1, a.h-1
	}
	switch p.view {
	case viewLog:
		p.drawLog(c, a)
	case viewWhy:
		p.scroll.draw(c, a, p.whyLines(a.w))
	case viewEvents:
		p.scroll.draw(c, a, p.events)
	}
}

// drawLog draws the log, and why the run is where it is beside it where there
// is room.
func (p *runPage) drawLog(c *canvas, a area) {
	pane := 0
	if a.w >= 128 {
		pane = min(a.w*2/5, 70)
	}
	log := area{a.x, a.y, a.w - pane, a.h}
	if len(p.log.log.lines) == 0 {
		c.notice(log, text{{dim, p.quiet()}})
	} else {
		p.log.draw(c, log)
	}
	if pane > 0 {
		drawPane(c, area{a.x + log.w, a.y, pane, a.h}, append([]text{title("WHY HERE"), nil}, p.whyLines(pane-3)...))
	}
}

// quiet says why there is no log yet.
func (p *runPage) quiet() string {
	switch {
	case p.state.State.Final():
		return "It has written nothing."
	case p.state.State == task.Running:
		return "It has written nothing yet."
	case p.state.State == task.Waiting:
		return "It waits for a machine that has room."
	default:
		return "It has not started yet."
	}
}

func (p *runPage) whyLines(w int) []text {
	switch {
	case p.whyErr != nil:
		return []text{{{dim, "Cannot be told: " + p.whyErr.Error()}}}
	case len(p.why) == 0:
		return []text{{{dim, "No machine was chosen yet."}}}
	}
	return p.m.whyText(p.why, w)
}

// summary is what matters of the run, in one to three lines.
func (p *runPage) summary(full bool) []text {
	s := &p.state
	sign, st := p.m.th.stateGlyph(s.State)
	first := text{{st, sign + " " + cmp.Or(string(s.State), "unknown")}, {plain, "  "}, {strong, what(s)}}
	if s.Node != "" {
		first = append(first, span{plain, "  on " + s.Node})
	}
	if s.Attempt > 1 {
		first = append(first, span{dim, fmt.Sprintf(", attempt %d", s.Attempt)})
	}
	if t := elapsed(s, p.m.runsTime()); t != none {
		first = append(first, span{plain, "  " + t})
	}
	if s.State == task.Failed && s.ExitCode != nil && *s.ExitCode > 0 {
		first = append(first, span{hot, "  " + exitWords(*s.ExitCode)})
	}
	lines := []text{first}
	if !full {
		return lines
	}
	second := text{{dim, p.id}}
	if s.Agent != "" && len(s.Command) > 0 {
		second = append(second, span{dim, "  " + command(s.Command)})
	}
	if s.Reason != "" {
		second = append(second, span{warm, "  " + s.Reason})
	}
	lines = append(lines, second)
	if s.Usage != nil {
		lines = append(lines, text{{dim, usageWords(s)}})
	}
	return append(lines, nil)
}

// exitWords says what an exit code means.
func exitWords(code int) string {
	if code > 128 && code < 128+65 {
		return fmt.Sprintf("ended by signal %d", code-128)
	}
	return fmt.Sprintf("exit code %d", code)
}

// usageWords says what a run used.
func usageWords(s *task.Status) string {
	u := s.Usage
	seconds := func(ms uint64) string { return (time.Duration(ms) * time.Millisecond).Round(time.Millisecond).String() }
	parts := []string{"took " + seconds(u.WallMS), seconds(u.CPUMS) + " of CPU"}
	if u.Peak() > 0 {
		parts = append(parts, u.Peak().String()+" of memory at most")
	}
	if u.GPUMS > 0 {
		parts = append(parts, seconds(u.GPUMS)+" of GPU")
	}
	if u.PeakVRAM > 0 {
		parts = append(parts, u.PeakVRAM.String()+" of VRAM at most")
	}
	parts = append(parts, u.Output.String()+" of output")
	if s.Receipt {
		parts = append(parts, "signed by both")
	}
	return strings.Join(parts, ", ")
}

// drawViews draws the titles of the views, and beside the log's what it does.
func (p *runPage) drawViews(c *canvas, a area) {
	x := a.x
	for v, name := range viewTitles {
		st, marker := dim, " "
		if p.view == runView(v) {
			st, marker = strong, c.th.glyph.marker
		}
		start := x
		x = c.put(x, a.y, 1, accent, marker)
		x = c.put(x, a.y, a.w, st, name)
		c.hit(area{start, a.y, x - start, 1}, hitView, name)
		x += 2
	}
	if p.view != viewLog {
		return
	}
	if p.searching || p.log.query != "" {
		count := plural(p.log.count, "line")
		end := a.x + a.w
		x = c.put(x+1, a.y, 2, accent, "/ ")
		p.search.draw(c, x, a.y, max(end-x-len(count)-2, 4), p.searching)
		c.put(c.lines[a.y].x+2, a.y, len(count), dim, count)
		return
	}
	state := "paused; f follows"
	switch {
	case p.followErr != nil:
		state = "interrupted; trying again"
	case p.state.State.Final() && p.log.follow:
		state = "ended"
	case p.log.follow:
		state = "following"
	}
	c.put(x+1, a.y, a.w, dim, state)
}

func (p *runPage) command() string {
	id := shortRun(p.id)
	switch {
	case p.view == viewWhy:
		return "balance why " + id
	case p.view == viewEvents:
		return "balance inspect " + id
	case p.state.State.Final():
		return "balance logs " + id
	default:
		return "balance logs -f " + id
	}
}

func (p *runPage) problem() string { return complain("follow the run", p.followErr) }

func (p *runPage) click(h hit) tea.Cmd {
	if h.kind == hitView {
		p.show(runView(slices.Index(viewTitles[:], h.id)))
	}
	return nil
}

func (p *runPage) wheel(n int) {
	if p.view == viewLog {
		p.log.scroll(n)
	} else {
		p.scroll.top += n
	}
}

func (p *runPage) show(v runView) {
	p.view, p.scroll.top, p.searching = v, 0, false
}

func (p *runPage) typing() bool { return p.searching }

func (p *runPage) typed(k tea.KeyPressMsg) (tea.Cmd, bool) {
	if !p.search.key(k) {
		return nil, false
	}
	p.log.search(p.search.String())
	return nil, true
}

func (p *runPage) pasted(s string) tea.Cmd {
	p.search.insert(s)
	p.log.search(p.search.String())
	return nil
}

func (p *runPage) bindings() []binding {
	if p.searching {
		return []binding{
			{[]string{"enter"}, "keep", "go to the matches with n and N", func() tea.Cmd { p.searching = false; return nil }},
			{[]string{"esc"}, "clear", "clear the search", p.endSearch},
		}
	}
	out := []binding{{[]string{"tab"}, "next view", "log, why here, events", func() tea.Cmd {
		p.show((p.view + 1) % runView(len(viewTitles)))
		return nil
	}}}
	if p.view == viewLog {
		out = append(out, p.logBindings()...)
	} else {
		out = append(out, p.scroll.bindings()...)
	}
	if !p.state.State.Final() {
		out = append(out, binding{[]string{"c"}, "stop", "ask the run to stop", func() tea.Cmd { return p.m.askCancel(&p.state) }})
	}
	return out
}

func (p *runPage) endSearch() tea.Cmd {
	p.searching = false
	p.search.set("")
	p.log.search("")
	return nil
}

func (p *runPage) logBindings() []binding {
	v := &p.log
	do := func(f func()) func() tea.Cmd { return func() tea.Cmd { f(); return nil } }
	out := []binding{
		{[]string{"/"}, "search", "search the log", do(func() { p.searching = true })},
		{[]string{"f", "end", "G"}, "follow", "go to the end and follow", do(func() { v.follow = true })},
		{[]string{"w"}, "wrap", "wrap long lines, or not", do(func() { v.wrap, v.left = !v.wrap, 0 })},
		{[]string{"t"}, "times", "show when each line came, or not", do(func() { v.times = !v.times })},
		{[]string{"up", "k"}, "", "one row up; stops following", do(func() { v.scroll(-1) })},
		{[]string{"down", "j"}, "", "one row down", do(func() { v.scroll(1) })},
		{[]string{"pgup", "ctrl+b"}, "", "one page up", do(func() { v.scroll(1 - v.h) })},
		{[]string{"pgdown", "ctrl+f", "space"}, "", "one page down", do(func() { v.scroll(v.h - 1) })},
		{[]string{"home", "g"}, "", "the oldest line", do(func() { v.follow, v.at = false, position{v.log.first, 0} })},
	}
	if !v.wrap {
		out = append(out,
			binding{[]string{"left", "h"}, "", "to the left", do(func() { v.left = max(v.left-8, 0) })},
			binding{[]string{"right", "l"}, "", "to the right", do(func() { v.left = min(v.left+8, maxLine) })})
	}
	if v.query != "" {
		out = append(out,
			binding{[]string{"n"}, "next", "next match", do(func() { v.next(1) })},
			binding{[]string{"N"}, "", "match before", do(func() { v.next(-1) })},
			binding{[]string{"esc"}, "clear search", "clear the search", p.endSearch})
	}
	return out
}
