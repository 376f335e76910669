package supervise

import (
	"bufio"
	"fmt"
	"strings"
	"testing"
)

// What a supervisor is told first is whole, or not taken.
func FuzzReadStart(f *testing.F) {
	for _, s := range []string{"/runs/r-a\n", "private 15\n{\"env\":[\"A=b\"]}/runs/r-a\n", "private 99\n{}", "private -1\n", "private 999999999999\n", "private 2\n{}"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		dir, p, err := readStart(bufio.NewReader(strings.NewReader(s)))
		if err == nil && !strings.HasSuffix(dir, "\n") {
			t.Errorf("%q names %q", s, dir)
		}
		if text, ok := strings.CutPrefix(s, privateLine); ok && err == nil && !strings.Contains(text, dir) {
			t.Errorf("%q names %q with %d variables", s, dir, len(p.Env))
		}
	})
}

func TestReadStart(t *testing.T) {
	const private = `{"env":["A=b"],"keep":{"K":"v"}}`
	dir, p, err := readStart(bufio.NewReader(strings.NewReader(fmt.Sprintf("private %d\n%s/runs/r-a\n", len(private), private))))
	if err != nil || dir != "/runs/r-a\n" || len(p.Env) != 1 || p.Env[0] != "A=b" || p.Keep["K"] != "v" {
		t.Errorf("%q %+v %v", dir, p, err)
	}
}
