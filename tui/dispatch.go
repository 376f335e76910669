package tui

import (
	"context"
	"errors"
	"fmt"
	"reflect"
	"time"

	tea "charm.land/bubbletea/v2"

	"github.com/balanceai/balance/exec/task"
)

// dispatchPage starts runs: a form, and beside it where the run would go and
// why, as it is written.
type dispatchPage struct {
	form
	m         *model
	plan      task.Ranking
	planOf    Draft // what the plan is for
	planned   bool
	planErr   error
	asked     int // number of the newest question about the plan
	answered  int // number of the newest one that was answered
	agentsErr error
	scroll    scroller // of the ranking
	starting  bool
}

// How long typing rests before the plan is asked for, and how old it gets.
const planAfter = 120 * time.Millisecond

func newDispatchPage(m *model) *dispatchPage {
	return &dispatchPage{form: newForm(), m: m}
}

// runOn opens the page with a machine chosen.
func (m *model) runOn(name string) tea.Cmd {
	m.form.takeNodes()
	m.form.chooseNode(name)
	m.form.at = fieldCommand
	return m.open(Dispatch)
}

func (p *dispatchPage) enter() tea.Cmd {
	p.takeNodes()
	return tea.Batch(p.askPlan(0), p.askAgents())
}

func (p *dispatchPage) askAgents() tea.Cmd {
	return p.m.request(func(ctx context.Context) tea.Msg {
		agents, err := p.m.backend.Agents(ctx)
		return agentsAnswer{agents, err}
	})
}

// tick asks for the plan again: the machines change while the form does not.
func (p *dispatchPage) tick() tea.Cmd {
	p.takeNodes()
	var agents, plan tea.Cmd
	if p.agentsErr != nil {
		agents = p.askAgents()
	}
	if p.answered == p.asked {
		plan = p.askPlan(0)
	}
	return tea.Batch(agents, plan)
}

func (p *dispatchPage) takeNodes() {
	names := make([]string, len(p.m.machines))
	for i, mc := range p.m.machines {
		names[i] = mc.Name
	}
	p.setNodes(names)
}

type agentsAnswer struct {
	agents []Agent
	err    error
}

func (a agentsAnswer) apply(m *model) tea.Cmd {
	if m.form.agentsErr = a.err; a.err == nil {
		m.form.setAgents(a.agents)
	}
	return nil
}

// askPlan asks where the run would go, when typing has rested.
func (p *dispatchPage) askPlan(rest time.Duration) tea.Cmd {
	d, ok := p.draft()
	if !ok {
		return nil
	}
	p.asked++
	return p.m.after(rest, planDue{p.asked, d})
}

type planDue struct {
	asked int
	draft Draft
}

func (d planDue) apply(m *model) tea.Cmd {
	if d.asked != m.form.asked {
		return nil // it has changed since
	}
	return m.request(func(ctx context.Context) tea.Msg {
		plan, err := m.backend.Plan(ctx, d.draft)
		return planAnswer{d, plan, err}
	})
}

type planAnswer struct {
	planDue
	plan task.Ranking
	err  error
}

func (a planAnswer) apply(m *model) tea.Cmd {
	p := m.form
	if a.asked < p.answered {
		return nil // a slow answer to an older question
	}
	p.answered = a.asked
	if p.planErr = a.err; a.err == nil {
		p.plan, p.planOf, p.planned = a.plan, a.draft, true
	}
	if untold := (*UntoldError)(nil); errors.As(a.err, &untold) {
		p.setParameters(a.draft.Agent, untold.Parameters)
	}
	return nil
}

// start submits the draft.
func (p *dispatchPage) start() tea.Cmd {
	d, ok := p.draft()
	switch {
	case p.starting:
		return nil
	case !ok:
		p.m.say(warm, "One of the fields cannot be read.")
		return nil
	case !d.ready():
		p.m.say(warm, "Type a command, or choose an agent.")
		return nil
	case p.planErr == nil && p.planned && reflect.DeepEqual(p.planOf, d) && len(p.plan.Best()) == 0:
		p.m.say(warm, "No machine fits: the reasons are beside the form.")
		return nil
	}
	p.starting = true
	p.m.say(dim, "starting"+p.m.th.tail)
	return p.m.do(func(ctx context.Context) tea.Msg { // packing an agent's inputs may take its time
		run, err := p.m.backend.Submit(ctx, d)
		return submitAnswer{run, err}
	})
}

type submitAnswer struct {
	run string
	err error
}

func (a submitAnswer) apply(m *model) tea.Cmd {
	m.form.starting = false
	if a.err != nil {
		m.say(warm, "Cannot start it: "+a.err.Error())
		return nil
	}
	m.note = note{}
	if m.at != Dispatch {
		m.say(dim, "started "+a.run)
		return m.askRuns()
	}
	m.back = nil
	m.at = Runs // where esc leads to
	return tea.Batch(m.askRuns(), m.openRun(a.run))
}

func (p *dispatchPage) draw(c *canvas, a area) {
	form := area{a.x + 1, a.y, a.w - 2, a.h}
	ranking := a
	switch {
	case a.w >= 100:
		form.y, form.h = a.y+1, a.h-1
		form.w = min(max(a.w*2/5, 46), 72)
		ranking = area{a.x + form.w + 1, a.y, a.w - form.w - 2, a.h}
	case a.h > len(p.fields)+5:
		form.h = len(p.fields) + 1
		ranking = area{a.x + 1, a.y + form.h, a.w - 2, a.h - form.h}
	default: // the outcome alone
		form.h = max(a.h-1, 0)
		ranking = area{a.x + 1, a.y + form.h, a.w - 2, a.h - form.h}
	}
	p.drawForm(c, form)
	p.drawAgents(c, area{form.x, form.y + len(p.fields) + 1, form.w, form.h - len(p.fields) - 1})
	if a.w >= 100 {
		drawPane(c, area{ranking.x, ranking.y, ranking.w, ranking.h}, nil)
		ranking.x, ranking.w = ranking.x+3, ranking.w-3
	}
	c.putText(ranking.x, ranking.y, ranking.w, p.verdict())
	lines := append([]text{nil}, p.m.rankingText(p.plan, ranking.w)...)
	lines = append(lines, p.m.conclusion(p.plan, ranking.w)...)
	p.scroll.draw(c, area{ranking.x, ranking.y + 1, ranking.w, ranking.h - 1}, lines)
}

// verdict is the outcome in one line.
func (p *dispatchPage) verdict() text {
	best := p.plan.Best()
	switch {
	case p.planErr != nil && !errors.Is(p.planErr, ErrNotRunning):
		return text{{warm, "Cannot be ranked: " + p.planErr.Error()}}
	case !p.planned:
		return text{{dim, "Asking where it would run" + p.m.th.tail}}
	case len(best) == 0:
		return text{{warm, "No machine fits"}, {dim, fmt.Sprintf(" of %d", len(p.plan))}}
	}
	return text{{plain, "Goes to "}, {strong, best[0].Name}, {dim, fmt.Sprintf("; %d of %d machines fit", len(best), len(p.plan))}}
}

func (p *dispatchPage) drawForm(c *canvas, a area) {
	const labels = 11
	_, _ = p.draft() // for what is wrong with the fields
	top := max(0, min(int(p.at)-a.h+1, len(p.fields)-a.h))
	for i := top; i < len(p.fields) && i-top < a.h; i++ {
		id, y := fieldID(i), a.y+i-top
		f := &p.fields[id]
		marker, st := " ", dim
		if id == p.at {
			marker, st = c.th.glyph.marker, strong
		}
		label := f.label
		if id == fieldCommand && p.agent() != nil {
			label = "arguments"
		}
		c.hit(area{a.x, y, a.w, 1}, hitField, f.label)
		c.put(a.x, y, 1, accent, marker)
		c.put(a.x+1, y, labels, st, label)
		p.drawField(c, area{a.x + 1 + labels, y, a.w - 1 - labels, 1}, id)
	}
}

func (p *dispatchPage) drawField(c *canvas, a area, id fieldID) {
	f := &p.fields[id]
	focused := id == p.at
	if f.choice {
		p.drawChoice(c, a, id, focused)
		return
	}
	if len(f.input.value) == 0 {
		if focused {
			c.cursor(a.x, a.y)
		}
		hint := f.hint
		if id == fieldCommand && p.agent() != nil {
			hint = "of the agent, if it takes any"
		}
		c.put(a.x, a.y, a.w, dim, hint)
		return
	}
	room := a.w
	if f.err != nil {
		room = min(room, max(12, width(f.input.String())+1))
	}
	f.input.draw(c, a.x, a.y, room, focused)
	if f.err != nil {
		x := c.lines[a.y].x + 2
		c.put(x, a.y, a.x+a.w-x, warm, f.err.Error())
	}
}

func (p *dispatchPage) drawChoice(c *canvas, a area, id fieldID, focused bool) {
	all := p.choices(id)
	f := &p.fields[id]
	st := plain
	if f.chosen == 0 {
		st = dim
	}
	x := a.x
	if focused {
		c.cursor(x, a.y)
		x = c.put(x, a.y, 2, accent, c.th.glyph.left+" ")
	}
	x = c.put(x, a.y, a.w, st, all[min(f.chosen, len(all)-1)])
	if focused {
		x = c.put(x+1, a.y, 1, accent, c.th.glyph.right)
		c.put(x+1, a.y, a.x+a.w-x-1, dim, fmt.Sprintf("%d of %d", f.chosen, len(all)-1))
	}
}

// drawAgents lists the agents where the form leaves room.
func (p *dispatchPage) drawAgents(c *canvas, a area) {
	if a.h < 3 || len(p.agents) == 0 {
		return
	}
	c.put(a.x+1, a.y, a.w-1, head, "AGENTS")
	names := 8
	for _, agent := range p.agents {
		names = min(max(names, width(clean(agent.Name))), 20)
	}
	first := max(0, min(p.fields[fieldAgent].chosen-a.h+1, len(p.agents)-a.h+1))
	for i, agent := range p.agents[first:min(len(p.agents), first+a.h-1)] {
		st, marker := plain, " "
		if p.fields[fieldAgent].chosen == first+i+1 {
			st, marker = strong, c.th.glyph.marker
		}
		y := a.y + 1 + i
		c.put(a.x, y, 1, accent, marker)
		c.put(a.x+1, y, names, st, agent.Name)
		c.put(a.x+1+names+2, y, a.w-names-3, dim, agent.Description)
	}
}

func (p *dispatchPage) command() string {
	d, _ := p.draft()
	return d.line()
}

func (p *dispatchPage) problem() string { return complain("list the agents", p.agentsErr) }

func (p *dispatchPage) bindings() []binding {
	move := func(n int) func() tea.Cmd { return func() tea.Cmd { p.move(n); return nil } }
	out := []binding{
		{[]string{"enter"}, "start", "start the run", p.start},
		{[]string{"tab", "down"}, "next field", "next field", move(1)},
		{[]string{"shift+tab", "up"}, "", "field before", move(-1)},
	}
	if p.current().choice {
		out = append(out,
			binding{[]string{"right"}, "choose", "next choice; a letter jumps", func() tea.Cmd { p.choose(1); return p.askPlan(planAfter) }},
			binding{[]string{"left"}, "", "choice before", func() tea.Cmd { p.choose(-1); return p.askPlan(planAfter) }})
	}
	return append(out,
		binding{[]string{"pgdown"}, "", "ranking down", func() tea.Cmd { p.scroll.top += p.scroll.page; return nil }},
		binding{[]string{"pgup"}, "", "ranking up", func() tea.Cmd { p.scroll.top -= p.scroll.page; return nil }},
		binding{[]string{"ctrl+l"}, "", "empty the form", func() tea.Cmd {
			agents := p.agents
			p.form = newForm()
			p.agents = agents
			p.takeNodes()
			return p.askPlan(0)
		}})
}

func (p *dispatchPage) typing() bool { return true }

func (p *dispatchPage) typed(k tea.KeyPressMsg) (tea.Cmd, bool) {
	f := p.current()
	if f.choice {
		if k.Text == "" || k.Text == " " {
			return nil, false
		}
		p.chooseLetter(k.Text)
		return p.askPlan(planAfter), true
	}
	if !f.input.key(k) {
		return nil, false
	}
	return p.askPlan(planAfter), true
}

func (p *dispatchPage) pasted(s string) tea.Cmd {
	if f := p.current(); !f.choice {
		f.input.insert(s)
	}
	return p.askPlan(planAfter)
}

func (p *dispatchPage) click(h hit) tea.Cmd {
	for i := range p.fields {
		if h.kind == hitField && p.fields[i].label == h.id {
			p.at = fieldID(i)
		}
	}
	return nil
}

func (p *dispatchPage) wheel(n int) { p.scroll.top += n }
