package tui

import (
	"cmp"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/balanceai/balance/exec/task"
)

// A filter is words that must all hold:
//
//	h100           the text is somewhere in the row
//	state:up       the text is in that field
//	gpu>80         the number is greater (also >= < <= =)
//	free>=24G      numbers may have a unit of memory
//	!down          not
//
// Case does not matter. A word that is not finished, such as "gpu>", holds for
// every row: it is being typed.
type filter []word

// word is one word of a filter.
type word struct {
	not   bool
	key   string // empty: anywhere
	op    string // ":" for text, or a comparison
	text  string // lower case
	value float64
}

// fields is a row as filters see it.
type fields interface {
	all() string                     // everything that is shown, lower case
	text(key string) (string, bool)  // lower case; false: no such field
	num(key string) (float64, bool)  // false: no such number
	keys() (texts, numbers []string) // in the order of help
}

// parseFilter reads a filter over rows like r. It tells what is wrong in a way
// that helps.
func parseFilter(s string, r fields) (filter, error) {
	var f filter
	for typed := range strings.FieldsSeq(strings.ToLower(s)) {
		var t word
		t.text, t.not = strings.CutPrefix(typed, "!")
		at := strings.IndexAny(t.text, ":<>=")
		switch {
		case t.text == "":
			continue
		case at > 0:
			t.split(at)
			done, err := t.check(r)
			if err != nil {
				return nil, err
			}
			if !done {
				continue
			}
		}
		f = append(f, t)
	}
	return f, nil
}

// split takes a word apart at its operator.
func (t *word) split(at int) {
	all := t.text
	t.key, t.op, t.text = all[:at], all[at:at+1], all[at+1:]
	if rest, ok := strings.CutPrefix(t.text, "="); ok && (t.op == ">" || t.op == "<") {
		t.op, t.text = t.op+"=", rest
	}
}

// check reads the value for the operator; it reports false for a word that is
// not finished.
func (t *word) check(r fields) (bool, error) {
	texts, numbers := r.keys()
	if t.op == "=" && !slices.Contains(numbers, t.key) {
		t.op = ":"
	}
	switch {
	case t.op == ":" && !slices.Contains(texts, t.key):
		return false, fmt.Errorf("no field %q: there are %s", t.key, strings.Join(texts, ", "))
	case t.op != ":" && !slices.Contains(numbers, t.key):
		return false, fmt.Errorf("no number %q: there are %s", t.key, strings.Join(numbers, ", "))
	case t.text == "":
		return false, nil
	case t.op == ":":
		return true, nil
	}
	value, err := strconv.ParseFloat(strings.TrimSuffix(t.text, "%"), 64)
	if err == nil && value == value { // not NaN
		t.value = value
		return true, nil
	}
	b, err := task.ParseBytes(t.text)
	if err != nil {
		return false, fmt.Errorf("%s%s%s: write a number, such as 80 or 24G", t.key, t.op, t.text)
	}
	t.value = float64(b)
	return true, nil
}

// match reports whether every word holds for a row.
func (f filter) match(r fields) bool {
	for i := range f {
		if f[i].holds(r) == f[i].not {
			return false
		}
	}
	return true
}

func (t *word) holds(r fields) bool {
	switch t.op {
	case "":
		return strings.Contains(r.all(), t.text)
	case ":":
		s, ok := r.text(t.key)
		return ok && strings.Contains(s, t.text)
	}
	n, ok := r.num(t.key)
	if !ok {
		return false
	}
	switch c := cmp.Compare(n, t.value); t.op {
	case ">":
		return c > 0
	case ">=":
		return c >= 0
	case "<":
		return c < 0
	case "<=":
		return c <= 0
	default:
		return c == 0
	}
}
