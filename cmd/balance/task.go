package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/balanceai/balance/exec/task"
)

// runCommands are about runs.
func (a *app) runCommands() []*cobra.Command {
	cmds := []*cobra.Command{
		a.runCommand(), a.attachCommand(), a.cpCommand(), a.psCommand(), a.logsCommand(), a.whyCommand(), a.cancelCommand(),
		a.waitCommand(), a.inspectCommand(), a.outputsCommand(), a.blobsCommand(),
		a.modelsCommand(), a.serveCommand(), a.gatewayCommand(), a.agentsCommand(), a.agentCommand(),
	}
	for _, c := range cmds {
		c.GroupID = "run"
		if c.ValidArgsFunction == nil && strings.Contains(c.Use, " RUN") {
			c.ValidArgsFunction = a.completeRuns
		}
	}
	return cmds
}

func runPath(run, rest string) string { return "/v1/runs/" + url.PathEscape(run) + rest }

// psLimit is how many runs ps lists unless all are asked for.
const psLimit = 50

func (a *app) psCommand() *cobra.Command {
	var all bool
	cmd := &cobra.Command{
		Use:   "ps",
		Short: "List the runs that this machine submitted or runs, the newest first",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			runs := []task.Status{}
			limit := psLimit
			if all {
				limit = 0
			}
			if err := a.client.get(cmd.Context(), "/v1/runs?limit="+strconv.Itoa(limit), &runs); err != nil {
				return err
			}
			return a.print.answer(runs, func(w io.Writer) error {
				var rows [][]string
				for _, r := range runs {
					exit := ""
					if r.ExitCode != nil {
						exit = strconv.Itoa(*r.ExitCode)
					}
					rows = append(rows, []string{r.ID, string(r.State), r.Node, exit, since(r.Submitted), took(r), title(r)})
				}
				return table(w, []string{"ID", "STATE", "NODE", "EXIT", "SUBMITTED", "TOOK", "COMMAND"}, rows)
			})
		},
	}
	cmd.Flags().BoolVarP(&all, "all", "a", false, "all of them, not the newest 50 alone")
	return cmd
}

func since(t time.Time) string {
	d := time.Since(t)
	switch {
	case d < time.Minute:
		return fmt.Sprintf("%ds ago", int(max(d, 0).Seconds()))
	case d < time.Hour:
		return fmt.Sprintf("%dm ago", int(d.Minutes()))
	case d < 24*time.Hour:
		return fmt.Sprintf("%dh ago", int(d.Hours()))
	}
	return t.Format("2006-01-02")
}

func took(r task.Status) string {
	if r.Started.IsZero() || r.Finished.IsZero() {
		return ""
	}
	return r.Finished.Sub(r.Started).Round(time.Millisecond).String()
}

func title(r task.Status) string {
	const width = 60
	text := strings.Join(r.Command, " ")
	if r.Agent != "" {
		text = r.Agent + ": " + text
	}
	if r.Rank != nil {
		text = fmt.Sprintf("[rank %d] %s", *r.Rank, text)
	}
	if line, _, cut := strings.Cut(text, "\n"); cut {
		text = line + " …"
	}
	if r := []rune(text); len(r) > width {
		text = string(r[:width-1]) + "…"
	}
	return text
}

func (a *app) logsCommand() *cobra.Command {
	var follow, stamps bool
	var tail int
	var since string
	cmd := &cobra.Command{
		Use:   "logs RUN",
		Short: "Print what a run wrote",
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			l := &logPrinter{app: a, stamps: stamps, fresh: map[string]bool{task.Stdout: true, task.Stderr: true}}
			var err error
			if l.since, err = parseSince(since, time.Now()); err != nil {
				return err
			}
			if tail >= 0 {
				if err := l.skipTo(cmd.Context(), args[0], tail); err != nil {
					return err
				}
			}
			return l.print(cmd.Context(), args[0], follow)
		},
	}
	cmd.Flags().BoolVarP(&follow, "follow", "f", false, "go on until the run ends, and end with its exit code")
	cmd.Flags().BoolVarP(&stamps, "timestamps", "t", false, "put the time before each line")
	cmd.Flags().IntVar(&tail, "tail", -1, "print the last lines alone, this many")
	cmd.Flags().StringVar(&since, "since", "", "print what was written after a time, like 2026-01-02T15:04:05Z, or this long ago, like 10m")
	return cmd
}

// parseSince reads a time, or how long ago it was.
func parseSince(s string, now time.Time) (time.Time, error) {
	if s == "" {
		return time.Time{}, nil
	}
	if d, err := task.ParseDuration(s); err == nil {
		return now.Add(-d), nil
	}
	t, err := time.Parse(time.RFC3339, s)
	if err != nil {
		return t, fail("usage", "for example: --since 10m, or --since 2026-01-02T15:04:05Z", "--since: %q is no time and no duration", s)
	}
	return t, nil
}

// logPrinter prints the output of a run.
type logPrinter struct {
	*app
	stamps bool
	since  time.Time // what was written before is not printed
	ranks  ranks     // of a gang
	from   uint64    // number of the event that begins with lines not to print; 0: none does
	skip   int       // so many
	gaps   task.Gaps
	fresh  map[string]bool // streams that are at the start of a line
}

// tailed is an event of output with some ends of lines.
type tailed struct {
	seq   uint64
	lines int
}

// skipTo finds where the last lines begin.
func (l *logPrinter) skipTo(ctx context.Context, run string, tail int) error {
	var list []tailed // with one line more than is wanted, if there is one
	lines, open := 0, false
	trim := func() {
		for len(list) > 0 && lines-list[0].lines > tail {
			lines -= list[0].lines
			list = list[1:]
		}
	}
	err := l.client.events(ctx, run, 0, false, func(e task.Event) error {
		if e.Type == task.EventOutput && !e.Time.Before(l.since) {
			out := string(e.Output())
			n := strings.Count(out, "\n")
			open = !strings.HasSuffix(out, "\n")
			list, lines = append(list, tailed{e.Seq, n}), lines+n
			trim()
		}
		return nil
	})
	if open {
		list[len(list)-1].lines++
		lines++
		trim()
	}
	if lines > tail {
		l.from, l.skip = list[0].seq, lines-tail
	}
	return err
}

func (l *logPrinter) print(ctx context.Context, run string, follow bool) error {
	after := max(l.from, 1) - 1
	f := &follower{app: l.app, run: run, last: after}
	l.gaps.Joined = after > 0
	show := func(e task.Event) error {
		missing := l.gaps.Before(&e)
		if e.Time.Before(l.since) && e.Type != task.EventFinished {
			f.last = e.Seq
			return nil
		}
		if e.Type == task.EventEnded && !l.app.print.json {
			f.last = e.Seq
			return l.rankEnded(e)
		}
		if e.Type != task.EventOutput || l.app.print.json {
			return f.event(ctx, e)
		}
		f.last = e.Seq
		if l.from > 0 && e.Seq > l.from { // it has been dropped meanwhile
			l.skip = 0
		}
		l.from = 0
		if missing > 0 && l.skip == 0 {
			l.app.print.gap(&e, missing, !l.fresh[task.Stdout] || !l.fresh[task.Stderr])
		}
		return l.output(e)
	}
	if !follow {
		return l.client.events(ctx, run, after, false, func(e task.Event) error {
			if err := show(e); !errors.Is(err, errStop) {
				return err
			}
			return nil
		})
	}
	err := l.client.events(ctx, run, after, true, show)
	return f.goOn(ctx, err)
}

// rankEnded prints what a rank has left without the end of a line.
func (l *logPrinter) rankEnded(e task.Event) error {
	for _, stream := range []string{task.Stdout, task.Stderr} {
		if text := l.ranks.rest(*e.Rank, stream); len(text) > 0 {
			rest := task.Event{Type: task.EventOutput, Time: e.Time, Stream: stream, Data: string(text)}
			if err := l.output(rest); err != nil {
				return err
			}
		}
	}
	return nil
}

// output prints the lines of an event that are not skipped.
func (l *logPrinter) output(e task.Event) error {
	w := l.app.print.ofRun(e.Stream)
	out := e.Output()
	if e.Rank != nil {
		out = l.ranks.lines(*e.Rank, e.Stream, out)
	}
	for line := range strings.Lines(string(out)) {
		if l.skip > 0 {
			if strings.HasSuffix(line, "\n") {
				l.skip--
			}
			continue
		}
		if l.stamps && l.fresh[e.Stream] {
			line = e.Time.Local().Format("2006-01-02T15:04:05.000 ") + line
		}
		l.fresh[e.Stream] = strings.HasSuffix(line, "\n")
		if _, err := io.WriteString(w, line); err != nil {
			return err
		}
	}
	return nil
}

func (a *app) whyCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "why RUN",
		Short: "Tell why a run is where it is",
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			var tries []whyAttempt
			if err := a.client.get(cmd.Context(), runPath(args[0], "/why"), &tries); err != nil {
				return err
			}
			return a.print.answer(tries, func(w io.Writer) error {
				for _, t := range tries {
					where := cmp.Or(t.Node, "no machine fits")
					if t.Waits {
						where = "waits for a machine, of which now:"
					}
					fmt.Fprintf(w, "attempt %d: %s\n", t.Attempt, clean(where, false))
					if err := printRanking(w, t.Ranking); err != nil {
						return err
					}
					if t.More > 0 {
						fmt.Fprintf(w, "  and %d machines more\n", t.More)
					}
					for _, r := range t.Refused {
						fmt.Fprintf(w, "  %s refused: %s\n", clean(t.Node, false), clean(r.Text, false))
					}
					if t.Lost != "" {
						fmt.Fprintf(w, "  lost: %s\n", clean(t.Lost, false))
					}
				}
				return nil
			})
		},
	}
}

func (a *app) cancelCommand() *cobra.Command {
	var force bool
	cmd := &cobra.Command{
		Use:   "cancel RUN…",
		Short: "Ask runs to stop",
		Args:  cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			for _, run := range args {
				path := runPath(run, "/cancel")
				if force {
					path += "?force=1"
				}
				var r runReply
				if err := a.client.call(cmd.Context(), http.MethodPost, path, nil, &r); err != nil {
					return err
				}
				if err := a.print.answer(r, func(w io.Writer) error { _, err := fmt.Fprintln(w, r.Run); return err }); err != nil {
					return err
				}
			}
			return nil
		},
	}
	cmd.Flags().BoolVar(&force, "force", false, "kill at once instead of asking first")
	return cmd
}

func (a *app) waitCommand() *cobra.Command {
	var timeout time.Duration
	cmd := &cobra.Command{
		Use:   "wait RUN",
		Short: "Wait for a run to end, and end with its exit code",
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			ctx := cmd.Context()
			if timeout > 0 {
				var cancel context.CancelFunc
				ctx, cancel = context.WithTimeout(ctx, timeout)
				defer cancel()
			}
			f := &follower{app: a, run: args[0]}
			err := a.client.events(ctx, args[0], 0, true, func(e task.Event) error {
				if e.Type != task.EventFinished {
					f.last = e.Seq
					return nil
				}
				return f.event(ctx, e)
			})
			if err = f.goOn(ctx, err); ctx.Err() != nil {
				return fail("timeout", "", "the run %s has not ended within %v", args[0], timeout)
			}
			return err
		},
	}
	cmd.Flags().Var(unit[time.Duration]{&timeout, task.ParseDuration, "duration"}, "timeout", "give up after this long")
	return cmd
}

func (a *app) inspectCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "inspect RUN",
		Short: "Show all that is known of a run",
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			var r inspectReply
			if err := a.client.get(cmd.Context(), runPath(args[0], ""), &r); err != nil {
				return err
			}
			return a.print.answer(r, func(w io.Writer) error { return printRun(w, &r) })
		},
	}
}

func printRun(w io.Writer, r *inspectReply) error {
	line := func(name, format string, args ...any) {
		fmt.Fprintf(w, "%-10s %s\n", name, clean(fmt.Sprintf(format, args...), false))
	}
	line("run", "%s", r.ID)
	line("state", "%s", strings.TrimSpace(string(r.State)+" "+r.Reason))
	if r.ExitCode != nil {
		line("exit code", "%d", *r.ExitCode)
	}
	line("command", "%s", strings.Join(r.Command, " "))
	if r.Agent != "" {
		line("agent", "%s", r.Agent)
	}
	line("machine", "%s, attempt %d", cmp.Or(r.Node, "none"), r.Attempt)
	if r.Rank != nil {
		line("gang", "rank %d of %s", *r.Rank, r.Gang)
	}
	for i, rank := range r.Ranks {
		line(fmt.Sprintf("rank %d", i), "%s", rank)
	}
	if s := r.Spec; s != nil && s.LeaseLength() > 0 {
		line("retry", "%s, with a lease of %s", s.Retry, task.FormatDuration(s.LeaseLength()))
	}
	if r.Custody != "" {
		line("custody", "%s", r.Custody)
	}
	line("submitted", "%s", r.Submitted.Format(time.RFC3339))
	if d := took(r.Status); d != "" {
		line("took", "%s", d)
	}
	if u := r.Usage; u != nil {
		line("used", "%v of CPU time, %v of memory at most, %v of output", time.Duration(u.CPUMS)*time.Millisecond, u.Peak(), u.Output)
	}
	signed := "the submitter's signature is missing"
	switch {
	case r.Receipt:
		signed = "signed by both"
	case len(r.Ranks) > 0:
		signed = "each rank has its own"
	}
	line("receipt", "%s", signed)
	fmt.Fprintln(w)
	return printEntries(w, r.Entries)
}

func (a *app) outputsCommand() *cobra.Command {
	var out string
	cmd := &cobra.Command{
		Use:   "outputs RUN",
		Short: "Write the output files of a run",
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			var r inspectReply
			if err := a.client.get(cmd.Context(), runPath(args[0], "?outputs=1"), &r); err != nil {
				return err
			}
			if r.Outputs.IsZero() {
				return fail("not_found", "", "the run %s has no output files", r.ID)
			}
			dir := cmp.Or(out, r.ID)
			if err := a.writeOutputs(cmd.Context(), r.Outputs.String(), dir); err != nil {
				return err
			}
			return a.print.answer(map[string]string{"run": r.ID, "folder": dir}, func(w io.Writer) error { _, err := fmt.Fprintln(w, dir); return err })
		},
	}
	cmd.Flags().StringVar(&out, "out", "", "folder for the files (default: the run's id)")
	return cmd
}
