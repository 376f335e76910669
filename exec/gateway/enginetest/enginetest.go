// Package enginetest is a small model server for tests. It speaks the API of
// OpenAI, answers from a script, and misbehaves on order: the model's name says
// what it does.
//
//	echo         answers with the last message, a word at a time
//	tools        answers with a call of the first tool
//	slow         says a word each 50 ms, for as long as somebody listens
//	tokens       says a word as often as it is set to, or as fast as they are read
//	flood        says 64 KiB a word, as fast as they are read
//	dies         is cut off after the third word
//	refuses      answers 500
//	drops        closes the connection before it has answered
package enginetest

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// Models are what an engine has, unless it is told otherwise.
var Models = []string{"echo", "tools", "slow", "flood", "dies", "refuses", "drops"}

// Engine is a server. Its fields are set before it serves.
type Engine struct {
	Models []string
	Key    string        // it wants; empty for none
	Words  int           // of slow and flood; 0 for any number
	Pace   time.Duration // between two words of tokens
	Owner  string        // of its models, as it says; empty for its own name
	Loads  time.Duration // before which it is not well

	Now   atomic.Int64 // requests that it is answering
	Total atomic.Int64 // requests that it has seen
	Sent  atomic.Int64 // bytes of flood

	began sync.Once
	start time.Time

	mu   sync.Mutex
	last http.Header
	body []byte
}

// Last returns the headers and the body of the newest request.
func (e *Engine) Last() (http.Header, []byte) {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.last, e.body
}

type request struct {
	Model    string `json:"model"`
	Stream   bool   `json:"stream"`
	Messages []struct {
		Content any `json:"content"`
	} `json:"messages"`
	Prompt  string `json:"prompt"`
	Input   any    `json:"input"`
	Options struct {
		Usage bool `json:"include_usage"`
	} `json:"stream_options"`
	Tools []struct {
		Function struct {
			Name string `json:"name"`
		} `json:"function"`
	} `json:"tools"`
}

// ServeHTTP answers.
func (e *Engine) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if e.Key != "" && r.Header.Get("Authorization") != "Bearer "+e.Key {
		http.Error(w, `{"error":{"message":"wrong key"}}`, http.StatusUnauthorized)
		return
	}
	if e.began.Do(func() { e.start = time.Now() }); r.URL.Path == "/health" {
		if time.Since(e.start) < e.Loads {
			http.Error(w, `{"error":{"message":"loading model"}}`, http.StatusServiceUnavailable)
			return
		}
		reply(w, map[string]string{"status": "ok"})
		return
	}
	if r.URL.Path == "/v1/models" {
		list := []map[string]any{}
		for _, m := range e.Models {
			list = append(list, map[string]any{"id": m, "object": "model", "owned_by": cmp.Or(e.Owner, "enginetest"), "max_model_len": 4096})
		}
		reply(w, map[string]any{"object": "list", "data": list})
		return
	}
	if !strings.HasPrefix(r.URL.Path, "/v1/") {
		http.NotFound(w, r)
		return
	}
	body, _ := io.ReadAll(r.Body) // what does not parse is answered with 400
	e.mu.Lock()
	e.last, e.body = r.Header.Clone(), body
	e.mu.Unlock()
	var q request
	if err := json.Unmarshal(body, &q); err != nil {
		http.Error(w, fmt.Sprintf(`{"error":{"message":%q,"type":"invalid_request_error"}}`, err), http.StatusBadRequest)
		return
	}
	e.Total.Add(1)
	e.Now.Add(1)
	defer e.Now.Add(-1)
	e.answer(w, r.Context(), strings.TrimPrefix(r.URL.Path, "/v1/"), &q)
}

func (e *Engine) answer(w http.ResponseWriter, ctx context.Context, path string, q *request) {
	switch {
	case strings.HasPrefix(q.Model, "refuses"):
		http.Error(w, `{"error":{"message":"out of memory","type":"server_error","code":500}}`, http.StatusInternalServerError)
	case strings.HasPrefix(q.Model, "drops"):
		panic(http.ErrAbortHandler)
	case path == "embeddings":
		reply(w, map[string]any{"object": "list", "model": q.Model, "data": []any{map[string]any{"object": "embedding", "index": 0, "embedding": []float64{0.5, -0.25}}}, "usage": map[string]int{"prompt_tokens": 3, "total_tokens": 3}})
	case path == "responses":
		reply(w, map[string]any{"id": "resp-1", "object": "response", "model": q.Model, "status": "completed", "output": []any{map[string]any{"type": "message", "role": "assistant", "content": []any{map[string]any{"type": "output_text", "text": text(q.Input), "annotations": []any{}}}}}, "usage": map[string]int{"input_tokens": 2, "output_tokens": 4}})
	case q.Stream:
		e.stream(w, ctx, path, q)
	default:
		e.whole(w, path, q)
	}
}

// said is what the engine has been told last.
func (q *request) said() string {
	if len(q.Messages) == 0 {
		return q.Prompt
	}
	return text(q.Messages[len(q.Messages)-1].Content)
}

func text(content any) string {
	if s, ok := content.(string); ok {
		return s
	}
	b, _ := json.Marshal(content) // it was JSON before
	return string(b)
}

func (q *request) call() []any {
	return []any{map[string]any{"index": 0, "id": "call-1", "type": "function", "function": map[string]string{"name": q.Tools[0].Function.Name, "arguments": `{"city":"Oslo"}`}}}
}

func (e *Engine) whole(w http.ResponseWriter, path string, q *request) {
	choice := map[string]any{"index": 0, "finish_reason": "stop"}
	switch {
	case path == "completions":
		choice["text"] = q.said()
	case q.Model == "tools" && len(q.Tools) > 0:
		choice["message"], choice["finish_reason"] = map[string]any{"role": "assistant", "content": nil, "tool_calls": q.call()}, "tool_calls"
	default:
		choice["message"] = map[string]any{"role": "assistant", "content": q.said()}
	}
	words := len(strings.Fields(q.said()))
	reply(w, map[string]any{"id": "c-1", "object": "chat.completion", "created": 1, "model": q.Model, "choices": []any{choice}, "usage": usage(words)})
}

func usage(words int) map[string]int {
	return map[string]int{"prompt_tokens": 2 * words, "completion_tokens": words, "total_tokens": 3 * words}
}

// words are what is said in a stream: the number, and each of them.
func (e *Engine) words(q *request) (int, func(int) string) {
	many := e.Words
	if many == 0 {
		many = 1 << 30
	}
	switch {
	case strings.HasPrefix(q.Model, "slow"), strings.HasPrefix(q.Model, "tokens"):
		return many, func(i int) string { return fmt.Sprintf("word%d ", i) }
	case strings.HasPrefix(q.Model, "flood"):
		return many, func(int) string { return strings.Repeat("x", 64<<10) }
	}
	list := strings.SplitAfter(q.said(), " ")
	return len(list), func(i int) string { return list[i] }
}

func (e *Engine) stream(w http.ResponseWriter, ctx context.Context, path string, q *request) {
	w.Header().Set("Content-Type", "text/event-stream")
	out := http.NewResponseController(w)
	send := func(v any) bool {
		b, err := json.Marshal(v)
		if err != nil {
			return false
		}
		_, err = fmt.Fprintf(w, "data: %s\n\n", b)
		return err == nil && out.Flush() == nil && ctx.Err() == nil
	}
	chunk := func(choices ...any) map[string]any {
		return map[string]any{"id": "c-1", "object": "chat.completion.chunk", "created": 1, "model": q.Model, "choices": append([]any{}, choices...)}
	}
	n, word := e.words(q)
	for i := range n {
		if strings.HasPrefix(q.Model, "dies") && i == 3 {
			panic(http.ErrAbortHandler)
		}
		delta := map[string]any{"role": "assistant", "content": word(i)}
		if q.Model == "tools" && len(q.Tools) > 0 {
			delta = map[string]any{"role": "assistant", "tool_calls": q.call()}
		}
		choice := map[string]any{"index": 0, "delta": delta, "finish_reason": nil}
		if path == "completions" {
			choice = map[string]any{"index": 0, "text": word(i), "finish_reason": nil}
		}
		if !send(chunk(choice)) {
			return
		}
		e.Sent.Add(int64(len(word(i))))
		if !e.rest(ctx, q) {
			return
		}
		if q.Model == "tools" {
			break
		}
	}
	finish := "stop"
	if q.Model == "tools" && len(q.Tools) > 0 {
		finish = "tool_calls"
	}
	send(chunk(map[string]any{"index": 0, "delta": map[string]any{}, "text": "", "finish_reason": finish}))
	if q.Options.Usage {
		last := chunk()
		last["usage"] = usage(n)
		send(last)
	}
	fmt.Fprint(w, "data: [DONE]\n\n")
}

// rest waits between two words, and reports whether somebody still listens.
func (e *Engine) rest(ctx context.Context, q *request) bool {
	pause := time.Duration(0)
	switch {
	case strings.HasPrefix(q.Model, "slow"):
		pause = 50 * time.Millisecond
	case strings.HasPrefix(q.Model, "tokens"):
		pause = e.Pace
	}
	if pause == 0 {
		return true
	}
	select {
	case <-ctx.Done():
		return false
	case <-time.After(pause):
		return true
	}
}

func reply(w http.ResponseWriter, v any) {
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(v) // who asked has gone
}
