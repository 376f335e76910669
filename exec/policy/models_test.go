package policy

import (
	"testing"
	"time"

	"github.com/balanceai/balance/exec/task"
)

// TestAskModel is a table of who may ask what; nothing is granted by default.
func TestAskModel(t *testing.T) {
	granted := Terms{Offers: true, Models: []ModelGrant{
		{Owner: "ben", Model: "llama", Requests: 2},
		{Owner: "ben", Model: "qwen", Requests: 2},
		{Owner: AnyOwner, Model: "tiny"},
	}}
	rationed := Terms{Offers: true, Models: []ModelGrant{{Owner: "ben", Tokens: 100, Per: time.Hour}}}
	used := func(n task.Tokens) func(time.Duration) task.Tokens {
		return func(per time.Duration) task.Tokens {
			if per != time.Hour {
				t.Errorf("asked for the last %v", per)
			}
			return n
		}
	}
	for _, c := range []struct {
		terms Terms
		q     ModelQuestion
		ok    bool
	}{
		{Terms{Offers: true}, ModelQuestion{Owner: "ana", Machine: "ana", Model: "llama", Asked: 99}, true},
		{Terms{}, ModelQuestion{Owner: "ana", Machine: "ana", Model: "llama"}, false},
		{Terms{Offers: true}, ModelQuestion{Owner: "ben", Machine: "ana", Model: "llama"}, false},
		{granted, ModelQuestion{Owner: "ben", Machine: "ana", Model: "llama", Asked: 1}, true},
		{granted, ModelQuestion{Owner: "ben", Machine: "ana", Model: "llama", Asked: 2}, false},
		{granted, ModelQuestion{Owner: "ben", Machine: "ana", Model: "qwen"}, true},
		{granted, ModelQuestion{Owner: "ben", Machine: "ana", Model: "tiny"}, false}, // his own grant counts alone
		{granted, ModelQuestion{Owner: "Ben", Machine: "ana", Model: "llama"}, false},
		{granted, ModelQuestion{Owner: "cleo", Machine: "ana", Model: "tiny", Asked: DefaultRequests - 1}, true},
		{granted, ModelQuestion{Owner: "cleo", Machine: "ana", Model: "tiny", Asked: DefaultRequests}, false},
		{granted, ModelQuestion{Machine: "ana", Model: "tiny"}, false}, // nobody is not everybody
		{granted, ModelQuestion{Model: "tiny"}, false},
		{rationed, ModelQuestion{Owner: "ben", Machine: "ana", Model: "llama"}, true},
		{rationed, ModelQuestion{Owner: "ben", Machine: "ana", Model: "llama", Used: used(99)}, true},
		{rationed, ModelQuestion{Owner: "ben", Machine: "ana", Model: "llama", Used: used(100)}, false},
	} {
		if reasons := c.terms.AskModel(c.q); (len(reasons) == 0) != c.ok {
			t.Errorf("%+v: %v, want allowed %v", c.q, reasons, c.ok)
		}
	}
}
