package run

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/balanceai/balance/exec/task"
)

// listing is what an archive has, a line each.
func listing(t *testing.T, archive []byte) string {
	t.Helper()
	var b strings.Builder
	for r := tar.NewReader(bytes.NewReader(archive)); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return b.String()
		}
		if err != nil {
			t.Fatal(err)
		}
		text, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(&b, "%c %s %s\n", h.Typeflag, h.Name, text)
	}
}

// Files of a run can be had while it goes on and after, and nothing but its files.
func TestFiles(t *testing.T) {
	l := newLab(t)
	outside := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(outside, []byte("secret"), 0o600); err != nil {
		t.Fatal(err)
	}
	o := order(spec("sh", "-c", `mkdir -p d/e; echo one >d/one; echo two >d/e/two; ln -s one d/link; ln -s "$1" d/out; ln -s "$2" d/up
		mkfifo d/pipe; echo ready; until [ -e go ]; do sleep 0.05; done`, "sh", outside, filepath.Dir(outside)))
	w := l.start(o)
	w.untilOutput("ready")
	get := func(name string) (string, error) {
		var b bytes.Buffer
		if err := l.Files(t.Context(), o.Run, name, &b); err != nil {
			return "", err
		}
		return listing(t, b.Bytes()), nil
	}
	want := "5 . \n5 e \n0 e/two two\n\n0 link one\n\n0 one one\n\n2 out \n2 pipe \n2 up \n"
	if got, err := get("d"); got != want || err != nil {
		t.Errorf("%q, %v", got, err)
	}
	if err := os.WriteFile(filepath.Join(l.folder(o.Run), "work", "go"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	w.end()
	if got, err := get("d/e/two"); got != "0 . two\n\n" || err != nil {
		t.Errorf("after the end: %q, %v", got, err)
	}
	if got, err := get("."); !strings.HasPrefix(got, "5 . \n5 d \n5 d/e \n0 d/e/two two\n") || err != nil {
		t.Errorf("all: %q, %v", got, err)
	}
	for _, name := range []string{"d/none", "d/out/x", "d/up/secret", "../events", "/etc/passwd", "", "d/../d"} {
		if got, err := get(name); err == nil {
			t.Errorf("%q gave %q", name, got)
		}
	}
	if _, err := get("d/none"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("none: %v", err)
	}
	if err := l.Files(t.Context(), task.NewID(), ".", io.Discard); !errors.Is(err, task.ErrNoRun) {
		t.Errorf("no run: %v", err)
	}
}
