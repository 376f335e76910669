package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"text/tabwriter"
	"unicode"

	"golang.org/x/term"

	"github.com/balanceai/balance/exec/task"
)

// Exit codes. A run's own code passes through run, wait and logs -f.
const (
	exitFailure     = 1
	exitUsage       = 2
	exitNotFound    = 3 // or ambiguous
	exitNotJoined   = 4
	exitUnreachable = 5 // the daemon does not run
	exitNoFit       = 6 // no machine fits
	exitTimeout     = 7
	exitLauncher    = 125 // the run could not be started, or its end is not known
	exitInterrupted = 130
)

// Codes of errors in JSON, each with its exit code. The names are stable.
var exitCodes = map[string]int{
	"failure":    exitFailure,
	"usage":      exitUsage,
	"not_found":  exitNotFound,
	"ambiguous":  exitNotFound,
	"not_joined": exitNotJoined,

	"bad_invite":       exitNotJoined,
	"invite_expired":   exitNotJoined,
	"invite_used":      exitNotJoined,
	"invite_unknown":   exitNotJoined,
	"door_unreachable": exitUnreachable,

	"not_running": exitUnreachable,
	"no_fit":      exitNoFit,
	"timeout":     exitTimeout,
	"launcher":    exitLauncher,
	"interrupted": exitInterrupted,
}

// problem is an error for people: what happened, then what to do. It travels
// between daemon and CLI as it is.
type problem struct {
	Code      string `json:"code"`
	Message   string `json:"message"`
	Hint      string `json:"hint,omitempty"`
	Retryable bool   `json:"retryable"`
}

func (p *problem) Error() string { return p.Message }

// hinted is an error with what to do about it.
type hinted struct {
	error
	hint string
}

func (h *hinted) Unwrap() error { return h.error }

func hint(err error, format string, args ...any) error {
	return &hinted{err, fmt.Sprintf(format, args...)}
}

func fail(code, hint, format string, args ...any) *problem {
	return &problem{Code: code, Message: fmt.Sprintf(format, args...), Hint: hint}
}

// exitError ends the program with a run's own exit code and says nothing.
type exitError int

func (e exitError) Error() string { return fmt.Sprintf("exit code %d", int(e)) }

// describe turns any error into a problem: the one place where kinds of errors
// get their codes.
func describe(err error) *problem {
	var p *problem
	if !errors.As(err, &p) {
		p = &problem{Code: errorCode(err), Message: err.Error()}
	}
	p.Retryable = p.Code == "not_running" || p.Code == "timeout" || p.Code == "door_unreachable"
	var h *hinted
	if errors.As(err, &h) && p.Hint == "" {
		q := *p
		q.Hint = h.hint
		p = &q
	}
	return p
}

// printer writes answers to stdout and conversation to stderr.
type printer struct {
	out, err io.Writer
	json     bool
	outTTY   bool
	errTTY   bool
	color    bool // on stderr and stdout, for people
	quiet    bool
	tame     [2]*tamed // of both, for what runs write
}

func newPrinter(out, err io.Writer, env func(string) string) *printer {
	isTTY := func(w io.Writer) bool {
		f, ok := w.(*os.File)
		return ok && term.IsTerminal(int(f.Fd()))
	}
	p := &printer{out: out, err: err, outTTY: isTTY(out), errTTY: isTTY(err)}
	p.color = p.outTTY && env("NO_COLOR") == "" && env("TERM") != "dumb" || env("CLICOLOR_FORCE") != "" && env("CLICOLOR_FORCE") != "0"
	return p
}

// answer prints v as JSON, or as people like it.
func (p *printer) answer(v any, people func(w io.Writer) error) error {
	if p.json {
		enc := json.NewEncoder(p.out)
		enc.SetEscapeHTML(false)
		return enc.Encode(v)
	}
	return people(p.out)
}

// line prints one JSON object of a stream.
func (p *printer) line(v any) error {
	enc := json.NewEncoder(p.out)
	enc.SetEscapeHTML(false)
	return enc.Encode(v)
}

// say writes one line of conversation.
func (p *printer) say(format string, args ...any) {
	if !p.quiet && !p.json {
		fmt.Fprintf(p.err, format+"\n", args...)
	}
}

// gap says where output of a run is missing, also to whoever has put its standard
// error into a file: what is there would look like all.
func (p *printer) gap(e *task.Event, missing int64, open bool) {
	text := task.Dropped(missing)
	if e.Rank != nil {
		text = fmt.Sprintf("rank %d: %s", *e.Rank, text)
	}
	if open && p.errTTY {
		text = "\n" + text
	}
	fmt.Fprintln(p.err, text)
}

// fault prints an error and returns the exit code.
func (p *printer) fault(err error) int {
	if exit, ok := errors.AsType[exitError](err); ok {
		return int(exit)
	}
	if errors.Is(err, context.Canceled) {
		return exitInterrupted
	}
	d := describe(err)
	if p.json {
		enc := json.NewEncoder(p.err)
		enc.SetEscapeHTML(false)
		_ = enc.Encode(map[string]*problem{"error": d})
	} else {
		fmt.Fprintf(p.err, "balance: %s\n", clean(d.Message, true))
		if d.Hint != "" {
			fmt.Fprintf(p.err, "  %s\n", clean(d.Hint, true))
		}
	}
	if code, ok := exitCodes[d.Code]; ok {
		return code
	}
	return exitFailure
}

// table prints rows under a header, columns aligned. Cells are cleaned: names
// and commands come from other machines.
func table(w io.Writer, header []string, rows [][]string) error {
	tw := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	fmt.Fprintln(tw, strings.Join(header, "\t"))
	for _, row := range rows {
		for i := range row {
			row[i] = clean(row[i], false)
			if row[i] == "" {
				row[i] = "–"
			}
		}
		fmt.Fprintln(tw, strings.Join(row, "\t"))
	}
	return tw.Flush()
}

// clean removes what could move a terminal's cursor, change its colours or
// reorder text. Newlines stay where lines is true.
func clean(s string, lines bool) string {
	return strings.Map(func(r rune) rune {
		switch {
		case r == '\n' && lines, r == '\t' && lines:
			return r
		case unicode.IsControl(r), unicode.Is(unicode.Bidi_Control, r), r == unicode.ReplacementChar:
			return '·'
		}
		return r
	}, s)
}
