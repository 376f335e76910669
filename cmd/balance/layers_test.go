package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"maps"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
)

const module = "github.com/balanceai/balance/"

// layers says which of our packages each package may import. Packages of nouns
// may be imported widely; machinery never imports machinery: what one part needs
// of another, it declares as an interface, and cmd/balance gives it.
var layers = map[string][]string{
	"cmd/balance":       {"*"},
	"cmd/balance/quick": {},
	"cmd/bench":         {},
	"cmd/placebench":    {"exec/fleet", "exec/place", "exec/policy", "exec/task", "mesh/identity"},
	"examples":          {},

	"examples/researcher": {},

	"mesh":           {"mesh/trust", "mesh/wire", "mesh/identity", "mesh/netstack", "mesh/hostnet", "mesh/member", "mesh/portmap"},
	"mesh/identity":  {},
	"mesh/wire":      {"mesh/identity"},
	"mesh/trust":     {"mesh/identity", "mesh/wire"},
	"mesh/netstack":  {},
	"mesh/hostnet":   {},
	"mesh/portmap":   {},
	"mesh/member":    {"mesh/identity"},
	"mesh/bench":     {"mesh", "mesh/identity"},
	"mesh/meshtest":  {"mesh", "mesh/identity", "mesh/member"},
	"discovery":      {"mesh/identity"},
	"proxy":          {},
	"store":          {"exec/task", "mesh/identity", "mesh/wire"},
	"store/replica":  {"mesh/identity", "mesh/wire"},
	"exec":           {},
	"exec/task":      {"exec/lease", "mesh/identity", "mesh/wire"},
	"exec/policy":    {"exec/task", "mesh/identity"},
	"exec/fleet":     {"exec/task", "exec/policy", "mesh/identity", "mesh/wire"},
	"exec/place":     {"exec/task", "exec/fleet", "exec/policy", "mesh/identity", "mesh/wire"},
	"exec/journal":   {"exec/task"},
	"exec/spare":     {},
	"exec/lease":     {},
	"exec/queue":     {},
	"exec/supervise": {"exec/cgroup", "exec/isolate/launch", "exec/lease"},
	"exec/blob":      {"exec/task", "mesh/wire"},
	"exec/cgroup":    {},
	"exec/gguf":      {},
	"exec/serve":     {"exec/gguf", "exec/task", "mesh/identity", "mesh/wire"},
	"exec/egress":    {},
	"exec/isolate":   {"exec/isolate/inside", "exec/isolate/launch", "exec/task"},
	"exec/container": {"exec/isolate/launch"},
	"exec/agent":     {"exec/task", "exec/policy", "mesh/identity"},
	"exec/run":       {"exec/task", "exec/policy", "exec/journal", "exec/lease", "exec/queue", "exec/spare", "exec/supervise", "exec/blob", "exec/cgroup", "exec/container", "exec/egress", "exec/isolate", "exec/isolate/inside", "exec/isolate/launch", "mesh/identity", "mesh/wire"},
	"exec/remote":    {"exec/task", "exec/blob", "exec/lease", "mesh/identity", "mesh/wire"},
	"exec/dispatch":  {"exec/task", "exec/fleet", "exec/place", "exec/policy", "exec/journal", "exec/lease", "exec/spare", "exec/blob", "mesh/identity", "mesh/wire"},
	"exec/gateway":   {"exec/task", "exec/fleet", "exec/policy", "mesh/identity"},
	"tui":            {"exec/task", "exec/fleet", "mesh/identity"},

	"exec/isolate/launch":     {},
	"exec/isolate/inside":     {"exec/isolate/launch"},
	"exec/gateway/enginetest": {},
	"mesh/meshtest/netlab":    {},
}

type listed struct {
	ImportPath, Doc string
	Imports         []string
}

func packages(t *testing.T) []listed {
	t.Helper()
	cmd := exec.Command("go", "list", "-json=ImportPath,Doc,Imports", module+"...")
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	var list []listed
	for dec := json.NewDecoder(bytes.NewReader(out)); ; {
		var p listed
		if err := dec.Decode(&p); errors.Is(err, io.EOF) {
			return list
		} else if err != nil {
			t.Fatal(err)
		}
		list = append(list, p)
	}
}

func TestLayers(t *testing.T) {
	seen := map[string]bool{}
	for _, p := range packages(t) {
		name := strings.TrimPrefix(p.ImportPath, module)
		allowed, ok := layers[name]
		if !ok {
			t.Errorf("package %s has no place in the layers", name)
			continue
		}
		seen[name] = true
		if p.Doc == "" {
			t.Errorf("package %s has no package comment", name)
		}
		for _, imp := range p.Imports {
			if own, ok := strings.CutPrefix(imp, module); ok && !slices.Contains(allowed, own) && !slices.Contains(allowed, "*") {
				t.Errorf("%s imports %s", name, own)
			}
		}
	}
	for name := range maps.Keys(layers) {
		if !seen[name] {
			t.Errorf("package %s is in the layers but not in the tree", name)
		}
	}
}
