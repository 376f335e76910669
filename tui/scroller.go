package tui

import tea "charm.land/bubbletea/v2"

// scroller shows a part of a text that is longer than its place.
type scroller struct {
	top  int
	page int  // lines shown last time
	more bool // there were lines below them
}

func (s *scroller) draw(c *canvas, a area, lines []text) {
	s.page = a.h
	s.top = max(min(s.top, len(lines)-a.h), 0)
	s.more = s.top+a.h < len(lines)
	for i, t := range lines[s.top:min(s.top+a.h, len(lines))] {
		c.putText(a.x, a.y+i, a.w, t)
	}
}

func (s *scroller) bindings() []binding {
	by := func(n func() int) func() tea.Cmd {
		return func() tea.Cmd {
			s.top += n()
			return nil
		}
	}
	more := ""
	if s.more {
		more = "more"
	}
	return []binding{
		{[]string{"up", "k"}, "", "one line up", by(func() int { return -1 })},
		{[]string{"down", "j"}, "", "one line down", by(func() int { return 1 })},
		{[]string{"pgup"}, "", "one page up", by(func() int { return -s.page })},
		{[]string{"pgdown"}, more, "one page down", by(func() int { return s.page })},
	}
}
