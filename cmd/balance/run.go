package main

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"golang.org/x/term"

	"github.com/balanceai/balance/cmd/balance/quick"
	"github.com/balanceai/balance/exec/agent"
	"github.com/balanceai/balance/exec/blob"
	"github.com/balanceai/balance/exec/egress"
	"github.com/balanceai/balance/exec/task"
)

// draft is a run as a person asks for it, before its inputs are packed.
type draft struct {
	agent     string                                // manifest, folder with one, or name
	args      []string                              // appended to the agent's command
	command   []string                              // instead of an agent
	params    map[string]string                     // that the agent is told
	ask       func(agent.Parameter) (string, error) // for one that is missing; nil for nobody
	needs     task.Needs
	limits    task.Limits
	network   []string // hosts that it may reach out of a sandbox
	image     string   // whose program the command is; empty for the machine's
	isolation string   // at least; empty for what the machine's owner wants
	env       map[string]string
	models    []string
	secrets   []string // beside those of the manifest, or from elsewhere; see parseSecret
	inputs    []agent.Source
	outputs   []string
	node      string
	prefer    []string
	stdin     bool           // somebody pipes something in
	noStdin   bool           // also where the manifest reads it
	open      bool           // it stays open for others, and is there for a detached run too
	tty       *task.Terminal // the run has one of this size
	term      string         // which kind it is
	detach    bool
	retry     task.Retry
	lease     time.Duration
	wait      time.Duration // for a machine at most; 0: as runs of its kind do
	noWait    bool
	priority  int
	custodian string     // of a detached run; empty for one that is always on
	gang      *task.Gang // one program on several machines; its Nodes are 0 for the manifest's

	// Found by outline: where the values of all secrets are, which of them the
	// person has named, and the folder of the manifest.
	from  map[string]agent.SecretSource
	given map[string]bool
	base  string
	// likewise: what the agent can be told.
	parameters []agent.Parameter
}

// compile makes the spec of a draft and puts its inputs into the blob store,
// from where the machine that runs it fetches them.
func (a *app) compile(ctx context.Context, d *draft) (submission, error) {
	spec, sources, err := a.outline(ctx, d)
	if err != nil {
		return submission{}, err
	}
	if spec.Inputs, err = a.pack(ctx, sources); err != nil {
		return submission{}, err
	}
	return submission{Spec: spec, Custodian: d.custodian}, spec.Check()
}

// outline makes the spec of a draft but for its inputs, which it returns.
func (a *app) outline(ctx context.Context, d *draft) (task.Spec, []agent.Source, error) {
	spec := task.Spec{Driver: task.DriverProcess, Command: d.command}
	sources := d.inputs
	var secrets map[string]agent.SecretSource
	if d.agent != "" {
		path, stranger, err := a.findAgent(ctx, d.agent)
		if err != nil {
			return spec, nil, err
		}
		m, err := agent.Load(path)
		if err != nil {
			return spec, nil, err
		}
		var own []agent.Source
		d.parameters = m.Parameters()
		if err := d.askAll(); err != nil {
			return spec, nil, err
		}
		if spec, own, err = m.Spec(d.args, d.params); err != nil {
			return spec, nil, paramProblem(err)
		}
		if spec.Retry == "" && m.Idempotent && d.detach && !d.open { // at a terminal, a person decides
			spec.Retry = task.RetryOnLoss
		}
		sources = instead(own, sources)
		secrets, d.base = m.Secrets(), filepath.Dir(m.File)
		if err := d.gaveAll(secrets, stranger); err != nil {
			return spec, nil, err
		}
	}
	spec.Needs = override(spec.Needs, d.needs)
	spec.Limits = task.Limits{
		Time: cmp.Or(d.limits.Time, spec.Limits.Time), Output: cmp.Or(d.limits.Output, spec.Limits.Output),
		Memory: cmp.Or(d.limits.Memory, spec.Limits.Memory), CPU: cmp.Or(d.limits.CPU, spec.Limits.CPU),
		PIDs: cmp.Or(d.limits.PIDs, spec.Limits.PIDs), Disk: cmp.Or(d.limits.Disk, spec.Limits.Disk), Tokens: cmp.Or(d.limits.Tokens, spec.Limits.Tokens),
	}
	if d.image != "" {
		spec.Driver, spec.Image = task.DriverImage, d.image
	}
	spec.Isolation = cmp.Or(d.isolation, spec.Isolation)
	spec.Network = append(slices.Clone(spec.Network), d.network...)
	if _, err := egress.ParseAllow(spec.Network); err != nil {
		return spec, nil, fail("usage", "", "network: %v", err)
	}
	if err := d.nameSecrets(&spec, secrets); err != nil {
		return spec, nil, err
	}
	spec.Outputs = append(spec.Outputs, d.outputs...)
	spec.Node = cmp.Or(d.node, spec.Node)
	if len(d.prefer) > 0 {
		spec.Prefer = d.prefer
	}
	spec.Priority = d.priority
	switch {
	case d.noWait && d.wait > 0:
		return spec, nil, fail("usage", "", "--wait and --no-wait")
	case d.wait > 0:
		spec.Wait = d.wait
	case d.detach && !d.noWait: // at a terminal, a person decides
		spec.Wait = task.WaitForever
	}
	if g := d.gang; g != nil {
		own := task.Gang{}
		if spec.Gang != nil {
			own = *spec.Gang
		}
		spec.Gang = &task.Gang{Nodes: cmp.Or(g.Nodes, own.Nodes), Port: cmp.Or(g.Port, own.Port)}
	}
	if spec.Gang != nil {
		spec.Stdin, d.stdin = false, false // whose would it be?
	}
	spec.Stdin = (spec.Stdin || d.stdin) && !d.detach && !d.noStdin
	if d.open {
		spec.Stdin, spec.Open = true, true
	}
	spec.TTY = d.tty
	spec.Detached = d.detach
	spec.Retry, spec.Lease = cmp.Or(d.retry, spec.Retry), cmp.Or(d.lease, spec.Lease)
	switch {
	case spec.Retry == task.RetryOnLoss && spec.Stdin:
		return spec, nil, fail("usage", "leave standard input away with --no-stdin, or say --retry never", "a run that reads standard input cannot be started again")
	case spec.Retry != task.RetryOnLoss && d.lease > 0:
		return spec, nil, fail("usage", "say --retry on-loss too", "a lease of %s for a run that is never started again", task.FormatDuration(d.lease))
	case spec.Retry != task.RetryOnLoss:
		spec.Lease = 0 // of the manifest
	}
	for _, m := range d.models {
		spec.Models = append(spec.Models, task.Model{Name: m, Model: m})
	}
	if len(d.env) > 0 {
		env := maps.Clone(spec.Env)
		if env == nil {
			env = map[string]string{}
		}
		maps.Copy(env, d.env)
		spec.Env = env
	}
	if spec.TTY != nil && spec.Env["TERM"] == "" {
		if spec.Env == nil {
			spec.Env = map[string]string{}
		}
		spec.Env["TERM"] = d.term
	}
	return spec, sources, nil
}

// instead puts a person's inputs in the place of a manifest's that have the
// same name, and adds the others.
func instead(own, by []agent.Source) []agent.Source {
	out := slices.DeleteFunc(own, func(s agent.Source) bool {
		return slices.ContainsFunc(by, func(b agent.Source) bool { return b.To == s.To })
	})
	return append(out, by...)
}

// agentsDir is the folder of the home that holds agents by name.
const agentsDir = "agents"

func isAgent(folder string) bool {
	_, err := os.Stat(filepath.Join(folder, agent.FileName))
	return err == nil
}

func (a *app) pack(ctx context.Context, sources []agent.Source) ([]task.Input, error) {
	if len(sources) == 0 {
		return nil, nil
	}
	blobs, err := blob.Open(a.home.path(blobsDir))
	if err != nil {
		return nil, err
	}
	inputs := make([]task.Input, 0, len(sources))
	for _, s := range sources {
		in, err := blobs.Pack(ctx, s.From)
		if err != nil {
			return nil, fmt.Errorf("input %s: %w", s.From, err)
		}
		in.Path = s.To
		inputs = append(inputs, in)
	}
	return inputs, nil
}

// override puts what was asked for on the command line over a manifest's needs.
func override(n, by task.Needs) task.Needs {
	n.CPU = cmp.Or(by.CPU, n.CPU)
	n.Memory = cmp.Or(by.Memory, n.Memory)
	n.Disk = cmp.Or(by.Disk, n.Disk)
	n.GPUs = cmp.Or(by.GPUs, n.GPUs)
	n.VRAM = cmp.Or(by.VRAM, n.VRAM)
	n.Share = cmp.Or(by.Share, n.Share)
	for _, l := range []struct{ own, by *[]string }{
		{&n.GPUModels, &by.GPUModels}, {&n.Arch, &by.Arch}, {&n.OS, &by.OS}, {&n.Labels, &by.Labels}, {&n.Engines, &by.Engines},
	} {
		if len(*l.by) > 0 {
			*l.own = *l.by
		}
	}
	return n
}

// unit makes a flag of a function that parses it.
type unit[T any] struct {
	to    *T
	parse func(string) (T, error)
	name  string
}

func (u unit[T]) Set(s string) (err error) { *u.to, err = u.parse(s); return err }
func (u unit[T]) Type() string             { return u.name }
func (u unit[T]) String() string           { return "" }

// draftFlags are what a run needs, as flags.
func draftFlags(f *pflag.FlagSet, d *draft) {
	n := &d.needs
	f.Var(unit[task.CPU]{&n.CPU, task.ParseCPU, "cores"}, "cpu", "cores, like 2 or 500m")
	f.Var(unit[task.Bytes]{&n.Memory, task.ParseBytes, "bytes"}, "mem", "memory, like 4GiB")
	f.Var(unit[task.Bytes]{&n.Disk, task.ParseBytes, "bytes"}, "disk", "free disk")
	f.IntVar(&n.GPUs, "gpu", 0, "number of GPUs")
	f.Var(unit[task.Bytes]{&n.VRAM, task.ParseBytes, "bytes"}, "vram", "free memory on each GPU, like 24G")
	f.Var(unit[int]{&n.Share, task.ParseShare, "part"}, "gpu-share", "a part of each GPU, like 0.25, beside other runs of yours")
	f.StringSliceVar(&n.GPUModels, "gpu-model", nil, "any of these words in the GPU's name")
	f.StringSliceVar(&n.Arch, "arch", nil, "any of these processors, like amd64")
	f.StringSliceVar(&n.OS, "os", nil, "any of these systems, like linux")
	f.StringSliceVar(&n.Labels, "label", nil, "all of these labels, which owners give")
	f.StringSliceVar(&n.Engines, "engine", nil, "all of these engines, like ollama")
	f.StringSliceVar(&d.models, "model", nil, "model that it asks, through OPENAI_BASE_URL; repeatable")
	f.StringVar(&d.node, "node", "", "this machine and no other")
	f.StringSliceVar(&d.prefer, "prefer", nil, "rather a machine with this label, the first ones most")
	f.Var(unit[time.Duration]{&d.wait, parseWait, "duration"}, "wait", "where no machine has room now, wait until one has, or for this long (default for --detach)")
	f.Lookup("wait").NoOptDefVal = forever
	f.BoolVar(&d.noWait, "no-wait", false, "where no machine has room now, end")
	f.StringVar(&d.custodian, "custodian", "", "with --detach: the node of yours that sees the run through while this one sleeps, or none (default: one that is always on)")
	f.IntVar(&d.priority, "priority", 0, "among your own runs that wait for machines of yours: from -100 to 100, the highest first")
	f.Var(unit[time.Duration]{&d.limits.Time, task.ParseDuration, "duration"}, "time-limit", "end the run after this long")
	f.Var(unit[task.Retry]{&d.retry, task.ParseRetry, "never|on-loss"}, "retry", "start the run again elsewhere when its machine is lost (default: never; for detached agents that are idempotent, on-loss)")
	f.Var(unit[time.Duration]{&d.lease, task.ParseDuration, "duration"}, "lease", "with --retry on-loss: how long its machine goes on without this one, and is waited for (default 5m)")
	f.Var(unit[task.Bytes]{&d.limits.Memory, task.ParseBytes, "bytes"}, "memory-limit", "most memory of all its processes together")
	f.Var(unit[task.CPU]{&d.limits.CPU, task.ParseCPU, "cores"}, "cpu-limit", "most time of the CPU, in cores")
	f.IntVar(&d.limits.PIDs, "pids-limit", 0, "most processes and threads")
	f.Var(unit[task.Bytes]{&d.limits.Disk, task.ParseBytes, "bytes"}, "disk-limit", "most that it writes into its folders")
	f.Var(unit[task.Tokens]{&d.limits.Tokens, task.ParseTokens, "tokens"}, "token-limit", "most that models read and write for it, like 200k")
	f.StringSliceVar(&d.network, "network", nil, "host that it may reach out of a sandbox, like example.org, *.example.org or example.org:8443; repeatable")
	f.Var(gangNodes{&d.gang}, "gang", "one program on this many machines, each with a rank: all start together or none does")
	f.Var(gangPort{&d.gang}, "gang-port", "with --gang: the port of loopback at which each rank listens for the others (default: a free one)")
	f.StringVar(&d.image, "image", "", "run the command in a container of this image, which the machine has to hold")
	f.StringVar(&d.isolation, "isolation", "", "process or sandbox; as the machine's owner wants if not given, or more")
	f.VarP(pairs{&d.env}, "env", "e", "environment variable, NAME=VALUE; repeatable")
	f.StringArrayVar(&d.secrets, "secret", nil, "NAME[=env:VAR|file:PATH|keyring:KEY]: a variable whose value no record, log or file has; repeatable")
	f.Var(pairs{&d.params}, "param", "what the agent is told, NAME=VALUE; repeatable")
	f.VarP(sources{&d.inputs}, "input", "I", "file or folder to take along, PATH or PATH:NAME")
	f.StringSliceVarP(&d.outputs, "output", "o", nil, "file or folder to bring back")
}

// forever is how people write a wait without an end.
const forever = "forever"

func parseWait(s string) (time.Duration, error) {
	if s == forever {
		return task.WaitForever, nil
	}
	return task.ParseDuration(s)
}

// sources is the flag --input.
type sources struct{ to *[]agent.Source }

func (s sources) Type() string   { return "path" }
func (s sources) String() string { return "" }
func (s sources) Set(v string) error {
	from, to, ok := strings.Cut(v, ":")
	if !ok {
		to = filepath.Base(from)
	}
	*s.to = append(*s.to, agent.Source{From: from, To: to})
	return task.CheckPath(to)
}

// takeArgs divides the words after the flags: an agent and its arguments, or,
// after "--", a command.
func (d *draft) takeArgs(cmd *cobra.Command, args []string, file string) error {
	switch {
	case file != "":
		d.agent, d.args = file, args
	case len(args) == 0:
		return fail("usage", "for example: balance run -- uname -a", "say which agent to run, or a command after --")
	case cmd.ArgsLenAtDash() == 0:
		d.command = args
	default:
		d.agent, d.args = args[0], args[1:]
	}
	return nil
}

func (a *app) runCommand() *cobra.Command {
	var d draft
	var file, out, keys string
	var dry, tty bool
	cmd := &cobra.Command{
		Use:   "run [flags] AGENT [ARG…] | run [flags] -- COMMAND [ARG…]",
		Short: "Run an agent or a command on the machine that fits it best",
		Long: "Run an agent or a command on the machine that fits it best.\n\n" +
			"AGENT is a folder with an agent.yaml, such a file, or the name of an agent that is installed on this machine or\n" +
			"offered by another one (see: balance agents); NAME@DIGEST is that one and no other. Output streams back; the exit code is the run's own.\n" +
			"Ctrl-C asks the run to stop; a second one leaves it alone and detaches. With -it the run has a terminal,\n" +
			"which gets Ctrl-C too: ctrl-p ctrl-q detaches, and balance attach comes back.",
		Example: "  balance run -- uname -a\n  balance run --gpu 1 --vram 24G -- python3 train.py\n  balance run examples/text-report\n  balance run -it -- bash",
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := d.takeArgs(cmd, args, file); err != nil {
				return err
			}
			d.stdin = piped(a.in)
			if a.in != nil && term.IsTerminal(int(a.in.Fd())) && !a.print.json {
				d.ask = a.askFor
			}
			detach, err := parseKeys(keys)
			if err != nil {
				return err
			}
			var at *terminal
			if tty {
				if at, err = a.openTerminal(&d, detach); err != nil {
					return err
				}
			}
			spec, err := a.compile(cmd.Context(), &d)
			if err != nil {
				return err
			}
			if dry {
				return a.dryRun(cmd.Context(), spec.Spec)
			}
			if spec.Values, err = d.readSecrets(d.base); err != nil {
				return err
			}
			switch {
			case d.detach:
				var r runReply
				if err := a.client.call(cmd.Context(), http.MethodPost, "/v1/runs", spec, &r); err != nil {
					return err
				}
				if r.Note != "" {
					a.print.say("balance: %s", r.Note)
				}
				return a.print.answer(r, func(w io.Writer) error { _, err := fmt.Fprintln(w, r.Run); return err })
			case spec.Custodian != "":
				return fail("usage", "leave it running with --detach, or leave --custodian away", "--custodian: a run that somebody follows is this node's")
			}
			if quick.Rest.Unsure {
				return fail("failure", "see whether it did with: balance ps", "the node hung up, or was left alone, before it said that it has taken the run")
			}
			f := &follower{app: a, name: runName(&spec.Spec), out: out, attached: true, stdin: spec.Stdin, term: at}
			if spec.TTY != nil {
				f.size = *spec.TTY
			}
			if quick.Rest.Run != "" {
				f.run, f.last = quick.Rest.Run, quick.Rest.Last
				return f.takeOver(cmd.Context(), quick.Rest.Interrupted)
			}
			return f.submit(cmd.Context(), spec)
		},
	}
	f := cmd.Flags()
	f.SetInterspersed(false)
	draftFlags(f, &d)
	f.StringVarP(&file, "file", "f", "", "manifest of the agent")
	f.BoolVarP(&d.detach, "detach", "d", false, "print the run's id and leave it running")
	f.BoolVar(&dry, "dry-run", false, "show where it would run, and why, and start nothing")
	f.BoolVarP(&d.noStdin, "no-stdin", "n", false, "do not send standard input to the run")
	f.BoolVarP(&d.open, "interactive", "i", false, "send standard input, and keep it open for balance attach when this ends")
	f.BoolVarP(&tty, "tty", "t", false, "give the run a terminal")
	detachFlag(cmd, &keys)
	cmd.MarkFlagsMutuallyExclusive("interactive", "no-stdin")
	f.StringVar(&out, "out", "", "folder for the output files (default: NAME-ID in the current folder)")
	_ = cmd.RegisterFlagCompletionFunc("node", a.completeNodes)
	return cmd
}

// openTerminal gives a draft a terminal, and returns the one that this person sits
// at; nil for a run that nobody sits at yet.
func (a *app) openTerminal(d *draft, detach []byte) (*terminal, error) {
	size := defaultSize
	at := a.terminal(detach)
	switch {
	case at != nil:
		size = at.size()
	case !d.detach:
		return nil, fail("usage", "leave -t away, or detach with -d", "standard input is no terminal")
	}
	d.tty, d.term = &size, cmp.Or(a.env("TERM"), "xterm")
	if d.detach {
		return nil, nil //nolint:nilnil // nobody sits at it
	}
	if a.print.json {
		return nil, fail("usage", "leave one of them away", "--json of a run at this terminal")
	}
	return at, nil
}

// runName is what a run is called where its files go.
func runName(spec *task.Spec) string { return cmp.Or(spec.Agent, filepath.Base(spec.Command[0])) }

// piped reports whether f is a pipe, a file or a socket, so that somebody meant
// it to be read.
func piped(f *os.File) bool {
	if f == nil {
		return false
	}
	info, err := f.Stat()
	return err == nil && info.Mode()&os.ModeCharDevice == 0 && !info.IsDir()
}

func (a *app) dryRun(ctx context.Context, spec task.Spec) error {
	var ranking task.Ranking
	if err := a.client.call(ctx, http.MethodPost, "/v1/plan", spec, &ranking); err != nil {
		return err
	}
	if err := a.print.answer(ranking, func(w io.Writer) error { return printRanking(w, ranking) }); err != nil {
		return err
	}
	want := 1
	if spec.Gang != nil {
		want = spec.Gang.Nodes
		a.print.say("a gang of %d takes the first %d; %d fit", want, want, len(ranking.Best()))
	}
	if len(ranking.Best()) < want {
		return exitError(exitNoFit)
	}
	return nil
}

// printRanking writes one verdict a machine: its score and what it is made of,
// or every reason against it.
func printRanking(w io.Writer, ranking task.Ranking) error {
	width := 4
	for _, v := range ranking {
		width = max(width, len(v.Name))
	}
	nearest := ""
	for _, v := range ranking {
		mark, lead := "✗", "does not fit"
		var lines []string
		if v.Fits {
			mark, lead = "✓", fmt.Sprintf("score %d", v.Score)
			var parts []string
			for _, p := range v.Parts {
				parts = append(parts, fmt.Sprintf("%s (%+d)", p.Text, p.Points))
			}
			lines = []string{strings.Join(parts, ", ")}
		}
		for _, r := range v.Reasons {
			lines = append(lines, reasonText(r))
		}
		if v.Nearest != "" {
			nearest = v.Nearest
		}
		age := ""
		if v.AgeMS > 1000 {
			age = fmt.Sprintf(", facts %v old", (time.Duration(v.AgeMS) * time.Millisecond).Round(time.Second))
		}
		fmt.Fprintf(w, "%s %-*s  %s%s\n", mark, width, clean(v.Name, false), lead, age)
		for _, l := range lines {
			if _, err := fmt.Fprintf(w, "  %-*s  %s\n", width, "", clean(l, false)); err != nil {
				return err
			}
		}
	}
	if lead := ranking.Lead(); lead != "" {
		fmt.Fprintln(w, clean(lead, false))
	}
	if nearest != "" {
		fmt.Fprintf(w, "nearest: %s\n", clean(nearest, false))
	}
	return nil
}

// reasonText is a reason for people, who may want to wait.
func reasonText(r task.Reason) string {
	if r.Ever {
		return r.Text + " (not now)"
	}
	return r.Text
}
