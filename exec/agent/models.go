package agent

import (
	"fmt"
	"net/url"
	"path/filepath"
	"strings"

	"go.yaml.in/yaml/v4"

	"github.com/balanceai/balance/exec/policy"
	"github.com/balanceai/balance/exec/task"
	"github.com/balanceai/balance/mesh/identity"
)

// ModelRules say which model servers the machine has.
type ModelRules struct {
	Find    bool // those that listen where they usually do
	Engines []EngineAt
}

// EngineAt is a model server that the owner has named.
type EngineAt struct {
	URL     string // base of its API
	KeyFile string // of the key that it wants; empty for none
}

// models reads the part of the rules that is about models.
func (r *reader) models(n *yaml.Node, to *Rules) {
	r.mapping(n, map[string]field{
		"find": value(r, &to.Models.Find, "true or false", parseBool),
		"engines": func(n *yaml.Node) {
			for _, item := range r.items(n) {
				to.Models.Engines = append(to.Models.Engines, r.engine(item))
			}
		},
		"others": func(n *yaml.Node) {
			seen := map[string]bool{}
			for _, item := range r.items(n) {
				g, models := r.modelGrant(item)
				if seen[g.Owner] {
					r.fail(item, "", "owner %s is there twice", g.Owner)
				}
				seen[g.Owner] = true
				for _, g.Model = range models {
					to.Terms.Models = append(to.Terms.Models, g)
				}
			}
		},
	})
}

// engine reads the base URL of an engine, or a mapping with its key's file.
func (r *reader) engine(n *yaml.Node) (e EngineAt) {
	at := value(r, &e.URL, "a base URL", parseBase)
	if n.Kind != yaml.MappingNode {
		at(n)
		return e
	}
	if has := r.mapping(n, map[string]field{
		"url":      at,
		"key_file": value(r, &e.KeyFile, "the path of a file", parseAbsolute),
	}); has["url"] == 0 {
		r.fail(n, "such as {url: http://127.0.0.1:9000/v1}", "url is missing")
	}
	return e
}

func parseBase(s string) (string, error) {
	u, err := url.Parse(s)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" || u.User != nil || u.RawQuery != "" || u.Fragment != "" {
		return "", fmt.Errorf("%q is no base URL of a model server: write it like http://127.0.0.1:9000/v1", short(s))
	}
	return s, nil
}

func parseAbsolute(s string) (string, error) {
	if !filepath.IsAbs(s) {
		return "", fmt.Errorf("%q is not an absolute path", short(s))
	}
	return s, nil
}

// modelGrant reads what one other owner may ask, and the models: an empty name
// stands for all of them.
func (r *reader) modelGrant(n *yaml.Node) (g policy.ModelGrant, models []string) {
	before := len(r.problems)
	r.mapping(n, map[string]field{
		"owner":    value(r, &g.Owner, "the name of a person", parseOwner),
		"models":   words(r, &models, "the name of a model", filled),
		"requests": value(r, &g.Requests, "a number of requests", parseCount),
		"tokens": value(r, &g.Tokens, "tokens in a time, such as 200k/1d", func(s string) (task.Tokens, error) {
			a, b, ok := strings.Cut(s, "/")
			tokens, err1 := task.ParseTokens(a)
			per, err2 := task.ParseDuration(strings.TrimSpace(b))
			if !ok || err1 != nil || err2 != nil || per <= 0 || per > policy.LongestPer {
				return 0, fmt.Errorf("%q is no number of tokens in a time of 31 days at most: write it like 200k/1d", short(s))
			}
			g.Per = per
			return tokens, nil
		}),
	})
	if g.Owner == "" && len(r.problems) == before {
		r.fail(n, `name a person, or "*" for everybody`, "owner is missing")
	}
	if len(models) == 0 {
		models = []string{""}
	}
	return g, models
}

func parseOwner(s string) (string, error) {
	if s == policy.AnyOwner {
		return s, nil
	}
	return s, identity.ValidName(s)
}

// uses reads the models that an agent asks: a list of names, or a mapping of
// what the agent calls each, as Compose has it.
func (r *reader) uses(n *yaml.Node, to *[]task.Model) {
	if n.Kind != yaml.MappingNode {
		var list []string
		words(r, &list, "the name of a model", filled)(n)
		for _, m := range list {
			*to = append(*to, task.Model{Name: m, Model: m})
		}
		return
	}
	fields := map[string]field{}
	for i := 0; i+1 < len(n.Content); i += 2 {
		name := n.Content[i].Value
		fields[name] = func(n *yaml.Node) { *to = append(*to, r.asked(name, n)) }
	}
	r.mapping(n, fields)
}

func (r *reader) asked(name string, n *yaml.Node) task.Model {
	m := task.Model{Name: name}
	model := value(r, &m.Model, "the name of a model", notEmpty)
	if n.Kind != yaml.MappingNode {
		model(n)
		return m
	}
	if has := r.mapping(n, map[string]field{
		"model":        model,
		"endpoint_var": value(r, &m.EndpointVar, "the name of a variable", parseVariable),
		"model_var":    value(r, &m.ModelVar, "the name of a variable", parseVariable),
	}); has["model"] == 0 {
		r.fail(n, "such as {model: llama3.2}", "model is missing")
	}
	return m
}

func parseVariable(s string) (string, error) {
	if s == "" || strings.ContainsAny(s, "= \t") {
		return "", fmt.Errorf("%q is no name of a variable", short(s))
	}
	return s, nil
}
