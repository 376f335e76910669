package tui

import (
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strconv"
	"strings"

	"github.com/balanceai/balance/exec/task"
)

// form is a draft of a run while it is written: text that is typed, and
// choices.
type form struct {
	fields []field // the fixed ones, and one for each parameter of the agent
	at     fieldID
	agents []Agent
	nodes  []string
}

type fieldID int

const (
	fieldAgent fieldID = iota
	fieldCommand
	fieldNode
	fieldCPU
	fieldMemory
	fieldGPUs
	fieldVRAM
	fieldLabels
	fieldTime
	fieldCount
)

// field is one line of the form.
type field struct {
	label  string
	hint   string // shown while it is empty
	choice bool   // one of some; otherwise typed
	param  *Parameter
	chosen int // 0: none of them
	input  input
	err    error // what is wrong with what was typed
}

func newForm() form {
	f := form{at: fieldCommand}
	f.fields = []field{
		fieldAgent:   {label: "agent", choice: true},
		fieldCommand: {label: "command", hint: "type what to run, as in a shell"},
		fieldNode:    {label: "machine", choice: true},
		fieldCPU:     {label: "cpu", hint: "cores, e.g. 2 or 500m"},
		fieldMemory:  {label: "memory", hint: "e.g. 8GiB"},
		fieldGPUs:    {label: "gpus", hint: "how many, e.g. 1"},
		fieldVRAM:    {label: "vram", hint: "on each GPU, e.g. 24GiB"},
		fieldLabels:  {label: "labels", hint: "that the machine must have"},
		fieldTime:    {label: "time", hint: "longest run, e.g. 2h"},
	}
	return f
}

func (f *form) current() *field { return &f.fields[f.at] }

// move goes to another field.
func (f *form) move(n int) {
	count := fieldID(len(f.fields))
	f.at = (f.at + fieldID(n) + count) % count
}

// choices returns what a choice field can be, the first being none of them.
func (f *form) choices(id fieldID) []string {
	if id == fieldNode {
		return append([]string{"the best one"}, f.nodes...)
	}
	if p := f.fields[id].param; p != nil {
		first := "as usual: " + p.Default
		if p.Needed {
			first = "has to be chosen"
		}
		return append([]string{first}, p.Choices...)
	}
	out := []string{"none, a command"}
	for _, a := range f.agents {
		out = append(out, a.Name)
	}
	return out
}

// choose goes n choices on.
func (f *form) choose(n int) {
	c := f.current()
	count := len(f.choices(f.at))
	c.chosen = (c.chosen + n + count) % count
	f.ask()
}

// ask has a field for each parameter of the agent that is chosen. What was typed
// stays where the agent does.
func (f *form) ask() {
	var params []Parameter
	if a := f.agent(); a != nil {
		params = a.Parameters
	}
	same := slices.EqualFunc(f.fields[fieldCount:], params, func(fd field, p Parameter) bool { return reflect.DeepEqual(*fd.param, p) })
	if same {
		return
	}
	f.fields = f.fields[:fieldCount:fieldCount]
	for _, p := range params {
		hint := p.About
		if !p.Needed {
			hint = strings.TrimSpace(hint + " (" + p.Default + ")")
		}
		f.fields = append(f.fields, field{label: p.Name, hint: hint, choice: len(p.Choices) > 0, param: &p})
	}
	f.at = min(f.at, fieldID(len(f.fields)-1))
}

// setParameters gives what an agent can be told.
func (f *form) setParameters(path string, list []Parameter) {
	for i := range f.agents {
		if f.agents[i].Path == path {
			f.agents[i].Parameters = list
		}
	}
	f.ask()
}

// chooseLetter goes to the next choice that begins with what was typed.
func (f *form) chooseLetter(s string) {
	c, all := f.current(), f.choices(f.at)
	for i := 1; i <= len(all); i++ {
		at := (c.chosen + i) % len(all)
		if strings.HasPrefix(strings.ToLower(all[at]), strings.ToLower(s)) {
			c.chosen = at
			f.ask()
			return
		}
	}
}

// setNodes gives the names of the machines; the one that was chosen stays.
func (f *form) setNodes(names []string) {
	f.fields[fieldNode].chosen = keepChoice(f.nodes, f.fields[fieldNode].chosen, names)
	f.nodes = names
}

// setAgents gives the agents; the one that was chosen stays.
func (f *form) setAgents(agents []Agent) {
	paths := func(list []Agent) []string {
		out := make([]string, len(list))
		for i, a := range list {
			out[i] = a.Path
		}
		return out
	}
	f.fields[fieldAgent].chosen = keepChoice(paths(f.agents), f.fields[fieldAgent].chosen, paths(agents))
	for i, a := range agents {
		for _, old := range f.agents {
			if a.Parameters == nil && old.Path == a.Path {
				agents[i].Parameters = old.Parameters
			}
		}
	}
	f.agents = agents
	f.ask()
}

func keepChoice(old []string, chosen int, list []string) int {
	if chosen > 0 && chosen <= len(old) {
		for i, s := range list {
			if s == old[chosen-1] {
				return i + 1
			}
		}
	}
	return 0
}

// chooseNode chooses a machine by name.
func (f *form) chooseNode(name string) {
	f.fields[fieldNode].chosen = keepChoice([]string{name}, 1, f.nodes)
}

// agent returns the agent that is chosen, or nil.
func (f *form) agent() *Agent {
	if i := f.fields[fieldAgent].chosen; i > 0 && i <= len(f.agents) {
		return &f.agents[i-1]
	}
	return nil
}

// draft reads the form. ok is false where a field cannot be read; the field
// then tells why.
func (f *form) draft() (d Draft, ok bool) {
	ok = true
	read := func(id fieldID, parse func(string) error) {
		fd := &f.fields[id]
		fd.err = nil
		if s := strings.TrimSpace(fd.input.String()); s != "" {
			fd.err = parse(s)
		}
		ok = ok && fd.err == nil
	}
	if a := f.agent(); a != nil {
		d.Agent = a.Path
	}
	if i := f.fields[fieldNode].chosen; i > 0 && i <= len(f.nodes) {
		d.Node = f.nodes[i-1]
	}
	read(fieldCommand, func(s string) (err error) { d.Command, err = splitWords(s); return err })
	read(fieldCPU, func(s string) (err error) { d.Needs.CPU, err = task.ParseCPU(s); return err })
	read(fieldMemory, func(s string) (err error) { d.Needs.Memory, err = task.ParseBytes(s); return err })
	read(fieldGPUs, func(s string) (err error) { d.Needs.GPUs, err = parseCount(s); return err })
	read(fieldVRAM, func(s string) (err error) { d.Needs.VRAM, err = task.ParseBytes(s); return err })
	read(fieldLabels, func(s string) error {
		d.Needs.Labels = strings.FieldsFunc(s, func(r rune) bool { return r == ' ' || r == ',' })
		return nil
	})
	read(fieldTime, func(s string) (err error) { d.Time, err = task.ParseDuration(s); return err })
	for i := int(fieldCount); i < len(f.fields); i++ {
		tell := func(s string) error {
			if d.Params == nil {
				d.Params = map[string]string{}
			}
			d.Params[f.fields[i].param.Name] = s
			return nil
		}
		switch fd := &f.fields[i]; {
		case !fd.choice:
			read(fieldID(i), tell)
		case fd.chosen > 0:
			_ = tell(fd.param.Choices[fd.chosen-1]) // which takes all
		}
	}
	return d, ok
}

func parseCount(s string) (int, error) {
	n, err := strconv.Atoi(s)
	if err != nil || n < 0 || n > 1024 {
		return 0, fmt.Errorf("%q is no number of GPUs", s)
	}
	return n, nil
}

// ready reports whether a draft says what to run.
func (d Draft) ready() bool { return d.Agent != "" || len(d.Command) > 0 }

// line returns the command line that does the same as a draft.
func (d Draft) line() string {
	out := []string{"balance", "run", "-d"}
	flag := func(name, value string) { out = append(out, "--"+name, quote(value)) }
	if d.Node != "" {
		flag("node", d.Node)
	}
	if d.Needs.CPU > 0 {
		flag("cpu", d.Needs.CPU.String())
	}
	if d.Needs.Memory > 0 {
		flag("mem", flagBytes(d.Needs.Memory))
	}
	if d.Needs.GPUs > 0 {
		flag("gpu", strconv.Itoa(d.Needs.GPUs))
	}
	if d.Needs.VRAM > 0 {
		flag("vram", flagBytes(d.Needs.VRAM))
	}
	for _, l := range d.Needs.Labels {
		flag("label", l)
	}
	if d.Time > 0 {
		flag("time-limit", task.FormatDuration(d.Time))
	}
	for _, name := range slices.Sorted(maps.Keys(d.Params)) {
		flag("param", name+"="+d.Params[name])
	}
	switch {
	case d.Agent != "":
		out = append(out, quote(d.Agent))
		if len(d.Command) > 0 {
			out = append(out, command(d.Command))
		}
	case len(d.Command) > 0:
		out = append(out, "--", command(d.Command))
	default:
		out = append(out, "-- COMMAND")
	}
	return strings.Join(out, " ")
}

// flagBytes writes an amount so that it is read back exactly.
func flagBytes(b task.Bytes) string {
	for _, u := range []struct {
		size task.Bytes
		name string
	}{{task.GiB, "GiB"}, {task.MiB, "MiB"}, {task.KiB, "KiB"}} {
		if b%u.size == 0 {
			return strconv.FormatUint(uint64(b/u.size), 10) + u.name
		}
	}
	return strconv.FormatUint(uint64(b), 10)
}
