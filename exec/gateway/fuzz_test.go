package gateway

import (
	"bufio"
	"bytes"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"testing"
)

// What is taken for a request has one model, and its body goes on as JSON.
func FuzzParse(f *testing.F) {
	for _, s := range []string{
		`{"model":"a","messages":[{"role":"system","content":"x"},{"role":"user","content":[{"type":"text","text":"hi"}]}],"stream":true}`,
		`{"model":"a","model":"b"}`, `{"Model":"a"}`, `{"model":"a","stream_options":null,"stream":true}`, `{"model":"a","prompt":["x"]}`, ` {"model":"a"} `, `[]`, `{"model":"a"`, `{}`,
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		a, err := parse("chat/completions", body)
		if err != nil {
			return
		}
		var got struct {
			Model  string `json:"model"`
			Stream bool   `json:"stream"`
		}
		sent, extra := a.counted()
		if json.Unmarshal(sent, &got) != nil || got.Model != a.model || got.Stream != a.stream {
			t.Fatalf("%q is read as %q %v, and sent as %q", body, a.model, a.stream, sent)
		}
		if !extra && !bytes.Equal(sent, body) {
			t.Fatalf("%q is sent as %q", body, sent)
		}
	})
}

// Whatever an engine streams comes through as it is, as long as nothing is to be
// left out.
func FuzzEvents(f *testing.F) {
	for _, s := range []string{
		"data: {\"choices\":[],\"usage\":{\"prompt_tokens\":1}}\n\ndata: [DONE]\n\n", "data: x\r\n\r\n", ": comment\n\n", "event: response.completed\ndata: {\"response\":{\"usage\":{\"input_tokens\":4}}}\n\n", "data: cut", "\n\n\n", "data: [DONE]",
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, from []byte) {
		w := httptest.NewRecorder()
		s := &stream{w: w, out: http.NewResponseController(w), from: &http.Response{StatusCode: 200}, header: func() {}, event: true}
		err := s.events(bufio.NewReader(bytes.NewReader(from)))
		got := bytes.TrimSuffix(w.Body.Bytes(), []byte("\n\n"))
		if !bytes.HasPrefix(from, got) && !bytes.HasPrefix(from, bytes.TrimRight(got, "\n")) {
			t.Fatalf("%q came through as %q", from, w.Body.Bytes())
		}
		if err == nil && !bytes.HasPrefix(w.Body.Bytes(), from) {
			t.Fatalf("%q came through as %q", from, w.Body.Bytes())
		}
	})
}
