package fleet

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"time"
)

// Bounds on asking an engine for its version.
const (
	versionTime  = 5 * time.Second
	versionBytes = 4 << 10
)

// engines are the model servers that people already run: their program, the
// places where installers put it beside PATH, and how its version is told.
var engines = []struct {
	name, program string
	places        []string
	version       func(ctx context.Context, program string) string
}{
	{"ollama", "ollama", []string{"/usr/local/bin", "/opt/homebrew/bin", "/Applications/Ollama.app/Contents/Resources"}, askVersion},
	{"llama-server", "llama-server", []string{"/usr/local/bin", "/opt/homebrew/bin", "~/.local/bin", "~/llama.cpp/build/bin"}, askVersion},
	{"vllm", "vllm", []string{"~/.local/bin", "/opt/vllm/bin"}, pythonVersion},
	{"lm-studio", "lms", []string{"~/.lmstudio/bin", "~/.cache/lm-studio/bin"}, nil},
}

// engineFinder finds engines, and remembers the version of a program until the
// file changes.
type engineFinder struct {
	mu    sync.Mutex
	known map[string]knownEngine // by path
}

type knownEngine struct {
	changed time.Time
	size    int64
	version string
}

func newEngineFinder() engineFinder { return engineFinder{known: map[string]knownEngine{}} }

// find returns the engines that are installed, in the order of the list.
func (f *engineFinder) find(ctx context.Context) []Engine {
	f.mu.Lock()
	defer f.mu.Unlock()
	var out []Engine
	for _, e := range engines {
		path := findProgram(e.program, e.places)
		if path == "" {
			continue
		}
		found := Engine{Name: e.name}
		if e.version != nil {
			found.Version = f.version(ctx, path, e.version)
		}
		out = append(out, found)
	}
	return out
}

func (f *engineFinder) version(ctx context.Context, path string, ask func(context.Context, string) string) string {
	info, err := os.Stat(path)
	if err != nil {
		return ""
	}
	k, ok := f.known[path]
	if !ok || !k.changed.Equal(info.ModTime()) || k.size != info.Size() {
		k = knownEngine{info.ModTime(), info.Size(), ask(ctx, path)}
		f.known[path] = k
	}
	return k.version
}

// EnginePath returns where the program of an engine is on this machine; empty
// where it is not.
func EnginePath(name string) string {
	for _, e := range engines {
		if e.name == name {
			return findProgram(e.program, e.places)
		}
	}
	return ""
}

// findProgram looks for a program in PATH and in other places.
func findProgram(name string, places []string) string {
	if path, err := exec.LookPath(name); err == nil {
		return path
	}
	home, _ := os.UserHomeDir()
	for _, dir := range places {
		if rest, ok := strings.CutPrefix(dir, "~/"); ok {
			dir = filepath.Join(home, rest)
		}
		if path, err := exec.LookPath(filepath.Join(dir, name)); err == nil {
			return path
		}
	}
	return ""
}

// askVersion runs the program with --version. It is told of no server to ask,
// and is not waited for long.
func askVersion(ctx context.Context, program string) string {
	ctx, cancel := context.WithTimeout(ctx, versionTime)
	defer cancel()
	var out cappedBuffer
	cmd := exec.CommandContext(ctx, program, "--version")
	cmd.Env = append(os.Environ(), "OLLAMA_HOST=127.0.0.1:1")
	cmd.Stdout, cmd.Stderr = &out, &out
	cmd.WaitDelay = time.Second // for children that hold the pipe
	_ = cmd.Run()               // some tell their version and fail
	m := regexp.MustCompile(`version(?: is|:)? v?([0-9][0-9A-Za-z.+-]*)`).FindSubmatch(out.b)
	if m == nil {
		return ""
	}
	return string(m[1])
}

// pythonVersion reads the version of a Python program from the metadata beside
// it: to start it would load all of its libraries.
func pythonVersion(_ context.Context, program string) string {
	if path, err := filepath.EvalSymlinks(program); err == nil {
		program = path
	}
	name := filepath.Base(program)
	found, _ := filepath.Glob(filepath.Join(filepath.Dir(program), "../lib/python3*/*-packages", name+"-*.dist-info"))
	if len(found) == 0 {
		return ""
	}
	return strings.TrimSuffix(strings.TrimPrefix(filepath.Base(found[0]), name+"-"), ".dist-info")
}

// cappedBuffer keeps the beginning of what is written to it.
type cappedBuffer struct{ b []byte }

func (c *cappedBuffer) Write(p []byte) (int, error) {
	c.b = append(c.b, p[:min(len(p), versionBytes-len(c.b))]...)
	return len(p), nil
}
