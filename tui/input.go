package tui

import (
	"slices"
	"unicode"

	tea "charm.land/bubbletea/v2"
)

// input is one line of text that is being typed. It uses the terminal's own
// cursor.
type input struct {
	value []rune
	at    int // the cursor is before value[at]
}

func (in *input) String() string { return string(in.value) }

func (in *input) set(s string) {
	in.value, in.at = nil, 0
	in.insert(s)
}

// insert adds typed or pasted text at the cursor. Line breaks become spaces.
func (in *input) insert(s string) {
	add := make([]rune, 0, len(s))
	for _, r := range s {
		switch {
		case r == '\n' || r == '\t' || r == '\r':
			add = append(add, ' ')
		case unicode.IsPrint(r):
			add = append(add, r)
		}
	}
	const limit = 4096
	add = add[:min(len(add), max(0, limit-len(in.value)))]
	in.value = slices.Insert(in.value, in.at, add...)
	in.at += len(add)
}

// key edits, and reports whether the key was one of its own.
func (in *input) key(k tea.KeyPressMsg) bool {
	switch k.String() {
	case "left", "ctrl+b":
		in.at = max(in.at-1, 0)
	case "right", "ctrl+f":
		in.at = min(in.at+1, len(in.value))
	case "home", "ctrl+a":
		in.at = 0
	case "end", "ctrl+e":
		in.at = len(in.value)
	case "backspace", "ctrl+h":
		in.remove(max(in.at-1, 0), in.at)
	case "delete", "ctrl+d":
		in.remove(in.at, min(in.at+1, len(in.value)))
	case "ctrl+u":
		in.remove(0, in.at)
	case "ctrl+k":
		in.remove(in.at, len(in.value))
	case "ctrl+w", "alt+backspace":
		in.remove(in.wordStart(), in.at)
	default:
		if k.Text == "" {
			return false
		}
		in.insert(k.Text)
	}
	return true
}

func (in *input) remove(from, to int) {
	in.value = slices.Delete(in.value, from, to)
	in.at = from
}

func (in *input) wordStart() int {
	at := in.at
	for at > 0 && in.value[at-1] == ' ' {
		at--
	}
	for at > 0 && in.value[at-1] != ' ' {
		at--
	}
	return at
}

// draw shows the part around the cursor in w cells, and puts the cursor there.
func (in *input) draw(c *canvas, x, y, w int, focused bool) {
	before, after := clean(string(in.value[:in.at])), clean(string(in.value[in.at:]))
	for width(before) >= w && before != "" {
		before = string([]rune(before)[1:])
	}
	end := c.put(x, y, w, plain, before)
	if focused {
		c.cursor(end, y)
	}
	c.put(end, y, x+w-end, plain, after)
}
