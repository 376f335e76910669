package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
)

// segment is a switch with hosts, each a network namespace that lives as long as
// the process that holds it.
type segment struct {
	t     *testing.T
	hub   *exec.Cmd
	hosts []*exec.Cmd
}

func newSegment(t *testing.T, hosts int) *segment {
	need(t, os.Getuid() == 0, "root, for network namespaces")
	for _, tool := range []string{"ip", "nsenter"} {
		_, err := exec.LookPath(tool)
		need(t, err == nil, tool)
	}
	s := &segment{t: t}
	s.hub = s.namespace()
	s.in(s.hub, "ip link add lan type bridge mcast_snooping 0")
	s.in(s.hub, "ip link set lan up")
	for i := range hosts {
		h := s.namespace()
		s.hosts = append(s.hosts, h)
		s.in(s.hub, fmt.Sprintf("ip link add p%d type veth peer name eth0 netns %d", i, h.Process.Pid))
		s.in(s.hub, fmt.Sprintf("ip link set p%d master lan up", i))
		s.in(h, "ip link set lo up")
		s.in(h, "ip link set eth0 up")
	}
	return s
}

// namespace starts a process in a network of its own that ends with the test.
func (s *segment) namespace() *exec.Cmd {
	cmd := exec.Command("sleep", "600")
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET, Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		need(s.t, false, "network namespaces: "+err.Error())
	}
	s.t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	return cmd
}

func (s *segment) command(ns *exec.Cmd, args ...string) *exec.Cmd {
	return exec.Command("nsenter", append([]string{"-t", strconv.Itoa(ns.Process.Pid), "-n", "--"}, args...)...)
}

func (s *segment) in(ns *exec.Cmd, command string) string {
	s.t.Helper()
	out, err := s.command(ns, strings.Fields(command)...).CombinedOutput()
	if err != nil {
		s.t.Fatalf("%s: %v\n%s", command, err, out)
	}
	return string(out)
}

// address gives every host an address in a network.
func (s *segment) address(network string) {
	for i, h := range s.hosts {
		s.in(h, "ip -4 addr flush dev eth0")
		s.in(h, fmt.Sprintf("ip addr add %s.%d/24 dev eth0", network, i+1))
	}
}

// Three nodes on one LAN find each other by multicast alone: every address that
// they knew of each other is wrong when they start again.
func TestLANByMulticastAlone(t *testing.T) {
	if testing.Short() {
		t.Skip("takes some seconds")
	}
	s := newSegment(t, 3)
	s.address("10.77.1")
	dir := shortDir(t)
	homes := make([]home, len(s.hosts))
	for i := range homes {
		homes[i] = home(filepath.Join(dir, strconv.Itoa(i)))
	}
	balance := func(i int, args ...string) string {
		t.Helper()
		out, err := s.command(s.hosts[i], append([]string{"balance", "--home", string(homes[i])}, args...)...).Output()
		if err != nil {
			exit, _ := errors.AsType[*exec.ExitError](err)
			t.Fatalf("balance %v on host %d: %v\n%s", args, i, err, exit.Stderr)
		}
		return string(out)
	}
	up := func(i int) { startIn(t, s.command(s.hosts[i], "balance", "--home", string(homes[i]), "up"), homes[i]) }

	balance(0, "init", "--mesh", "lab", "--name", "n0", "--owner", "ana")
	up(0)
	for i := 1; i < len(homes); i++ {
		invite := filepath.Join(dir, "invite")
		if err := os.WriteFile(invite, []byte(balance(0, "invite")), 0o600); err != nil {
			t.Fatal(err)
		}
		balance(i, "join", "--name", fmt.Sprintf("n%d", i), invite)
	}
	balance(0, "down")

	s.address("10.77.2")
	for i := range homes {
		up(i)
	}
	for i := range homes {
		awaitAll(t, homes[i], len(homes))
	}
	if out := balance(1, "run", "--node", "n2", "--", "echo", "over the LAN"); out != "over the LAN\n" {
		t.Errorf("run between two nodes that never knew each other's address: %q", out)
	}
	var rows []nodeRow
	if err := json.Unmarshal([]byte(balance(1, "nodes", "--json")), &rows); err != nil {
		t.Fatal(err)
	}
	for _, r := range rows {
		if !r.Self && (r.Path != "lan" || !strings.HasPrefix(r.Addr, "10.77.2.") && !strings.HasPrefix(r.Addr, "[fe80")) {
			t.Errorf("%s is reached over %s %s", r.Name, r.Path, r.Addr)
		}
	}
	for i := range homes {
		balance(i, "down")
	}
}
