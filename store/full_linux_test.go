package store

import (
	"os"
	"path/filepath"
	"syscall"
	"testing"
)

// unavailable ends a test that this machine cannot run.
func unavailable(t *testing.T, why string) {
	t.Helper()
	if os.Getenv("BALANCE_REQUIRE") == "1" {
		t.Fatal(why)
	}
	t.Skip(why)
}

// The same on a real file system with no space left.
func TestFullFileSystem(t *testing.T) {
	dir := t.TempDir()
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "size=2m"); err != nil {
		unavailable(t, "mount a tmpfs: "+err.Error())
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(dir, syscall.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	s := openAt(t, filepath.Join(dir, "ledger.db"), 1)
	checkFull(t, s, func() {
		if err := syscall.Mount("", dir, "", syscall.MS_REMOUNT, "size=32m"); err != nil {
			t.Fatal(err)
		}
	})
}
