package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"path/filepath"
	"slices"
	"strconv"

	"github.com/spf13/cobra"

	"github.com/balanceai/balance/exec/agent"
	"github.com/balanceai/balance/exec/fleet"
	"github.com/balanceai/balance/exec/task"
	"github.com/balanceai/balance/mesh/identity"
	"github.com/balanceai/balance/tui"
)

func (a *app) uiFlags(cmd *cobra.Command) {
	cmd.Flags().BoolVar(&a.screen.ASCII, "ascii", false, "draw the terminal UI with ASCII only")
	cmd.Flags().BoolVar(&a.screen.Sync, "sync", false, "ask the terminal for synchronized output over SSH too")
}

// openUI is balance without a command.
func (a *app) openUI(cmd *cobra.Command, _ []string) error {
	if !a.print.outTTY || a.print.json {
		_ = cmd.Help()
		return exitError(exitUsage)
	}
	return a.ui(cmd.Context(), a.home)
}

// ui opens the terminal UI on the node of a home.
func (a *app) ui(ctx context.Context, h home) error {
	b := &backend{app: &app{env: a.env, in: a.in, print: a.print, home: h, client: newClient(h)}}
	var s statusReply
	if err := b.client.get(ctx, "/v1/status", &s); err != nil {
		return err
	}
	return tui.Run(ctx, b, a.screen)
}

// backend is the daemon as the terminal UI needs it.
type backend struct{ *app }

// away tells the UI that the daemon does not answer.
func away(err error) error {
	var p *problem
	if errors.As(err, &p) && p.Code == "not_running" {
		return fmt.Errorf("%w: %w", tui.ErrNotRunning, err)
	}
	return err
}

// Watch implements [tui.Viewer]. The daemon sends the newest measurement of
// each machine; the view here remembers the last minute of them.
func (b *backend) Watch(ctx context.Context, show func(tui.Mesh)) error {
	resp, err := b.client.do(ctx, http.MethodGet, "/v1/fleet", nil)
	if err != nil {
		return away(err)
	}
	defer resp.Body.Close()
	seen := histories{}
	err = stream(resp, func(r fleetReply) error {
		seen.extend(r.Nodes)
		show(tui.Mesh{Name: r.Mesh, Self: r.Self, Nodes: r.Nodes})
		return nil
	})
	if err == nil {
		err = tui.ErrNotRunning // the stream has no end of its own
	}
	return away(err)
}

// histories are the measurements of the last minute by machine.
type histories map[identity.ID][]fleet.Sample

// extend takes the newest measurement of each node and gives it the whole
// history. What was given before is not changed.
func (h histories) extend(nodes []fleet.Node) {
	for i := range nodes {
		n := &nodes[i]
		old := h[n.ID]
		for _, s := range n.History {
			if len(old) == 0 || s.Time.After(old[len(old)-1].Time) {
				old = append(slices.Clip(old), s)
			}
		}
		h[n.ID] = old[max(0, len(old)-fleet.HistoryLen):]
		n.History = h[n.ID]
	}
}

// Ledger implements [tui.Viewer].
func (b *backend) Ledger(ctx context.Context, topic string, limit int) ([]tui.Entry, error) {
	q := url.Values{"limit": {strconv.Itoa(limit)}}
	if topic != "" {
		q.Set("topic", topic)
	}
	var entries []ledgerEntry
	if err := b.client.get(ctx, "/v1/ledger?"+q.Encode(), &entries); err != nil {
		return nil, away(err)
	}
	out := make([]tui.Entry, 0, len(entries))
	for _, e := range entries {
		out = append(out, tui.Entry{Topic: e.Topic, Author: e.ID, Kind: e.Kind, Seq: e.Seq, Time: e.Time, Summary: e.Summary, Hash: e.Hash.String()})
	}
	return out, nil
}

// Runs implements [tui.Runner].
func (b *backend) Runs(ctx context.Context, limit int) (runs []task.Status, err error) {
	err = b.client.get(ctx, "/v1/runs?limit="+strconv.Itoa(limit), &runs)
	return runs, away(err)
}

// Events implements [tui.Runner].
func (b *backend) Events(ctx context.Context, run string, after uint64, show func(task.Event)) error {
	ended := false
	err := b.client.events(ctx, run, after, true, func(e task.Event) error {
		show(e)
		ended = e.Type == task.EventFinished
		return nil
	})
	if err == nil && !ended {
		err = tui.ErrNotRunning
	}
	return away(err)
}

// Why implements [tui.Runner].
func (b *backend) Why(ctx context.Context, run string) ([]tui.Attempt, error) {
	var tries []whyAttempt
	if err := b.client.get(ctx, runPath(run, "/why"), &tries); err != nil {
		return nil, away(err)
	}
	out := make([]tui.Attempt, 0, len(tries))
	for _, t := range tries {
		out = append(out, tui.Attempt{Attempt: t.Attempt, Node: t.Node, Waits: t.Waits, Ranking: t.Ranking, Refusal: t.Refused})
	}
	return out, nil
}

// Cancel implements [tui.Runner].
func (b *backend) Cancel(ctx context.Context, run string, force bool) error {
	path := runPath(run, "/cancel")
	if force {
		path += "?force=1"
	}
	return away(b.client.call(ctx, http.MethodPost, path, nil, nil))
}

// Agents implements [tui.Dispatcher]: the manifests in this folder, in its
// folders agents and examples, and in the home, and those that other machines
// offer.
func (b *backend) Agents(ctx context.Context) ([]tui.Agent, error) {
	var out []tui.Agent
	for _, pattern := range []string{".", "*", "agents/*", "examples/*", b.home.path(agentsDir) + "/*"} {
		folders, err := filepath.Glob(pattern)
		if err != nil {
			return nil, err
		}
		for _, folder := range folders {
			if !isAgent(folder) {
				continue
			}
			a := tui.Agent{Name: filepath.Base(folder), Path: folder}
			m, err := agent.Load(folder)
			if err == nil {
				a.Name, a.Description, a.Parameters = m.Name, m.Description, parametersOf(m.Parameters())
			} else {
				a.Description = "has mistakes: balance run " + folder + " shows them"
			}
			out = append(out, a)
		}
	}
	var rows []agentRow
	_ = b.client.get(ctx, "/v1/agents", &rows) // a node that is away offers nothing
	for _, r := range rows {
		if !r.Self {
			out = append(out, tui.Agent{Name: r.Name, Description: r.About, Path: r.Name + "@" + r.Digest.String()})
		}
	}
	return out, nil
}

// Plan implements [tui.Dispatcher]. It is asked while a person types, so it
// packs no inputs: they do not change where the run fits.
func (b *backend) Plan(ctx context.Context, d tui.Draft) (ranking task.Ranking, err error) {
	own := b.draft(d)
	if own.agent == "" && len(own.command) == 0 {
		own.command = []string{"true"}
	}
	spec, _, err := b.outline(ctx, own)
	if missing := (*agent.ParameterError)(nil); errors.As(err, &missing) && len(missing.Missing) > 0 {
		return nil, &tui.UntoldError{Parameters: parametersOf(own.parameters), Text: missing.Error()}
	}
	if err != nil {
		return nil, err
	}
	err = b.client.call(ctx, http.MethodPost, "/v1/plan", spec, &ranking)
	return ranking, away(err)
}

// Submit implements [tui.Dispatcher].
func (b *backend) Submit(ctx context.Context, d tui.Draft) (string, error) {
	own := b.draft(d)
	own.detach = true
	spec, err := b.compile(ctx, own)
	if err != nil {
		return "", err
	}
	if spec.Values, err = own.readSecrets(own.base); err != nil {
		return "", err
	}
	var r runReply
	err = b.client.call(ctx, http.MethodPost, "/v1/runs", spec, &r)
	return r.Run, away(err)
}

func (b *backend) draft(d tui.Draft) *draft {
	own := &draft{needs: d.Needs, node: d.Node}
	own.limits.Time = d.Time
	if d.Agent != "" {
		own.agent, own.args, own.params = d.Agent, d.Command, d.Params
	} else {
		own.command = d.Command
	}
	return own
}

func parametersOf(list []agent.Parameter) (out []tui.Parameter) {
	for _, p := range list {
		out = append(out, tui.Parameter{Name: p.Name, About: p.About(), Choices: p.Choices, Default: p.Default, Needed: !p.Optional})
	}
	return out
}
