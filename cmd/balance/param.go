package main

import (
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/balanceai/balance/exec/agent"
)

// pairs is a flag of NAME=VALUE, which may be given again. Values are taken as they
// are, with their commas.
type pairs struct{ to *map[string]string }

func (p pairs) Type() string   { return "NAME=VALUE" }
func (p pairs) String() string { return "" }
func (p pairs) Set(s string) error {
	name, value, ok := strings.Cut(s, "=")
	if !ok || name == "" {
		return fmt.Errorf("%q is not NAME=VALUE", s)
	}
	if *p.to == nil {
		*p.to = map[string]string{}
	}
	(*p.to)[name] = value
	return nil
}

// askAll asks the person for what the agent has to be told and was not given.
func (d *draft) askAll() error {
	for _, p := range d.parameters {
		if _, ok := d.params[p.Name]; ok || p.Optional || d.ask == nil {
			continue
		}
		v, err := d.ask(p)
		if err != nil {
			return err
		}
		if d.params == nil {
			d.params = map[string]string{}
		}
		d.params[p.Name] = v
	}
	return nil
}

// paramProblem says how to tell an agent what it was not told.
func paramProblem(err error) error {
	if p := (*agent.ParameterError)(nil); errors.As(err, &p) && len(p.Missing) > 0 {
		return hint(err, "for example: --param %s=VALUE", p.Missing[0])
	}
	return err
}

// askFor asks for a parameter at this terminal until its value can be.
func (a *app) askFor(p agent.Parameter) (string, error) {
	for {
		about := ""
		if s := p.About(); s != "" {
			about = " (" + clean(s, false) + ")"
		}
		fmt.Fprintf(a.print.err, "%s%s: ", p.Name, about)
		line, err := readLine(a.in)
		if err != nil {
			return "", fail("usage", "for example: --param "+p.Name+"=VALUE", "the agent was not told %s", p.Name)
		}
		if err = p.Check(line); err == nil {
			return line, nil
		}
		fmt.Fprintln(a.print.err, clean(err.Error(), false))
	}
}

// readLine reads a line and no more: what follows is for the run.
func readLine(in io.Reader) (string, error) {
	var line []byte
	for b := make([]byte, 1); ; {
		if _, err := io.ReadFull(in, b); err != nil {
			return "", err
		}
		if b[0] == '\n' {
			return strings.TrimSuffix(string(line), "\r"), nil
		}
		line = append(line, b[0])
	}
}
