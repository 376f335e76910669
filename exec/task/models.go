package task

import (
	"fmt"
	"strings"
)

// Model is a model that a run asks, through an endpoint of its own.
type Model struct {
	Name        string `cbor:"1,keyasint" json:"name"`                             // what the manifest calls it
	Model       string `cbor:"2,keyasint" json:"model"`                            // what engines call it
	EndpointVar string `cbor:"3,keyasint,omitempty" json:"endpoint_var,omitempty"` // variable with the base URL; else NAME_URL
	ModelVar    string `cbor:"4,keyasint,omitempty" json:"model_var,omitempty"`    // variable with the model's name; else NAME_MODEL
}

// maxModels bounds the models of one run.
const maxModels = 32

// Variables returns the environment variables that tell a program of the base
// URL of its endpoint and of the model: those that the manifest names, or the
// ones that Compose has for a name.
func (m Model) Variables() (endpoint, model string) {
	prefix := strings.Map(func(c rune) rune {
		if c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' {
			return c
		}
		return '_'
	}, strings.ToUpper(m.Name))
	endpoint, model = m.EndpointVar, m.ModelVar
	if endpoint == "" {
		endpoint = prefix + "_URL"
	}
	if model == "" {
		model = prefix + "_MODEL"
	}
	return endpoint, model
}

func checkModels(models []Model) error {
	if len(models) > maxModels {
		return fmt.Errorf("%d models: the limit is %d", len(models), maxModels)
	}
	seen := map[string]bool{}
	for _, m := range models {
		if m.Name == "" || m.Model == "" || len(m.Name) > 64 || len(m.Model) > 200 {
			return fmt.Errorf("model %.64q: it needs a name of its own and the engine's, of 64 and 200 bytes at most", m.Name)
		}
		if seen[m.Name] {
			return fmt.Errorf("model %q is there twice", m.Name)
		}
		seen[m.Name] = true
		for _, v := range []string{m.EndpointVar, m.ModelVar} {
			if strings.ContainsAny(v, "=\x00") {
				return fmt.Errorf("model %q: environment variable %q cannot be set", m.Name, v)
			}
		}
	}
	return nil
}

// ModelUsage is what was asked of models and what came back.
type ModelUsage struct {
	Requests     uint64 `cbor:"1,keyasint,omitempty" json:"requests,omitempty"`
	In           uint64 `cbor:"2,keyasint,omitempty" json:"tokens_in,omitempty"`      // as the engines count
	Out          uint64 `cbor:"3,keyasint,omitempty" json:"tokens_out,omitempty"`     // as the engines count
	FirstTokenMS uint64 `cbor:"4,keyasint,omitempty" json:"first_token_ms,omitempty"` // of all requests together: divide by Answered
	Answered     uint64 `cbor:"5,keyasint,omitempty" json:"answered,omitempty"`       // requests of which something came
}

// Tokens are those of both ways.
func (u *ModelUsage) Tokens() Tokens { return Tokens(u.In + u.Out) }

// Add adds what another usage has.
func (u *ModelUsage) Add(o ModelUsage) {
	u.Requests += o.Requests
	u.In += o.In
	u.Out += o.Out
	u.FirstTokenMS += o.FirstTokenMS
	u.Answered += o.Answered
}
