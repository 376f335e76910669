package main

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"testing"
)

// The model of the test looks for the bell, reads a file outside of the folder, as
// far as it can, and then answers with what it was told.
func TestResearch(t *testing.T) {
	steps := []string{
		`"tool_calls":[{"id":"1","type":"function","function":{"name":"list","arguments":"{}"}},{"id":"2","type":"function","function":{"name":"search","arguments":"{\"text\":\"BELL\"}"}}]`,
		`"tool_calls":[{"id":"3","type":"function","function":{"name":"read","arguments":"{\"file\":\"../agent.yaml\"}"}},{"id":"4","type":"function","function":{"name":"read","arguments":"{\"file\":\"harbour.txt\"}"}}]`,
		`"content":" In 1956 (museum.txt). "`,
	}
	var last []message
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var q struct {
			Messages []message `json:"messages"`
		}
		if err := json.NewDecoder(r.Body).Decode(&q); err != nil || r.Header.Get("Authorization") != "Bearer k" || len(steps) == 0 {
			http.Error(w, "odd", http.StatusBadRequest)
			return
		}
		last = q.Messages
		fmt.Fprintf(w, `{"choices":[{"message":{"role":"assistant",%s}}]}`, steps[0])
		steps = steps[1:]
	}))
	defer srv.Close()
	t.Setenv("OPENAI_BASE_URL", srv.URL)
	t.Setenv("OPENAI_API_KEY", "k")
	root, err := os.OpenRoot("sample")
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	answer, err := research(root.FS(), "When was the bell brought to the museum?")
	if err != nil || answer != "In 1956 (museum.txt)." {
		t.Errorf("%q, %v", answer, err)
	}
	var results []string
	for _, m := range last {
		if m.Role == "tool" {
			results = append(results, m.Answers+" "+m.Content)
		}
	}
	for i, want := range []string{"1 harbour.txt: ", "2 museum.txt:1: The bell", "3 error: ", "4 The harbour"} {
		if i >= len(results) || !strings.HasPrefix(results[i], want) {
			t.Errorf("result %d: %q, want %q", i, results, want)
		}
	}
	if _, err := research(root.FS(), "And then?"); err == nil {
		t.Error("a model that fails gives an answer")
	}
}
