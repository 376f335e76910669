package main

import (
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/balanceai/balance/exec/task"
)

// status is what a node knows of a run.
func (c *cluster) status(i int, run string) inspectReply {
	c.t.Helper()
	var r inspectReply
	if err := json.Unmarshal([]byte(c.balance(i, "inspect", "--json", run)), &r); err != nil {
		c.t.Fatal(err)
	}
	return r
}

// awaitState waits until a node knows that a run is in a state.
func (c *cluster) awaitState(i int, run string, want func(*inspectReply) bool) inspectReply {
	c.t.Helper()
	var r inspectReply
	for end := time.Now().Add(time.Minute); time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
		if newClient(c.homes[i]).get(context.Background(), runPath(run, ""), &r) == nil && want(&r) {
			return r
		}
	}
	c.t.Fatalf("%s on %s is %s, in the custody of %s, receipt %t", run, c.hosts[i].name, r.State, r.Custody, r.Receipt)
	return r
}

// A laptop submits a detached run and goes to sleep. The node that is always on
// sees it through, and the laptop catches up with its ledger, output and files.
func TestCustody(t *testing.T) {
	if testing.Short() {
		t.Skip("starts four nodes")
	}
	c := newCluster(t, host{name: "laptop", owner: "ana", client: true}, host{name: "server", owner: "ana", client: true, args: []string{"--always-on"}}, host{name: "worker", owner: "ana"}, host{name: "spare", owner: "ana"})
	const laptop, server, worker, spare = 0, 1, 2, 3
	awaitNode(t, c.homes[laptop], "server", func(r nodeRow) bool { return r.Always })
	dir := t.TempDir()
	gate, input := filepath.Join(dir, "gate"), filepath.Join(dir, "input")
	if err := os.WriteFile(input, []byte("from the laptop"), 0o600); err != nil {
		t.Fatal(err)
	}
	wait := "until [ -e " + gate + " ]; do sleep 0.05; done; "
	run := strings.TrimSpace(c.balance(laptop, "run", "-d", "--node", "worker", "-I", input, "-o", "out", "--", "sh", "-c", "echo begun; "+wait+"cp input out; echo done; exit 3"))
	if r := c.status(laptop, run); !r.InCustody() || r.OnItsWay() || r.Submitter != r.Custodian {
		c.awaitState(laptop, run, func(r *inspectReply) bool { return r.InCustody() && !r.OnItsWay() })
	}
	c.awaitState(laptop, run, func(r *inspectReply) bool { return r.State == task.Running && r.Node == "worker" })
	if out := c.balance(laptop, "logs", run); out != "begun\n" {
		t.Errorf("followed from the laptop: %q", out)
	}
	if out := c.balance(laptop, "why", run); !strings.Contains(out, "attempt 1: worker") {
		t.Errorf("why: %s", out)
	}

	c.balance(laptop, "down")
	if err := os.WriteFile(gate, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	c.awaitState(server, run, func(r *inspectReply) bool { return r.Receipt && r.State == task.Failed })
	c.up(laptop)
	r := c.awaitState(laptop, run, func(r *inspectReply) bool { return r.Receipt })
	if r.State != task.Failed || *r.ExitCode != 3 || r.Node != "worker" || r.Custody != "server, for laptop" {
		t.Errorf("the laptop has %s, exit code %d, on %s, custody %q", r.State, *r.ExitCode, r.Node, r.Custody)
	}
	if out := c.balance(laptop, "logs", run); out != "begun\ndone\n" {
		t.Errorf("after it was away: %q", out)
	}
	c.balance(laptop, "outputs", run, "--out", filepath.Join(dir, "files"))
	if b, err := os.ReadFile(filepath.Join(dir, "files", "out")); string(b) != "from the laptop" {
		t.Errorf("output file %q, %v", b, err)
	}
	c.balance(laptop, "ledger", "verify")

	// Other nodes are no party to it.
	if c.status(worker, run).Submitter != r.Custodian {
		t.Error("the worker does not know its submitter")
	}

	t.Run("cancel", func(t *testing.T) {
		run := strings.TrimSpace(c.balance(laptop, "run", "-d", "--", "sleep", "600"))
		c.awaitState(laptop, run, func(r *inspectReply) bool { return r.State == task.Running })
		c.balance(laptop, "cancel", run)
		c.awaitState(laptop, run, func(r *inspectReply) bool { return r.State == task.Cancelled && r.Receipt })
	})
	t.Run("retry", func(t *testing.T) {
		marks := filepath.Join(dir, "marks")
		run := strings.TrimSpace(c.balance(laptop, "run", "-d", "--retry", "on-loss", "--lease", "3s", "-o", "out", "--",
			"sh", "-c", "echo $BALANCE_ATTEMPT >>"+marks+"; [ $BALANCE_ATTEMPT = 1 ] && sleep 600; echo second >out"))
		r := c.awaitState(laptop, run, func(r *inspectReply) bool { return r.State == task.Running })
		c.balance(laptop, "down")
		lost := worker
		if r.Node == "spare" {
			lost = spare
		}
		c.stop(lost)
		c.awaitState(server, run, func(r *inspectReply) bool { return r.Receipt && r.State == task.Succeeded && r.Attempt > 1 })
		c.up(laptop)
		c.awaitState(laptop, run, func(r *inspectReply) bool { return r.Receipt && r.State == task.Succeeded })
		c.balance(laptop, "outputs", run, "--out", filepath.Join(dir, "second"))
		if b, err := os.ReadFile(filepath.Join(dir, "second", "out")); string(b) != "second\n" {
			t.Errorf("output file %q, %v", b, err)
		}
		if b, _ := os.ReadFile(marks); string(b) != "1\n2\n" {
			t.Errorf("attempts %q", b)
		}
		c.goOn(lost)
		awaitAll(t, c.homes[laptop], 4)
	})
	t.Run("by its own", func(t *testing.T) {
		run := strings.TrimSpace(c.balance(laptop, "run", "-d", "--custodian", "none", "--", "true"))
		if r := c.status(laptop, run); r.InCustody() {
			t.Errorf("custody %s", r.Custody)
		}
		if out := c.balance(server, "ps", "--json"); strings.Contains(out, run) {
			t.Error("the server knows of it")
		}
	})
	t.Run("out of reach", func(t *testing.T) {
		c.balance(server, "down")
		var r runReply
		if err := json.Unmarshal([]byte(c.balance(laptop, "run", "-d", "--json", "--custodian", "server", "--", "true")), &r); err != nil {
			t.Fatal(err)
		}
		if r.Custodian != "" || !strings.HasPrefix(r.Note, "server does not see it through") {
			t.Fatalf("%+v", r)
		}
		c.awaitState(laptop, r.Run, func(r *inspectReply) bool { return r.State == task.Succeeded && !r.InCustody() })
	})
}
