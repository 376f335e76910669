package gateway

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"hash/fnv"
	"io"
	"strings"
)

// maxBody bounds a request: pictures travel in it.
const maxBody = 32 << 20

// ask is what the gateway reads of a request. The rest is the engine's.
type ask struct {
	path   string // below /v1/
	model  string
	stream bool
	usage  bool // the stream is to tell how many tokens it took
	body   []byte

	conversation uint64 // the same for each request of one conversation
}

// paths are what engines are asked for.
var paths = []string{"chat/completions", "completions", "embeddings", "responses"}

// parse reads what matters of a request's body: exact names of fields, which
// other decoders might read otherwise, and each of them once.
func parse(path string, body []byte) (*ask, error) {
	a := &ask{path: path, body: body}
	dec := json.NewDecoder(bytes.NewReader(body))
	if t, err := dec.Token(); err != nil || t != json.Delim('{') {
		return nil, errors.New("the body is not a JSON object")
	}
	sum := fnv.New64a()
	seen := map[string]bool{}
	for dec.More() {
		key, err := field(dec)
		if err != nil {
			return nil, err
		}
		var raw json.RawMessage
		if err := dec.Decode(&raw); err != nil {
			return nil, fmt.Errorf("the body is not valid JSON: %w", err)
		}
		if err := a.take(key, raw, seen, sum); err != nil {
			return nil, err
		}
	}
	if _, err := dec.Token(); err != nil {
		return nil, errors.New("the body ends early")
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return nil, errors.New("the body goes on after its JSON object")
	}
	if a.model == "" {
		return nil, errors.New("you must provide a model parameter")
	}
	_, _ = sum.Write([]byte(a.model)) // never fails
	a.conversation = sum.Sum64()
	return a, nil
}

func field(dec *json.Decoder) (string, error) {
	t, err := dec.Token()
	if err != nil {
		return "", fmt.Errorf("the body is not valid JSON: %w", err)
	}
	key, _ := t.(string) // of an object: it is one
	return key, nil
}

// take reads one field.
func (a *ask) take(key string, raw json.RawMessage, seen map[string]bool, sum hash.Hash) error {
	switch key {
	case "model", "stream", "stream_options":
		if seen[key] {
			return fmt.Errorf("%q is there twice", key)
		}
		seen[key] = true
	default:
		for _, known := range []string{"model", "stream"} {
			if strings.EqualFold(key, known) {
				return fmt.Errorf("unknown field %q: write %s", key, known)
			}
		}
	}
	var err error
	switch key {
	case "model":
		err = json.Unmarshal(raw, &a.model)
	case "stream":
		if string(raw) != "null" {
			err = json.Unmarshal(raw, &a.stream)
		}
	case "stream_options":
		a.usage = true // it says itself what it wants
	case "messages", "input", "prompt":
		_, _ = sum.Write(beginning(raw))
	}
	if err != nil {
		return fmt.Errorf("%s: %w", key, err)
	}
	return nil
}

// opening is how much of a prompt tells one conversation from others.
const opening = 2 << 10

// beginning is the part of a conversation that does not change as it goes on:
// the messages up to the first one of its user, or the first bytes of a text.
func beginning(raw json.RawMessage) []byte {
	var list []json.RawMessage
	if raw[0] != '[' || json.Unmarshal(raw, &list) != nil {
		return raw[:min(len(raw), opening)]
	}
	var out []byte
	for _, m := range list {
		out = append(out, m...)
		var who struct {
			Role string `json:"role"`
		}
		if json.Unmarshal(m, &who) != nil || who.Role == "user" || len(out) > opening {
			break
		}
	}
	return out
}

// counted returns the body as it is sent to an engine, and whether the stream
// then has an event more, with the number of tokens, that its reader has not
// asked for.
func (a *ask) counted() (body []byte, extra bool) {
	if !a.stream || a.usage || a.path != "chat/completions" && a.path != "completions" {
		return a.body, false
	}
	_, rest, _ := bytes.Cut(a.body, []byte("{"))
	return append([]byte(`{"stream_options":{"include_usage":true},`), rest...), true
}
