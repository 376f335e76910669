package agent

import (
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"

	"go.yaml.in/yaml/v4"
)

// Imported is a manifest that was made of the file of another tool.
type Imported struct {
	Kind     string   // what the file is
	Manifest []byte   // agent.yaml
	Left     []string // a sentence for each part that has no counterpart
}

// Kinds of files that can be imported.
const (
	KindCompose = "compose"      // a Compose file: one service of it, and the models that it asks
	KindDocker  = "docker-agent" // the agents file of docker-agent
	KindGoose   = "goose"        // a recipe of goose
)

// Import makes a manifest of a file of another tool. Of a Compose file with
// several services, one is named. The manifest is beside the file, which travels
// with it where the tool itself reads it.
func Import(name string, data []byte, service string) (Imported, error) {
	r := &reader{}
	root := r.parse(data)
	if err := r.err(name); err != nil {
		return Imported{}, err
	}
	if root == nil || root.Kind != yaml.MappingNode {
		return Imported{}, fmt.Errorf("%s: want keys with values", name)
	}
	in := &importer{file: filepath.Base(name), root: root, out: &yaml.Node{Kind: yaml.MappingNode}}
	var err error
	switch {
	case at(root, "services") != nil:
		in.Kind, err = KindCompose, in.compose(service)
	case at(root, "agents") != nil:
		in.Kind, err = KindDocker, in.docker()
	case at(root, "title") != nil && (at(root, "instructions") != nil || at(root, "prompt") != nil):
		in.Kind, err = KindGoose, in.goose()
	default:
		err = errors.New("it is no Compose file (services:), no file of docker-agent (agents:) and no recipe of goose (title:)")
	}
	if err == nil {
		in.Manifest, err = yaml.Marshal(in.out)
	}
	if err != nil {
		return Imported{}, fmt.Errorf("import %s: %w", name, err)
	}
	if _, err := Parse(FileName, in.Manifest); err != nil {
		return Imported{}, fmt.Errorf("import %s: what comes of it is no manifest: %w", name, err)
	}
	return in.Imported, nil
}

// importer makes one manifest.
type importer struct {
	Imported

	file string
	root *yaml.Node
	out  *yaml.Node
}

// at returns the value of a key, or nil.
func at(n *yaml.Node, key string) *yaml.Node {
	if n == nil || n.Kind != yaml.MappingNode {
		return nil
	}
	for i := 0; i+1 < len(n.Content); i += 2 {
		if n.Content[i].Value == key {
			return n.Content[i+1]
		}
	}
	return nil
}

// of returns the text of a key, or nothing.
func of(n *yaml.Node, key string) string {
	if v := at(n, key); v != nil && v.Kind == yaml.ScalarNode {
		return v.Value
	}
	return ""
}

func keys(n *yaml.Node) (out []string) {
	for i := 0; n != nil && n.Kind == yaml.MappingNode && i+1 < len(n.Content); i += 2 {
		out = append(out, n.Content[i].Value)
	}
	return out
}

func scalar(s string) *yaml.Node {
	n := &yaml.Node{}
	n.SetString(s)
	return n
}

func flow(words ...string) *yaml.Node {
	n := &yaml.Node{Kind: yaml.SequenceNode, Style: yaml.FlowStyle}
	for _, w := range words {
		n.Content = append(n.Content, scalar(w))
	}
	return n
}

func table(pairs ...any) *yaml.Node {
	n := &yaml.Node{Kind: yaml.MappingNode, Style: yaml.FlowStyle}
	for i := 0; i+1 < len(pairs); i += 2 {
		v, ok := pairs[i+1].(*yaml.Node)
		if !ok {
			v = scalar(pairs[i+1].(string))
		}
		n.Content = append(n.Content, scalar(pairs[i].(string)), v)
	}
	return n
}

func (in *importer) set(key string, v *yaml.Node) {
	in.out.Content = append(in.out.Content, scalar(key), v)
}

func (in *importer) left(format string, args ...any) {
	in.Left = append(in.Left, fmt.Sprintf(format, args...))
}

// name makes a name of a title.
func (in *importer) name(title string) {
	name := strings.Map(func(r rune) rune {
		switch {
		case r >= 'a' && r <= 'z', r >= '0' && r <= '9', r == '-', r == '_', r == '.':
			return r
		}
		return '-'
	}, strings.ToLower(strings.TrimSpace(title)))
	name = strings.Trim(name[:min(len(name), 64)], "-.")
	if parsed, err := parseName(name); err == nil {
		in.set("name", scalar(parsed))
	}
}

func (in *importer) about(text string) {
	if text != "" {
		in.set("description", scalar(text))
	}
}

// compose takes one service and its models.
func (in *importer) compose(service string) error {
	services := at(in.root, "services")
	names := keys(services)
	if service == "" && len(names) == 1 {
		service = names[0]
	}
	s := at(services, service)
	if s == nil {
		return fmt.Errorf("say which service, with --service: there are %s", strings.Join(names, ", "))
	}
	in.name(service)
	if err := in.composeCommand(s); err != nil {
		return err
	}
	in.environment(at(s, "environment"))
	in.composeModels(at(s, "models"))
	for _, key := range keys(s) {
		if why, ok := composeLeft[key]; ok {
			in.left("%s: %s", key, why)
		} else if !slices.Contains([]string{"image", "command", "environment", "models"}, key) {
			in.left("%s: has no counterpart", key)
		}
	}
	for _, key := range keys(in.root) {
		if !slices.Contains([]string{"services", "models", "name", "version"}, key) {
			in.left("%s: has no counterpart", key)
		}
	}
	return nil
}

// composeLeft are parts of a service that have a counterpart of another form.
var composeLeft = map[string]string{
	"build":      "nothing is built here: build the image, push it, and name it with image:",
	"ports":      "an agent that is asked has serve: {port: …}",
	"volumes":    "files travel with inputs: and come back with outputs:",
	"secrets":    "name them with secrets:, which says where each value is",
	"deploy":     "what a machine must have is said with needs:",
	"depends_on": "there is one program in an agent: start what it depends on as an agent of its own, with serve:",
	"networks":   "hosts that it may reach out of a sandbox are named with network: {allow: […]}",
	"entrypoint": "write the whole command",
}

func (in *importer) composeCommand(s *yaml.Node) error {
	c := at(s, "command")
	switch {
	case c == nil:
		return errors.New("the service has no command, and that of an image is not known here: add one")
	case c.Kind == yaml.SequenceNode:
		c.Style = yaml.FlowStyle
		in.set("command", c)
	default:
		in.set("command", flow("sh", "-c", c.Value))
	}
	if image := of(s, "image"); image != "" {
		in.set("image", scalar(image))
	} else {
		in.set("process", table())
	}
	return nil
}

// environment takes variables, as a list of NAME=VALUE too. Those without a value
// come from the environment of whoever starts Compose.
func (in *importer) environment(n *yaml.Node) {
	env := table()
	add := func(name, value string, given bool) {
		if !given || strings.Contains(value, "${") {
			in.left("environment %s: its value comes from outside: give it with -e or, where it is secret, with secrets:", name)
			return
		}
		env.Content = append(env.Content, scalar(name), scalar(value))
	}
	switch {
	case n == nil:
	case n.Kind == yaml.SequenceNode:
		for _, item := range n.Content {
			name, value, given := strings.Cut(item.Value, "=")
			add(name, value, given)
		}
	default:
		for i := 0; i+1 < len(n.Content); i += 2 {
			add(n.Content[i].Value, n.Content[i+1].Value, n.Content[i+1].ShortTag() != "!!null")
		}
	}
	if len(env.Content) > 0 {
		in.set("env", env)
	}
}

// composeModels takes the models that a service uses, by name or with variables
// of its own.
func (in *importer) composeModels(uses *yaml.Node) {
	all := at(in.root, "models")
	models := &yaml.Node{Kind: yaml.MappingNode}
	add := func(name string, how *yaml.Node) {
		m := at(all, name)
		model := of(m, "model")
		if model == "" {
			in.left("models %s: the file does not say which model that is", name)
			return
		}
		v := table("model", model)
		for _, key := range []string{"endpoint_var", "model_var"} {
			if name := of(how, key); name != "" {
				v.Content = append(v.Content, scalar(key), scalar(name))
			}
		}
		models.Content = append(models.Content, scalar(name), v)
		for _, key := range keys(m) {
			if key != "model" {
				in.left("models %s.%s: is said where the model is served, as with: balance serve MODEL --ctx", name, key)
			}
		}
	}
	switch {
	case uses == nil:
	case uses.Kind == yaml.SequenceNode:
		for _, item := range uses.Content {
			add(item.Value, nil)
		}
	default:
		for _, name := range keys(uses) {
			add(name, at(uses, name))
		}
	}
	if len(models.Content) > 0 {
		in.set("models", models)
	}
}

// docker has docker-agent itself run its file.
func (in *importer) docker() error {
	agents := at(in.root, "agents")
	root := at(agents, "root")
	if root == nil {
		return errors.New("it has no agent called root")
	}
	in.name(strings.TrimSuffix(in.file, filepath.Ext(in.file)))
	in.about(of(root, "description"))
	in.set("command", flow("docker-agent", "run", "--exec", in.file))
	in.set("process", table())
	in.set("inputs", flow(in.file))
	var models []string
	all := at(in.root, "models")
	for _, name := range keys(agents) {
		a := at(agents, name)
		model := of(a, "model")
		m := at(all, model)
		provider, id, ok := strings.Cut(model, "/")
		if m != nil {
			provider, id, ok = of(m, "provider"), of(m, "model"), true
		}
		switch {
		case !ok || id == "":
			in.left("agents %s: the file does not say which model %q is", name, model)
		case provider != "openai" && provider != "dmr":
			in.left("agents %s: asks %s of %s itself, not a machine of the mesh: say provider: openai for that", name, id, provider)
		case !slices.Contains(models, id):
			models = append(models, id)
		}
		if of(m, "base_url") != "" {
			in.left("models %s.base_url: leave it away, for OPENAI_BASE_URL to count", model)
		}
		if at(a, "toolsets") != nil {
			in.left("agents %s.toolsets: docker-agent starts them itself: their programs have to be on the machine, and what they reach in network:", name)
		}
	}
	if len(models) > 0 {
		in.set("models", flow(models...))
	}
	in.left("docker-agent has to be installed on the machine: say so with a label in policy.yaml and needs: {labels: […]}")
	return nil
}

// goose has goose itself run its recipe.
func (in *importer) goose() error {
	in.name(of(in.root, "title"))
	in.about(of(in.root, "description"))
	// goose wants the host of OpenAI's API without the path.
	args := in.gooseParameters()
	command := []string{"sh", "-c", `OPENAI_HOST=${OPENAI_BASE_URL%/v1} GOOSE_PROVIDER=openai GOOSE_MODEL=$OPENAI_MODEL exec goose run --no-session --recipe "$@"`, "goose", in.file}
	in.set("command", flow(append(command, args...)...))
	in.set("process", table())
	in.set("inputs", flow(in.file))
	settings := at(in.root, "settings")
	if model := of(settings, "goose_model"); model != "" {
		in.set("models", flow(model))
	} else {
		in.left("the recipe names no model: add models: [NAME]")
	}
	if p := of(settings, "goose_provider"); p != "" && p != "openai" {
		in.left("settings.goose_provider: %s is not asked: the model is one of the mesh", p)
	}
	if list := at(in.root, "extensions"); list != nil {
		for _, e := range list.Content {
			if kind := of(e, "type"); kind != "builtin" && kind != "platform" {
				in.left("extensions %s: goose starts or asks it itself: its program has to be on the machine, and what it reaches in network:", of(e, "name"))
			}
		}
	}
	if at(in.root, "sub_recipes") != nil {
		in.left("sub_recipes: name their files in inputs:")
	}
	in.left("goose has to be installed on the machine: say so with a label in policy.yaml and needs: {labels: […]}")
	return nil
}

// gooseTypes are the types of goose's parameters that have another name here. A
// date, or the path of a file, is a text.
var gooseTypes = map[string]string{"number": TypeNumber, "boolean": TypeBoolean}

// gooseParameters takes over what a recipe is told, and returns the arguments by
// which goose gets it.
func (in *importer) gooseParameters() (args []string) {
	list := at(in.root, "parameters")
	if list == nil {
		return nil
	}
	var pairs []any
	for _, p := range list.Content {
		key := of(p, "key")
		if !isParameterName(key) {
			in.left("parameters %s: no parameter can have this name here", key)
			continue
		}
		var about []any
		if d := of(p, "description"); d != "" {
			about = append(about, "description", d)
		}
		if options := at(p, "options"); options != nil && of(p, "input_type") == "select" {
			choices := flow()
			for _, o := range options.Content {
				choices.Content = append(choices.Content, scalar(o.Value))
			}
			about = append(about, "choices", choices)
		} else if t := gooseTypes[of(p, "input_type")]; t != "" {
			about = append(about, "type", t)
		}
		if at(p, "default") != nil {
			about = append(about, "default", of(p, "default"))
		}
		if of(p, "input_type") == "file" {
			in.left("parameters %s: the path of a file in the run's folder: name the file in inputs:", key)
		}
		pairs = append(pairs, key, table(about...))
		args = append(args, "--params", key+"={"+key+"}")
	}
	if len(pairs) > 0 {
		in.set("parameters", table(pairs...))
	}
	return args
}
