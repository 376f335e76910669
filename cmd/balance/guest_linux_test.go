package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

// Another host sets its stock WireGuard up by the configuration, as wg-quick
// does it, and its programs use the mesh. The carrier's host uses the mesh too.
func TestGuestByWGQuick(t *testing.T) {
	if testing.Short() {
		t.Skip("takes some seconds")
	}
	for _, tool := range []string{"wg", "wg-quick", "ping", "dig"} {
		_, err := exec.LookPath(tool)
		need(t, err == nil, tool)
	}
	_, err := os.Stat("/dev/net/tun")
	need(t, err == nil, "/dev/net/tun")
	m := newTUNMesh(t, []string{"--tun", "--tun-open", "8080"}, nil, nil)
	outside := len(m.hosts) - 1
	m.balance(outside, "down") // a host that has WireGuard alone
	m.web(0, 8000, "of n0")
	m.balance(0, "expose", "8000")
	m.web(0, 8080, "of the host of n0")
	m.web(0, 8081, "of nobody")
	m.web(1, 8000, "of n1")
	m.balance(1, "expose", "8000")

	bin := t.TempDir()
	build := exec.Command("go", "build", "-o", filepath.Join(bin, "wireguard-go"), "golang.zx2c4.com/wireguard")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build wireguard-go: %v\n%s", err, out)
	}
	names := filepath.Join(bin, "names")
	if err := os.WriteFile(filepath.Join(bin, "resolvconf"), []byte("#!/bin/sh\ncat >"+names+"\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	config := m.balance(0, "invite", "--wireguard", "box", "--dns", "192.0.2.53")
	device := "bal" + strconv.Itoa(os.Getpid())
	file := filepath.Join(bin, device+".conf")
	if err := os.WriteFile(file, []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	quick := func(verb string) {
		t.Helper()
		cmd := m.command(m.hosts[outside], "wg-quick", verb, file)
		cmd.Env = append(os.Environ(), "PATH="+bin+":"+os.Getenv("PATH"))
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("wg-quick %s: %v\n%s", verb, err, out)
		}
	}
	quick("up")
	t.Cleanup(func() { quick("down") })

	for i := range 2 {
		m.must(outside, "ping", "-6", "-c", "1", "-W", "20", m.addrs[i])
		want := "of n" + strconv.Itoa(i)
		m.await(func() bool { got, _ := m.get(outside, m.addrs[i], 8000); return got == want })
		if got := m.must(outside, "dig", "+short", "+tries=5", "@"+m.addrs[i], "n1.lab.internal", "AAAA"); strings.TrimSpace(got) != m.addrs[1] {
			t.Errorf("n%d says that n1 is at %q, want %s", i, got, m.addrs[1])
		}
		if got, err := m.get(outside, m.addrs[i], apiPort); err == nil {
			t.Errorf("a guest gets %q from the API of n%d", got, i)
		}
	}
	m.await(func() bool { got, _ := m.get(outside, m.addrs[0], 8080); return got == "of the host of n0" })
	if got, err := m.get(outside, m.addrs[0], 8081); err == nil {
		t.Errorf("a guest gets %q from a port that is not open", got)
	}
	addr, _, _ := strings.Cut(strings.Split(config, "Address = ")[1], "/")
	m.must(0, "ping", "-6", "-c", "1", "-W", "20", addr)
	if got, err := os.ReadFile(names); err != nil || string(got) != "nameserver "+m.addrs[0]+"\nnameserver 192.0.2.53\nsearch lab.internal\n" {
		t.Errorf("names: %q, %v", got, err)
	}
	shown := m.must(outside, "wg", "show", device, "latest-handshakes")
	if fields := strings.Fields(shown); len(fields) != 2 || fields[1] == "0" {
		t.Errorf("wg shows the handshakes %q", shown)
	}

	m.balance(0, "guests", "rm", "box")
	for i := range 2 {
		if got, err := m.get(outside, m.addrs[i], 8000); err == nil {
			t.Errorf("who was taken back gets %q from n%d", got, i)
		}
	}
}
