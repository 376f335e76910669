package main

import (
	"cmp"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/balanceai/balance/exec/fleet"
	"github.com/balanceai/balance/exec/policy"
	"github.com/balanceai/balance/exec/task"
)

// meshCommands are about this machine and the other ones.
func (a *app) meshCommands() []*cobra.Command {
	cmds := []*cobra.Command{
		a.initCommand(), a.upCommand(), a.downCommand(), a.statusCommand(), a.inviteCommand(), a.joinCommand(), a.guestsCommand(),
		a.nodesCommand(), a.pingCommand(), a.netcheckCommand(), a.doctorCommand(), a.offerCommand(),
		a.policyCommand(), a.dutyCommand("pause"), a.dutyCommand("drain"), a.dutyCommand("resume"), a.usageCommand(),
		a.servicesCommand(), a.exposeCommand(), a.forwardCommand(),
	}
	for _, c := range cmds {
		c.GroupID = "mesh"
	}
	return cmds
}

func (a *app) downCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "down",
		Short: "Stop the node",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := a.client.call(cmd.Context(), http.MethodPost, "/v1/down", nil, nil); err != nil {
				return err
			}
			// The lock is free when the daemon has put everything away.
			for range 100 {
				lock, err := a.home.lock()
				if err == nil {
					return lock.Close()
				}
				time.Sleep(100 * time.Millisecond)
			}
			return fail("timeout", "look at its log", "the node has not stopped within 10 s")
		},
	}
}

func (a *app) statusCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "status",
		Short: "Tell whether the node runs, and what it is",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			var s statusReply
			err := a.client.get(cmd.Context(), "/v1/status", &s)
			if err != nil {
				if d := describe(err); a.print.json && (d.Code == "not_running" || d.Code == "not_joined") {
					_ = a.print.line(statusReply{Version: version, Home: string(a.home)})
					return exitError(exitCodes[d.Code])
				}
				return err
			}
			return a.print.answer(s, func(w io.Writer) error {
				fmt.Fprintf(w, "%s is up in mesh %s, process %d, since %s\n", s.Name, s.Mesh, s.PID, s.Since.Format("2006-01-02 15:04:05"))
				fmt.Fprintf(w, "  owner    %s (%s)\n  address  %s\n  UDP port %d\n  members  %d, %d up\n  home     %s\n", s.Owner, s.Role, s.Address, s.Port, s.Members, s.Up, s.Home)
				if s.Duty != "" {
					fmt.Fprintf(w, "  duty     %s: takes nothing new; end that with: balance resume\n", s.Duty)
				}
				if !s.Offers {
					fmt.Fprintln(w, "  offers nothing to the mesh")
				}
				fmt.Fprintf(w, "  mode     %s\n", strings.TrimSpace(s.Mode+" "+s.Interface))
				if s.DNS != "" {
					fmt.Fprintf(w, "  DNS      %s\n", s.DNS)
				}
				fmt.Fprintf(w, "  proxy    %s\n", strings.TrimSpace(s.Proxy+" "+s.ProxyFile))
				if s.Names != "" {
					fmt.Fprintf(w, "  names    %s, through systemd-resolved\n", s.Names)
				}
				if s.NamesError != "" {
					fmt.Fprintf(w, "  names    %s\n", clean(s.NamesError, false))
				}
				if s.RulesError != "" {
					fmt.Fprintf(w, "  rules    the older ones are in force: %s\n", clean(s.RulesError, false))
				}
				return nil
			})
		},
	}
}

func (a *app) nodesCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "nodes",
		Short: "List the machines of the mesh",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			var rows []nodeRow
			if err := a.client.get(cmd.Context(), "/v1/nodes", &rows); err != nil {
				return err
			}
			return a.print.answer(rows, func(w io.Writer) error {
				var out [][]string
				for _, r := range rows {
					name, rtt := r.Name, ""
					if r.Self {
						name += " *"
					}
					if r.RTTMS != nil {
						rtt = fmt.Sprintf("%.2f ms", *r.RTTMS)
					}
					out = append(out, []string{name, r.Owner, r.State, pathName(r.Path, r.Via), rtt, r.Address, gives(r), strconv.Itoa(r.Runs)})
				}
				return table(w, []string{"NAME", "OWNER", "STATE", "PATH", "RTT", "ADDRESS", "OFFERS", "RUNS"}, out)
			})
		},
	}
}

// pathName is a path in a word or two, pathWords in a few.
func pathName(kind, via string) string {
	if via != "" {
		return kind + " " + via
	}
	return kind
}

func pathWords(kind, addr, via string) string {
	if via != "" {
		return "relayed by " + via
	}
	return strings.TrimSpace("over " + kind + " " + addr)
}

func gives(r nodeRow) string {
	switch {
	case !r.Offers:
		return "nothing"
	case r.Duty != "":
		return r.Duty
	case len(r.GPUs) == 0:
		return "cpu"
	case len(r.GPUs) == 1:
		return r.GPUs[0]
	}
	return fmt.Sprintf("%d× %s", len(r.GPUs), r.GPUs[0])
}

func (a *app) pingCommand() *cobra.Command {
	var count int
	cmd := &cobra.Command{
		Use:   "ping NODE",
		Short: "Measure the path to a machine",
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			resp, err := a.client.do(cmd.Context(), http.MethodPost, fmt.Sprintf("/v1/nodes/%s/ping?count=%d", url.PathEscape(args[0]), count), nil)
			if err != nil {
				return err
			}
			defer resp.Body.Close()
			var t pingTally
			err = stream(resp, func(p pingReply) error {
				text := t.add(p)
				if a.print.json {
					return a.print.line(p)
				}
				_, err := fmt.Fprintln(a.print.out, text)
				return err
			})
			if err == nil && !a.print.json {
				_, err = fmt.Fprintln(a.print.out, t.summary())
			}
			if err == nil && len(t.times) == 0 {
				return exitError(exitFailure)
			}
			return err
		},
	}
	cmd.Flags().IntVarP(&count, "count", "c", 4, "number of probes")
	return cmd
}

// pingTally adds up answers to pings.
type pingTally struct {
	sent  int
	times []float64 // ms
	path  string    // of the last answer
}

// add returns what is to be said of one.
func (t *pingTally) add(p pingReply) string {
	t.sent++
	if p.Error != "" {
		return fmt.Sprintf("%s: %s", p.Node, clean(p.Error, false))
	}
	t.times = append(t.times, p.RTTMS)
	path := pathWords(p.Path, p.Addr, p.Via)
	before := t.path
	t.path = path
	if before != "" && before != path {
		path = "now " + path
	}
	return fmt.Sprintf("%s: %.2f ms %s", p.Node, p.RTTMS, path)
}

func (t *pingTally) summary() string {
	s := fmt.Sprintf("%d sent, %d answered", t.sent, len(t.times))
	if len(t.times) == 0 {
		return s
	}
	slices.Sort(t.times)
	n := len(t.times)
	return fmt.Sprintf("%s; min %.2f, median %.2f, max %.2f ms", s, t.times[0], (t.times[(n-1)/2]+t.times[n/2])/2, t.times[n-1])
}

func (a *app) offerCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "offer",
		Short: "Show what this machine offers, and to whom",
		Long: "Show what this machine offers, and to whom.\n\n" +
			"The owner's rules are in the file policy.yaml of the home folder. The node takes up a change within a second.",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			var o offerReply
			if err := a.client.get(cmd.Context(), "/v1/offer", &o); err != nil {
				return err
			}
			return a.print.answer(o, func(w io.Writer) error { return printOffer(w, &o) })
		},
	}
}

// walls says what is between the machine and runs, and what holds them.
func walls(f *fleet.Offer) string {
	s := "no sandbox: as the user who runs the node"
	if f.Isolation == task.LevelSandbox {
		s = "sandbox"
	}
	for _, limit := range []string{"memory", "pids"} {
		if !slices.Contains(f.Holds, limit) {
			s += "; " + limit + " limited for each process alone, for want of control groups"
		}
	}
	if !slices.Contains(f.Holds, "cpu") {
		s += "; cpu not limited"
	}
	return s
}

func printOffer(w io.Writer, o *offerReply) error {
	f := o.Offer
	if !f.Terms.Offers {
		fmt.Fprintf(w, "%s offers nothing to the mesh\n", o.Node)
	} else {
		fmt.Fprintf(w, "%s offers\n", o.Node)
	}
	fmt.Fprintf(w, "  cpu      %v cores, %s (%s/%s)\n  memory   %v\n  disk     %v\n", f.CPU, cmp.Or(clean(f.CPUModel, false), "unknown model"), f.OS, f.Arch, f.Memory, f.Disk)
	for i, g := range f.GPUs {
		free := ""
		if o.Live != nil && i < len(o.Live.GPUs) {
			free = fmt.Sprintf(", %v free", o.Live.GPUs[i].FreeVRAM)
		}
		fmt.Fprintf(w, "  gpu %d    %s, %v%s\n", i, clean(g.Model, false), g.VRAM, free)
	}
	if o.Live != nil {
		fmt.Fprintf(w, "  free     %v of memory, %v of disk; %v cores and %v promised to %d runs\n", o.Live.FreeMemory, o.Live.FreeDisk, o.Live.HeldCPU, o.Live.HeldMemory, o.Live.Runs)
	}
	var engines []string
	for _, e := range f.Engines {
		engines = append(engines, strings.TrimSpace(e.Name+" "+e.Version))
	}
	fmt.Fprintf(w, "  engines  %s\n  labels   %s\n", cmp.Or(strings.Join(engines, ", "), "none"), cmp.Or(strings.Join(f.Labels, ", "), "none"))
	fmt.Fprintf(w, "  runs     %s\n", walls(f))
	if f.Engine != "" {
		fmt.Fprintf(w, "  images   %d, in containers of %s\n", len(f.Images), clean(f.Engine, false))
	}
	for _, line := range terms(f) {
		fmt.Fprintf(w, "  to       %s\n", clean(line, false))
	}
	fmt.Fprintf(w, "  rules    %s\n", o.Rules)
	if o.Error != "" {
		fmt.Fprintf(w, "           not in force: %s\n", clean(o.Error, true))
	}
	return nil
}

// terms says in words to whom a machine gives what.
func terms(f *fleet.Offer) []string {
	if !f.Terms.Offers {
		return nil
	}
	out := []string{fmt.Sprintf("its owner: everything but %v cores and %v", f.Terms.ReserveCPU, f.Terms.ReserveMemory)}
	if f.Terms.Duty != "" {
		out = []string{"nobody: the machine is " + f.Terms.Duty}
	}
	for _, g := range f.Terms.Others {
		out = append(out, g.Who()+": "+grantWords(&g))
	}
	return out
}

// grantWords says in words what a grant gives.
func grantWords(g *policy.Grant) string {
	line := fmt.Sprintf("%v cores, %v, %d GPUs at one time", g.CPU, g.Memory, g.GPUs)
	add := func(ok bool, format string, args ...any) {
		if ok {
			line += ", " + fmt.Sprintf(format, args...)
		}
	}
	add(g.VRAM > 0, "%v of VRAM", g.VRAM)
	add(g.Runs > 0, "%d runs", g.Runs)
	add(g.Drivers != "", "only %s", strings.Join(g.Drivers.List(), " and "))
	add(g.Time > 0, "runs of %v at most", g.Time)
	add(g.Use > 0, "%v of use in %v", g.Use, g.Per)
	add(g.Hours != "", "at %s", g.Hours)
	add(g.Idle > 0, "after %v without anybody at it", g.Idle)
	add(g.Mains, "on AC power")
	add(g.GPUFree, "while no other program uses a GPU")
	add(g.Idle > 0 || g.Mains, "else: %s", cmp.Or(g.Return, policy.Pause))
	return line
}

func (a *app) servicesCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "services",
		Short: "List what the machines publish by DNS-SD, and what they expose",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			var rows []serviceRow
			if err := a.client.get(cmd.Context(), "/v1/services", &rows); err != nil {
				return err
			}
			return a.print.answer(rows, func(w io.Writer) error {
				var out [][]string
				for _, r := range rows {
					out = append(out, []string{r.Instance, r.Type, r.Node, r.Address, strconv.Itoa(int(r.Port)), forWhom(r.For), strings.Join(r.Text, " ")})
				}
				return table(w, []string{"INSTANCE", "TYPE", "NODE", "ADDRESS", "PORT", "FOR", "TEXT"}, out)
			})
		},
	}
}

// completeNodes offers the names of the machines to the shell.
func (a *app) completeNodes(cmd *cobra.Command, _ []string, _ string) ([]string, cobra.ShellCompDirective) {
	var rows []nodeRow
	if a.setUp(cmd, nil) != nil || a.client.get(cmd.Context(), "/v1/nodes", &rows) != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	var names []string
	for _, r := range rows {
		names = append(names, r.Name+"\t"+gives(r))
	}
	return names, cobra.ShellCompDirectiveNoFileComp
}

// completeRuns offers the ids of runs to the shell.
func (a *app) completeRuns(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
	var runs []task.Status
	if len(args) > 0 || a.setUp(cmd, nil) != nil || a.client.get(cmd.Context(), "/v1/runs?limit=50", &runs) != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	var ids []string
	for _, r := range runs {
		ids = append(ids, r.ID+"\t"+string(r.State)+" "+clean(filepath.Base(strings.Join(r.Command, " ")), false))
	}
	return ids, cobra.ShellCompDirectiveNoFileComp
}
