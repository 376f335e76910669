// Package tui is the screen of Balance: every machine and every run of a mesh,
// live, in a terminal.
//
// It is a thin client: it owns no state of the mesh, and closing it stops
// nothing. What it shows comes from a [Backend], which the program implements
// over the node's local socket; a node that goes away is said to be away, and
// is asked again until it answers.
//
// What it promises:
//
//   - It works at any size, from a list of names to 200×60 and more, in
//     truecolor, 256 or 16 colours, without colours and in plain ASCII. No
//     state is told by colour alone, and the terminal's own cursor is on the
//     selected row.
//   - What is not known is shown as –, never as zero. What is not live is dim
//     and carries its age.
//   - Text from other machines cannot command the terminal, hide its direction
//     or move what is beside it; see clean.go.
//   - Each screen shows the command that does the same, and y copies it.
//   - It ends within seconds of SIGTERM, SIGHUP or the end of its context, also
//     when the terminal takes no more output.
//
// How it is built: one [tea.Model], and a struct for each screen that it asks
// to draw and to answer keys. Update does no I/O: whatever waits runs as a
// command, and what comes back is a message that knows how to apply itself.
// View draws at most once for each change. Everything from a thing to the text
// that shows it is pure (render.go, charts.go, filter.go, place of columns in
// table.go) and tested as such.
package tui

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	tea "charm.land/bubbletea/v2"
	"github.com/charmbracelet/colorprofile"
)

// Options say how the screen is to look.
type Options struct {
	ASCII   bool   // draw with ASCII only; implied by TERM=linux or dumb, and by a locale that is not UTF-8
	NoColor bool   // no colours; implied by NO_COLOR
	Sync    bool   // ask the terminal for synchronized output over SSH too
	Start   Screen // what is shown first
}

// Screen is one of the pages.
type Screen int

// The pages that have a tab. Two others open from them.
const (
	Fleet Screen = iota
	Runs
	Dispatch
	Ledger

	nodeScreen
	runScreen
	screens
)

// Run shows the screen until the user leaves it, a signal asks the program to
// end, or ctx ends; none of these is an error.
func Run(ctx context.Context, b Backend, o Options) error {
	ctx, stop := signal.NotifyContext(ctx, os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	defer stop()
	return run(ctx, b, o, os.Environ())
}

func run(ctx context.Context, b Backend, o Options, env []string, more ...tea.ProgramOption) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	jobs := &jobs{}
	m := newModel(b, func() (doer, context.CancelFunc) { return jobs.scope(ctx) })
	m.ascii = o.ASCII || !drawsUnicode(env)
	m.restyle()
	m.at = o.Start

	options := []tea.ProgramOption{
		tea.WithFPS(30), tea.WithoutSignalHandler(), tea.WithEnvironment(env),
	}
	if o.Sync {
		options = append(options, tea.WithEnvironment(without(env, "SSH_TTY")))
	}
	if o.NoColor || lookup(env, "NO_COLOR") != "" {
		options = append(options, tea.WithColorProfile(colorprofile.ASCII))
	}
	program := tea.NewProgram(m, append(options, more...)...)
	guard := startWatchdog(ctx, m.leaving, giveUpAfter)
	quitting := context.AfterFunc(ctx, program.Quit) // not the program's own context, which would not wait for its reader
	_, err := program.Run()
	guard.stop()
	quitting()
	cancel()
	jobs.wait()
	if err != nil {
		return fmt.Errorf("screen: %w", err)
	}
	return nil
}

// giveUpAfter is how long the screen may take to end.
const giveUpAfter = 2 * time.Second

// drawsUnicode guesses from the environment whether the terminal shows more
// than ASCII. Where no locale is set it does: a terminal that does not is rare
// today, a container without a locale is not.
func drawsUnicode(env []string) bool {
	switch lookup(env, "TERM") {
	case "linux", "dumb":
		return false
	}
	for _, name := range []string{"LC_ALL", "LC_CTYPE", "LANG"} {
		if locale := strings.ToLower(lookup(env, name)); locale != "" {
			return strings.Contains(locale, "utf-8") || strings.Contains(locale, "utf8")
		}
	}
	return true
}

func lookup(env []string, name string) string {
	value := ""
	for _, e := range env {
		if v, ok := strings.CutPrefix(e, name+"="); ok {
			value = v
		}
	}
	return value
}

func without(env []string, name string) []string {
	var out []string
	for _, e := range env {
		if !strings.HasPrefix(e, name+"=") {
			out = append(out, e)
		}
	}
	return out
}
