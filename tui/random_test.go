package tui

import (
	"slices"
	"strings"
	"testing"
	"time"

	tea "charm.land/bubbletea/v2"
	"github.com/charmbracelet/colorprofile"
	"pgregory.net/rapid"

	"github.com/balanceai/balance/exec/fleet"
	"github.com/balanceai/balance/exec/task"
)

// TestAnything does what no user would: any keys, clicks, sizes and facts in
// any order. Every frame must be one that a terminal can show.
func TestAnything(t *testing.T) {
	keys := []string{
		"enter", "esc", "tab", "up", "down", "left", "right", "home", "end", "pgup", "pgdown", "f1", "backspace",
		"1", "2", "3", "4", "?", "/", "s", "S", "e", "r", "y", "t", "w", "f", "c", "k", "n", "N", "g", "G", "x", ":", ">", "é", "漢", " ", "'",
	}
	rapid.Check(t, func(rt *rapid.T) {
		m := still(newFakeNode())
		size := func() tea.WindowSizeMsg {
			return tea.WindowSizeMsg{Width: rapid.IntRange(0, 210).Draw(rt, "w"), Height: rapid.IntRange(0, 70).Draw(rt, "h")}
		}
		m.Update(size())
		now := testNow
		m.clock = func() time.Time { return now }
		for range rapid.IntRange(1, 40).Draw(rt, "steps") {
			switch rapid.IntRange(0, 9).Draw(rt, "what") {
			case 0:
				m.Update(size())
			case 1:
				x, y := rapid.IntRange(0, m.w).Draw(rt, "x"), rapid.IntRange(0, m.h).Draw(rt, "y")
				m.Update(tea.MouseClickMsg{X: x, Y: y, Button: tea.MouseLeft})
			case 2:
				m.Update(tea.MouseWheelMsg{Button: rapid.SampledFrom([]tea.MouseButton{tea.MouseWheelUp, tea.MouseWheelDown}).Draw(rt, "wheel")})
			case 3:
				now = now.Add(time.Duration(rapid.IntRange(0, 5000).Draw(rt, "ms")) * time.Millisecond)
				m.Update(second{})
			case 4:
				m.Update(picture{1, anyMesh(rt)})
			case 5:
				if m.run.follow != nil {
					m.Update(followed{m.run.follow, anyEvents(rt, m.run.follow.last)})
				}
			case 6:
				m.Update(rapid.SampledFrom([]tea.Msg{
					entriesAnswer{"", testLedger(), nil},
					agentsAnswer{testAgents(), nil},
					whyAnswer{m.run.id, testWhy(), nil},
					runsAnswer{testRuns(), nil},
					runsAnswer{nil, nil},
					watchEnded{2, ErrNotRunning},
					planAnswer{planDue{}, testRanking(), nil},
					tea.PasteMsg{Content: "pasted\ntext\x1b[2J"},
					submitAnswer{run: testRuns()[0].ID},
				}).Draw(rt, "answer"))
			default:
				m.pressAll(rapid.SampledFrom(keys).Draw(rt, "key"))
			}
			m.profile = rapid.SampledFrom([]colorprofile.Profile{colorprofile.TrueColor, colorprofile.ANSI256, colorprofile.ANSI, colorprofile.ASCII}).Draw(rt, "profile")
			m.ascii = rapid.Bool().Draw(rt, "ascii")
			m.restyle()
			m.dirty = true
			v := m.View()
			checkFrame(rt, v.Content, m.w, max(m.h, 1))
			if c := v.Cursor; c != nil && (c.X >= m.w || c.Y >= m.h) {
				rt.Fatalf("the cursor is at %d,%d of %d,%d", c.X, c.Y, m.w, m.h)
			}
			if m.ascii && strings.ContainsFunc(v.Content, func(r rune) bool { return r > '~' }) {
				rt.Fatalf("not ASCII: %q", v.Content)
			}
		}
	})
}

// anyMesh is the test mesh with some of it missing or out of line.
func anyMesh(rt *rapid.T) Mesh {
	m := testMesh()
	m.Nodes = m.Nodes[:rapid.IntRange(0, len(m.Nodes)).Draw(rt, "nodes")]
	for i := range m.Nodes {
		n := &m.Nodes[i]
		switch rapid.IntRange(0, 9).Draw(rt, "fault") {
		case 0:
			n.Offer = nil
		case 1:
			n.Live, n.History = nil, nil
		case 2:
			n.History = n.History[:min(len(n.History), 3)]
		case 3:
			n.State = fleet.Down
		case 4:
			n.Name = rapid.String().Draw(rt, "name")
		case 5:
			n.History = slices.Clone(n.History)
			if len(n.History) > 0 {
				n.History[len(n.History)-1].GPUs = nil
			}
		case 6:
			n.Offer.GPUs = nil
		}
	}
	return m
}

func anyEvents(rt *rapid.T, after uint64) []task.Event {
	var out []task.Event
	for i := range rapid.IntRange(0, 20).Draw(rt, "events") {
		e := task.Event{Seq: after + uint64(i) + 1, Type: task.EventOutput, Stream: rapid.SampledFrom([]string{task.Stdout, task.Stderr}).Draw(rt, "stream")}
		switch rapid.IntRange(0, 3).Draw(rt, "event") {
		case 0:
			e.Data = rapid.String().Draw(rt, "data")
		case 1:
			e.SetOutput(rapid.SliceOf(rapid.Byte()).Draw(rt, "bytes"))
		case 2:
			e.Data = strings.Repeat("wide 漢字 ", rapid.IntRange(0, 100).Draw(rt, "repeat")) + "\n"
		case 3:
			e = task.Event{Seq: e.Seq, Type: task.EventFinished, State: task.Failed, ExitCode: new(137)}
		}
		out = append(out, e)
	}
	return out
}
