package main

import (
	"encoding/json"
	"strings"
	"testing"
)

func TestCardHasItsAddressInTheMesh(t *testing.T) {
	const base = "http://gpu-1.lab.internal:8000"
	got, err := addressed([]byte(`{"name":"x","url":"http://localhost:3/a2a?x=1","provider":{"url":"https://example.org"},"additionalInterfaces":[{"url":"http://127.0.0.1:3/"},{"url":"http://0.0.0.0:3"},{"url":"https://example.org/a"}]}`), base)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{`"url":"` + base + `/a2a?x=1"`, `[{"url":"` + base + `/"},{"url":"` + base + `/"},{"url":"https://example.org/a"}]`, `{"url":"https://example.org"}`} {
		if !strings.Contains(string(got), want) {
			t.Errorf("%s has no %s", got, want)
		}
	}
	if _, err := addressed([]byte(`[]`), base); err == nil {
		t.Error("a card that is none passes")
	}
}

func FuzzCard(f *testing.F) {
	f.Add([]byte(`{"url":"http://[::1]:80/x","supportedInterfaces":[{"url":"http://127.0.0.2"},1]}`))
	f.Add([]byte(`{"url":"http://%"}`))
	f.Fuzz(func(t *testing.T, card []byte) {
		got, err := addressed(card, "http://a")
		if err == nil && !json.Valid(got) {
			t.Errorf("%s became %s", card, got)
		}
	})
}
