package tui

import (
	"slices"
	"strings"
	"unicode"

	tea "charm.land/bubbletea/v2"
)

// binding is a key and what it does. The footer and the help page are made from
// the bindings that are asked, so they cannot tell of a key that does nothing.
type binding struct {
	keys  []string // as [tea.Key.String] names them
	label string   // a word for the footer; empty: only in the help
	help  string
	do    func() tea.Cmd
}

// key gives a key to whoever has use for it: the question that is asked, the
// text that is typed, the page, the whole screen.
func (m *model) key(k tea.KeyPressMsg) tea.Cmd {
	name := k.String()
	if name == "ctrl+c" {
		return m.quit()
	}
	if m.ask != nil {
		answers := m.ask.answers
		m.ask = nil
		return press(answers, name)
	}
	if m.helpFor != nil {
		return press(m.helpBindings(), name)
	}
	m.note.until = m.now
	if t, ok := m.typist(); ok {
		if cmd, ok := t.typed(k); ok {
			return cmd
		}
	}
	return press(m.bindings(), name)
}

func press(bindings []binding, key string) tea.Cmd {
	for _, b := range bindings {
		if slices.Contains(b.keys, key) {
			return b.do()
		}
	}
	return nil
}

// bindings returns every key that does something now, the page's own first. A
// key belongs to the first binding that names it.
func (m *model) bindings() []binding {
	taken := map[string]bool{}
	var out []binding
	for _, b := range append(m.page().bindings(), m.globalBindings()...) {
		var keys []string
		for _, k := range b.keys {
			if !taken[k] {
				keys = append(keys, k)
				taken[k] = true
			}
		}
		if b.keys = keys; len(keys) > 0 {
			out = append(out, b)
		}
	}
	return out
}

// globalBindings are the keys that every page has. While text is typed,
// characters are text.
func (m *model) globalBindings() []binding {
	_, typing := m.typist()
	keys := func(character, other string) []string {
		if typing {
			return []string{other}
		}
		return []string{character, other}
	}
	out := []binding{
		{keys("?", "f1"), "help", "this page", m.showHelp},
		{keys("q", "ctrl+c"), "quit", "leave; runs and the node go on", m.quit},
		{keys("y", "ctrl+y"), "", "copy the command in the footer", m.copyCommand},
	}
	for s, t := range tabs {
		out = append(out, binding{keys(t.key, "alt+"+t.key), "", t.title, func() tea.Cmd { return m.goTo(Screen(s)) }})
	}
	if m.at != Fleet {
		out = append(out, binding{[]string{"esc", "backspace"}, "back", "the page before", m.goBack})
	}
	return out
}

func (m *model) quit() tea.Cmd {
	select {
	case <-m.leaving:
	default:
		close(m.leaving)
	}
	return tea.Quit
}

// copyCommand puts the equivalent command into the clipboard of the terminal
// (OSC 52), which works over SSH too.
func (m *model) copyCommand() tea.Cmd {
	cmd := strings.Map(func(r rune) rune {
		if unicode.IsControl(r) { // a name must not end the line for its reader
			return -1
		}
		return r
	}, m.page().command())
	if cmd == "" {
		m.say(dim, "there is no command to copy here")
		return nil
	}
	m.say(dim, "copied: "+cmd)
	return tea.SetClipboard(cmd)
}

func (m *model) showHelp() tea.Cmd {
	m.helpFor, m.help.top = m.bindings(), 0
	return nil
}

func (m *model) helpBindings() []binding {
	return append(m.help.bindings(), binding{[]string{"esc", "?", "f1", "q", "enter"}, "close", "close this page", func() tea.Cmd {
		m.helpFor = nil
		return nil
	}})
}

// helpText describes the keys that are valid on the page below.
func (m *model) helpText() []text {
	lines := []text{{{strong, "Keys here"}}, nil}
	for _, b := range m.helpFor {
		lines = append(lines, text{{accent, " " + padRight(strings.Join(b.keys, " "), 18)}, {plain, b.help}})
	}
	lines = append(lines, nil, text{{strong, "Mouse"}}, nil,
		text{{accent, " " + padRight("click", 18)}, {plain, "select, or open what is selected; sort by a title; choose a tab"}},
		text{{accent, " " + padRight("wheel", 18)}, {plain, "move"}},
		text{{accent, " " + padRight("shift+drag", 18)}, {plain, "mark text, as your terminal does it"}},
		nil, text{{strong, "Signs"}}, nil)
	return append(lines, m.signs()...)
}

func (m *model) signs() []text {
	g := m.th.glyph
	row := func(sign, meaning string) text {
		return text{{accent, " " + padRight(sign, 18)}, {plain, meaning}}
	}
	return []text{
		row(g.up+" "+g.suspect+" "+g.down, "machine: up, did not answer lately, down"),
		row(g.stale, "facts that are not live; dim, with their age"),
		row(g.queued+" "+g.running, "run: waits, runs"),
		row(g.done+" "+g.failed+" "+g.cancelled, "run: succeeded, failed, stopped"),
		row(g.unplaced+" "+g.lost, "run: no machine fits, its machine is out of reach"),
		row(none, "not known"),
	}
}

func padRight(s string, w int) string {
	return s + spaces(max(0, w-width(s)))
}

func (m *model) click(e tea.MouseClickMsg) tea.Cmd {
	if e.Button != tea.MouseLeft || m.ask != nil {
		return nil
	}
	if m.helpFor != nil {
		m.helpFor = nil
		return nil
	}
	h, ok := at(m.hits, e.X, e.Y)
	switch {
	case !ok:
		return nil
	case h.kind == hitTab:
		return press(m.globalBindings(), "alt+"+h.id)
	}
	if p, ok := m.page().(pointed); ok {
		return p.click(h)
	}
	return nil
}

func (m *model) wheel(e tea.MouseWheelMsg) {
	n := 0
	switch e.Button {
	case tea.MouseWheelUp:
		n = -3
	case tea.MouseWheelDown:
		n = 3
	}
	if m.helpFor != nil {
		m.help.top += n
		return
	}
	if p, ok := m.page().(pointed); ok {
		p.wheel(n)
	}
}
