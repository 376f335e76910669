package agent

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"unicode/utf8"

	"go.yaml.in/yaml/v4"
	"go.yaml.in/yaml/v4/plugin/loaderlimits"
)

// Limits of a file.
const (
	maxFile  = 256 << 10 // bytes
	maxDepth = 8         // of lists and mappings in each other
)

// reader reads the tree of a file and collects what is wrong with it.
//
// It takes a part of YAML: one document of mappings, lists and plain values.
// Anchors, aliases and tags are refused, and a value is taken as it is written:
// the key tells its type, not YAML's rules.
type reader struct {
	problems
	path []string // keys that lead to where it is
}

// field reads the value of a key.
type field func(n *yaml.Node)

// parse returns the root of the document, or nil where there is none to read.
func (r *reader) parse(data []byte) *yaml.Node {
	if r.checkText(data); len(r.problems) > 0 {
		return nil
	}
	loader, err := yaml.NewLoader(bytes.NewReader(data), yaml.WithPlugin(loaderlimits.New(loaderlimits.DepthValue(maxDepth))))
	if err != nil {
		r.add(1, 1, "", "%v", err)
		return nil
	}
	var doc, second yaml.Node
	switch err := loader.Load(&doc); {
	case errors.Is(err, io.EOF):
		r.add(1, 1, "", "the file is empty")
		return nil
	case err != nil:
		r.syntax(err, data)
		return nil
	}
	switch err := loader.Load(&second); {
	case err == nil:
		r.add(second.Line, second.Column, "remove the line of dashes and what follows", "a second document: the file holds one")
	case !errors.Is(err, io.EOF):
		r.syntax(err, data)
	}
	if r.checkPlain(&doc); len(r.problems) > 0 || len(doc.Content) != 1 {
		return nil
	}
	return doc.Content[0]
}

// checkText refuses what is no text of a size that a person writes.
func (r *reader) checkText(data []byte) {
	if len(data) > maxFile {
		r.add(1, 1, "", "the file has %d bytes: the limit is %d", len(data), maxFile)
		return
	}
	line, column := 1, 0
	for rest := data; len(rest) > 0; {
		c, size := utf8.DecodeRune(rest)
		rest = rest[size:]
		column++
		switch {
		case c == utf8.RuneError && size == 1:
			r.add(line, column, "save the file as UTF-8", "the file is not UTF-8")
			return
		case c < ' ' && c != '\n' && c != '\r' && c != '\t', c == 0x7f:
			r.add(line, column, "", "control character %U", c)
			return
		case c == '\n':
			line, column = line+1, 0
		}
	}
}

// syntax takes an error of the YAML library.
func (r *reader) syntax(err error, data []byte) {
	var e *yaml.LoadError
	if !errors.As(err, &e) {
		r.add(1, 1, "", "not valid YAML: %v", err)
		return
	}
	text := strings.TrimPrefix(e.Message, "yaml: ")
	if e.ContextMsg != "" {
		text = e.ContextMsg + ": " + text
	}
	hint := ""
	if tabIndents(data, e.Mark.Line) {
		hint = "indent with spaces, not with tabs"
	}
	r.add(e.Mark.Line, e.Mark.Column, hint, "not valid YAML: %s", text)
}

// tabIndents reports whether there is a tab before the text of a line.
func tabIndents(data []byte, line int) bool {
	lines := bytes.Split(data, []byte("\n"))
	if line < 1 || line > len(lines) {
		return false
	}
	l := lines[line-1]
	return bytes.ContainsRune(l[:len(l)-len(bytes.TrimLeft(l, " \t"))], '\t')
}

// checkPlain refuses what makes a file mean other than it reads.
func (r *reader) checkPlain(n *yaml.Node) {
	switch {
	case n.Kind == yaml.AliasNode:
		r.add(n.Line, n.Column, "write the value out", "alias *%.40s", n.Value)
	case n.Anchor != "":
		r.add(n.Line, n.Column, "remove it", "anchor &%.40s", n.Anchor)
	case n.Style&yaml.TaggedStyle != 0:
		r.add(n.Line, n.Column, "remove it", "tag %.40s", n.Tag)
	}
	for _, c := range n.Content {
		r.checkPlain(c)
	}
}

// fail reports a mistake in a value, with the keys that lead to it.
func (r *reader) fail(n *yaml.Node, hint, format string, args ...any) {
	text := fmt.Sprintf(format, args...)
	if len(r.path) > 0 {
		text = strings.Join(r.path, ".") + ": " + text
	}
	r.add(n.Line, n.Column, hint, "%s", text)
}

// mapping reads the keys of a mapping, each with its field, and returns the line
// of each key. Keys in later are of versions to come.
func (r *reader) mapping(n *yaml.Node, fields map[string]field, later ...string) (seen map[string]int) {
	seen = map[string]int{}
	if n.Kind != yaml.MappingNode {
		r.fail(n, "known keys are "+list(fields), "want keys with values, not %s", kind(n))
		return seen
	}
	for i := 0; i+1 < len(n.Content); i += 2 {
		key, value := n.Content[i], n.Content[i+1]
		read, known := fields[key.Value]
		switch {
		case key.Kind != yaml.ScalarNode:
			r.fail(key, "", "a key is a word, not %s", kind(key))
		case seen[key.Value] > 0:
			r.fail(key, "", "key %q is there twice, first in line %d", short(key.Value), seen[key.Value])
		case known:
			r.path = append(r.path, key.Value)
			read(value)
			r.path = r.path[:len(r.path)-1]
		case slices.Contains(later, key.Value):
			r.fail(key, "", "%s: is not available in this version", key.Value)
		default:
			r.unknown(key, fields)
		}
		seen[key.Value] = key.Line
	}
	return seen
}

func (r *reader) unknown(key *yaml.Node, fields map[string]field) {
	hint := didYouMean(key.Value, slices.Collect(maps.Keys(fields)))
	if hint == "" {
		hint = "known keys are " + list(fields)
	}
	r.fail(key, hint, "unknown key %q", short(key.Value))
}

// scalar returns a value as it is written. It is not there where the key has
// none, or a list or a mapping.
func (r *reader) scalar(n *yaml.Node, want string) (string, bool) {
	switch {
	case n.Kind != yaml.ScalarNode:
		r.fail(n, "", "want %s, not %s", want, kind(n))
		return "", false
	case n.ShortTag() == "!!null":
		r.fail(n, "", "has no value: want %s", want)
		return "", false
	}
	return n.Value, true
}

// value reads a value with a function that knows its form.
func value[T any](r *reader, to *T, want string, parse func(string) (T, error)) field {
	return func(n *yaml.Node) {
		text, ok := r.scalar(n, want)
		if !ok {
			return
		}
		v, err := parse(text)
		if err != nil {
			r.fail(n, "", "%v", err)
			return
		}
		*to = v
	}
}

// words reads a list of values, or one value that stands for a list of one.
func words(r *reader, to *[]string, want string, check func(string) error) field {
	return func(n *yaml.Node) {
		items := []*yaml.Node{n}
		if n.Kind == yaml.SequenceNode {
			items = n.Content
		}
		for _, item := range items {
			var word string
			value(r, &word, want, func(s string) (string, error) { return s, check(s) })(item)
			*to = append(*to, word)
		}
	}
}

// kind names what a node is, for people.
func kind(n *yaml.Node) string {
	switch {
	case n.Kind == yaml.MappingNode:
		return "keys with values"
	case n.Kind == yaml.SequenceNode:
		return "a list"
	case n.ShortTag() == "!!null":
		return "nothing"
	default:
		return fmt.Sprintf("%q", short(n.Value))
	}
}

// list writes the keys of a mapping in alphabetical order.
func list(fields map[string]field) string {
	return strings.Join(slices.Sorted(maps.Keys(fields)), ", ")
}

// short cuts a value that is to be quoted.
func short(s string) string {
	if r := []rune(s); len(r) > 40 {
		return string(r[:40]) + "…"
	}
	return s
}
