package tui

import (
	"cmp"
	"context"
	"errors"
	"slices"
	"time"

	tea "charm.land/bubbletea/v2"
	"github.com/charmbracelet/colorprofile"

	"github.com/balanceai/balance/exec/task"
	"github.com/balanceai/balance/mesh/identity"
)

var errSilent = errors.New("the node has stopped talking")

// model is the whole screen: what is known of the mesh, and the pages that show
// it. Update alone changes it.
type model struct {
	backend Backend
	scope   func() (doer, context.CancelFunc)
	do      doer
	leaving chan struct{} // closed when the user leaves
	clock   func() time.Time
	zone    *time.Location

	profile colorprofile.Profile
	dark    bool
	ascii   bool
	th      *theme
	w, h    int

	// What the node told.
	pictures  chan picture // holds the newest picture until it is taken
	mesh      Mesh
	meshAt    time.Time // when the newest picture came; zero: none yet
	machines  []*machine
	byID      map[identity.ID]*machine
	anyGPU    bool
	watchNo   int // number of the newest watch
	watchOver int // number of the newest one that has ended; what it still shows is old
	watchErr  error
	runs      []task.Status // newest first
	runRows   []*runRow     // the same, for lists
	runsAsked bool          // an answer is due
	runsAt    time.Time     // when the newest answer came
	runsErr   error

	// What the user sees.
	now     time.Time
	at      Screen
	back    []Screen
	pages   [screens]page
	fleet   *fleetPage
	node    *nodePage
	list    *runsPage
	run     *runPage
	form    *dispatchPage
	ledger  *ledgerPage
	help    scroller
	helpFor []binding // what the help page tells of; nil: it is not shown
	ask     *question
	note    note

	dirty bool
	view  tea.View
	hits  []hit
}

// page is what a screen does.
type page interface {
	enter() tea.Cmd         // it is shown now
	tick() tea.Cmd          // it is shown, and a second has passed
	draw(c *canvas, a area) // its part of the frame
	bindings() []binding    // the keys that it answers now
	command() string        // the command line that does the same; may be empty
}

// typist is a page that text can be typed into now.
type typist interface {
	// typed takes a key, and reports false for one that it has no use for.
	typed(k tea.KeyPressMsg) (tea.Cmd, bool)
	pasted(s string) tea.Cmd
	typing() bool
}

// pointed is a page that answers to the mouse.
type pointed interface {
	click(h hit) tea.Cmd
	wheel(n int)
}

// tabs are the screens that have a number.
var tabs = [...]struct{ key, title string }{
	Fleet:    {"1", "Fleet"},
	Runs:     {"2", "Runs"},
	Dispatch: {"3", "Dispatch"},
	Ledger:   {"4", "Ledger"},
}

// question is something that is asked before it is done.
type question struct {
	text    string
	answers []binding
}

// note is one line about something that was done, or could not be.
type note struct {
	text  string
	st    style
	until time.Time
}

func newModel(b Backend, scope func() (doer, context.CancelFunc)) *model {
	m := &model{
		backend: b, scope: scope, leaving: make(chan struct{}),
		clock: time.Now, zone: time.Local,
		profile: colorprofile.TrueColor, dark: true,
		pictures: make(chan picture, 1),
		dirty:    true,
	}
	m.do, _ = scope()
	m.now = m.clock()
	m.fleet = newFleetPage(m)
	m.node = newNodePage(m)
	m.list = newRunsPage(m)
	m.run = newRunPage(m)
	m.form = newDispatchPage(m)
	m.ledger = newLedgerPage(m)
	m.pages = [...]page{m.fleet, m.list, m.form, m.ledger, m.node, m.run}
	m.restyle()
	return m
}

func (m *model) restyle() { m.th = newTheme(m.profile, m.dark, m.ascii) }

// Init implements [tea.Model].
func (m *model) Init() tea.Cmd {
	return tea.Batch(tea.RequestBackgroundColor, m.watch(), m.nextPicture(0), m.askRuns(),
		m.after(time.Second, second{}), m.page().enter())
}

// Update implements [tea.Model].
func (m *model) Update(msg tea.Msg) (tea.Model, tea.Cmd) {
	m.now = m.clock()
	m.dirty = true
	var cmd tea.Cmd
	switch msg := msg.(type) {
	case reply:
		cmd = msg.apply(m)
	case tea.KeyPressMsg:
		cmd = m.key(msg)
	case tea.PasteMsg:
		if t, ok := m.typist(); ok {
			cmd = t.pasted(msg.Content)
		}
	case tea.MouseClickMsg:
		cmd = m.click(msg)
	case tea.MouseWheelMsg:
		m.wheel(msg)
	case tea.WindowSizeMsg:
		m.w, m.h = msg.Width, msg.Height
	case tea.ColorProfileMsg:
		m.profile = msg.Profile
		m.restyle()
	case tea.BackgroundColorMsg:
		m.dark = msg.IsDark()
		m.restyle()
	default:
		m.dirty = false
	}
	return m, cmd
}

// View implements [tea.Model]. It runs after every message, and draws only
// where something has changed.
func (m *model) View() tea.View {
	if !m.dirty {
		return m.view
	}
	m.dirty = false
	c := newCanvas(m.th, m.w, m.h)
	m.draw(c)
	m.hits = c.hits
	m.view = tea.NewView(c.frame())
	m.view.AltScreen = true
	m.view.MouseMode = tea.MouseModeCellMotion
	m.view.WindowTitle = "balance"
	if m.mesh.Name != "" {
		m.view.WindowTitle = "balance " + clean(m.mesh.Name)
	}
	if c.cursorY >= 0 {
		m.view.Cursor = tea.NewCursor(c.cursorX, c.cursorY)
		m.view.Cursor.Shape, m.view.Cursor.Blink = tea.CursorBar, false
	}
	return m.view
}

func (m *model) page() page { return m.pages[m.at] }

// typist returns the page where text is being typed.
func (m *model) typist() (typist, bool) {
	t, ok := m.page().(typist)
	return t, ok && t.typing() && m.ask == nil && m.helpFor == nil
}

// open shows a page; esc comes back from it.
func (m *model) open(s Screen) tea.Cmd {
	if s == m.at {
		return nil
	}
	m.back = append(m.back, m.at)
	return m.show(s)
}

func (m *model) show(s Screen) tea.Cmd {
	m.run.leave()
	m.at = s
	return m.page().enter()
}

// goBack shows the page before, or the first tab.
func (m *model) goBack() tea.Cmd {
	if len(m.back) == 0 {
		return m.goTo(Fleet)
	}
	s := m.back[len(m.back)-1]
	m.back = m.back[:len(m.back)-1]
	return m.show(s)
}

func (m *model) goTo(s Screen) tea.Cmd {
	m.back = nil
	return m.show(s)
}

// say shows one line for some seconds.
func (m *model) say(st style, text string) {
	m.note = note{text, st, m.now.Add(6 * time.Second)}
}

// take stores a new picture of the mesh.
func (m *model) take(p Mesh) {
	m.mesh, m.meshAt = p, m.now
	m.machines = make([]*machine, len(p.Nodes))
	byID := make(map[identity.ID]*machine, len(p.Nodes))
	m.anyGPU = false
	for i := range p.Nodes {
		mc := newMachine(&p.Nodes[i], m.byID[p.Nodes[i].ID], m.now)
		m.machines[i], byID[mc.ID] = mc, mc
		m.anyGPU = m.anyGPU || len(mc.gpus) > 0
	}
	m.byID = byID
	slices.SortFunc(m.machines, func(a, b *machine) int { return cmp.Compare(a.Name, b.Name) })
	m.fleet.refresh()
	m.node.refresh()
}

// connected reports whether the node talks to us.
func (m *model) connected() bool {
	return m.watchErr == nil && !m.meshAt.IsZero() && m.now.Sub(m.meshAt) < silentAfter
}

// status returns what is known of a run.
func (m *model) status(id string) *task.Status {
	for i := range m.runs {
		if m.runs[i].ID == id {
			return &m.runs[i]
		}
	}
	return nil
}

// nodeName returns a name for an identity.
func (m *model) nodeName(id identity.ID) string {
	if mc := m.byID[id]; mc != nil {
		return mc.Name
	}
	if id.IsZero() {
		return none
	}
	return id.Short()
}
