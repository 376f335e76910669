package gateway

import (
	"net/http"
	"net/http/httptest"
	"reflect"
	"testing"

	"github.com/balanceai/balance/exec/fleet"
)

// TestFinder asks engines as they answer in their documentation and sources.
func TestFinder(t *testing.T) {
	for name, c := range map[string]struct {
		answers map[string]string
		want    Engine
	}{
		"ollama": {map[string]string{
			"/v1/models":   `{"object":"list","data":[{"id":"llama3.2:3b","object":"model","created":1,"owned_by":"library"},{"id":"qwen3:8b","object":"model","created":1,"owned_by":"library"}]}`,
			"/api/version": `{"version":"0.12.3"}`,
			"/api/tags":    `{"models":[{"name":"llama3.2:3b","model":"llama3.2:3b","size":2019393189,"digest":"a80c"},{"name":"qwen3:8b","size":5225388164,"digest":"500a"}]}`,
			"/api/show":    `{"details":{"family":"llama"},"model_info":{"general.architecture":"llama","llama.context_length":131072,"llama.embedding_length":3072}}`,
			"/api/ps":      `{"models":[{"name":"qwen3:8b","model":"qwen3:8b","size":6654289920,"digest":"500a","expires_at":"2026-01-01T00:00:00Z","size_vram":6654289920,"context_length":4096}]}`,
		}, Engine{Kind: "ollama", Models: []fleet.Model{{Name: "llama3.2:3b", Engine: "ollama", Context: 131072}, {Name: "qwen3:8b", Engine: "ollama", Context: 131072, VRAM: 6654289920}}, Loaded: []string{"qwen3:8b"}}},
		"llama-server": {map[string]string{
			"/v1/models": `{"models":[{"name":"tiny.gguf"}],"object":"list","data":[{"id":"tiny.gguf","object":"model","created":1,"owned_by":"llamacpp","meta":{"vocab_type":2,"n_vocab":128256,"n_ctx_train":131072,"n_embd":4096}}]}`,
			"/props":     `{"default_generation_settings":{"id":0,"n_ctx":8192},"total_slots":4,"model_path":"tiny.gguf"}`,
		}, Engine{Kind: "llama-server", Models: []fleet.Model{{Name: "tiny.gguf", Engine: "llama-server", Context: 8192}}, Loaded: []string{"tiny.gguf"}}},
		"vllm": {map[string]string{
			"/v1/models": `{"object":"list","data":[{"id":"Qwen/Qwen3-8B","object":"model","created":1,"owned_by":"vllm","root":"Qwen/Qwen3-8B","parent":null,"max_model_len":40960}]}`,
		}, Engine{Kind: "vllm", Models: []fleet.Model{{Name: "Qwen/Qwen3-8B", Engine: "vllm", Context: 40960}}, Loaded: []string{"Qwen/Qwen3-8B"}}},
		"lm-studio": {map[string]string{
			"/v1/models":     `{"data":[{"id":"qwen2.5-7b","object":"model","owned_by":"organization_owner"},{"id":"gemma","object":"model","owned_by":"organization_owner"}],"object":"list"}`,
			"/api/v0/models": `{"object":"list","data":[{"id":"qwen2.5-7b","object":"model","type":"llm","state":"not-loaded","max_context_length":32768},{"id":"gemma","state":"loaded","max_context_length":8192,"loaded_context_length":4096}]}`,
		}, Engine{Kind: "lm-studio", Models: []fleet.Model{{Name: "gemma", Engine: "lm-studio", Context: 4096}, {Name: "qwen2.5-7b", Engine: "lm-studio", Context: 32768}}, Loaded: []string{"gemma"}}},
		"another":       {map[string]string{"/v1/models": `{"object":"list","data":[{"id":"m"},{"id":"has a space"},{"id":""}]}`}, Engine{Kind: "openai", Models: []fleet.Model{{Name: "m", Engine: "openai"}}, Loaded: []string{"m"}}},
		"no engine":     {map[string]string{"/v1/models": `{"hello":"world"}`}, Engine{}},
		"a web page":    {map[string]string{"/v1/models": `<html>`}, Engine{}},
		"another again": {map[string]string{}, Engine{}},
	} {
		t.Run(name, func(t *testing.T) {
			srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if a, ok := c.answers[r.URL.Path]; ok {
					_, _ = w.Write([]byte(a))
					return
				}
				http.NotFound(w, r)
			}))
			defer srv.Close()
			f := NewFinder(func() []Place { return []Place{{URL: srv.URL + "/v1/"}, {URL: srv.URL}, {URL: "http://127.0.0.1:1"}} })
			changed := f.Look(t.Context())
			found := f.Engines()
			if c.want.Kind == "" {
				if len(found) > 0 || changed {
					t.Errorf("found %+v", found)
				}
				return
			}
			c.want.URL = srv.URL + "/v1"
			if !changed || len(found) != 1 || !reflect.DeepEqual(found[0], c.want) {
				t.Errorf("found\n%+v, want\n%+v", found, c.want)
			}
			if f.Look(t.Context()) {
				t.Error("what has not changed is news")
			}
		})
	}
}
