package tui

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/balanceai/balance/exec/task"
)

func (l *runLog) texts() []string {
	var out []string
	for _, line := range l.lines {
		out = append(out, line.text)
	}
	return out
}

func TestRunLogLines(t *testing.T) {
	for name, c := range map[string]struct {
		writes []string // those that begin with ! go to standard error
		want   string
	}{
		"whole lines":             {[]string{"a\nb\n"}, "a|b"},
		"a line in pieces":        {[]string{"a", "b", "c\nd"}, "abc|d"},
		"empty lines":             {[]string{"\n\nx\n"}, "||x"},
		"a character in pieces":   {[]string{"\xe6\xbc", "\xa2\n"}, "漢"},
		"a sequence in pieces":    {[]string{"a\x1b[3", "1mb\n"}, "ab"},
		"a progress bar":          {[]string{"10%\r", "50%\r", "100%\ndone\n"}, "100%|done"},
		"a progress bar, written": {[]string{"10%\r50%\r100%\r\ndone\n"}, "100%|done"},
		"windows":                 {[]string{"a\r\nb\r\n"}, "a|b"},
		"both streams":            {[]string{"out", "!err\n", "put\n"}, "output|err"},
		"tabs":                    {[]string{"a\tb\t\tc\n"}, "a       b               c"},
	} {
		var l runLog
		for _, w := range c.writes {
			kind := lineStdout
			if rest, ok := strings.CutPrefix(w, "!"); ok {
				kind, w = lineStderr, rest
			}
			l.write(kind, []byte(w), time.Time{})
		}
		if got := strings.Join(l.texts(), "|"); got != c.want {
			t.Errorf("%s: %q, want %q", name, got, c.want)
		}
	}
}

func TestRunLogIsBounded(t *testing.T) {
	var l runLog
	l.write(lineStdout, []byte(strings.Repeat("x", 1<<20)), time.Time{})
	if got := l.lines[0]; len(got.text) != maxLine || got.cut != 1<<20-maxLine {
		t.Errorf("a long line: %d bytes, %d cut", len(got.text), got.cut)
	}
	for i := range 3 * maxLogLines {
		l.write(lineStdout, fmt.Appendf(nil, "\n%d", i), time.Time{})
	}
	if n := len(l.lines); n > maxLogLines+maxLogLines/8 {
		t.Errorf("%d lines", n)
	}
	if got := l.line(l.end() - 1).text; got != fmt.Sprint(3*maxLogLines-1) {
		t.Errorf("the last line is %q", got)
	}
	for range 3 * maxLogBytes / maxLine {
		l.write(lineStderr, append([]byte(strings.Repeat("y", maxLine)), '\n'), time.Time{})
	}
	sum := 0
	for _, line := range l.lines {
		sum += len(line.text)
	}
	if sum != l.bytes || sum > maxLogBytes+2*maxLine { // the newest line may be longer than it was when it began
		t.Errorf("%d bytes, counted %d", sum, l.bytes)
	}
}

// FuzzRunLog writes anything in any pieces: the same lines come out as when it
// is written at once.
func FuzzRunLog(f *testing.F) {
	f.Add([]byte("a\r\nb\x1b[1mc\td\n\xff"), 3)
	f.Add([]byte("\r\r\n\xe6\xbc\xa2\x1b]0;t\x07"), 1)
	f.Fuzz(func(t *testing.T, b []byte, size int) {
		size = max(size, 1)
		var whole, pieces runLog
		whole.write(lineStdout, b, time.Time{})
		for rest := b; len(rest) > 0; rest = rest[min(size, len(rest)):] {
			pieces.write(lineStdout, rest[:min(size, len(rest))], time.Time{})
		}
		if got, want := pieces.texts(), whole.texts(); strings.Join(got, "\n") != strings.Join(want, "\n") || len(got) != len(want) {
			t.Fatalf("in pieces of %d: %q, want %q", size, got, want)
		}
	})
}

// TestLogScroll scrolls any log in any window: the position stays inside, the
// end is where the last rows fill the window, and reaching it follows.
func TestLogScroll(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		v := logView{wrap: rapid.Bool().Draw(t, "wrap"), follow: true, match: -1}
		v.w, v.h = rapid.IntRange(1, 30).Draw(t, "w"), rapid.IntRange(1, 20).Draw(t, "h")
		for range rapid.IntRange(0, 40).Draw(t, "lines") {
			v.log.write(lineStdout, []byte(strings.Repeat("ab 漢", rapid.IntRange(0, 20).Draw(t, "n"))+"\n"), time.Time{})
		}
		v.settle()
		total := 0
		for n := v.log.first; n < v.log.end(); n++ {
			total += len(v.rows(n))
		}
		row := func(p position) int {
			at := p.row
			for n := v.log.first; n < p.line; n++ {
				at += len(v.rows(n))
			}
			return at
		}
		end := max(total-v.h, 0)
		if got := row(v.at); got != end {
			t.Fatalf("the end is at row %d of %d, want %d", got, total, end)
		}
		at := end
		for range rapid.IntRange(1, 10).Draw(t, "moves") {
			n := rapid.IntRange(-50, 50).Draw(t, "move")
			v.scroll(n)
			at = min(max(at+n, 0), end)
			if len(v.log.lines) > 0 && (row(v.at) != at || v.follow != (at == end)) {
				t.Fatalf("moved by %d: at row %d, want %d of %d; follows: %v", n, row(v.at), at, end, v.follow)
			}
		}
	})
}

func TestLogSearch(t *testing.T) {
	v := logView{follow: true, match: -1, w: 80, h: 3}
	for i := range 20 {
		v.log.write(lineStdout, fmt.Appendf(nil, "Line %d\n", i), time.Time{})
	}
	v.scroll(-100)
	v.search("LINE 1")
	if v.match != 1 || v.count != 11 || v.follow {
		t.Errorf("match %d of %d, follow %v", v.match, v.count, v.follow)
	}
	v.next(1)
	if v.match != 10 {
		t.Errorf("next match %d", v.match)
	}
	v.next(-1)
	v.next(-1)
	if v.match != 19 { // round the end
		t.Errorf("match before %d", v.match)
	}
	v.search("nothing")
	if v.match != -1 || v.count != 0 {
		t.Errorf("match %d of %d", v.match, v.count)
	}
}

func TestEventWords(t *testing.T) {
	for want, e := range map[string]task.Event{
		"placed on athena":                    {Type: task.EventPlaced, Node: "athena"},
		"failed, ended by signal 9 on athena": {Type: task.EventFinished, State: task.Failed, ExitCode: new(137), Node: "athena"},
		"succeeded on athena":                 {Type: task.EventFinished, State: task.Succeeded, ExitCode: new(0), Node: "athena"},
		"unplaced: no machine fits":           {Type: task.EventFinished, State: task.Unplaced, Message: "no machine fits"},
		"4 MiB of output were dropped":        {Type: task.EventNote, Message: "4 MiB of output were dropped"},
	} {
		if got := eventWords(e); got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
}
