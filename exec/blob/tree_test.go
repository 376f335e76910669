package blob

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/balanceai/balance/exec/task"
	"github.com/balanceai/balance/mesh/wire"
)

// hashOf gives files of hand-made trees their content.
func hashOf(content string) wire.Hash { return sha256.Sum256([]byte(content)) }

func TestTreeOnTheWire(t *testing.T) {
	tree := Tree{
		{Path: "README", Kind: Regular, Size: 7, Hash: hashOf("read me")},
		{Path: "bin/tool", Kind: Executable, Size: 10, Hash: hashOf("#!/bin/sh\n")},
		{Path: "empty", Kind: Folder},
		{Path: "nothing", Kind: Regular, Hash: hashOf("")},
	}
	for name, tree := range map[string]Tree{"tree": tree, "file": {{Kind: Regular, Size: 1, Hash: hashOf("x")}}, "none": nil} {
		got, err := tree.encode()
		if err != nil {
			t.Fatal(err)
		}
		path := filepath.Join("testdata", name+".hex")
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		want, err := hex.DecodeString(strings.Join(strings.Fields(string(text)), ""))
		if err != nil || !bytes.Equal(got, want) {
			t.Errorf("%s: %x", path, got)
		}
		back, err := decode(bytes.NewReader(want), plenty)
		if err != nil || !slices.Equal(back, tree) {
			t.Errorf("%s comes back as %v, %v", path, back, err)
		}
	}
}

// forge encodes a tree without looking at it.
func forge(t testing.TB, tree Tree) []byte {
	t.Helper()
	b := []byte(treeHeader)
	for _, f := range tree {
		r, err := wire.Marshal(&f)
		if err != nil {
			t.Fatal(err)
		}
		b = append(b, byte(len(r)>>8), byte(len(r)))
		b = append(b, r...)
	}
	return b
}

// Names that would be written elsewhere, or over one another, on some machine
// (TRUST, T25).
func TestHostileTrees(t *testing.T) {
	file := func(path string) File { return File{Path: path, Kind: Regular, Size: 1, Hash: hashOf("x")} }
	trees := map[string]Tree{
		"not sorted":          {file("b"), file("a")},
		"twice":               {file("a"), file("a")},
		"case":                {file("A"), file("a")},
		"case of folders":     {file("A/x"), file("a/y")},
		"case of letters":     {file("K"), file("\u212a")},
		"file and folder":     {file("a"), file("a/b")},
		"file far below":      {file("a"), file("a/b/c/d")},
		"folder and file":     {{Path: "a", Kind: Folder}, file("a/b")},
		"file and case":       {file("A"), file("a/b")},
		"one file and more":   {file(""), file("a")},
		"folder at the top":   {{Path: "", Kind: Folder}},
		"folder with content": {{Path: "a", Kind: Folder, Size: 1, Hash: hashOf("x")}},
		"file without a hash": {{Path: "a", Kind: Regular, Size: 1}},
		"unknown kind":        {{Path: "a", Kind: 4, Size: 1, Hash: hashOf("x")}},
		"no kind":             {{Path: "a", Size: 1, Hash: hashOf("x")}},
		"huge":                {{Path: "a", Kind: Regular, Size: math.MaxUint64, Hash: hashOf("x")}},
		"huge in all":         {{Path: "a", Kind: Regular, Size: 1 << 61, Hash: hashOf("x")}, {Path: "b", Kind: Regular, Size: 1 << 61, Hash: hashOf("x")}},
	}
	for _, p := range []string{
		"..", ".", "../x", "a/../../x", "a/..", "/etc/passwd", "//x", "a//b", "a/", "./a", "a/./b", "a\x00b", `..\x`, `C:\x`, `C:x`, "x:stream",
		`\\server\share`, strings.Repeat("a", 5000),
	} {
		trees["path "+p] = Tree{file(p)}
	}
	for name, tree := range trees {
		if _, err := decode(bytes.NewReader(forge(t, tree)), plenty); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	good := forge(t, Tree{file("a"), file("b")})
	for n := range len(good) {
		back, err := decode(bytes.NewReader(good[:n]), plenty)
		if cut := (len(good) - len(treeHeader)) / 2; err == nil && n != len(treeHeader) && n != len(treeHeader)+cut {
			t.Errorf("cut to %d bytes: %v", n, back)
		}
	}
	for _, limits := range []Limits{{1, 2}, {2, 1}} {
		if _, err := decode(bytes.NewReader(good), limits); !errors.Is(err, ErrLimit) {
			t.Errorf("limits %v: %v", limits, err)
		}
	}
}

func TestManyFiles(t *testing.T) {
	tree := make(Tree, 0, 100_000)
	for i := range cap(tree) {
		tree = append(tree, File{Path: fmt.Sprintf("some/folder%03d/of/files/number%06d.txt", i/1000, i), Kind: Regular, Size: 1, Hash: hashOf("x")})
	}
	s := open(t)
	h, err := s.save(t.Context(), tree)
	if err != nil {
		t.Fatal(err)
	}
	back, err := s.Tree(h)
	if err != nil || !slices.Equal(back, tree) {
		t.Errorf("%d entries, %v", len(back), err)
	}
	if _, err := s.load(h, Limits{task.TiB, 99_999}); !errors.Is(err, ErrLimit) {
		t.Errorf("over the limit: %v", err)
	}
}

func FuzzTree(f *testing.F) {
	for _, name := range []string{"tree", "file", "none"} {
		text, err := os.ReadFile(filepath.Join("testdata", name+".hex"))
		if err != nil {
			f.Fatal(err)
		}
		b, err := hex.DecodeString(strings.Join(strings.Fields(string(text)), ""))
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		tree, err := decode(bytes.NewReader(data), Limits{task.GiB, 100})
		if err != nil {
			if !errors.Is(err, ErrForm) && !errors.Is(err, ErrLimit) {
				t.Errorf("untyped error %v", err)
			}
			return
		}
		if again, err := tree.encode(); err != nil || !bytes.Equal(again, data) {
			t.Errorf("two byte forms of one tree: %x and %x, %v", data, again, err)
		}
	})
}

func BenchmarkDecode(b *testing.B) {
	var tree Tree
	for i := range 10_000 {
		tree = append(tree, File{Path: fmt.Sprintf("some/folder%03d/of/files/number%06d.txt", i/1000, i), Kind: Regular, Size: 1, Hash: hashOf("x")})
	}
	data, err := tree.encode()
	if err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		if _, err := decode(bytes.NewReader(data), plenty); err != nil {
			b.Fatal(err)
		}
	}
}
