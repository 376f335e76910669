package main

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
)

// host is a node of a [cluster].
type host struct {
	name, owner string
	rules       string   // its policy.yaml; empty for none
	client      bool     // it offers nothing
	args        []string // of up
}

// cluster is a mesh of nodes on this host, which see each other.
type cluster struct {
	t     testing.TB
	hosts []host
	homes []home
	nodes []*exec.Cmd // the last one of each
}

func newCluster(t testing.TB, hosts ...host) *cluster {
	t.Helper()
	dir := shortDir(t)
	c := &cluster{t: t, hosts: hosts, nodes: make([]*exec.Cmd, len(hosts))}
	invite := filepath.Join(dir, "invite")
	for i, h := range hosts {
		c.homes = append(c.homes, home(filepath.Join(dir, h.name)))
		args := []string{"init", "--mesh", "lab", "--owner", h.owner, "--name", h.name}
		if i > 0 {
			if err := os.WriteFile(invite, []byte(c.balance(0, "invite", "--owner", h.owner)), 0o600); err != nil {
				t.Fatal(err)
			}
			args = []string{"join", invite, "--name", h.name}
		}
		if h.client {
			args = append(args, "--client")
		}
		c.balance(i, args...)
		if h.rules != "" {
			if err := os.WriteFile(c.homes[i].path(rulesFile), []byte(h.rules), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		c.up(i)
	}
	for _, h := range c.homes {
		awaitAll(t, h, len(hosts))
	}
	return c
}

func (c *cluster) up(i int) {
	c.t.Helper()
	args := append([]string{"--home", string(c.homes[i]), "up", "--listen", "127.0.0.1:0", "--no-multicast"}, c.hosts[i].args...)
	c.nodes[i] = exec.Command("balance", args...)
	startIn(c.t, c.nodes[i], c.homes[i])
}

// stop lets a node stand still, as a machine that is lost does, and goOn lets it go
// on.
func (c *cluster) stop(i int) { c.signal(i, syscall.SIGSTOP) }
func (c *cluster) goOn(i int) { c.signal(i, syscall.SIGCONT) }

func (c *cluster) signal(i int, sig syscall.Signal) {
	c.t.Helper()
	if err := c.nodes[i].Process.Signal(sig); err != nil {
		c.t.Fatal(err)
	}
}

// balance runs a command on a node, and returns what it writes.
func (c *cluster) balance(i int, args ...string) string {
	c.t.Helper()
	out, err := exec.Command("balance", append([]string{"--home", string(c.homes[i])}, args...)...).Output()
	if err != nil {
		exit, _ := errors.AsType[*exec.ExitError](err)
		c.t.Fatalf("balance %v: %v\n%s", args, err, exit.Stderr)
	}
	return string(out)
}
