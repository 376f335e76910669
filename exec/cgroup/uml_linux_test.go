package cgroup

import (
	"bytes"
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// initScript is the first process of the other kernel. It puts the tests into a
// group of their own, as a service manager that delegates one would.
const initScript = `#!/bin/sh
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t tmpfs tmp /tmp
mount -t cgroup2 cgroup /sys/fs/cgroup
echo "+cpu +memory +pids" > /sys/fs/cgroup/cgroup.subtree_control
mkdir /sys/fs/cgroup/service
(echo 0 > /sys/fs/cgroup/service/cgroup.procs; cd /tmp; BALANCE_LAB= BALANCE_REQUIRE=1 exec TEST -test.v -test.run 'Memory|CPU|PIDs|Kill|Back|Left|FailsClosed')
echo "exit code $?"
echo o > /proc/sysrq-trigger
sleep 60
`

// Version 2 with all its controllers is not to be had on a machine where version
// 1 has taken them, but every machine can be another one: the same tests, in
// User Mode Linux.
func TestVersion2(t *testing.T) {
	if os.Getenv("BALANCE_LAB") != "1" {
		t.Skip("boots another kernel: set BALANCE_LAB=1")
	}
	kernel, err := exec.LookPath("linux.uml")
	if err != nil {
		if os.Getenv("BALANCE_REQUIRE") == "1" {
			t.Fatal("needs linux.uml: install user-mode-linux")
		}
		t.Skip("needs linux.uml")
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	// The other kernel's /tmp is its own, and what it starts must be elsewhere.
	dir, err := os.MkdirTemp("/var/tmp", "uml") //nolint:usetesting // see above
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	binary, script := filepath.Join(dir, "test"), filepath.Join(dir, "init")
	b, err := os.ReadFile(self)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(binary, b, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(script, []byte(strings.ReplaceAll(initScript, "TEST", binary)), 0o755); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	var out bytes.Buffer
	cmd := exec.CommandContext(ctx, kernel, "mem=512M", "rootfstype=hostfs", "rootflags=/", "ro", "init="+script, "con=null", "con0=null,fd:1", "quiet")
	cmd.Env = append(os.Environ(), "TMPDIR="+dir)
	cmd.Stdout = &out
	err = cmd.Run()
	if err != nil || !strings.Contains(out.String(), "exit code 0") || !strings.Contains(out.String(), "--- PASS: TestMemory") || !strings.Contains(out.String(), "Version:2") {
		t.Errorf("%v\n%s", err, out.String())
	}
}
