package tui

import (
	"regexp"
	"strings"

	"github.com/charmbracelet/x/ansi"
)

// checkFrame fails for a frame that could break the terminal: too many lines, a
// line that is too wide, or anything but text and colours.
func checkFrame(t interface {
	Helper()
	Errorf(string, ...any)
	Fatalf(string, ...any)
}, frame string, w, h int,
) {
	t.Helper()
	lines := strings.Split(frame, "\n")
	if len(lines) != h {
		t.Fatalf("%d lines, want %d", len(lines), h)
	}
	for i, l := range lines {
		if n := ansi.StringWidth(l); n > w {
			t.Errorf("line %d is %d cells wide, want %d at most: %q", i, n, w, l)
		}
		plain := ansi.Strip(l)
		if safe := clean(plain); safe != plain {
			t.Errorf("line %d has unsafe text: %q", i, plain)
		}
		if stray := strings.NewReplacer("\x1b[m", "").Replace(sgr.ReplaceAllString(l, "")); strings.ContainsRune(stray, '\x1b') {
			t.Errorf("line %d has an escape sequence that is no colour: %q", i, l)
		}
	}
}

var sgr = regexp.MustCompile("\x1b\\[[0-9;:]*m")
