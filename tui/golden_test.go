package tui

import (
	"bytes"
	"context"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	tea "charm.land/bubbletea/v2"
	"github.com/charmbracelet/colorprofile"
)

var (
	update = flag.Bool("update", false, "write the golden frames")
	look   = flag.String("look", "", "write frames into this folder, to be made into pictures")
)

// still is a model whose time stands and whose commands are not run: what a
// test wants applied it applies itself.
func still(f *fakeNode) *model {
	m := newModel(f, func() (doer, context.CancelFunc) {
		return func(work func(context.Context) tea.Msg) tea.Cmd {
			return func() tea.Msg { return work(context.Background()) }
		}, func() {}
	})
	m.clock, m.zone = func() time.Time { return testNow }, time.UTC
	m.Update(picture{1, f.mesh})
	m.Update(runsAnswer{f.runs, nil})
	return m
}

// press types keys: names as tea gives them, or single characters.
func (m *model) pressAll(keys ...string) {
	for _, k := range keys {
		m.Update(keyMsg(k))
	}
}

func keyMsg(k string) tea.KeyPressMsg {
	named := map[string]rune{
		"enter": tea.KeyEnter, "esc": tea.KeyEscape, "tab": tea.KeyTab, "up": tea.KeyUp, "down": tea.KeyDown, "left": tea.KeyLeft, "right": tea.KeyRight,
		"home": tea.KeyHome, "end": tea.KeyEnd, "pgup": tea.KeyPgUp, "pgdown": tea.KeyPgDown, "f1": tea.KeyF1, "backspace": tea.KeyBackspace,
	}
	if c, ok := named[k]; ok {
		return tea.KeyPressMsg{Code: c}
	}
	return tea.KeyPressMsg{Code: []rune(k)[0], Text: k}
}

var (
	everySize = [][2]int{{40, 10}, {80, 24}, {120, 30}, {200, 60}}
	oneSize   = [][2]int{{80, 24}}
)

// scenes are the screens as they are shown in tests, one for each page and for
// each thing that may be wrong.
var scenes = []struct {
	name  string
	sizes [][2]int
	make  func() *model
}{
	{"fleet", everySize, func() *model { return still(newFakeNode()) }},
	{"fleet-filter", oneSize, func() *model {
		m := still(newFakeNode())
		m.pressAll(append([]string{"/"}, strings.Split("state:up gpu<90", "")...)...)
		return m
	}},
	{"fleet-stale", oneSize, func() *model {
		m := still(newFakeNode())
		m.clock = func() time.Time { return testNow.Add(12 * time.Second) }
		m.Update(watchEnded{2, ErrNotRunning})
		return m
	}},
	{"fleet-alone", oneSize, func() *model {
		f := newFakeNode()
		f.mesh.Nodes = f.mesh.Nodes[8:9]
		return still(f)
	}},
	{"no-node", oneSize, func() *model {
		f := newFakeNode()
		m := still(f)
		m.meshAt, m.mesh, m.machines = time.Time{}, Mesh{}, nil
		m.Update(watchEnded{2, ErrNotRunning})
		return m
	}},
	{"node", everySize, func() *model {
		m := still(newFakeNode())
		m.pressAll("enter")
		return m
	}},
	{"runs", everySize, func() *model {
		m := still(newFakeNode())
		m.pressAll("2")
		return m
	}},
	{"runs-none", oneSize, func() *model {
		f := newFakeNode()
		f.runs = nil
		m := still(f)
		m.pressAll("2")
		return m
	}},
	{"run", everySize, func() *model { return runScene() }},
	{"run-why", oneSize, func() *model {
		m := runScene()
		m.pressAll("tab")
		return m
	}},
	{"run-events", oneSize, func() *model {
		m := runScene()
		m.pressAll("tab", "tab")
		return m
	}},
	{"run-search", oneSize, func() *model {
		m := runScene()
		m.View()
		m.pressAll(append([]string{"/"}, strings.Split("flaky", "")...)...)
		m.pressAll("enter", "n")
		return m
	}},
	{"run-stop", oneSize, func() *model {
		m := runScene()
		m.pressAll("c")
		return m
	}},
	{"dispatch", everySize, func() *model {
		m := still(newFakeNode())
		m.pressAll("3")
		m.Update(agentsAnswer{testAgents(), nil})
		m.pressAll(strings.Split("python3 train.py --name 'a b'", "")...)
		m.form.move(4)
		m.pressAll("1", "tab", "2", "4", "G", "tab", "tab", "2", "x")
		d, _ := m.form.draft()
		m.Update(planAnswer{planDue{0, d}, testRanking(), nil})
		return m
	}},
	{"dispatch-agent", oneSize, func() *model {
		m := still(newFakeNode())
		m.pressAll("3")
		m.Update(agentsAnswer{testAgents(), nil})
		m.pressAll("up", "w")
		m.Update(planAnswer{planDue{0, Draft{}}, testRanking()[2:], nil})
		return m
	}},
	{"ledger", everySize, func() *model {
		m := still(newFakeNode())
		m.pressAll("4")
		m.Update(entriesAnswer{"", testLedger(), nil})
		return m
	}},
	{"help", oneSize, func() *model {
		m := still(newFakeNode())
		m.pressAll("?")
		return m
	}},
}

func runScene() *model {
	m := still(newFakeNode())
	m.openRun("r-7k3fqzab2cdefghi")
	m.Update(whyAnswer{"r-7k3fqzab2cdefghi", testWhy(), nil})
	m.Update(followed{m.run.follow, testEvents("r-7k3fqzab2cdefghi")})
	return m
}

// modes are ways to draw.
var modes = []struct {
	name    string
	profile colorprofile.Profile
	ascii   bool
}{
	{"truecolor", colorprofile.TrueColor, false},
	{"nocolor", colorprofile.ASCII, false},
	{"ascii", colorprofile.ASCII, true},
}

// TestFrames compares every scene at its sizes in every mode with what it was when
// somebody last looked at it.
func TestFrames(t *testing.T) {
	for _, scene := range scenes {
		t.Run(scene.name, func(t *testing.T) {
			var got bytes.Buffer
			for _, size := range scene.sizes {
				for _, mode := range modes {
					m := scene.make()
					m.profile, m.ascii = mode.profile, mode.ascii
					m.restyle()
					m.Update(tea.WindowSizeMsg{Width: size[0], Height: size[1]})
					frame := m.View().Content
					c := newCanvas(m.th, m.w, m.h)
					if m.draw(c); c.late {
						t.Errorf("%v %s: something is drawn over something else", size, mode.name)
					}
					checkFrame(t, frame, size[0], size[1])
					fmt.Fprintf(&got, "-- %dx%d %s --\n%s\n", size[0], size[1], mode.name, visible(frame))
					if *look != "" {
						name := filepath.Join(*look, fmt.Sprintf("%s-%dx%d-%s.ansi", scene.name, size[0], size[1], mode.name))
						if err := os.WriteFile(name, []byte(frame), 0o644); err != nil {
							t.Fatal(err)
						}
					}
				}
			}
			compareGolden(t, filepath.Join("testdata", scene.name+".golden"), got.Bytes())
		})
	}
}

// visible writes escape characters so that a frame can be read in a diff.
func visible(frame string) string { return strings.ReplaceAll(frame, "\x1b", "␛") }

func compareGolden(t *testing.T, name string, got []byte) {
	t.Helper()
	if *update {
		if err := os.WriteFile(name, got, 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	want, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	if bytes.Equal(got, want) {
		return
	}
	gotLines, wantLines := strings.Split(string(got), "\n"), strings.Split(string(want), "\n")
	section := ""
	for i := range min(len(gotLines), len(wantLines)) {
		if strings.HasPrefix(wantLines[i], "-- ") {
			section = wantLines[i]
		}
		if gotLines[i] != wantLines[i] {
			t.Fatalf("%s: line %d (%s) differs; run with -update after looking at it\n got %s\nwant %s", name, i+1, section, gotLines[i], wantLines[i])
		}
	}
	t.Fatalf("%s: %d lines, want %d", name, len(gotLines), len(wantLines))
}
