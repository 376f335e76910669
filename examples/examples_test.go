package examples

import (
	"flag"
	"io/fs"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"strings"
	"testing"

	"github.com/balanceai/balance/exec/agent"
)

var update = flag.Bool("update", false, "write the golden reports")

// agents are the examples with their scripts and what they write.
var agents = []struct{ name, script, output string }{
	{"text-report", "report.sh", "report.md"},
	{"log-triage", "triage.sh", "triage.md"},
}

// system is a shell with the tools that it finds.
type system struct {
	name  string
	shell []string
	path  string
}

// systems lists what this machine can stand for: each shell with each awk, and
// busybox with nothing but its own tools.
func systems(t *testing.T) []system {
	t.Helper()
	all := []system{{"sh", []string{"sh"}, os.Getenv("PATH")}}
	for _, shell := range []string{"dash", "bash --posix", "busybox sh"} {
		words := strings.Fields(shell)
		if _, err := exec.LookPath(words[0]); err != nil {
			t.Logf("no %s on this machine", words[0])
			continue
		}
		for _, awk := range []string{"mawk", "gawk", "busybox"} {
			if tool, err := exec.LookPath(awk); err == nil {
				dir := t.TempDir()
				link(t, tool, filepath.Join(dir, "awk"))
				all = append(all, system{shell + " with awk of " + awk, words, dir + ":" + os.Getenv("PATH")})
			}
		}
	}
	if busybox, err := exec.LookPath("busybox"); err == nil {
		dir := t.TempDir()
		for tool := range strings.FieldsSeq("sh awk cat cksum cut dd find head mktemp rm sed sha256sum sort tr wc") {
			link(t, busybox, filepath.Join(dir, tool))
		}
		all = append(all, system{"busybox alone", []string{filepath.Join(dir, "sh")}, dir})
	}
	return all
}

func link(t *testing.T, target, name string) {
	t.Helper()
	if err := os.Symlink(target, name); err != nil {
		t.Fatal(err)
	}
}

// run runs a script on a folder and returns what it wrote and said.
func (s system) run(t *testing.T, name, script, output string, args ...string) (report, said string) {
	t.Helper()
	file, err := filepath.Abs(filepath.Join(name, script))
	if err != nil {
		t.Fatal(err)
	}
	words := append(append([]string{}, s.shell...), file)
	cmd := exec.CommandContext(t.Context(), words[0], append(words[1:], args...)...)
	cmd.Dir = t.TempDir()
	cmd.Env = append(os.Environ(), "PATH="+s.path, "TMPDIR="+cmd.Dir)
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil || stderr.Len() > 0 {
		t.Fatalf("%s: %v\n%s", s.name, err, &stderr)
	}
	left, err := os.ReadDir(cmd.Dir)
	if err != nil || len(left) != 1 {
		t.Fatalf("left behind: %v, %v", left, err)
	}
	data, err := os.ReadFile(filepath.Join(cmd.Dir, output))
	if err != nil {
		t.Fatal(err)
	}
	return string(data), string(out)
}

func TestReports(t *testing.T) {
	for _, a := range agents {
		sample, err := filepath.Abs(filepath.Join(a.name, "sample"))
		if err != nil {
			t.Fatal(err)
		}
		golden := filepath.Join("testdata", a.name+".md")
		for _, s := range systems(t) {
			t.Run(a.name+"/"+s.name, func(t *testing.T) {
				got, said := s.run(t, a.name, a.script, a.output, sample)
				if *update {
					if err := os.WriteFile(golden, []byte(got), 0o644); err != nil {
						t.Fatal(err)
					}
				}
				want, err := os.ReadFile(golden)
				if err != nil {
					t.Fatal(err)
				}
				if got != string(want) {
					t.Errorf("got\n%s\nwant\n%s", got, want)
				}
				if !strings.Contains(said, ": read\n") {
					t.Errorf("no progress in\n%s", said)
				}
			})
		}
	}
}

// Names and contents that break scripts that were written in a hurry.
func TestOddFiles(t *testing.T) {
	dir := t.TempDir()
	for name, content := range map[string]string{
		"two words.log":     "2026-01-02 03:04:05 error: one 17\n",
		"line\nbreak.log":   "error: one 18\n",
		"tab\there":         "nothing\n",
		"-n":                "error: one 19",
		"x=y.log":           "error: two\n",
		"a|b":               "error: three | four \x1b[31m\n",
		"'q\"$(exit 1)`\\.": "warning: \\n %s %d\n",
		"*":                 "FATAL\r\n",
		"&":                 "& error\n",
		"empty":             "",
		"image":             "error \x00\x01\n",
		"deep/er/file":      "error: " + strings.Repeat("long ", 100_000) + "\n",
		"grün":              strings.Repeat("ü", 300) + " error\n",
		".hidden":           "error: hidden\n",
	} {
		file := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	link(t, "/etc/passwd", filepath.Join(dir, "link"))
	wants := map[string][]string{
		"text-report": {
			"- text: 13 files, ", "- not text: 1 files", "| line?break.log | 1 | 3 | 14 |", "| tab?here | 1 |", "| -n | 1 |",
			"| x=y.log |", "| a/b |", "| 'q\"$(exit 1)`\\. |", "| * | 1 | 1 | 7 |", "| empty | 0 | 0 | 0 |", "| grün |", "| .hidden |",
			"- 500007 bytes: deep/er/file:1 error: long",
		},
		"log-triage": {
			" problems in 9 groups, in 12 lines of 13 files", "- not text: 1 files",
			"## 3 × error: one #", "| 3 | error | - | 2026-01-02 03:04:05 | -n:1 |", "| 1 | fatal | - | - | *:1 |", "## 1 × warning: \\n %s %d", "## 1 × & error",
		},
	}
	for _, a := range agents {
		var first string
		for _, s := range systems(t) {
			t.Run(a.name+"/"+s.name, func(t *testing.T) {
				got, _ := s.run(t, a.name, a.script, a.output, dir)
				for _, want := range wants[a.name] {
					if !strings.Contains(got, want) {
						t.Errorf("%q is missing in\n%.6000s", want, got)
					}
				}
				if strings.ToValidUTF8(got, "?") != got || strings.ContainsRune(got, 0x1b) {
					t.Errorf("the report is no clean text")
				}
				if first == "" {
					first = got
				}
				if got != first {
					t.Errorf("another report than on the first system:\n%.6000s", got)
				}
			})
		}
	}
}

func TestEmptyFolder(t *testing.T) {
	empty := t.TempDir()
	for _, a := range agents {
		for _, s := range systems(t) {
			t.Run(a.name+"/"+s.name, func(t *testing.T) {
				got, _ := s.run(t, a.name, a.script, a.output, empty)
				if strings.Contains(got, "##") || !strings.Contains(got, "0 files") {
					t.Errorf("got\n%s", got)
				}
			})
		}
	}
}

func TestUsage(t *testing.T) {
	for _, a := range agents {
		file, err := filepath.Abs(filepath.Join(a.name, a.script))
		if err != nil {
			t.Fatal(err)
		}
		for _, args := range [][]string{nil, {"no such folder"}, {".", "many"}, {".", "-1"}, {".", ""}, {".", "1", "2"}} {
			cmd := exec.CommandContext(t.Context(), "sh", append([]string{file}, args...)...)
			cmd.Dir = t.TempDir()
			out, err := cmd.CombinedOutput()
			if cmd.ProcessState.ExitCode() != 2 || len(out) == 0 {
				t.Errorf("%s %q: %v\n%s", a.script, args, err, out)
			}
		}
	}
}

// The number after the command is how much to list.
func TestArgument(t *testing.T) {
	s := systems(t)[0]
	for _, a := range agents {
		sample, err := filepath.Abs(filepath.Join(a.name, "sample"))
		if err != nil {
			t.Fatal(err)
		}
		short, _ := s.run(t, a.name, a.script, a.output, sample, "1")
		long, _ := s.run(t, a.name, a.script, a.output, sample, "3")
		if len(short) >= len(long) {
			t.Errorf("%s: the report is no shorter with 1 than with 3:\n%s", a.name, short)
		}
	}
}

// The manifests are right, and everything that they send is embedded.
func TestManifests(t *testing.T) {
	for _, a := range agents {
		name := path.Join(a.name, agent.FileName)
		data, err := FS.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		m, err := agent.Parse(name, data)
		if err != nil {
			t.Fatal(err)
		}
		spec, sources, err := m.Spec([]string{"5"}, nil)
		if err != nil {
			t.Fatal(err)
		}
		if m.Name != a.name || spec.Command[1] != a.script || spec.Outputs[0] != a.output {
			t.Errorf("%s: got %+v", a.name, spec)
		}
		for _, in := range sources {
			if _, err := fs.Stat(FS, filepath.ToSlash(in.From)); err != nil {
				t.Errorf("%s: %v", a.name, err)
			}
		}
	}
}
