package gateway

import (
	"context"
	"errors"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/balanceai/balance/exec/fleet"
)

// A model that is loaded when it is asked for: the first request, of a run on a
// third machine, waits until it is, and is answered by the machine that has it.
func TestWake(t *testing.T) {
	l := newLab(t)
	asks, knows, has := l.add("alpha", "ana"), l.add("beta", "ana"), l.add("gamma", "ana")
	stands := []Engine{{Kind: "on demand", Models: []fleet.Model{{Name: "echo", Engine: "on demand"}}}}
	knows.cfg.Engines = func() []Engine { return stands }
	var loaded atomic.Pointer[Finder]
	has.cfg.Engines = func() []Engine {
		if f := loaded.Load(); f != nil {
			return f.Engines()
		}
		return nil
	}
	var fails error
	woken := 0
	knows.cfg.Wake = func(_ context.Context, model string) error {
		if fails != nil {
			return fails
		}
		woken++
		has.engine.Models = []string{model}
		finder := NewFinder(func() []Place { return []Place{{URL: has.raw.URL, Key: has.engine.Key}} })
		finder.Look(context.Background())
		loaded.Store(finder)
		return nil
	}
	_, url := asks.endpoint("ana", key)

	fails = errors.New("no machine has a GPU")
	resp := post(t, t.Context(), url+"chat/completions", key, chat("echo", "one two"))
	if got := read(t, resp); resp.StatusCode != 503 || !strings.Contains(got, "no machine has a GPU") {
		t.Errorf("%s %s", resp.Status, got)
	}
	fails = nil
	for range 2 {
		resp := post(t, t.Context(), url+"chat/completions", key, chat("echo", "one two"))
		if got := read(t, resp); resp.StatusCode != 200 || !strings.Contains(got, `"content":"one two"`) {
			t.Errorf("%s %s", resp.Status, got)
		}
	}
	if woken != 1 {
		t.Errorf("woken %d times", woken)
	}
	if since, idle := has.Idle("echo"); since.IsZero() || !idle {
		t.Errorf("idle since %v: %v", since, idle)
	}
	if since, idle := asks.Idle("echo"); !since.IsZero() || !idle {
		t.Errorf("a machine without it is idle since %v: %v", since, idle)
	}
}

// Who asks for long keeps the model from being idle.
func TestNotIdle(t *testing.T) {
	l := newLab(t)
	m := l.add("alpha", "ana", "slow")
	_, url := m.endpoint("ana", key)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	body := post(t, ctx, url+"chat/completions", key, chat("slow", "x", streamed)).Body
	defer body.Close()
	if _, err := body.Read(make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	if _, idle := m.Idle("slow"); idle {
		t.Error("idle while it answers")
	}
}
