package task

import (
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
)

// Secret names a value that a run needs and nobody else may see. The value is not
// here: it travels beside the signed entries, in [Order], and is in no file.
type Secret struct {
	Name   string `cbor:"1,keyasint" json:"name"`                       // of the variable that has it, or that leads to its host
	Expose bool   `cbor:"2,keyasint,omitempty" json:"expose,omitempty"` // the program itself gets it, in its environment
	Host   string `cbor:"3,keyasint,omitempty" json:"host,omitempty"`   // else it is added to requests to this host, as in [Spec.Network]
	Header string `cbor:"4,keyasint,omitempty" json:"header,omitempty"` // in this header
	Prefix string `cbor:"5,keyasint,omitempty" json:"prefix,omitempty"` // behind this
	Others bool   `cbor:"6,keyasint,omitempty" json:"others,omitempty"` // machines of other owners may have it
}

// DefaultHeader is where a secret goes that does not say.
const DefaultHeader = "Authorization"

// Secrets are values by name. They cannot be printed, logged or encoded by
// mistake: whoever hands them on says so by converting them.
type Secrets map[string]string

// String implements [fmt.Stringer].
func (s Secrets) String() string { return fmt.Sprintf("%d secrets", len(s)) }

// GoString implements [fmt.GoStringer].
func (s Secrets) GoString() string { return s.String() }

// LogValue implements [slog.LogValuer].
func (s Secrets) LogValue() slog.Value { return slog.StringValue(s.String()) }

// MarshalJSON implements [encoding/json.Marshaler] and fails.
func (s Secrets) MarshalJSON() ([]byte, error) { return nil, errors.New("secrets are not written") }

// MarshalCBOR fails as well.
func (s Secrets) MarshalCBOR() ([]byte, error) { return nil, errors.New("secrets are not written") }

// Limits of secrets.
const (
	maxSecrets = 64
	maxSecret  = 64 << 10
)

// Check refuses values that cannot be handed on, and those that the spec does
// not name or that it lacks. Its errors do not have them.
func (s Secrets) Check(spec *Spec) error {
	if err := s.Missing(spec); err != nil {
		return err
	}
	if len(s) > len(spec.Secrets) {
		return errors.New("there are values of secrets that the run does not name")
	}
	for _, named := range spec.Secrets {
		v := s[named.Name]
		bad := func(c rune) bool { return c == 0 || !named.Expose && (c < ' ' || c > '~') }
		switch {
		case v == "":
			return fmt.Errorf("secret %s is empty", named.Name)
		case len(v) > maxSecret:
			return fmt.Errorf("secret %s has %d bytes: the limit is %d", named.Name, len(v), maxSecret)
		case strings.ContainsFunc(v, bad):
			return fmt.Errorf("secret %s has characters that cannot be handed on, such as an end of line", named.Name)
		}
	}
	return nil
}

// Missing tells whether one of the run's secrets is not there.
func (s Secrets) Missing(spec *Spec) error {
	for _, named := range spec.Secrets {
		if _, ok := s[named.Name]; !ok {
			return fmt.Errorf("the value of secret %s is not there", named.Name)
		}
	}
	return nil
}

// LetSecretsOut has a run be where its secrets are added on the way out, and lets
// it reach their hosts. It fails where the spec says otherwise.
func (s *Spec) LetSecretsOut() error {
	for _, v := range s.Secrets {
		if v.Host == "" {
			continue
		}
		if s.Isolation == "" {
			s.Isolation = LevelSandbox
		}
		if !slices.Contains(s.Network, v.Host) {
			s.Network = append(slices.Clone(s.Network), v.Host)
		}
	}
	return s.checkSecrets()
}

// Exposed reports whether the program itself gets a secret.
func (s *Spec) Exposed() bool {
	for _, named := range s.Secrets {
		if named.Expose {
			return true
		}
	}
	return false
}

func (s *Spec) checkSecrets() error {
	if len(s.Secrets) > maxSecrets {
		return fmt.Errorf("%d secrets: the limit is %d", len(s.Secrets), maxSecrets)
	}
	seen := map[string]bool{}
	for _, v := range s.Secrets {
		_, taken := s.Env[v.Name]
		switch {
		case !validVariable(v.Name):
			return fmt.Errorf("%.80q is no name of a secret: use letters, digits and _, as for a variable", v.Name)
		case seen[v.Name] || taken:
			return fmt.Errorf("secret %s is there twice, or is a variable of env too", v.Name)
		case v.Expose && (v.Host != "" || v.Header != "" || v.Prefix != ""):
			return fmt.Errorf("secret %s: either the program gets it (expose: true), or a host does (host: …)", v.Name)
		case !v.Expose && v.Host == "":
			return fmt.Errorf("secret %s: say which host gets it, as host: api.example.org, or expose: true", v.Name)
		case !v.Expose && (!validToken(v.Header) || strings.ContainsFunc(v.Prefix, func(c rune) bool { return c < ' ' || c > '~' })):
			return fmt.Errorf("secret %s: header %.80q and prefix %.80q are none", v.Name, v.Header, v.Prefix)
		case !v.Expose && s.Isolation != LevelSandbox:
			return fmt.Errorf("secret %s is added on the way to %s, which only a sandbox has: use isolation: sandbox, or expose: true", v.Name, v.Host)
		}
		seen[v.Name] = true
	}
	return nil
}

// validVariable takes the names that shells have for variables, but those by
// which a machine tells a run where and on what it is.
func validVariable(s string) bool {
	const letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz_"
	return s != "" && len(s) <= 64 && !strings.ContainsRune("0123456789", rune(s[0])) &&
		strings.Trim(s, letters+"0123456789") == "" && !strings.HasPrefix(s, "BALANCE_")
}

// validToken takes names of headers that a proxy does not need for itself.
func validToken(s string) bool {
	switch strings.ToLower(s) {
	case "host", "connection", "content-length", "transfer-encoding", "upgrade", "te", "trailer", "keep-alive", "proxy-authorization", "proxy-connection":
		return false
	}
	const token = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-"
	return s != "" && len(s) <= 64 && strings.Trim(s, token) == ""
}
