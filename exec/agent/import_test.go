package agent

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// What other tools have, as their documentation shows it, becomes a manifest and
// a sentence for each part that does not.
func TestImport(t *testing.T) {
	for _, name := range []string{"compose.yaml", "docker-agent.yaml", "goose.yaml"} {
		path := filepath.Join("import", name)
		in, err := Import(path, read(t, path), "")
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		golden(t, filepath.Join("import", strings.TrimSuffix(name, ".yaml")+".txt"), in.Kind+"\n\n"+string(in.Manifest)+"\n"+strings.Join(in.Left, "\n")+"\n")
	}
}

func TestImportOfWhatIsNone(t *testing.T) {
	for text, want := range map[string]string{
		"a: 1":                                   "it is no Compose file",
		"[1]":                                    "want keys with values",
		"services: {a: {command: x}, b: {}}":     "say which service, with --service: there are a, b",
		"services: {a: {image: x}}":              "the service has no command",
		"agents: {other: {}}":                    "no agent called root",
		"services: {a: {command: &x [a]}}":       "anchor",
		"services: {a: {command: [], image: x}}": "no manifest",
	} {
		if _, err := Import("f.yaml", []byte(text), ""); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %s", text, err, want)
		}
	}
}

// Whatever a file says, what comes of it is a manifest, or an error.
func FuzzImport(f *testing.F) {
	files, err := filepath.Glob("testdata/import/*.yaml")
	if err != nil || len(files) == 0 {
		f.Fatal(files, err)
	}
	for _, name := range files {
		b, err := os.ReadFile(name)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		if in, err := Import("f.yaml", b, ""); err == nil {
			if _, err := Parse(FileName, in.Manifest); err != nil {
				t.Errorf("%q became %s: %v", b, in.Manifest, err)
			}
		}
	})
}
