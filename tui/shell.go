package tui

import (
	"errors"
	"strings"
)

// The command of a draft is typed as in a shell, and shown so that it can be
// pasted into one. Only words and quotes are known: nothing is expanded.

var errQuote = errors.New("a quote is not closed")

// splitWords splits a line into words at spaces, as a POSIX shell does: single
// quotes keep everything, double quotes all but \" \\ \$ \`, and a backslash
// keeps the next character.
func splitWords(s string) ([]string, error) {
	var words []string
	var word strings.Builder
	open, quote := false, rune(0) // in a word; in which quotes
	runes := []rune(s)
	for i := 0; i < len(runes); i++ {
		r := runes[i]
		switch {
		case quote == 0 && (r == ' ' || r == '\t' || r == '\n'):
			if open {
				words = append(words, word.String())
				word.Reset()
				open = false
			}
			continue
		case quote == 0 && (r == '\'' || r == '"'):
			quote, open = r, true
			continue
		case r == quote:
			quote = 0
			continue
		case r == '\\' && quote != '\'' && i+1 < len(runes) && (quote == 0 || strings.ContainsRune("\"\\$`", runes[i+1])):
			i++
			r = runes[i]
		}
		open = true
		word.WriteRune(r)
	}
	if quote != 0 {
		return nil, errQuote
	}
	if open {
		words = append(words, word.String())
	}
	return words, nil
}

// quote writes a word so that a POSIX shell reads it back.
func quote(s string) string {
	const safe = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_=+.,:/@%^"
	if s != "" && strings.Trim(s, safe) == "" {
		return s
	}
	return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'"
}
