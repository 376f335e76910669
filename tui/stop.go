package tui

import (
	"context"

	tea "charm.land/bubbletea/v2"

	"github.com/balanceai/balance/exec/task"
)

// askCancel asks before a run is stopped.
func (m *model) askCancel(s *task.Status) tea.Cmd {
	id, name := s.ID, what(s)
	stop := func(force bool) func() tea.Cmd {
		return func() tea.Cmd { return m.cancel(id, force) }
	}
	m.ask = &question{
		text: "Stop " + shortRun(id) + " (" + name + ")?",
		answers: []binding{
			{[]string{"y", "enter"}, "ask it to stop", "", stop(false)},
			{[]string{"k"}, "kill it now", "", stop(true)},
			{[]string{"esc", "n"}, "no", "", func() tea.Cmd { return nil }},
		},
	}
	return nil
}

func (m *model) cancel(id string, force bool) tea.Cmd {
	m.say(dim, "asking "+shortRun(id)+" to stop"+m.th.tail)
	return m.request(func(ctx context.Context) tea.Msg {
		return cancelAnswer{id, m.backend.Cancel(ctx, id, force)}
	})
}

type cancelAnswer struct {
	run string
	err error
}

func (a cancelAnswer) apply(m *model) tea.Cmd {
	if a.err != nil {
		m.say(warm, "Cannot stop "+shortRun(a.run)+": "+a.err.Error())
		return nil
	}
	m.say(dim, shortRun(a.run)+" was asked to stop")
	return m.askRuns()
}
