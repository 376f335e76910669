package agent

import (
	"errors"
	"maps"
	"slices"
	"strings"
	"testing"
)

const told = `
name: report
command: [python3, report.py, --topic, "{topic}", "{style} and {depth}", "{else}"]
process: {}
env: {TITLE: "on {topic}"}
parameters:
  topic: {description: what to report on}
  max-depth: {type: integer, default: 3}
  style: {choices: [short, long], default: short}
  depth: {type: number, default: 0.5}
  quiet: {type: boolean, default: false}
`

func TestParameters(t *testing.T) {
	m, err := Parse("r/agent.yaml", []byte(told))
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, p := range m.Parameters() {
		names = append(names, p.Name)
	}
	if want := []string{"topic", "max-depth", "style", "depth", "quiet"}; !slices.Equal(names, want) {
		t.Errorf("parameters %v, want them in the order of the file", names)
	}
	// What somebody is told is one word, whatever is in it.
	topic := "it's {style}; $(id) {else}"
	s, _, err := m.Spec([]string{"more"}, map[string]string{"topic": topic, "style": "long"})
	if err != nil {
		t.Fatal(err)
	}
	if want := []string{"python3", "report.py", "--topic", topic, "long and 0.5", "{else}", "more"}; !slices.Equal(s.Command, want) {
		t.Errorf("command %q", s.Command)
	}
	if want := map[string]string{"TITLE": "on " + topic, "PARAM_TOPIC": topic, "PARAM_MAX_DEPTH": "3", "PARAM_STYLE": "long", "PARAM_DEPTH": "0.5", "PARAM_QUIET": "false"}; !maps.Equal(s.Env, want) {
		t.Errorf("environment %q", s.Env)
	}
	if err := m.Check(&s, nil); err != nil {
		t.Errorf("a run of it is none: %v", err)
	}
	for what, change := range map[string]func(){
		"a command that it was not told": func() { s.Command[3] = "else" },
		"a value that cannot be":         func() { s.Env["PARAM_STYLE"] = "loud" },
		"another variable":               func() { s.Env["PARAM_OTHER"] = "x" },
	} {
		command, env := slices.Clone(s.Command), maps.Clone(s.Env)
		change()
		if m.Check(&s, nil) == nil {
			t.Errorf("%s passes for a run of it", what)
		}
		s.Command, s.Env = command, env
	}

	var missing *ParameterError
	if _, _, err := m.Spec(nil, nil); !errors.As(err, &missing) || !slices.Equal(missing.Missing, []string{"topic"}) {
		t.Errorf("nothing was given: %v", err)
	}
	for value, want := range map[[2]string]string{
		{"style", "loud"}:                      `style: "loud" is none of short, long`,
		{"max-depth", "2.5"}:                   `max-depth: "2.5" is no integer`,
		{"depth", "deep"}:                      `depth: "deep" is no number`,
		{"quiet", "yes"}:                       `quiet: "yes" is neither true nor false`,
		{"topic", "nul\x00"}:                   "topic: a zero byte",
		{"colour", "blue"}:                     `agent report has no parameter "colour": it has topic, max-depth, style, depth, quiet`,
		{"topic", strings.Repeat("x", 20_000)}: "topic: 20000 bytes: the limit is 16384",
	} {
		given := map[string]string{"topic": "x"}
		given[value[0]] = value[1]
		if _, _, err := m.Spec(nil, given); err == nil || err.Error() != want {
			t.Errorf("%s=%.20q: %v", value[0], value[1], err)
		}
	}
}

func TestMistakesInParameters(t *testing.T) {
	for text, want := range map[string]string{
		"command: [sh, -c, 'echo {topic}']\nparameters: {topic: {}}":      `command: {topic} in a script: its value would be run: read it from the environment there, such as "$PARAM_TOPIC"`,
		"command: [a]\nparameters: {topic: {type: str}}":                  `parameters.topic.type: "str" is not known`,
		"command: [a]\nparameters: {topic: {type: choice}}":               "parameters.topic: a choice has choices, and nothing else has",
		"command: [a]\nparameters: {n: {type: integer, default: x}}":      `parameters.n: default: n: "x" is no integer`,
		"command: [a]\nparameters: {1st: {}}":                             "no parameter can have this name",
		"command: [a]\nparameters: {port: {}}":                            "no parameter can have this name",
		"command: [a]\nparameters: {a-b: {}, a_b: {}}":                    "another parameter is in the variable PARAM_A_B",
		"command: [a]\nenv: {PARAM_A: x}\nparameters: {a: {}}":            "env: PARAM_A is the variable of the parameter a",
		"command: [a]\nparameters: [topic]":                               "parameters: want keys with values, not a list",
		"command: [a]\nparameters: {topic: {default: a, requried: true}}": `parameters.topic: unknown key "requried"`,
	} {
		if _, err := Parse("a/agent.yaml", []byte(text+"\nprocess: {}\n")); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v", text, err)
		}
	}
}
