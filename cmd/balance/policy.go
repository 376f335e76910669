package main

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/balanceai/balance/exec/agent"
	"github.com/balanceai/balance/exec/fleet"
	"github.com/balanceai/balance/exec/policy"
	"github.com/balanceai/balance/exec/task"
)

// policyReply is the answer of GET /v1/policy: who could run what here now.
type policyReply struct {
	Node     string             `json:"node"`
	File     string             `json:"file"`
	Error    string             `json:"rules_error,omitempty"` // the file as it is now is not in force
	Duty     string             `json:"duty,omitempty"`
	Measured *policy.Conditions `json:"measured,omitempty"` // of the owner, where the rules ask for it
	Who      []whoRow           `json:"who"`
}

// whoRow is one member.
type whoRow struct {
	Owner   string        `json:"owner"`
	Node    string        `json:"node"`
	Role    string        `json:"role"`
	Own     bool          `json:"own,omitempty"`   // of the machine's owner
	Grant   *policy.Grant `json:"grant,omitempty"` // that counts
	Now     bool          `json:"now"`             // a small run may come now
	Reasons []task.Reason `json:"reasons,omitempty"`
}

// policy answers for each member with the question that a small run would ask.
func (l *localAPI) policy(w http.ResponseWriter, _ *http.Request) error {
	offer, rulesErr := l.facts.current()
	held := l.runner.Held()
	p := policyReply{Node: l.who.me().Name, File: l.home.path(rulesFile), Duty: offer.Terms.Duty, Who: []whoRow{}}
	p.Measured = l.facts.presence(offer.Terms, l.facts.held(held))
	if rulesErr != nil {
		p.Error = rulesErr.Error()
	}
	for _, m := range l.who.now().List() {
		row := whoRow{Owner: m.Owner, Node: m.Name, Role: m.Role.String(), Own: m.Owner == l.who.me().Owner}
		q := policy.Question{
			From: asker(m), Machine: l.who.me().Owner, Driver: task.DriverProcess, Needs: task.Needs{}.Held(),
			Held: l.facts.use(held, m.Owner), Now: time.Now(), Isolation: offer.Isolation, Measured: p.Measured,
		}
		if g, ok := offer.Terms.Grant(q.From); ok && !row.Own {
			row.Grant, q.Limits.Time = &g, g.Time
		}
		row.Reasons = offer.Terms.Ask(q)
		row.Now = len(row.Reasons) == 0
		p.Who = append(p.Who, row)
	}
	reply(w, p)
	return nil
}

func (a *app) policyCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "policy",
		Short: "Check the owner's rules of this machine, and see whom they let in",
		Args:  cobra.NoArgs,
		RunE:  func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(a.policyCheckCommand(), a.policyWhoCommand())
	return cmd
}

// checkReply is what balance policy check prints.
type checkReply struct {
	File     string          `json:"file"`
	OK       bool            `json:"ok"`
	Problems []agent.Problem `json:"problems"`
}

func (a *app) policyCheckCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "check [FILE]",
		Short: "Look for mistakes in rules: those of this node, or a file",
		Long: "Look for mistakes in rules: those of this node, or a file. The node need not run.\n\n" +
			"Each mistake has its line, its column, the reason, and a suggestion where there is one.",
		Args: cobra.MaximumNArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			path := a.home.path(rulesFile)
			if len(args) > 0 {
				path = args[0]
				if _, err := os.Stat(path); err != nil { // without a file the default would pass
					return fmt.Errorf("check rules: %w", err)
				}
			}
			rules, err := agent.LoadRules(path)
			r := checkReply{File: path, OK: err == nil, Problems: []agent.Problem{}}
			var bad *agent.Errors
			if err != nil && (!errors.As(err, &bad) || !a.print.json) {
				return err
			}
			if err != nil {
				r.Problems = bad.Problems
				_ = a.print.line(r)
				return exitError(exitFailure)
			}
			return a.print.answer(r, func(w io.Writer) error {
				fmt.Fprintf(w, "%s is sound\n", path)
				for _, line := range terms(&fleet.Offer{Terms: rules.Terms}) {
					fmt.Fprintf(w, "  to %s\n", clean(line, false))
				}
				return nil
			})
		},
	}
}

func (a *app) policyWhoCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "who",
		Short: "Show for each member what it could run here, and whether it could now",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			var p policyReply
			if err := a.client.get(cmd.Context(), "/v1/policy", &p); err != nil {
				return err
			}
			return a.print.answer(p, func(w io.Writer) error {
				var rows [][]string
				for _, r := range p.Who {
					rows = append(rows, []string{r.Owner, r.Node, r.Role, r.what(), r.when()})
				}
				err := table(w, []string{"OWNER", "NODE", "ROLE", "MAY USE", "NOW"}, rows)
				if p.Error != "" {
					fmt.Fprintf(w, "\nThe older rules are in force: %s\n", clean(p.Error, true))
				}
				return err
			})
		},
	}
}

func (r *whoRow) what() string {
	switch {
	case r.Own:
		return "everything but what is reserved"
	case r.Grant == nil:
		return "nothing"
	}
	return grantWords(r.Grant)
}

func (r *whoRow) when() string {
	if r.Now {
		return "yes"
	}
	texts := make([]string, len(r.Reasons))
	for i, reason := range r.Reasons {
		texts[i] = reason.Text
	}
	return "no: " + strings.Join(texts, "; ")
}

// duties are the words of the command line for what policy calls a duty.
var duties = map[string]string{"pause": policy.Paused, "drain": policy.Draining, "resume": ""}

func (l *localAPI) duty(w http.ResponseWriter, r *http.Request) error {
	duty, ok := duties[r.PathValue("duty")]
	if !ok {
		return fail("usage", "", "%q is none of drain, pause and resume", r.PathValue("duty"))
	}
	if err := l.facts.setDuty(r.Context(), duty); err != nil {
		return err
	}
	reply(w, dutyReply{Node: l.who.me().Name, Duty: duty, Runs: len(l.runner.Held())})
	return nil
}

// dutyReply is the answer of POST /v1/duty/{duty}.
type dutyReply struct {
	Node string `json:"node"`
	Duty string `json:"duty"` // draining, paused, or empty: it works
	Runs int    `json:"runs"` // that are going
}

func (a *app) dutyCommand(word string) *cobra.Command {
	about := map[string]string{
		"pause":  "Freeze the runs on this machine, and take nothing new until resume",
		"drain":  "Let the runs on this machine end, and take nothing new until resume",
		"resume": "End a pause or a drain of this machine",
	}
	return &cobra.Command{
		Use:   word,
		Short: about[word],
		Long:  about[word] + ".\n\nThis holds for the runs of all owners, and over a restart of the node.",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			var d dutyReply
			if err := a.client.call(cmd.Context(), http.MethodPost, "/v1/duty/"+word, nil, &d); err != nil {
				return err
			}
			return a.print.answer(d, func(w io.Writer) error {
				state := d.Duty
				if state == "" {
					state = "at work"
				}
				_, err := fmt.Fprintf(w, "%s is %s; %d runs are going\n", d.Node, state, d.Runs)
				return err
			})
		},
	}
}
