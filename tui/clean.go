package tui

import (
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/charmbracelet/x/ansi"
)

// Text from other machines is drawn cell by cell, so every character must take
// the number of cells that we think it takes, on every terminal, and none may
// command the terminal. What is not known to be safe is replaced or dropped:
//
//   - escape sequences, whole, and control characters are dropped;
//   - characters that change direction or join others are dropped: they could
//     make a name look like another one;
//   - combining marks are dropped, and characters on whose width terminals
//     disagree are replaced by [substitute].

// substitute stands for a character that cannot be drawn safely.
const substitute = '\uFFFD'

// clean returns s as one line that is safe to draw. Tabs and line breaks become
// single spaces.
func clean(s string) string {
	if _, ok := simple(s); ok {
		return s
	}
	var b strings.Builder
	b.Grow(len(s))
	p := ansi.GetParser()
	defer ansi.PutParser(p)
	var state byte
	for len(s) > 0 {
		seq, width, n, next := ansi.DecodeSequenceWc(s, state, p)
		if width > 0 || !isControl(seq) {
			writeSafe(&b, seq)
		}
		state, s = next, s[max(n, 1):]
	}
	return b.String()
}

// simple returns the number of cells of a text of which every character is
// known to take one: ASCII, Latin letters, our own signs, bars and charts. It is
// what nearly all text is, and cheap to tell.
func simple(s string) (cells int, ok bool) {
	for _, r := range s {
		switch {
		case r >= ' ' && r <= '~', r >= 0x2500 && r <= 0x28ff, r >= 0xc0 && r <= 0x17f:
		case r == '–' || r == '…' || r == '×' || r == '·' || r == '‹' || r == '›' || r == '↑' || r == '↓' || r == '→' || r == '↵':
		default:
			return 0, false
		}
		cells++
	}
	return cells, true
}

// isPlain reports whether s is printable ASCII.
func isPlain(s string) bool {
	for i := range len(s) {
		if s[i] < ' ' || s[i] > '~' {
			return false
		}
	}
	return true
}

// isControl reports whether the parser's unit is an escape sequence or a
// control character that leaves nothing to see.
func isControl(seq string) bool {
	switch c := seq[0]; c {
	case '\t', '\n', '\r':
		return false
	default:
		return c < ' ' || c == 0x7f || (c >= 0x80 && c < 0xa0)
	}
}

func writeSafe(b *strings.Builder, s string) {
	for len(s) > 0 {
		r, n := utf8.DecodeRuneInString(s)
		switch {
		case r == '\t' || r == '\n' || r == '\r':
			b.WriteByte(' ')
		case r < ' ' || unicode.IsControl(r) || isInvisible(r):
		case r == utf8.RuneError || !isSteady(r):
			b.WriteRune(substitute)
		default:
			b.WriteString(s[:n])
		}
		s = s[n:]
	}
}

// isInvisible reports whether r takes no cell: formatting characters (which
// include those that change direction), combining marks, variation selectors
// and the joining half of the Korean alphabet.
func isInvisible(r rune) bool {
	return unicode.In(r, unicode.Cf, unicode.M, unicode.Variation_Selector, unicode.Other_Default_Ignorable_Code_Point) ||
		(r >= 0x1160 && r <= 0x11ff) || (r >= 0xd7b0 && r <= 0xd7ff)
}

// isSteady reports whether terminals agree on the width of r: printable, of
// width one or two, and if it is pictographic, old enough for every table.
func isSteady(r rune) bool {
	switch {
	case r >= 0x2500 && r <= 0x28ff: // our own bars, boxes and charts
		return true
	case !unicode.IsPrint(r):
		return false
	case r >= 0x1f1e6 && r <= 0x1f1ff, r >= 0x1f3fb && r <= 0x1f3ff: // flags, skin tones
		return false
	case r >= 0x1fa70 && r <= 0x1faff, r >= 0x1fb00 && r <= 0x1fbff: // emoji since Unicode 12
		return false
	}
	w := ansi.StringWidthWc(string(r))
	return (w == 1 || w == 2) && w == ansi.StringWidth(string(r))
}

// width returns the number of cells of a clean string.
func width(s string) int {
	if n, ok := simple(s); ok {
		return n
	}
	return ansi.StringWidth(s)
}

// fit cuts a clean string to at most w cells, with tail as its last one where
// something is missing, and returns it with its width.
func fit(s string, w int, tail string) (string, int) {
	if w <= 0 {
		return "", 0
	}
	n, ok := simple(s)
	if !ok {
		n = ansi.StringWidth(s)
	}
	switch {
	case n <= w:
		return s, n
	case ok && isPlain(s):
		return s[:w-1] + tail, w
	}
	s = ansi.Truncate(s, w, tail)
	return s, width(s)
}

// wrapWords breaks a clean sentence into lines of at most w cells, at spaces
// where it can.
func wrapWords(s string, w int) []string {
	if w <= 0 || width(s) <= w {
		return []string{s}
	}
	return strings.Split(ansi.Wrap(s, w, ""), "\n")
}
