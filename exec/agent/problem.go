package agent

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
)

// Problem is one mistake in a file.
type Problem struct {
	Line   int    `json:"line"`   // from 1
	Column int    `json:"column"` // from 1, in characters
	Text   string `json:"text"`   // what is wrong
	Hint   string `json:"hint,omitempty"`
}

// Errors are the mistakes in a file, all of them or the first hundred that were
// found, in the order of its lines.
type Errors struct {
	File     string    `json:"file"`
	Problems []Problem `json:"problems"`
}

// Error writes a line for each mistake: file:line:column: text: hint.
func (e *Errors) Error() string {
	lines := make([]string, len(e.Problems))
	for i, p := range e.Problems {
		lines[i] = fmt.Sprintf("%s:%d:%d: %s", e.File, p.Line, p.Column, p.Text)
		if p.Hint != "" {
			lines[i] += ": " + p.Hint
		}
	}
	return strings.Join(lines, "\n")
}

// maxProblems bounds what is told of one file: nobody reads on.
const maxProblems = 100

// problems collects mistakes.
type problems []Problem

func (p *problems) add(line, column int, hint, format string, args ...any) {
	if len(*p) == maxProblems {
		return
	}
	*p = append(*p, Problem{max(line, 1), max(column, 1), fmt.Sprintf(format, args...), hint})
}

// err returns what was collected, or nil.
func (p problems) err(file string) error {
	if len(p) == 0 {
		return nil
	}
	slices.SortStableFunc(p, func(a, b Problem) int {
		return cmp.Or(cmp.Compare(a.Line, b.Line), cmp.Compare(a.Column, b.Column))
	})
	return &Errors{File: file, Problems: p}
}

// didYouMean suggests the word that is nearest to one that is not known, or
// that begins with it; nothing where none is near.
func didYouMean(word string, known []string) string {
	best, least := "", max(2, len(word)/3)+1
	for _, k := range slices.Sorted(slices.Values(known)) {
		d := distance(strings.ToLower(word), k)
		if len(word) > 2 && strings.HasPrefix(k, word) {
			d = 1
		}
		if d < least {
			best, least = k, d
		}
	}
	if best == "" {
		return ""
	}
	return "did you mean " + best + "?"
}

// maxWord bounds the words that distance compares.
const maxWord = 32

// distance counts the letters to insert, delete, replace or swap with the next
// to get from a to b (optimal string alignment).
func distance(a, b string) int {
	if len(a) > maxWord || len(b) > maxWord {
		return len(a) + len(b)
	}
	var d [maxWord + 1][maxWord + 1]int
	for i := range len(a) + 1 {
		for j := range len(b) + 1 {
			if i == 0 || j == 0 {
				d[i][j] = i + j
				continue
			}
			cost := 1
			if a[i-1] == b[j-1] {
				cost = 0
			}
			d[i][j] = min(d[i-1][j]+1, d[i][j-1]+1, d[i-1][j-1]+cost)
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				d[i][j] = min(d[i][j], d[i-2][j-2]+1)
			}
		}
	}
	return d[len(a)][len(b)]
}
