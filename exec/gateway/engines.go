package gateway

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/balanceai/balance/exec/fleet"
	"github.com/balanceai/balance/exec/task"
)

// Engine is a model server that runs on this machine, or that its owner has
// named, with the models that it has.
type Engine struct {
	Kind   string // ollama, llama-server, vllm, lm-studio, or openai for any other
	URL    string // base of the API, with /v1; empty where the models are loaded on some member when they are asked for
	Key    string // that the engine wants; never told to anybody else
	Models []fleet.Model
	Loaded []string // names of models in memory
}

// local returns the engine of this machine that has a model: one that has it in
// memory before others.
func (g *Gateway) local(model string) (e Engine, loaded, ok bool) {
	for _, o := range g.cfg.Engines() {
		if !slices.ContainsFunc(o.Models, func(m fleet.Model) bool { return m.Name == model }) {
			continue
		}
		if slices.Contains(o.Loaded, model) {
			return o, true, true
		}
		if !ok {
			e, ok = o, true
		}
	}
	return e, false, ok
}

// Place is where an engine may be.
type Place struct {
	URL string // base, with or without /v1
	Key string
}

// Usual are the places on loopback where people's engines listen: Ollama,
// llama-server, vLLM, LM Studio.
var Usual = []Place{{URL: "http://127.0.0.1:11434"}, {URL: "http://127.0.0.1:8080"}, {URL: "http://127.0.0.1:8000"}, {URL: "http://127.0.0.1:1234"}}

// Bounds on asking what may be an engine.
const (
	findPeriod = 5 * time.Second
	findTime   = 3 * time.Second
	findBytes  = 4 << 20
)

// Finder looks for engines now and then, with requests that load nothing.
type Finder struct {
	client *http.Client
	places func() []Place
	kick   chan struct{} // of one: there may be another one

	mu    sync.Mutex
	found []Engine
	shown map[string]int        // context size of Ollama's models, by digest
	vram  map[string]task.Bytes // of models when they were last in memory, by place and name
}

// NewFinder returns a finder for the places that are named at the time.
func NewFinder(places func() []Place) *Finder {
	return &Finder{
		places: places, kick: make(chan struct{}, 1), shown: map[string]int{}, vram: map[string]task.Bytes{},
		client: &http.Client{
			Timeout: findTime, CheckRedirect: noRedirect,
			Transport: &http.Transport{MaxIdleConnsPerHost: 1, IdleConnTimeout: 2 * findPeriod},
		},
	}
}

// Engines returns what was found last.
func (f *Finder) Engines() []Engine {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.found
}

// Run looks until ctx ends, and calls changed when something has.
func (f *Finder) Run(ctx context.Context, changed func()) {
	defer f.client.CloseIdleConnections()
	tick := time.NewTicker(findPeriod)
	defer tick.Stop()
	for {
		if f.Look(ctx) {
			changed()
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		case <-f.kick:
		}
	}
}

// Kick has Run look at once.
func (f *Finder) Kick() {
	select {
	case f.kick <- struct{}{}:
	default: // it is about to
	}
}

// Look asks every place once, and reports whether something has changed.
func (f *Finder) Look(ctx context.Context) bool {
	places := f.places()
	found := make([]*Engine, len(places))
	var wg sync.WaitGroup
	for i, p := range places {
		wg.Go(func() {
			if e, err := f.ask(ctx, p); err == nil {
				found[i] = e
			}
		})
	}
	wg.Wait()
	var list []Engine
	for _, e := range found {
		if e != nil && !slices.ContainsFunc(list, func(o Engine) bool { return o.URL == e.URL }) {
			list = append(list, *e)
		}
	}
	if ctx.Err() != nil {
		return false
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	same := slices.EqualFunc(f.found, list, func(a, b Engine) bool {
		return a.Kind == b.Kind && a.URL == b.URL && a.Key == b.Key && slices.Equal(a.Models, b.Models) && slices.Equal(a.Loaded, b.Loaded)
	})
	f.found = list
	return !same
}

// ask finds out what is at a place.
func (f *Finder) ask(ctx context.Context, p Place) (*Engine, error) {
	base := strings.TrimSuffix(strings.TrimSuffix(p.URL, "/"), "/v1")
	var list modelList
	if err := f.get(ctx, base+"/v1/models", p.Key, &list); err != nil {
		return nil, err
	}
	if list.Object != "list" {
		return nil, errors.New("no list of models")
	}
	e := &Engine{Kind: "openai", URL: base + "/v1", Key: p.Key}
	for _, m := range list.Data {
		e.add(m.ID, fleet.Model{Context: cmp.Or(m.MaxModelLen, m.Meta.Context, m.Meta.Trained)})
	}
	switch {
	case f.ollama(ctx, base, e), f.studio(ctx, base, e):
	case slices.ContainsFunc(list.Data, func(m listedModel) bool { return m.OwnedBy == "vllm" }):
		e.Kind, e.Loaded = "vllm", e.names()
	case slices.ContainsFunc(list.Data, func(m listedModel) bool { return m.OwnedBy == "llamacpp" }):
		f.llama(ctx, base, e)
	default:
		e.Loaded = e.names() // it does not tell: it answers
	}
	for i := range e.Models {
		e.Models[i].Engine = e.Kind
	}
	slices.SortFunc(e.Models, func(a, b fleet.Model) int { return strings.Compare(a.Name, b.Name) })
	slices.Sort(e.Loaded)
	return e, nil
}

// modelList is the answer of /v1/models, with what engines add to it.
type modelList struct {
	Object string        `json:"object"`
	Data   []listedModel `json:"data"`
}

type listedModel struct {
	ID          string `json:"id"`
	OwnedBy     string `json:"owned_by"`
	MaxModelLen int    `json:"max_model_len"` // of vLLM
	Meta        struct {
		Context int `json:"n_ctx"`
		Trained int `json:"n_ctx_train"`
	} `json:"meta"` // of llama-server
}

func (e *Engine) add(name string, m fleet.Model) {
	if m.Name = name; fleet.ValidModel(name) && len(e.Models) < fleet.MaxModels {
		m.Context = max(0, m.Context)
		e.Models = append(e.Models, m)
	}
}

func (e *Engine) names() (out []string) {
	for _, m := range e.Models {
		out = append(out, m.Name)
	}
	return out
}

func (e *Engine) model(name string) *fleet.Model {
	for i := range e.Models {
		if e.Models[i].Name == name {
			return &e.Models[i]
		}
	}
	return &fleet.Model{} // that nobody reads
}

// ollama asks what only Ollama tells, and reports whether it is one.
func (f *Finder) ollama(ctx context.Context, base string, e *Engine) bool {
	var version struct {
		Version string `json:"version"`
	}
	var tags, running struct {
		Models []struct {
			Name    string     `json:"name"`
			Digest  string     `json:"digest"`
			VRAM    task.Bytes `json:"size_vram"`
			Context int        `json:"context_length"`
		} `json:"models"`
	}
	if f.get(ctx, base+"/api/version", e.Key, &version) != nil || version.Version == "" || f.get(ctx, base+"/api/tags", e.Key, &tags) != nil {
		return false
	}
	e.Kind = "ollama"
	for _, m := range tags.Models {
		e.model(m.Name).Context = f.trained(ctx, base, m.Name, m.Digest)
		e.model(m.Name).VRAM = f.remembered(base+m.Name, 0)
	}
	if f.get(ctx, base+"/api/ps", e.Key, &running) != nil {
		return true
	}
	for _, m := range running.Models {
		e.Loaded = append(e.Loaded, m.Name)
		e.model(m.Name).VRAM = f.remembered(base+m.Name, m.VRAM)
	}
	return true
}

// remembered is the memory that a model took when that was last known: to say
// that it takes none while it is not loaded would tell others news each time.
func (f *Finder) remembered(key string, now task.Bytes) task.Bytes {
	f.mu.Lock()
	defer f.mu.Unlock()
	if now > 0 {
		f.vram[key] = now
	}
	return f.vram[key]
}

// trained asks Ollama for the context size of a model, once.
func (f *Finder) trained(ctx context.Context, base, name, digest string) int {
	f.mu.Lock()
	size, known := f.shown[digest]
	f.mu.Unlock()
	if known {
		return size
	}
	var shown struct {
		Info map[string]any `json:"model_info"`
	}
	body, err := json.Marshal(map[string]string{"model": name})
	if err != nil || f.call(ctx, http.MethodPost, base+"/api/show", "", body, &shown) != nil {
		return 0
	}
	for k, v := range shown.Info {
		if n, ok := v.(float64); ok && strings.HasSuffix(k, ".context_length") && n > 0 && n < 1<<40 {
			size = int(n)
		}
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.shown[digest] = size
	return size
}

// studio asks what only LM Studio tells, and reports whether it is one.
func (f *Finder) studio(ctx context.Context, base string, e *Engine) bool {
	var list struct {
		Data []struct {
			ID     string `json:"id"`
			State  string `json:"state"`
			Max    int    `json:"max_context_length"`
			Loaded int    `json:"loaded_context_length"`
		} `json:"data"`
	}
	if f.get(ctx, base+"/api/v0/models", e.Key, &list) != nil || len(list.Data) == 0 || list.Data[0].State == "" {
		return false
	}
	e.Kind = "lm-studio"
	for _, m := range list.Data {
		e.model(m.ID).Context = max(0, cmp.Or(m.Loaded, m.Max))
		if m.State == "loaded" {
			e.Loaded = append(e.Loaded, m.ID)
		}
	}
	return true
}

// llama asks llama-server for the context that it was started with.
func (f *Finder) llama(ctx context.Context, base string, e *Engine) {
	e.Kind, e.Loaded = "llama-server", e.names()
	var props struct {
		Settings struct {
			Context int `json:"n_ctx"`
		} `json:"default_generation_settings"`
	}
	if f.get(ctx, base+"/props", e.Key, &props) == nil && props.Settings.Context > 0 && len(e.Models) == 1 {
		e.Models[0].Context = props.Settings.Context
	}
}

func (f *Finder) get(ctx context.Context, url, key string, v any) error {
	return f.call(ctx, http.MethodGet, url, key, nil, v)
}

func (f *Finder) call(ctx context.Context, method, url, key string, body []byte, v any) error {
	req, err := http.NewRequestWithContext(ctx, method, url, bytes.NewReader(body))
	if err != nil {
		return err
	}
	if key != "" {
		req.Header.Set("Authorization", "Bearer "+key)
	}
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	resp, err := f.client.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("%s", resp.Status)
	}
	return json.NewDecoder(io.LimitReader(resp.Body, findBytes)).Decode(v)
}
