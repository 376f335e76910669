package agent

import (
	"strings"
	"testing"

	"github.com/balanceai/balance/exec/policy"
	"github.com/balanceai/balance/exec/task"
)

// Models of an agent are named as Compose names them, or in a list.
func TestManifestModels(t *testing.T) {
	for text, want := range map[string][]task.Model{
		"[llama3.2, qwen3]": {{Name: "llama3.2", Model: "llama3.2"}, {Name: "qwen3", Model: "qwen3"}},
		"llama3.2":          {{Name: "llama3.2", Model: "llama3.2"}},
		"{llm: llama3.2, small: {model: tiny, endpoint_var: AT, model_var: WHICH}}": {{Name: "llm", Model: "llama3.2"}, {Name: "small", Model: "tiny", EndpointVar: "AT", ModelVar: "WHICH"}},
	} {
		m, err := Parse("agent.yaml", []byte("name: a\ncommand: [x]\nprocess: {}\nmodels: "+text))
		if err != nil {
			t.Errorf("%s: %v", text, err)
			continue
		}
		same(t, m.spec.Models, want)
	}
	for _, text := range []string{"[a, a]", "{a: {}}", "{a: {model: b, model_var: X=Y}}", "[[a]]", "{a: ''}"} {
		if _, err := Parse("agent.yaml", []byte("name: a\ncommand: [x]\nprocess: {}\nmodels: "+text)); err == nil {
			t.Errorf("%s: no error", text)
		}
	}
	at, which := task.Model{Name: "my-llm.2"}.Variables()
	if at != "MY_LLM_2_URL" || which != "MY_LLM_2_MODEL" {
		t.Errorf("variables %s, %s", at, which)
	}
}

func TestRulesModels(t *testing.T) {
	rules, err := ParseRules("policy.yaml", []byte(`offer: all
models:
  find: false
  engines: [http://127.0.0.1:9000/v1, {url: "https://gpu.example", key_file: /etc/key}]
  others:
    - {owner: ben, models: [tiny, "qwen3:8b"], requests: 2}
    - owner: "*"
`))
	if err != nil {
		t.Fatal(err)
	}
	same(t, rules.Models, ModelRules{Engines: []EngineAt{{URL: "http://127.0.0.1:9000/v1"}, {URL: "https://gpu.example", KeyFile: "/etc/key"}}})
	same(t, rules.Terms.Models, []policy.ModelGrant{{Owner: "ben", Model: "tiny", Requests: 2}, {Owner: "ben", Model: "qwen3:8b", Requests: 2}, {Owner: "*"}})
	for text, want := range map[string]string{
		"models: {engines: [127.0.0.1:9000]}":               "no base URL",
		"models: {engines: [{key_file: /k}]}":               "url is missing",
		"models: {engines: [{url: http://a, key_file: k}]}": "not an absolute path",
		"models: {others: [{models: [a]}]}":                 "owner is missing",
		"models: {others: [{owner: ben}, {owner: ben}]}":    "there twice",
		"models: {others: [{owner: Ben Smith}]}":            "owner",
		"models: {other: []}":                               "did you mean others?",
		"models: {engines: [http://user:secret@host/v1]}":   "no base URL",
	} {
		if _, err := ParseRules("policy.yaml", []byte(text)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %s", text, err, want)
		}
	}
}
