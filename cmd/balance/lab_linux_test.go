package main

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/balanceai/balance/mesh/meshtest/netlab"
)

// labPatience bounds the wait for what has to happen, on a slow and busy machine.
const labPatience = 30 * time.Second

// labNode is a node on a host of a lab.
type labNode struct {
	*netlab.Host
	t       testing.TB
	home    home
	client  *client
	flags   []string // of up
	process *netlab.Process
}

// during returns the node for a part of the test.
func (n labNode) during(t testing.TB) *labNode {
	n.t = t
	return &n
}

func newLabNode(t testing.TB, h *netlab.Host, flags ...string) *labNode {
	dir := home(filepath.Join(shortDir(t), h.Name))
	h.Setenv("BALANCE_HOME", string(dir))
	return &labNode{Host: h, t: t, home: dir, client: newClient(dir), flags: flags}
}

// balance runs the program on the node's host.
func (n *labNode) balance(args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(n.t.Context(), labPatience)
	defer cancel()
	return n.Output(ctx, "balance", args...)
}

// must is balance for a command that has to succeed.
func (n *labNode) must(args ...string) string {
	n.t.Helper()
	out, err := n.balance(args...)
	if err != nil {
		n.t.Fatal(err)
	}
	return out
}

// start starts the daemon without waiting for it.
func (n *labNode) start() {
	n.t.Helper()
	p, err := n.Start("balance", append([]string{"up"}, n.flags...)...)
	if err != nil {
		n.t.Fatal(err)
	}
	n.process = p
}

// up starts the daemon and waits until it answers.
func (n *labNode) up() {
	n.t.Helper()
	n.start()
	n.answers()
}

// answers waits until the daemon does.
func (n *labNode) answers() {
	n.t.Helper()
	n.eventually("its node answers", func() bool {
		select {
		case <-n.process.Done():
			n.t.Fatalf("%s: the node has ended: %v", n.Name, n.process.Err())
		default:
		}
		return n.client.get(n.t.Context(), "/v1/status", &statusReply{}) == nil
	})
}

// eventually fails the test if ok does not become true.
func (n *labNode) eventually(what string, ok func() bool) {
	n.t.Helper()
	for end := time.Now().Add(labPatience); !ok(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(end) {
			var rows []labRow
			_ = n.client.get(n.t.Context(), "/v1/nodes", &rows)
			n.t.Fatalf("%s: not within %v: %s; it sees %v", n.Name, labPatience, what, rows)
		}
	}
}

// labRow is what these tests read of a line of `balance nodes`.
type labRow struct {
	Name   string `json:"name"`
	State  string `json:"state"`
	Path   string `json:"path"`
	Via    string `json:"via"`
	Addr   string `json:"endpoint"`
	Offers bool   `json:"offers"`
}

func (r labRow) String() string {
	return strings.TrimSpace(fmt.Sprintf("%s %s %s %s %s", r.Name, r.State, r.Path, r.Via, r.Addr))
}

// sees returns what the node knows of another.
func (n *labNode) sees(other *labNode) labRow {
	var rows []labRow
	if err := n.client.get(n.t.Context(), "/v1/nodes", &rows); err != nil {
		n.t.Fatal(err)
	}
	for _, r := range rows {
		if r.Name == other.Name {
			return r
		}
	}
	return labRow{}
}

// labPing is what these tests read of a line of `balance ping`.
type labPing struct {
	Path  string  `json:"path"`
	Via   string  `json:"via"`
	Addr  string  `json:"endpoint"`
	RTTMS float64 `json:"rtt_ms"`
	Error string  `json:"error"`
}

// ping measures the path to another once, as `balance ping -c 1` does.
func (n *labNode) ping(other *labNode) labPing { return n.pingWithin(n.t.Context(), other) }

func (n *labNode) pingWithin(ctx context.Context, other *labNode) (p labPing) {
	resp, err := n.client.do(ctx, http.MethodPost, "/v1/nodes/"+other.Name+"/ping?count=1", nil)
	if err != nil {
		p.Error = err.Error()
		return p
	}
	defer resp.Body.Close()
	if err := json.NewDecoder(resp.Body).Decode(&p); err != nil {
		p.Error = err.Error()
	}
	return p
}

// knows waits until the node knows that another is up, and what it offers.
func (n *labNode) knows(other *labNode) {
	n.t.Helper()
	n.eventually("it knows "+other.Name, func() bool { r := n.sees(other); return r.State == "up" && r.Offers })
}

// runs has a command run on another node, and fails the test if it does not.
func (n *labNode) runs(on *labNode) {
	n.t.Helper()
	if out := n.must("run", "--node", on.Name, "--", "echo", "from", n.Name); out != "from "+n.Name+"\n" {
		n.t.Errorf("a run of %s on %s: %q", n.Name, on.Name, out)
	}
}

// foundLab founds a mesh at one node, which lets the others in one after another.
// All are up then.
func foundLab(first *labNode, others ...*labNode) {
	first.t.Helper()
	first.must("init", "--mesh", "lab", "--name", first.Name, "--owner", "ana")
	first.up()
	for _, n := range others {
		invite := filepath.Join(filepath.Dir(string(n.home)), "invite")
		if err := os.WriteFile(invite, []byte(first.must("invite")), 0o600); err != nil {
			n.t.Fatal(err)
		}
		n.must("join", "--name", n.Name, invite)
		n.start()
	}
	for _, n := range others {
		n.answers()
	}
}
