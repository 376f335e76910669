package gateway

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
)

// Errors that end an attempt.
var (
	errLost   = errors.New("the machine has gone")
	errSilent = errors.New("nothing has come for too long")
)

// fault is an error as the API of OpenAI has it.
type fault struct {
	Status  int    `json:"-"`
	Message string `json:"message"`
	Type    string `json:"type"`
	Param   any    `json:"param"`
	Code    string `json:"code"`
}

func faultf(status int, kind, code, format string, args ...any) *fault {
	return &fault{Status: status, Type: kind, Code: code, Message: fmt.Sprintf(format, args...)}
}

func (f *fault) encode() []byte {
	b, err := json.Marshal(map[string]*fault{"error": f})
	if err != nil {
		return []byte(`{"error":{"message":"internal error","type":"server_error"}}`)
	}
	return b
}

func (f *fault) write(w http.ResponseWriter) {
	w.Header().Set("Content-Type", "application/json")
	if f.Status == http.StatusTooManyRequests || f.Status == http.StatusServiceUnavailable {
		w.Header().Set("Retry-After", "1")
	}
	w.WriteHeader(f.Status)
	_, _ = w.Write(f.encode()) // who asked has gone
}

// unknownModel answers for a model that nobody serves, with names near to it.
func unknownModel(model string, known []string, refused string) *fault {
	text := fmt.Sprintf("The model `%s` does not exist: no machine that is up serves it.", model)
	if refused != "" {
		return faultf(http.StatusForbidden, "invalid_request_error", "model_not_granted", "You may not use the model `%s`: %s.", model, refused)
	}
	switch close := near(model, known); {
	case len(close) > 0:
		text += " Did you mean " + strings.Join(close, " or ") + "?"
	case len(known) > 0:
		text += " There are " + strings.Join(known[:min(len(known), 8)], ", ") + "."
	default:
		text += " No model is served in this mesh yet."
	}
	return faultf(http.StatusNotFound, "invalid_request_error", "model_not_found", "%s", text)
}

// near returns the names that may have been meant, the nearest first.
func near(word string, known []string) []string {
	type rated struct {
		name string
		far  int
	}
	var list []rated
	base, _, _ := strings.Cut(strings.ToLower(word), ":")
	for _, name := range known {
		lower := strings.ToLower(name)
		far := distance(strings.ToLower(word), lower)
		if base != "" && (strings.Contains(lower, base) || strings.Contains(base, lower)) {
			far = min(far, 1)
		}
		if far <= max(2, len(word)/3) {
			list = append(list, rated{name, far})
		}
	}
	slices.SortStableFunc(list, func(a, b rated) int { return cmp.Compare(a.far, b.far) })
	var out []string
	for _, r := range list[:min(len(list), 3)] {
		out = append(out, r.name)
	}
	return out
}

// distance is how many letters have to be put in, taken out or changed
// (Levenshtein).
func distance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		last := row[0]
		row[0] = i + 1
		for j := range len(b) {
			change := last
			if a[i] != b[j] {
				change++
			}
			last = row[j+1]
			row[j+1] = min(change, row[j]+1, row[j+1]+1)
		}
	}
	return row[len(b)]
}
