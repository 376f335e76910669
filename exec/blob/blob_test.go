package blob

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"
	"pgregory.net/rapid"

	"github.com/balanceai/balance/exec/task"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var plenty = Limits{task.TiB, 1_000_000}

func open(t testing.TB) *Store {
	t.Helper()
	s, err := Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func openRoot(t testing.TB, dir string) *os.Root {
	t.Helper()
	root, err := os.OpenRoot(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { root.Close() })
	return root
}

// write makes files below a folder. A name that ends with a slash is a folder,
// one that ends with * may be executed.
func write(t testing.TB, dir string, files map[string]string) {
	t.Helper()
	for name, content := range files {
		path := filepath.Join(dir, strings.TrimSuffix(name, "*"))
		mode := fs.FileMode(0o600)
		if strings.HasSuffix(name, "*") {
			mode = 0o700
		}
		folder := filepath.Dir(path)
		if strings.HasSuffix(name, "/") {
			folder = path
		}
		if err := os.MkdirAll(folder, 0o700); err != nil {
			t.Fatal(err)
		}
		if strings.HasSuffix(name, "/") {
			continue
		}
		if err := os.WriteFile(path, []byte(content), mode); err != nil {
			t.Fatal(err)
		}
	}
}

// list is the inverse of write.
func list(t testing.TB, dir string) map[string]string {
	t.Helper()
	out := map[string]string{}
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name, _ := filepath.Rel(dir, path)
		if d.IsDir() {
			if inside, err := os.ReadDir(path); err != nil || len(inside) > 0 || path == dir {
				return err
			}
			out[name+"/"] = ""
			return nil
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		if info.Mode()&0o100 != 0 {
			name += "*"
		}
		b, err := os.ReadFile(path)
		out[name] = string(b)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func pack(t testing.TB, s *Store, path string) task.Input {
	t.Helper()
	in, err := s.Pack(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	return in
}

func same(a, b map[string]string) bool { return fmt.Sprint(a) == fmt.Sprint(b) }

var someFiles = map[string]string{
	"README":           "read me",
	"a-b":              "sorted between a and a/b",
	"a/b":              "below",
	"a/c/d":            "",
	"bin/tool*":        "#!/bin/sh\n",
	"empty/":           "",
	"name with spaces": "é \xff",
	"ünïcode/ß":        "x",
	"large":            strings.Repeat("0123456789abcdef", 40_000),
}

func TestPackUnpack(t *testing.T) {
	s, from, to := open(t), t.TempDir(), t.TempDir()
	write(t, from, someFiles)
	in := pack(t, s, from)
	if in.Kind != task.KindFolder || in.Size != task.Bytes(len("read mesorted between a and a/bbelow#!/bin/sh\né \xffx")+640_000) {
		t.Errorf("packed as %+v", in)
	}
	if err := s.Unpack(t.Context(), in.Tree, openRoot(t, to), "."); err != nil {
		t.Fatal(err)
	}
	if got := list(t, to); !same(got, someFiles) {
		t.Errorf("unpacked as %q", got)
	}
	if err := s.Unpack(t.Context(), in.Tree, openRoot(t, to), "deep/er"); err != nil {
		t.Fatal(err)
	}
	if again := pack(t, s, filepath.Join(to, "deep", "er")); again != in {
		t.Errorf("packed again as %+v, want %+v", again, in)
	}
	if err := s.Unpack(t.Context(), in.Tree, openRoot(t, to), "."); !errors.Is(err, fs.ErrExist) {
		t.Errorf("a file was replaced: %v", err)
	}
	if missing, err := s.Missing(in.Tree); err != nil || len(missing) != 0 {
		t.Errorf("missing %v, %v", missing, err)
	}
}

func TestOneFile(t *testing.T) {
	s, dir := open(t), t.TempDir()
	write(t, dir, map[string]string{"x:y*": "tool"}) // the name does not travel
	in := pack(t, s, filepath.Join(dir, "x:y"))
	if in.Kind != task.KindFile || in.Size != 4 {
		t.Errorf("packed as %+v", in)
	}
	if err := s.Unpack(t.Context(), in.Tree, openRoot(t, dir), "sub/name"); err != nil {
		t.Fatal(err)
	}
	want := map[string]string{"x:y*": "tool", "sub/name*": "tool"}
	if got := list(t, dir); !same(got, want) {
		t.Errorf("unpacked as %q", got)
	}
	if _, err := s.Pack(t.Context(), filepath.Join(dir, "none")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a file that is not there: %v", err)
	}
}

func TestEmptyFolder(t *testing.T) {
	s, dir := open(t), t.TempDir()
	in := pack(t, s, t.TempDir())
	if err := s.Unpack(t.Context(), in.Tree, openRoot(t, dir), "sub"); err != nil {
		t.Fatal(err)
	}
	if got := list(t, dir); !same(got, map[string]string{"sub/": ""}) {
		t.Errorf("unpacked as %q", got)
	}
}

func TestRoundTrip(t *testing.T) {
	s, base := open(t), t.TempDir()
	n := 0
	rapid.Check(t, func(rt *rapid.T) {
		part := rapid.StringMatching(`[a-z0-9._-]{1,3}x`)
		files := map[string]string{}
		for range rapid.IntRange(0, 12).Draw(rt, "files") {
			name := strings.Join(rapid.SliceOfN(part, 1, 4).Draw(rt, "path"), "y/") // folders end in xy, files in x
			if rapid.Bool().Draw(rt, "exec") {
				name += "*"
			}
			delete(files, strings.TrimSuffix(name, "*"))
			delete(files, strings.TrimSuffix(name, "*")+"*")
			files[name] = string(rapid.SliceOfN(rapid.Byte(), 0, 100).Draw(rt, "content"))
		}
		n++
		from, to := filepath.Join(base, fmt.Sprint(n)), filepath.Join(base, fmt.Sprint(n, "to"))
		write(t, from, map[string]string{"/": ""})
		write(t, from, files)
		write(t, to, map[string]string{"/": ""})
		in := pack(t, s, from)
		if err := s.Unpack(t.Context(), in.Tree, openRoot(t, to), "."); err != nil {
			rt.Fatal(err)
		}
		if got := list(t, to); !same(got, files) {
			rt.Fatalf("%q came back as %q", files, got)
		}
	})
}

func TestLinks(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, map[string]string{"in/file": "content", "in/sub/x": "y", "secret": "no"})
	for link, want := range map[string]string{
		"file": "", "sub/../file": "", "../secret": "does not lead to a file", "/etc/passwd": "does not lead to a file",
		"none": "does not lead to a file", "sub": "does not lead to a file", "loop": "does not lead to a file",
	} {
		s, path := open(t), filepath.Join(dir, "in", "loop")
		if err := os.Symlink(link, path); err != nil {
			t.Fatal(err)
		}
		in, err := s.Pack(t.Context(), filepath.Join(dir, "in"))
		os.Remove(path)
		switch {
		case want != "":
			if err == nil || !strings.Contains(err.Error(), "loop") || !strings.Contains(err.Error(), want) {
				t.Errorf("link to %s: %v", link, err)
			}
		case err != nil:
			t.Errorf("link to %s: %v", link, err)
		default:
			to := t.TempDir()
			if err := s.Unpack(t.Context(), in.Tree, openRoot(t, to), "."); err != nil {
				t.Error(err)
			}
			if got := list(t, to); got["loop"] != "content" {
				t.Errorf("link to %s: unpacked as %q", link, got)
			}
		}
	}
	if err := os.Symlink("in", filepath.Join(dir, "named")); err != nil {
		t.Fatal(err)
	}
	if in := pack(t, open(t), filepath.Join(dir, "named")); in.Kind != task.KindFolder {
		t.Errorf("a link that the user names is packed as %+v", in)
	}
}

func TestUnpackable(t *testing.T) {
	for name, make := range map[string]func(string) error{
		"pipe":       func(path string) error { return syscall.Mkfifo(path, 0o600) },
		"a:b":        func(path string) error { return os.WriteFile(path, nil, 0o600) },
		`back\slash`: func(path string) error { return os.WriteFile(path, nil, 0o600) },
		"bad\xffutf": func(path string) error { return os.WriteFile(path, nil, 0o600) },
		"README":     func(path string) error { return os.WriteFile(path, nil, 0o600) },
	} {
		dir := t.TempDir()
		write(t, dir, map[string]string{"readme": "x"})
		if err := make(filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
		if _, err := open(t).Pack(t.Context(), dir); err == nil {
			t.Errorf("%q was packed", name)
		}
	}
}

func TestPackOutputs(t *testing.T) {
	s, work, to := open(t), t.TempDir(), t.TempDir()
	write(t, work, map[string]string{
		"report.md": "r", "out/a": "1", "out/b/c*": "2", "out/none/": "", "log1.txt": "l1", "log2.txt": "l2", "other": "o", "[x]": "brackets",
	})
	for link, target := range map[string]string{"out/latest": "a", "out/away": "/etc/passwd"} {
		if err := os.Symlink(target, filepath.Join(work, link)); err != nil {
			t.Fatal(err)
		}
	}
	if err := syscall.Mkfifo(filepath.Join(work, "out", "pipe"), 0o600); err != nil {
		t.Fatal(err)
	}
	root := openRoot(t, work)
	out, err := s.PackOutputs(t.Context(), root, []string{"report.md", "out", "out/a", "log*.txt", "[x]", "gone", "none/*.x"}, plenty)
	if err != nil {
		t.Fatal(err)
	}
	for i, want := range []string{"out/away", "out/pipe", "gone is not there", "none/*.x is not there"} {
		if i >= len(out.Missing) || !slices.ContainsFunc(out.Missing, func(m string) bool { return strings.HasPrefix(m, want) }) {
			t.Errorf("missing %q: want %s", out.Missing, want)
		}
	}
	if err := s.Unpack(t.Context(), out.Tree, openRoot(t, to), "."); err != nil {
		t.Fatal(err)
	}
	want := map[string]string{
		"report.md": "r", "out/a": "1", "out/b/c*": "2", "out/none/": "", "log1.txt": "l1", "log2.txt": "l2", "[x]": "brackets", "out/latest": "1",
	}
	if got := list(t, to); !same(got, want) || out.Size != 16 {
		t.Errorf("%d bytes: %q", out.Size, got)
	}
	out, err = s.PackOutputs(t.Context(), root, []string{"gone"}, plenty)
	if err != nil || !out.Tree.IsZero() || len(out.Missing) != 1 {
		t.Errorf("nothing is packed as %+v, %v", out, err)
	}
	for _, limits := range []Limits{{3, 100}, {100, 3}} {
		if _, err := s.PackOutputs(t.Context(), root, []string{"report.md", "out", "log1.txt"}, limits); !errors.Is(err, ErrLimit) {
			t.Errorf("limits %v: %v", limits, err)
		}
	}
	if err := os.Truncate(filepath.Join(work, "other"), 10<<40); err != nil {
		t.Fatal(err)
	}
	if _, err := s.PackOutputs(t.Context(), root, []string{"other"}, plenty); !errors.Is(err, ErrLimit) {
		t.Errorf("10 TiB of nothing: %v", err)
	}
}

// A link that is in the way is not written through to another place.
func TestUnpackBesideLinks(t *testing.T) {
	s, from := open(t), t.TempDir()
	write(t, from, map[string]string{"d/f": "content"})
	in := pack(t, s, from)
	for _, link := range []string{"d", "d/f"} {
		to, outside := t.TempDir(), t.TempDir()
		if link == "d/f" {
			write(t, to, map[string]string{"d/": ""})
		}
		if err := os.Symlink(outside, filepath.Join(to, link)); err != nil {
			t.Fatal(err)
		}
		if err := s.Unpack(t.Context(), in.Tree, openRoot(t, to), "."); err == nil {
			t.Errorf("%s: unpacked over a link", link)
		}
		if got := list(t, outside); len(got) != 0 {
			t.Errorf("%s: written outside: %q", link, got)
		}
	}
}

func TestPrune(t *testing.T) {
	s, dir := open(t), t.TempDir()
	write(t, dir, map[string]string{"old": "old", "new": "new"})
	old, fresh := pack(t, s, filepath.Join(dir, "old")), pack(t, s, filepath.Join(dir, "new"))
	past := time.Now().Add(-time.Hour)
	write(t, filepath.Join(s.dir, partial), map[string]string{"put-1": "", "put-2": ""})
	for _, path := range []string{s.path(old.Tree), s.path(hashOf("old")), s.path(hashOf("new")), filepath.Join(s.dir, partial, "put-1")} {
		if err := os.Chtimes(path, past, past); err != nil {
			t.Fatal(err)
		}
	}
	pack(t, s, filepath.Join(dir, "new")) // is a use
	if err := s.Prune(t.Context(), past.Add(time.Minute)); err != nil {
		t.Fatal(err)
	}
	if missing, err := s.Missing(fresh.Tree); err != nil || len(missing) != 0 {
		t.Errorf("missing %v, %v", missing, err)
	}
	if _, err := s.Open(hashOf("old")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("old blob: %v", err)
	}
	if left, err := os.ReadDir(filepath.Join(s.dir, partial)); err != nil || len(left) != 1 {
		t.Errorf("left over: %v, %v", left, err)
	}
}

func TestModes(t *testing.T) {
	s, dir := open(t), t.TempDir()
	write(t, dir, map[string]string{"x*": "content"})
	pack(t, s, dir)
	err := filepath.WalkDir(s.dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || path == s.dir {
			return err
		}
		info, err := d.Info()
		if want := map[bool]fs.FileMode{true: 0o700, false: 0o600}[d.IsDir()]; err == nil && info.Mode().Perm() != want {
			t.Errorf("%s has mode %v", path, info.Mode())
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
}

func BenchmarkPack(b *testing.B) {
	s, dir := open(b), b.TempDir()
	write(b, dir, map[string]string{"x": strings.Repeat("0123456789abcdef", 4<<20)})
	b.SetBytes(64 << 20)
	for b.Loop() {
		pack(b, s, dir)
	}
}
