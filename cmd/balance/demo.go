package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/balanceai/balance/examples"
)

func (a *app) demoCommand() *cobra.Command {
	var hold bool
	cmd := &cobra.Command{
		Use:   "demo",
		Short: "Show the whole of it: three nodes on this machine, one run from end to end",
		Long: "Show the whole of it: three nodes on this machine, as separate processes with their own homes and\n" +
			"UDP ports on loopback. Needs no root and leaves nothing behind.",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx, cancel := signal.NotifyContext(cmd.Context(), syscall.SIGINT, syscall.SIGTERM)
			defer cancel()
			return a.demo(ctx, hold)
		},
	}
	cmd.Flags().BoolVar(&hold, "hold", false, "leave the nodes running and print their homes")
	return cmd
}

// The demo's machines: a laptop that offers nothing, the server of the same
// owner, which keeps most of itself for other work, and a machine of another
// owner, who gives a part of it away. All are this machine: what makes the
// choice is the owners' rules.
var demoNodes = []struct{ name, owner, what, rules string }{
	{"laptop", "ana", "Ana's laptop: a thin client that offers nothing", "offer: nothing\n"},
	{"server", "ana", "Ana's server: offers everything to its owner", "offer: all\nlabels: [always-on]\n"},
	{"tower", "ben", "Ben's tower: gives Ana 1 core and 1 GiB", `offer: all
labels: [quiet]
others:
  - owner: ana
    isolation: none
    cpu: 1
    memory: 1GiB
`},
}

// demo is one walk through the main job.
type demo struct {
	*app
	self  string // the program
	dir   string
	nodes map[string]*exec.Cmd
	step  int
}

func (a *app) demo(ctx context.Context, hold bool) (err error) {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "balance-demo-")
	if err != nil {
		return err
	}
	d := &demo{app: a, self: self, dir: dir, nodes: map[string]*exec.Cmd{}}
	defer func() {
		if hold && err == nil {
			return
		}
		err = errors.Join(err, d.cleanUp())
	}()
	if err := d.show(ctx); err != nil {
		return err
	}
	if hold {
		return d.printHomes()
	}
	if a.print.outTTY && a.print.errTTY {
		d.say("The terminal UI of the laptop, on this mesh. Leave it with q.")
		time.Sleep(2 * time.Second)
		return a.ui(ctx, d.home("laptop"))
	}
	return nil
}

func (d *demo) home(node string) home { return home(filepath.Join(d.dir, node)) }

func (d *demo) show(ctx context.Context) error {
	d.say("Three machines, each with its own keys, ledger and rules (in %s)", d.dir)
	for _, n := range demoNodes {
		fmt.Fprintf(d.print.out, "   %s\n", n.what)
	}
	if err := d.found(ctx); err != nil {
		return err
	}
	if err := d.meet(ctx); err != nil {
		return err
	}
	agent, err := d.unpackAgent()
	if err != nil {
		return err
	}
	d.say("Where would the agent run, and why? The laptop asks its own view: no network")
	if err := d.balance(ctx, "laptop", nil, "run", "--dry-run", agent); err != nil {
		return err
	}
	d.say("Run it: the laptop dispatches it to the best fit, and its output streams back")
	out := filepath.Join(d.dir, "report")
	if err := d.balance(ctx, "laptop", nil, "run", "--out", out, agent); err != nil {
		return err
	}
	return d.afterwards(ctx, out)
}

// found makes the mesh, node by node.
func (d *demo) found(ctx context.Context) error {
	d.say("The laptop founds a mesh and goes up. There is no server")
	if err := d.quietly(ctx, "laptop", "init", "--mesh", "demo", "--name", "laptop", "--owner", "ana"); err != nil {
		return err
	}
	for i, n := range demoNodes {
		if i > 0 {
			d.say("An invite of one use brings %s in, through WireGuard alone", n.name)
			var code bytes.Buffer
			if err := d.balance(ctx, "laptop", &code, "invite", "--owner", n.owner, "--json"); err != nil {
				return err
			}
			var v inviteReply
			if err := json.Unmarshal(code.Bytes(), &v); err != nil {
				return err
			}
			if err := os.Mkdir(string(d.home(n.name)), 0o700); err != nil {
				return err
			}
			if err := d.join(ctx, n.name, v.Invite); err != nil {
				return err
			}
		}
		if err := os.WriteFile(d.home(n.name).path(rulesFile), []byte(n.rules), 0o600); err != nil {
			return err
		}
		if err := d.up(ctx, n.name); err != nil {
			return err
		}
	}
	return nil
}

// meet waits until the laptop sees everybody's offer.
func (d *demo) meet(ctx context.Context) error {
	d.say("They find each other and publish what they offer")
	for range 100 {
		var rows []nodeRow
		if err := newClient(d.home("laptop")).get(ctx, "/v1/nodes", &rows); err != nil {
			return err
		}
		ready := 0
		for _, r := range rows {
			if r.State == "up" && (r.Offers || r.Self) {
				ready++
			}
		}
		if ready == len(demoNodes) {
			return d.balance(ctx, "laptop", nil, "nodes")
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(100 * time.Millisecond):
		}
	}
	return errors.New("the nodes have not found each other within 10 s")
}

// afterwards shows what remains of a run.
func (d *demo) afterwards(ctx context.Context, out string) error {
	report, err := os.ReadFile(filepath.Join(out, "report.md"))
	if err != nil {
		return err
	}
	d.say("The report came back over the mesh, checked against its digest")
	head := strings.SplitAfterN(string(report), "\n", 12)
	fmt.Fprint(d.print.out, indent(strings.Join(head[:min(len(head), 11)], "")))

	var runs bytes.Buffer
	if err := d.balance(ctx, "laptop", &runs, "ps", "--json"); err != nil {
		return err
	}
	var list []struct{ ID, Node string }
	if err := json.Unmarshal(runs.Bytes(), &list); err != nil || len(list) == 0 {
		return fmt.Errorf("read the list of runs: %w", err)
	}
	for _, node := range []string{"laptop", list[0].Node} {
		d.say("What the ledger of %s says of it: signed by both, held by these two alone", node)
		if err := d.balance(ctx, node, nil, "ledger", "list", "--topic", list[0].ID); err != nil {
			return err
		}
	}
	return nil
}

// unpackAgent writes the embedded example to a folder.
func (d *demo) unpackAgent() (string, error) {
	const name = "text-report"
	to := filepath.Join(d.dir, "agents")
	sub, err := fs.Sub(examples.FS, ".")
	if err != nil {
		return "", err
	}
	if err := os.CopyFS(to, sub); err != nil {
		return "", err
	}
	// An embedded file system keeps no permissions.
	scripts, _ := filepath.Glob(filepath.Join(to, "*", "*.sh"))
	for _, s := range scripts {
		if err := os.Chmod(s, 0o755); err != nil {
			return "", err
		}
	}
	return filepath.Join(to, name), nil
}

// balance runs the program for one node, as its user would.
func (d *demo) balance(ctx context.Context, node string, out io.Writer, args ...string) error {
	if out == nil {
		d.command(node, args...)
		out = d.print.out
	}
	cmd := exec.CommandContext(ctx, d.self, append([]string{"--home", string(d.home(node))}, args...)...)
	cmd.Stdout, cmd.Stderr = out, d.print.err
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("balance %s on %s: %w", args[0], node, err)
	}
	return nil
}

func (d *demo) quietly(ctx context.Context, node string, args ...string) error {
	d.command(node, args...)
	return d.balance(ctx, node, io.Discard, args...)
}

// join gives the invite on standard input, where no list of processes shows it.
func (d *demo) join(ctx context.Context, node, invite string) error {
	d.command(node, "join", "--name", node, "-")
	cmd := exec.CommandContext(ctx, d.self, "--home", string(d.home(node)), "join", "--name", node, "-")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(invite), indentTo(d.print.out), d.print.err
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("balance join on %s: %w", node, err)
	}
	return nil
}

// up starts a node and waits until it answers.
func (d *demo) up(ctx context.Context, node string) error {
	d.command(node, "up", "--listen", "127.0.0.1:0", "&")
	log, err := os.Create(d.home(node).path("log"))
	if err != nil {
		return err
	}
	defer log.Close()
	cmd := exec.Command(d.self, "--home", string(d.home(node)), "up", "--listen", "127.0.0.1:0")
	cmd.Stderr = log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true} // with --hold it outlives this terminal
	if err := cmd.Start(); err != nil {
		return err
	}
	d.nodes[node] = cmd
	c := newClient(d.home(node))
	for range 100 {
		var s statusReply
		if c.get(ctx, "/v1/status", &s) == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(50 * time.Millisecond):
		}
	}
	text, _ := os.ReadFile(log.Name())
	return fmt.Errorf("%s has not come up within 5 s:\n%s", node, text)
}

// cleanUp stops the nodes and removes their homes.
func (d *demo) cleanUp() error {
	for _, cmd := range d.nodes {
		_ = cmd.Process.Signal(syscall.SIGTERM)
	}
	for _, cmd := range d.nodes {
		timer := time.AfterFunc(15*time.Second, func() { _ = cmd.Process.Kill() })
		_ = cmd.Wait()
		timer.Stop()
	}
	return os.RemoveAll(d.dir)
}

func (d *demo) printHomes() error {
	homes := map[string]string{}
	for _, n := range demoNodes {
		homes[n.name] = string(d.home(n.name))
	}
	return d.print.answer(homes, func(w io.Writer) error {
		fmt.Fprintln(w, "\nThe nodes go on running. Use one with --home:")
		for _, n := range demoNodes {
			fmt.Fprintf(w, "   balance --home %s nodes\n", d.home(n.name))
		}
		fmt.Fprintf(w, "Stop them:\n   for n in laptop server tower; do balance --home %s/$n down; done; rm -r %s\n", d.dir, d.dir)
		return nil
	})
}

// say prints the heading of a step.
func (d *demo) say(format string, args ...any) {
	if d.print.json {
		return
	}
	d.step++
	head, off := "", ""
	if d.print.color {
		head, off = "\x1b[1m", "\x1b[0m"
	}
	fmt.Fprintf(d.print.out, "\n%s%s. %s%s\n", head, strconv.Itoa(d.step), fmt.Sprintf(format, args...), off)
}

// command prints a command as the user of a node would type it.
func (d *demo) command(node string, args ...string) {
	fmt.Fprintf(d.print.out, "   %s$ balance %s\n", node, strings.ReplaceAll(strings.Join(args, " "), d.dir, "…"))
}

func indent(s string) string {
	return "   " + strings.ReplaceAll(strings.TrimSuffix(s, "\n"), "\n", "\n   ") + "\n"
}

// indented puts its lines a little to the right.
type indented struct{ to io.Writer }

func indentTo(w io.Writer) io.Writer { return indented{w} }

func (i indented) Write(b []byte) (int, error) {
	_, err := io.WriteString(i.to, indent(string(b)))
	return len(b), err
}
