package lease

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"
	"time"
)

func TestFile(t *testing.T) {
	dir := t.TempDir()
	if _, err := Read(dir); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("without a file: %v", err)
	}
	for _, want := range []time.Duration{time.Second, 1<<63 - 1, 0} {
		if err := Write(dir, want); err != nil {
			t.Fatal(err)
		}
		if got, err := Read(dir); err != nil || got != want {
			t.Errorf("%v, %v, want %v", got, err, want)
		}
	}
	for range 2 {
		if err := Forget(dir); err != nil {
			t.Error(err)
		}
	}
	if _, err := Read(dir); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("forgotten: %v", err)
	}
}

// What is in the file is a time, or grants nothing.
func FuzzRead(f *testing.F) {
	for _, s := range []string{"", "0", "12", "-1", "9223372036854775808", "1\n", "0x1", " 1"} {
		f.Add(s)
	}
	dir := f.TempDir()
	f.Fuzz(func(t *testing.T, s string) {
		if err := os.WriteFile(filepath.Join(dir, file), []byte(s), 0o600); err != nil {
			t.Fatal(err)
		}
		if until, err := Read(dir); until < 0 || err != nil && until != 0 {
			t.Errorf("%q is %v, %v", s, until, err)
		}
	})
}
