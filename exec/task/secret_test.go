package task

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"github.com/balanceai/balance/mesh/wire"
)

// Values of secrets are not written by mistake.
func TestSecretsAreNotWritten(t *testing.T) {
	o := Order{Secrets: Secrets{"KEY": "canary"}}
	for _, text := range []string{fmt.Sprint(o), fmt.Sprintf("%+v %#v", o, o), o.Secrets.String(), o.Secrets.LogValue().String()} {
		if strings.Contains(text, "canary") {
			t.Errorf("%s", text)
		}
	}
	if b, err := json.Marshal(o); err == nil {
		t.Errorf("%s", b)
	}
	if b, err := wire.Marshal(o); err == nil {
		t.Errorf("%q", b)
	}
}

func TestSecretsCheck(t *testing.T) {
	s := &Spec{Secrets: []Secret{{Name: "A", Expose: true}, {Name: "B", Host: "a.example", Header: "X"}}}
	for name, test := range map[string]struct {
		values Secrets
		want   string
	}{
		"good":       {Secrets{"A": "two\nlines", "B": "b"}, ""},
		"missing":    {Secrets{"A": "canary"}, "secret B is not there"},
		"more":       {Secrets{"A": "a", "B": "b", "C": "canary"}, "does not name"},
		"empty":      {Secrets{"A": "", "B": "b"}, "A is empty"},
		"NUL":        {Secrets{"A": "canary\x00", "B": "b"}, "cannot be handed on"},
		"not header": {Secrets{"A": "a", "B": "canary\r\nX: y"}, "cannot be handed on"},
		"long":       {Secrets{"A": strings.Repeat("canary", 20_000), "B": "b"}, "the limit is"},
	} {
		err := test.values.Check(s)
		if test.want == "" && err != nil || test.want != "" && (err == nil || !strings.Contains(err.Error(), test.want) || strings.Contains(err.Error(), "canary")) {
			t.Errorf("%s: %v, want %s", name, err, test.want)
		}
	}
}
