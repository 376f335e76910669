package tui

import (
	"image/color"
	"strings"

	"charm.land/lipgloss/v2"
	"github.com/charmbracelet/colorprofile"
)

// style is what a piece of text means. The theme says how that looks.
type style uint8

const (
	plain  style = iota // values
	strong              // the name of a thing
	dim                 // labels, and what is not live
	faint               // rules and the empty part of bars
	head                // column titles, section titles
	accent              // the one hue: bars, keys, the selected tab
	warm                // from 80 %; something wants attention
	hot                 // from 92 %; something is wrong
	found               // what a search found
	styles
)

// theme holds the escape sequences for each style, on the selected row and off
// it, and the glyphs that go with them.
type theme struct {
	off, on [styles]string
	ascii   bool
	glyph   *glyphs
	tail    string // marks text that was cut
}

// colours are the values of one hue: explicit for each depth, because what
// terminals make of a value of another depth is not the same hue.
type colours struct{ truecolor, c256, c16 string }

// palette is the set of hues for one kind of background. Blue, amber and
// vermillion stay apart for every kind of colour vision (Okabe and Ito).
type palette struct{ dim, faint, accent, warm, hot, chosen colours }

var darkPalette = palette{
	dim:    colours{"#8b949e", "245", "7"},
	faint:  colours{"#3d444d", "239", "8"},
	accent: colours{"#58a6ff", "75", "14"},
	warm:   colours{"#e3a008", "214", "11"},
	hot:    colours{"#f06a35", "202", "9"},
	chosen: colours{"#1f2733", "236", ""},
}

var lightPalette = palette{
	dim:    colours{"#57606a", "241", "8"},
	faint:  colours{"#d0d7de", "252", "7"},
	accent: colours{"#0a5fd0", "26", "4"},
	warm:   colours{"#946200", "94", "3"},
	hot:    colours{"#b93a04", "130", "1"},
	chosen: colours{"#e6eef8", "254", ""},
}

// at returns the value for a terminal's depth, which may be none.
func (c colours) at(p colorprofile.Profile) color.Color {
	value := c.c16
	switch {
	case p >= colorprofile.TrueColor:
		value = c.truecolor
	case p >= colorprofile.ANSI256:
		value = c.c256
	}
	if p < colorprofile.ANSI || value == "" {
		return lipgloss.NoColor{}
	}
	return lipgloss.Color(value)
}

// newTheme makes the theme for a terminal. Without colours, weight and
// underlines say what they can, and signs the rest.
func newTheme(p colorprofile.Profile, dark, ascii bool) *theme {
	hues := lightPalette
	if dark {
		hues = darkPalette
	}
	base := lipgloss.NewStyle()
	look := [styles]lipgloss.Style{
		plain:  base,
		strong: base.Bold(true),
		dim:    base.Foreground(hues.dim.at(p)),
		faint:  base.Foreground(hues.faint.at(p)),
		head:   base.Foreground(hues.dim.at(p)),
		accent: base.Foreground(hues.accent.at(p)),
		warm:   base.Foreground(hues.warm.at(p)),
		hot:    base.Foreground(hues.hot.at(p)).Bold(true),
		found:  base.Reverse(true),
	}
	th := &theme{ascii: ascii, glyph: &unicodeGlyphs, tail: "…"}
	if ascii {
		th.glyph, th.tail = &asciiGlyphs, "~"
	}
	chosen := hues.chosen.at(p)
	bold := chosen == color.Color(lipgloss.NoColor{}) // without a background, weight marks the row
	for i, s := range look {
		th.off[i] = prefix(s)
		th.on[i] = prefix(s.Background(chosen).Bold(bold || s.GetBold()))
	}
	return th
}

// drawable returns s as the terminal can show it.
func (t *theme) drawable(s string) string {
	if s = clean(s); !t.ascii || isPlain(s) {
		return s
	}
	return strings.Map(func(r rune) rune {
		switch {
		case r <= '~':
			return r
		case r == '–':
			return '-'
		case r == '×':
			return 'x'
		case r == '°':
			return -1
		default:
			return '?'
		}
	}, s)
}

// prefix returns what a style writes before its text, starting from any other
// style.
func prefix(s lipgloss.Style) string {
	set, _, _ := strings.Cut(s.Render("x"), "x")
	return "\x1b[m" + set
}

// glyphs are the signs that are drawn. Each takes one cell.
type glyphs struct {
	up, suspect, down, stale                                          string
	queued, running, done, failed, cancelled, unplaced, lost          string
	marker, rule, bullet, yes, no, left, right, asc, desc, enter, gpu string
	stderr                                                            string
}

var unicodeGlyphs = glyphs{
	up: "●", suspect: "◐", down: "✕", stale: "◌",
	queued: "◷", running: "▸", done: "✓", failed: "✕", cancelled: "■", unplaced: "∅", lost: "?",
	marker: "▌", rule: "│", bullet: "·", yes: "✓", no: "✕", left: "‹", right: "›",
	asc: "↑", desc: "↓", enter: "↵", gpu: "└", stderr: "▏",
}

var asciiGlyphs = glyphs{
	up: "*", suspect: "~", down: "x", stale: "o",
	queued: "o", running: ">", done: "+", failed: "x", cancelled: "-", unplaced: "!", lost: "?",
	marker: ">", rule: "|", bullet: "-", yes: "+", no: "x", left: "<", right: ">",
	asc: "^", desc: "v", enter: "enter", gpu: "+", stderr: "!",
}
