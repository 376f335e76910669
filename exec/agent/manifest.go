// Package agent reads the two files that people write: agent.yaml, the manifest
// of an agent, which says what to run and what it needs; and policy.yaml, the
// terms on which an owner gives a machine.
//
// Both are strict. A key that is not known is a mistake and never ignored, so
// that a limit which was misspelt is not a limit that is missing. All mistakes
// are reported at once, each with its line and, where one is near, the word that
// was meant; see [Errors].
//
// A manifest:
//
//	name: text-report             # else the name of its folder
//	description: what it is for
//	command: [sh, report.sh]      # required; arguments of the caller follow
//	process: {}                   # or image: the reference of an OCI image
//	env: {LANG: C}
//	needs: {cpu: 2, memory: 4GiB, disk: 1GiB, gpus: 1, vram: 16GiB, gpu: [H100, A100],
//	        arch: amd64, os: linux, labels: [lab], engines: [ollama]}
//	inputs:                       # files and folders that travel to the machine
//	  - report.sh                 # relative to the manifest
//	  - {from: ../texts, to: texts}
//	outputs: [report.md]          # what is brought back
//	limits: {time: 10m, output: 64MiB, memory: 2GiB, cpu: 2, pids: 200, disk: 1GiB, tokens: 200k}
//	network: {allow: [example.org, "*.example.org", "example.org:8443"]}   # out of a sandbox
//	secrets: {API_KEY: {env: MY_KEY, host: api.example.org, prefix: "Bearer "},   # added on the way there
//	          TOKEN: {file: ~/.token, expose: true, to: others}}   # in the environment, also on machines of others
//	isolation: sandbox            # at least; else what the machine's owner wants
//	place: {node: hydra,          # only there
//	        prefer: [quiet]}      # or: rather where the owner has given this label
//	models: {llm: llama3.2}       # that it asks; a list of names will do
//	gang: {nodes: 4, port: 29500} # one program on several machines, which start together
//	serve: {port: 8000, health: /health,  # it answers over HTTP, until it is ended
//	        card: /.well-known/agent-card.json, to: [ben]}
//	parameters: {topic: {description: what to report on},   # asked for where there is no default
//	             style: {choices: [short, long], default: short}}
//	stdin: true                   # standard input follows
//	idempotent: true              # running it twice does no harm: detached, it is retried on loss
//	retry: on-loss                # or never, whatever idempotent says
//	lease: 10m                    # how long its machine goes on without its submitter, where it is retried
package agent

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v4"

	"github.com/balanceai/balance/exec/task"
)

// FileName is the name of a manifest in the folder of its agent.
const FileName = "agent.yaml"

// maxInputs bounds the inputs of a manifest. A folder is one.
const maxInputs = 256

// later are the keys of manifests that a version to come understands.
var later = []string{"tools"}

// Manifest is an agent that can be run.
type Manifest struct {
	Name        string
	Description string
	File        string            // path of the manifest
	Digest      [sha256.Size]byte // of its bytes
	Idempotent  bool              // running it twice does no harm

	spec       task.Spec
	parameters []Parameter
	sources    []Source
	secrets    map[string]SecretSource
}

// Source is an input that has to be packed.
type Source struct {
	From string // path on this machine
	To   string // in the run's work folder, as in [task.Input]
}

// Load reads the manifest at path: a file, or a folder with an agent.yaml in it.
// Mistakes in it are an [*Errors].
func Load(path string) (*Manifest, error) {
	if info, err := os.Stat(path); err == nil && info.IsDir() {
		path = filepath.Join(path, FileName)
	}
	data, err := readFile(path)
	if err != nil {
		return nil, fmt.Errorf("read manifest: %w", err)
	}
	return Parse(path, data)
}

// readFile reads no more of a file than shows that it is too long.
func readFile(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, maxFile+1))
}

// Parse reads the bytes of a manifest. name is the path of its file: inputs are
// relative to its folder, and errors begin with it.
func Parse(name string, data []byte) (*Manifest, error) {
	m := &Manifest{File: name, Digest: sha256.Sum256(data)}
	r := &reader{}
	if root := r.parse(data); root != nil {
		r.manifest(root, m)
	}
	if err := r.err(name); err != nil {
		return nil, err
	}
	return m, nil
}

// Spec returns what to run, with the parameters that are given and args after the
// manifest's command, and the inputs that are to be packed into it. A
// [*ParameterError] says what is wrong with the parameters.
func (m *Manifest) Spec(args []string, given map[string]string) (task.Spec, []Source, error) {
	s := m.spec
	values, err := m.values(given)
	if err != nil {
		return task.Spec{}, nil, err
	}
	s.Agent, s.Manifest = m.Name, m.Digest
	s.Command, s.Env = m.told(values)
	s.Command = append(s.Command, args...)
	s.Outputs = slices.Clone(s.Outputs)
	if err := s.Check(); err != nil {
		return task.Spec{}, nil, fmt.Errorf("agent %s: %w", m.Name, err)
	}
	sources := slices.Clone(m.sources)
	for i, in := range sources {
		if !filepath.IsAbs(in.From) {
			sources[i].From = filepath.Join(filepath.Dir(m.File), in.From)
		}
	}
	return s, sources, nil
}

func (r *reader) manifest(root *yaml.Node, m *Manifest) {
	s := &m.spec
	fields := map[string]field{
		"name":        value(r, &m.Name, "a name", parseName),
		"description": value(r, &m.Description, "a text", text),
		"command":     r.command(&s.Command),
		"image":       value(r, &s.Image, "the reference of an image", notEmpty),
		"process":     r.process(&s.Driver),
		"env":         r.env(&s.Env),
		"needs":       func(n *yaml.Node) { r.needs(n, &s.Needs) },
		"inputs":      r.inputs(&m.sources),
		"outputs":     r.outputs(&s.Outputs),
		"limits": func(n *yaml.Node) {
			r.mapping(n, map[string]field{
				"time":   value(r, &s.Limits.Time, "a length of time", task.ParseDuration),
				"output": value(r, &s.Limits.Output, "an amount", task.ParseBytes),
				"memory": value(r, &s.Limits.Memory, "an amount", task.ParseBytes),
				"cpu":    value(r, &s.Limits.CPU, "a number of cores", task.ParseCPU),
				"pids":   value(r, &s.Limits.PIDs, "a number of processes", strconv.Atoi),
				"disk":   value(r, &s.Limits.Disk, "an amount", task.ParseBytes),
				"tokens": value(r, &s.Limits.Tokens, "a number of tokens", task.ParseTokens),
			})
		},
		"place": func(n *yaml.Node) {
			r.mapping(n, map[string]field{
				"node":   value(r, &s.Node, "the name of a node", notEmpty),
				"prefer": words(r, &s.Prefer, "a label", checkLabel),
			})
		},
		"gang":       r.gang(&s.Gang),
		"serve":      r.serve(&s.Serve),
		"stdin":      value(r, &s.Stdin, "true or false", parseBool),
		"idempotent": value(r, &m.Idempotent, "true or false", parseBool),
		"retry":      value(r, &s.Retry, "never or on-loss", task.ParseRetry),
		"lease":      value(r, &s.Lease, "a length of time", task.ParseDuration),
		"network": func(n *yaml.Node) {
			r.mapping(n, map[string]field{"allow": words(r, &s.Network, "a host", filled)})
		},
		"secrets":    r.secrets(m),
		"isolation":  value(r, &s.Isolation, "process, sandbox or container", parseLevel),
		"models":     func(n *yaml.Node) { r.uses(n, &s.Models) },
		"parameters": r.parameters(m),
	}
	has := r.mapping(root, fields, later...)
	if root.Kind == yaml.MappingNode {
		r.complete(root, has, m)
	}
}

// gang reads on how many machines the agent runs at once.
func (r *reader) gang(to **task.Gang) field {
	return func(n *yaml.Node) {
		var g task.Gang
		has := r.mapping(n, map[string]field{
			"nodes": value(r, &g.Nodes, "a number of machines", strconv.Atoi),
			"port":  value(r, &g.Port, "a port", strconv.Atoi),
		})
		if n.Kind == yaml.MappingNode && has["nodes"] == 0 {
			r.fail(n, "such as gang: {nodes: 4}", "nodes is missing")
			return
		}
		*to = &g
	}
}

// serve reads how an agent is asked that goes on until it is ended.
func (r *reader) serve(to **task.Serve) field {
	return func(n *yaml.Node) {
		s := task.Serve{Kind: task.ServeAgent}
		r.mapping(n, map[string]field{
			"port":   value(r, &s.Port, "a port", strconv.Atoi),
			"health": value(r, &s.Health, "a path", notEmpty),
			"card":   value(r, &s.Card, "a path", notEmpty),
			"to":     words(r, &s.To, "the name of a person", func(s string) error { _, err := parseOwner(s); return err }),
		})
		*to = &s
	}
}

// complete checks what no single key can, and fills in what is implied.
func (r *reader) complete(root *yaml.Node, has map[string]int, m *Manifest) {
	if has["command"] == 0 {
		r.fail(root, "such as command: [sh, run.sh]", "command is missing")
	}
	switch process, image := has["process"] > 0, has["image"] > 0; {
	case process && image:
		r.fail(root, "choose one", "process and image are both there")
	case image:
		m.spec.Driver = task.DriverImage
	case !process:
		r.fail(root, "add process: {} for a program of the machine, or image: with a reference", "it does not say what starts the command")
	}
	r.scripts(root, m)
	if err := m.spec.LetSecretsOut(); err != nil {
		r.fail(root, "", "%v", err)
	}
	if m.Name == "" {
		m.Name = folderName(m.File)
	}
	if m.spec.Serve != nil {
		m.spec.Serve.Name = m.Name
	}
	if len(r.problems) == 0 {
		if err := m.spec.Check(); err != nil {
			r.fail(root, "", "%v", err)
		}
	}
}

// folderName is the name of an agent that gives itself none.
func folderName(file string) string {
	path, err := filepath.Abs(file)
	if err != nil {
		return "agent"
	}
	name, err := parseName(filepath.Base(filepath.Dir(path)))
	if err != nil {
		return "agent"
	}
	return name
}

func (r *reader) process(driver *string) field {
	return func(n *yaml.Node) {
		*driver = task.DriverProcess
		if n.Kind != yaml.MappingNode || len(n.Content) > 0 {
			r.fail(n, "write process: {}", "takes nothing in this version")
		}
	}
}

func (r *reader) command(to *[]string) field {
	return func(n *yaml.Node) {
		if n.Kind != yaml.SequenceNode {
			hint := "such as [sh, run.sh]"
			if n.Kind == yaml.ScalarNode && n.Value != "" && len(n.Value) < 80 && !strings.ContainsAny(n.Value, quoted) {
				hint = "write command: [" + strings.Join(strings.Fields(n.Value), ", ") + "]"
			}
			r.fail(n, hint, "want a list of the program and its arguments, not %s", kind(n))
			return
		}
		if len(n.Content) == 0 {
			r.fail(n, "", "the list is empty")
		}
		for i, item := range n.Content {
			arg, ok := r.scalar(item, "a word")
			if ok && i == 0 && arg == "" {
				r.fail(item, "", "the program has no name")
			}
			*to = append(*to, arg)
		}
	}
}

// quoted are the marks that mean something in a list of YAML or in a shell.
const quoted = "\"'{}[],:#&*!|<>%@`\\$~;()?"

func (r *reader) env(to *map[string]string) field {
	return func(n *yaml.Node) {
		fields := map[string]field{}
		*to = map[string]string{}
		if n.Kind == yaml.MappingNode {
			for i := 0; i+1 < len(n.Content); i += 2 {
				key := n.Content[i].Value
				fields[key] = func(v *yaml.Node) {
					if key == "" || strings.Contains(key, "=") {
						r.fail(v, "", "no variable can have this name")
					}
					(*to)[key], _ = r.scalar(v, "a text")
				}
			}
		}
		r.mapping(n, fields)
	}
}

func (r *reader) needs(n *yaml.Node, to *task.Needs) {
	r.mapping(n, map[string]field{
		"cpu":     value(r, &to.CPU, "a number of cores", task.ParseCPU),
		"memory":  value(r, &to.Memory, "an amount", task.ParseBytes),
		"disk":    value(r, &to.Disk, "an amount", task.ParseBytes),
		"gpus":    value(r, &to.GPUs, "a number of devices", parseCount),
		"vram":    value(r, &to.VRAM, "an amount", task.ParseBytes),
		"share":   value(r, &to.Share, "a part of a device", task.ParseShare),
		"gpu":     words(r, &to.GPUModels, "a word of the model's name", filled),
		"arch":    words(r, &to.Arch, "an architecture", oneOf(archs)),
		"os":      words(r, &to.OS, "an operating system", oneOf(systems)),
		"labels":  words(r, &to.Labels, "a label", checkLabel),
		"engines": words(r, &to.Engines, "the name of an engine", filled),
	})
}

// inputs reads paths, and mappings of from and to.
func (r *reader) inputs(to *[]Source) field {
	return func(n *yaml.Node) {
		items := r.items(n)
		if len(items) > maxInputs {
			r.fail(n, "put them into a folder", "%d inputs: the limit is %d", len(items), maxInputs)
			return
		}
		for _, item := range items {
			if in, ok := r.source(item); ok {
				r.input(item, in, *to)
				*to = append(*to, in)
			}
		}
	}
}

// source reads one input, and reports whether it is whole.
func (r *reader) source(n *yaml.Node) (Source, bool) {
	var in Source
	before := len(r.problems)
	from := value(r, &in.From, "a path", notEmpty)
	if n.Kind != yaml.MappingNode {
		from(n)
	} else if has := r.mapping(n, map[string]field{
		"from": from,
		"to":   value(r, &in.To, "a path in the run's folder", workPath),
	}); has["from"] == 0 && len(r.problems) == before {
		r.fail(n, "such as {from: ../texts, to: texts}", "from is missing")
	}
	if in.To == "" {
		in.To = landsAt(in.From)
	}
	return in, len(r.problems) == before
}

// landsAt is where an input lands that does not say so: where it is in the
// manifest's folder, and at the top where it comes from outside.
func landsAt(from string) string {
	path := filepath.ToSlash(filepath.Clean(from))
	if task.CheckPath(path) == nil {
		return path
	}
	return filepath.Base(path)
}

// input checks where an input lands, beside those that were read before.
func (r *reader) input(n *yaml.Node, in Source, others []Source) {
	if err := task.CheckPath(in.To); err != nil {
		r.fail(n, "say where it lands, such as {from: "+short(in.From)+", to: data}", "%v", err)
		return
	}
	for _, o := range others {
		if in.To == o.To || strings.HasPrefix(in.To, o.To+"/") || strings.HasPrefix(o.To, in.To+"/") {
			r.fail(n, "give it another place with to:", "%q lands in the place of %q", in.To, o.To)
			return
		}
	}
}

func (r *reader) outputs(to *[]string) field {
	return func(n *yaml.Node) {
		for _, item := range r.items(n) {
			var path string
			value(r, &path, "a path in the run's folder", workPath)(item)
			*to = append(*to, path)
		}
	}
}

// items returns the items of a list.
func (r *reader) items(n *yaml.Node) []*yaml.Node {
	if n.Kind != yaml.SequenceNode {
		r.fail(n, "", "want a list, not %s", kind(n))
		return nil
	}
	return n.Content
}

func text(s string) (string, error) { return s, nil }

func notEmpty(s string) (string, error) { return s, filled(s) }

func filled(s string) error {
	if strings.TrimSpace(s) == "" {
		return errors.New("is empty")
	}
	return nil
}

func workPath(s string) (string, error) { return s, task.CheckPath(s) }

// CheckName refuses what cannot be the name of an agent.
func CheckName(name string) error { _, err := parseName(name); return err }

// parseName takes names that are safe as the name of a file and on a screen.
func parseName(s string) (string, error) {
	if s == "" || len(s) > 64 || s[0] == '.' || strings.Trim(s, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_.") != "" {
		return "", fmt.Errorf("%q is no name: use up to 64 letters, digits, dots, - and _", short(s))
	}
	return s, nil
}

// checkLabel takes words that can be given on a command line as they are.
func checkLabel(s string) error {
	if s == "" || len(s) > 64 || strings.ContainsFunc(s, func(c rune) bool { return c <= ' ' || c == ',' || c > '~' }) {
		return fmt.Errorf("%q is no label: use up to 64 letters, digits and marks without spaces and commas", short(s))
	}
	return nil
}

func parseLevel(s string) (string, error) {
	return s, oneOf([]string{task.LevelProcess, task.LevelSandbox, task.LevelContainer})(s)
}

func parseBool(s string) (bool, error) {
	if s != "true" && s != "false" {
		return false, fmt.Errorf("%q is neither true nor false", short(s))
	}
	return s == "true", nil
}

func parseCount(s string) (int, error) {
	n, err := strconv.ParseUint(s, 10, 10)
	if err != nil {
		return 0, fmt.Errorf("%q is no number from 0 to 1023", short(s))
	}
	return int(n), nil
}

// The names that Go has for what balance runs on.
var (
	archs   = []string{"386", "amd64", "arm", "arm64", "loong64", "ppc64le", "riscv64", "s390x"}
	systems = []string{"darwin", "freebsd", "linux", "windows"}
)

// aliases are names that others have for the same.
var aliases = map[string]string{
	"x86_64": "amd64", "x86-64": "amd64", "x64": "amd64", "aarch64": "arm64", "i386": "386", "i686": "386",
	"macos": "darwin", "osx": "darwin", "mac": "darwin",
}

// oneOf takes one of the known words.
func oneOf(known []string) func(string) error {
	return func(s string) error {
		if slices.Contains(known, s) {
			return nil
		}
		hint := didYouMean(s, known)
		if alias := aliases[strings.ToLower(s)]; slices.Contains(known, alias) {
			hint = "did you mean " + alias + "?"
		}
		if hint == "" {
			hint = "known are " + strings.Join(known, ", ")
		}
		return fmt.Errorf("%q is not known: %s", short(s), hint)
	}
}
