package main

import (
	"archive/tar"
	"bytes"
	"os"
	"path/filepath"
	"testing"
)

func tarOf(t testing.TB, headers ...*tar.Header) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, h := range headers {
		h.Mode = 0o644
		if h.Typeflag == tar.TypeReg {
			h.Size = 1
		}
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		if h.Typeflag == tar.TypeReg {
			if _, err := w.Write([]byte("x")); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// Whatever a machine sends, nothing is written but what was asked for.
func FuzzUnpackTar(f *testing.F) {
	for _, name := range []string{".", "a", "a/b", "../beside", "/etc/evil", "a/../../beside", "dir/link/x", "", "..", "a\x00b"} {
		for _, kind := range []byte{tar.TypeReg, tar.TypeDir, tar.TypeSymlink, tar.TypeLink, tar.TypeFifo, tar.TypeChar} {
			var b bytes.Buffer
			if tar.NewWriter(&b).WriteHeader(&tar.Header{Name: name, Typeflag: kind}) == nil {
				f.Add(b.Bytes())
			}
		}
	}
	f.Add(tarOf(f, &tar.Header{Name: ".", Typeflag: tar.TypeDir}, &tar.Header{Name: "l", Linkname: "..", Typeflag: tar.TypeSymlink}, &tar.Header{Name: "l/beside", Typeflag: tar.TypeReg}))
	f.Fuzz(func(t *testing.T, b []byte) {
		dir := t.TempDir()
		if err := os.Mkdir(filepath.Join(dir, "in"), 0o700); err != nil {
			t.Fatal(err)
		}
		_, _ = unpackTar(bytes.NewReader(b), filepath.Join(dir, "in", "copy")) // an error is as good
		for at, want := range map[string]string{dir: "in", filepath.Join(dir, "in"): "copy"} {
			list, err := os.ReadDir(at)
			if err != nil {
				t.Fatal(err)
			}
			for _, e := range list {
				if e.Name() != want {
					t.Fatalf("%q was written to %s", e.Name(), at)
				}
			}
		}
	})
}

// What lies beside the copy stays, where the person's own folder has links too.
func TestUnpackTarThroughLinks(t *testing.T) {
	dir := t.TempDir()
	if err := os.MkdirAll(filepath.Join(dir, "in", "copy"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(dir, filepath.Join(dir, "in", "copy", "up")); err != nil {
		t.Fatal(err)
	}
	_, err := unpackTar(bytes.NewReader(tarOf(t, &tar.Header{Name: "up/evil", Typeflag: tar.TypeReg})), filepath.Join(dir, "in", "copy"))
	if _, statErr := os.Stat(filepath.Join(dir, "evil")); err == nil || statErr == nil {
		t.Errorf("written through a link: %v", err)
	}
}
