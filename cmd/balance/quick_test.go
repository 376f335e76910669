package main

import (
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// Package quick is worth nothing if it waits for what it is there to avoid.
func TestQuickStartsBeforeTheRest(t *testing.T) {
	h := home(filepath.Join(shortDir(t), "a"))
	if out, err := exec.Command("balance", "--home", string(h), "init", "--mesh", "lab", "--name", "a", "--owner", "ana").CombinedOutput(); err != nil {
		t.Fatalf("init: %v\n%s", err, out)
	}
	startIn(t, exec.Command("balance", "--home", string(h), "up", "--listen", "127.0.0.1:0", "--no-multicast"), h)
	cmd := exec.Command("balance", "--home", string(h), "run", "-n", "--", "true")
	cmd.Env = append(cmd.Environ(), "GODEBUG=inittrace=1")
	trace, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, trace)
	}
	if !strings.Contains(string(trace), "init os ") {
		t.Fatalf("no trace of initialisation:\n%s", trace)
	}
	for _, late := range []string{"net/http", "net ", "github.com/mattn/go-sqlite3", "github.com/hashicorp/memberlist", "github.com/spf13/cobra", "golang.zx2c4.com/wireguard", "charm.land/lipgloss"} {
		if strings.Contains(string(trace), "init "+late) {
			t.Errorf("%s was initialised first", late)
		}
	}
}
