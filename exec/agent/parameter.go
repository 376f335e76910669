package agent

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v4"
)

// Parameter is something that whoever runs an agent tells it: the agent finds it
// in its environment, as PARAM_ and the name in capitals, and in the words of its
// command in the place of the name in braces.
type Parameter struct {
	Name        string
	Description string
	Type        string   // one of Type…
	Choices     []string // of a choice
	Default     string
	Optional    bool // there is a default
}

// Types of parameters.
const (
	TypeText    = "text"
	TypeInteger = "integer"
	TypeNumber  = "number"
	TypeBoolean = "boolean"
	TypeChoice  = "choice"
)

// maxParameter bounds a value, in bytes.
const maxParameter = 16 << 10

// Env is the variable in which an agent finds a parameter.
func (p *Parameter) Env() string {
	return "PARAM_" + strings.ToUpper(strings.ReplaceAll(p.Name, "-", "_"))
}

func (p *Parameter) word() string { return "{" + p.Name + "}" }

// Check reports why a value cannot be the parameter's.
func (p *Parameter) Check(value string) error {
	var err error
	want := ""
	switch p.Type {
	case TypeInteger:
		_, err = strconv.ParseInt(value, 10, 64)
		want = "no integer"
	case TypeNumber:
		_, err = strconv.ParseFloat(value, 64)
		want = "no number"
	case TypeBoolean:
		_, err = parseBool(value)
		want = "neither true nor false"
	case TypeChoice:
		if !slices.Contains(p.Choices, value) {
			return fmt.Errorf("%s: %q is none of %s", p.Name, short(value), strings.Join(p.Choices, ", "))
		}
	}
	switch {
	case err != nil:
		return fmt.Errorf("%s: %q is %s", p.Name, short(value), want)
	case len(value) > maxParameter:
		return fmt.Errorf("%s: %d bytes: the limit is %d", p.Name, len(value), maxParameter)
	case strings.ContainsRune(value, 0):
		return fmt.Errorf("%s: a zero byte", p.Name)
	}
	return nil
}

// About says what a parameter is, for whoever is asked for it.
func (p *Parameter) About() string {
	what := map[string]string{TypeInteger: "an integer", TypeNumber: "a number", TypeBoolean: "true or false", TypeChoice: strings.Join(p.Choices, ", ")}[p.Type]
	switch {
	case p.Description == "":
		return what
	case what == "":
		return p.Description
	}
	return p.Description + ": " + what
}

// Parameters returns what the agent has to be told, in the order of the manifest.
func (m *Manifest) Parameters() []Parameter { return slices.Clone(m.parameters) }

// values returns the value of each parameter, given or not, in their order.
func (m *Manifest) values(given map[string]string) ([]string, error) {
	out := make([]string, len(m.parameters))
	var missing []string
	for i := range m.parameters {
		p := &m.parameters[i]
		v, ok := given[p.Name]
		switch {
		case !ok && !p.Optional:
			missing = append(missing, p.Name)
			continue
		case !ok:
			v = p.Default
		default:
			if err := p.Check(v); err != nil {
				return nil, &ParameterError{Text: err.Error()}
			}
		}
		out[i] = v
	}
	if len(missing) > 0 {
		return nil, &ParameterError{Text: fmt.Sprintf("agent %s has to be told %s", m.Name, strings.Join(missing, ", ")), Missing: missing}
	}
	for name := range given {
		if !slices.ContainsFunc(m.parameters, func(p Parameter) bool { return p.Name == name }) {
			return nil, &ParameterError{Text: fmt.Sprintf("agent %s has no parameter %q%s", m.Name, short(name), m.others())}
		}
	}
	return out, nil
}

func (m *Manifest) others() string {
	if len(m.parameters) == 0 {
		return ""
	}
	names := make([]string, len(m.parameters))
	for i, p := range m.parameters {
		names[i] = p.Name
	}
	return ": it has " + strings.Join(names, ", ")
}

// ParameterError says what is wrong with what an agent is told.
type ParameterError struct {
	Text    string
	Missing []string // parameters that have to be given
}

func (e *ParameterError) Error() string { return e.Text }

// told returns the command and the environment of the agent with values in them.
func (m *Manifest) told(values []string) (command []string, env map[string]string) {
	words := make([]string, 0, 2*len(values))
	env = map[string]string{}
	for i := range m.parameters {
		words = append(words, m.parameters[i].word(), values[i])
		env[m.parameters[i].Env()] = values[i]
	}
	fill := strings.NewReplacer(words...)
	for _, arg := range m.spec.Command {
		command = append(command, fill.Replace(arg))
	}
	for k, v := range m.spec.Env {
		env[k] = fill.Replace(v)
	}
	return command, env
}

// given is the inverse: what a run of the agent was told, by its environment.
func (m *Manifest) given(env map[string]string) map[string]string {
	out := map[string]string{}
	for i := range m.parameters {
		if v, ok := env[m.parameters[i].Env()]; ok {
			out[m.parameters[i].Name] = v
		}
	}
	return out
}

// parameters reads what the agent has to be told.
func (r *reader) parameters(m *Manifest) field {
	return func(n *yaml.Node) {
		fields := map[string]field{}
		if n.Kind == yaml.MappingNode {
			for i := 0; i+1 < len(n.Content); i += 2 {
				key := n.Content[i]
				fields[key.Value] = func(v *yaml.Node) { r.parameter(key, v, m) }
			}
		}
		r.mapping(n, fields)
	}
}

func (r *reader) parameter(key, n *yaml.Node, m *Manifest) {
	p := Parameter{Name: key.Value, Type: TypeText}
	if !isParameterName(p.Name) {
		r.fail(key, "", "no parameter can have this name: use up to 64 letters, digits, - and _, a letter first")
		return
	}
	if slices.ContainsFunc(m.parameters, func(o Parameter) bool { return o.Env() == p.Env() }) {
		r.fail(key, "", "another parameter is in the variable %s", p.Env())
		return
	}
	types := []string{TypeText, TypeInteger, TypeNumber, TypeBoolean, TypeChoice}
	has := r.mapping(n, map[string]field{
		"description": value(r, &p.Description, "a text", text),
		"type":        value(r, &p.Type, "a type", func(s string) (string, error) { return s, oneOf(types)(s) }),
		"choices":     words(r, &p.Choices, "a choice", filled),
		"default":     value(r, &p.Default, "a value", text),
	})
	if len(p.Choices) > 0 && has["type"] == 0 {
		p.Type = TypeChoice
	}
	if (p.Type == TypeChoice) != (len(p.Choices) > 0) {
		r.fail(n, "such as {choices: [short, long]}", "a choice has choices, and nothing else has")
		return
	}
	if p.Optional = has["default"] > 0; p.Optional {
		if err := p.Check(p.Default); err != nil {
			r.fail(n, "", "default: %v", err)
		}
	}
	m.parameters = append(m.parameters, p)
}

func isParameterName(s string) bool {
	const letters = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
	return s != "" && len(s) <= 64 && strings.ContainsRune(letters, rune(s[0])) && strings.Trim(s, letters+"0123456789-_") == "" && s != "port" && s != "weights"
}

// scripts refuses parameters in the place of a program's text: what somebody is told
// must not become what is done.
func (r *reader) scripts(root *yaml.Node, m *Manifest) {
	for i, arg := range m.spec.Command {
		if i == 0 || m.spec.Command[i-1] != "-c" && m.spec.Command[i-1] != "-e" {
			continue
		}
		for _, p := range m.parameters {
			if strings.Contains(arg, p.word()) {
				r.fail(root, "read it from the environment there, such as \"$"+p.Env()+"\"", "command: %s in a script: its value would be run", p.word())
			}
		}
	}
	for i := range m.parameters {
		if _, taken := m.spec.Env[m.parameters[i].Env()]; taken {
			r.fail(root, "", "env: %s is the variable of the parameter %s", m.parameters[i].Env(), m.parameters[i].Name)
		}
	}
}
