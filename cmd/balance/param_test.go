package main

import (
	"bytes"
	"os"
	"strings"
	"testing"

	"github.com/balanceai/balance/exec/agent"
)

// A person is asked until the answer can be, and what is typed after it is left for
// the run.
func TestAskFor(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if _, err := w.WriteString("many\r\n7\nfor the run"); err != nil {
		t.Fatal(err)
	}
	w.Close()
	var said bytes.Buffer
	a := &app{in: r, print: &printer{err: &said}}
	p := agent.Parameter{Name: "times", Description: "how often", Type: agent.TypeInteger}
	if v, err := a.askFor(p); v != "7" || err != nil {
		t.Errorf("got %q, %v", v, err)
	}
	if want := "times (how often: an integer): times: \"many\" is no integer\ntimes (how often: an integer): "; said.String() != want {
		t.Errorf("said %q", said.String())
	}
	rest := make([]byte, 20)
	if n, _ := r.Read(rest); string(rest[:n]) != "for the run" {
		t.Errorf("left %q", rest[:n])
	}
	if _, err := a.askFor(p); err == nil || !strings.Contains(err.Error(), "was not told times") {
		t.Errorf("at the end of the input: %v", err)
	}
}
