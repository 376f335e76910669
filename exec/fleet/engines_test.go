package fleet

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// program writes an executable shell script.
func program(t *testing.T, path, script string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte("#!/bin/sh\n"+script), 0o755); err != nil {
		t.Fatal(err)
	}
}

func TestEngines(t *testing.T) {
	home, bin := t.TempDir(), t.TempDir()
	t.Setenv("HOME", home)
	t.Setenv("PATH", bin+":/bin:/usr/bin")
	log := filepath.Join(home, "asked")
	program(t, filepath.Join(bin, "ollama"), `echo "$* $OLLAMA_HOST" >>`+log+`
echo "Warning: could not connect to a running Ollama instance"
echo "Warning: client version is 0.12.6"`)
	program(t, filepath.Join(home, ".local/bin/llama-server"), `echo "version: 6710 (b4f1f7f)" >&2; echo built with cc >&2; exit 1`)
	program(t, filepath.Join(home, "venv/bin/vllm"), `echo started >>`+log)
	if err := os.Symlink(filepath.Join(home, "venv/bin/vllm"), filepath.Join(bin, "vllm")); err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(home, "venv/lib/python3.12/site-packages/vllm-0.11.0+cu129.dist-info/METADATA"), "")
	program(t, filepath.Join(home, ".lmstudio/bin/lms"), `echo started >>`+log)

	want := []Engine{
		{Name: "ollama", Version: "0.12.6"},
		{Name: "llama-server", Version: "6710"},
		{Name: "vllm", Version: "0.11.0+cu129"},
		{Name: "lm-studio"},
	}
	f := newEngineFinder()
	same(t, f.find(t.Context()), want)
	same(t, f.find(t.Context()), want)
	if got, err := os.ReadFile(log); err != nil || string(got) != "--version 127.0.0.1:1\n" {
		t.Errorf("programs were started with %q, %v", got, err)
	}

	program(t, filepath.Join(bin, "ollama"), "echo ollama version is 0.13.0")
	if got := f.find(t.Context())[0].Version; got != "0.13.0" {
		t.Errorf("version %q after an update", got)
	}
}

func TestNoEngines(t *testing.T) {
	t.Setenv("HOME", t.TempDir())
	t.Setenv("PATH", t.TempDir())
	f := newEngineFinder()
	if got := f.find(t.Context()); got != nil {
		t.Errorf("got %v", got)
	}
}

// An engine that hangs, or that does not stop talking, costs its version.
func TestEngineMisbehaves(t *testing.T) {
	bin := t.TempDir()
	program(t, filepath.Join(bin, "hangs"), "exec sleep 60")
	program(t, filepath.Join(bin, "talks"), "exec yes version 9")
	program(t, filepath.Join(bin, "mute"), "")
	start := time.Now()
	for name, want := range map[string]string{"hangs": "", "talks": "9", "mute": ""} {
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		if got := askVersion(ctx, filepath.Join(bin, name)); got != want {
			t.Errorf("%s: version %q, want %q", name, got, want)
		}
		cancel()
	}
	if took := time.Since(start); took > 30*time.Second {
		t.Errorf("took %v", took)
	}
}

func TestCappedBuffer(t *testing.T) {
	var c cappedBuffer
	for range 3 {
		if n, err := c.Write([]byte(strings.Repeat("x", versionBytes-1))); n != versionBytes-1 || err != nil {
			t.Fatal(n, err)
		}
	}
	if len(c.b) != versionBytes {
		t.Errorf("kept %d bytes", len(c.b))
	}
}
