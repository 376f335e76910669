package main

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/balanceai/balance/exec/agent"
	"github.com/balanceai/balance/exec/policy"
	"github.com/balanceai/balance/mesh/identity"
)

func (a *app) agentsCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "agents",
		Short: "List the agents that machines offer",
		Long: "List the agents that machines offer to yours: those that are installed on them with balance agent add. Any of\n" +
			"them can be run by its name, wherever it fits.",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			rows := []agentRow{}
			if err := a.client.get(cmd.Context(), "/v1/agents", &rows); err != nil {
				return err
			}
			return a.print.answer(rows, func(w io.Writer) error {
				var out [][]string
				for _, r := range rows {
					out = append(out, []string{r.Name, r.Node, r.Owner, r.Digest.String()[:16], r.Size.String(), forWhom(r.To), r.About})
				}
				return table(w, []string{"NAME", "NODE", "OWNER", "DIGEST", "SIZE", "TO", "ABOUT"}, out)
			})
		},
	}
}

func (a *app) agentCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "agent",
		Short: "Install agents on this machine, and share them",
		Args:  cobra.NoArgs,
		RunE:  func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(a.agentAddCommand(), a.agentShareCommand(), a.agentRemoveCommand(), a.agentImportCommand())
	return cmd
}

// shareRequest is the body of a request to offer an agent of this machine anew.
type shareRequest struct {
	Name string   `json:"name"`
	To   []string `json:"to"` // owners besides this machine's own; null leaves that as it is
}

func (a *app) agentAddCommand() *cobra.Command {
	var to []string
	var digest string
	cmd := &cobra.Command{
		Use:   "add FOLDER|FILE|URL",
		Short: "Install an agent on this machine and offer it to your others",
		Long: "Install an agent on this machine and offer it to your other machines: a folder with an agent.yaml, such a file,\n" +
			"or the URL of one, whose inputs are files beside it. Of a folder the manifest and its inputs are copied. An\n" +
			"agent of the same name makes way.",
		Example: "  balance agent add examples/text-report\n  balance agent add https://example.org/agents/digest/agent.yaml --digest 9f86d0…",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := checkOwners(to); err != nil {
				return err
			}
			if !a.home.joined() {
				return a.client.down(os.ErrNotExist)
			}
			m, err := a.install(cmd.Context(), args[0], digest)
			if err != nil {
				return err
			}
			return a.offerAgent(cmd.Context(), shareRequest{Name: m.Name, To: to})
		},
	}
	cmd.Flags().StringSliceVar(&to, "to", nil, "other owners who may have it, or \"*\" for every member")
	cmd.Flags().StringVar(&digest, "digest", "", "the SHA-256 that its manifest must have")
	return cmd
}

func (a *app) agentShareCommand() *cobra.Command {
	var to []string
	cmd := &cobra.Command{
		Use:     "share NAME",
		Short:   "Say which other owners may have an agent of this machine",
		Long:    "Say which other owners may have an agent of this machine: those that are named, and no others any more.",
		Example: "  balance agent share text-report --to ben\n  balance agent share text-report --to '*'\n  balance agent share text-report",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := checkOwners(to); err != nil {
				return err
			}
			return a.offerAgent(cmd.Context(), shareRequest{Name: args[0], To: slices.Concat([]string{}, to)})
		},
	}
	cmd.Flags().StringSliceVar(&to, "to", nil, "other owners, or \"*\" for every member")
	return cmd
}

func checkOwners(list []string) error {
	if len(list) > maxOwners {
		return fail("usage", "", "up to %d owners", maxOwners)
	}
	for _, owner := range list {
		if err := identity.ValidName(owner); err != nil && owner != policy.AnyOwner {
			return fail("usage", "", "--to: %v", err)
		}
	}
	return nil
}

func (a *app) offerAgent(ctx context.Context, req shareRequest) error {
	var r agentRow
	if err := a.client.call(ctx, http.MethodPost, "/v1/agents", req, &r); err != nil {
		return err
	}
	return a.print.answer(r, func(w io.Writer) error {
		_, err := fmt.Fprintf(w, "%s  sha256:%s  %v, for %s\n", r.Name, r.Digest, r.Size, forWhom(append([]string{r.Owner}, r.To...)))
		return err
	})
}

func (a *app) agentRemoveCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "remove NAME",
		Short: "Take an agent away from this machine",
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.client.call(cmd.Context(), http.MethodDelete, "/v1/agents/"+url.PathEscape(args[0]), nil, nil)
		},
	}
}

// findAgent turns what a person calls an agent into a path: a path stays; a name
// is looked for in the agents folder of the home, and then in the mesh.
func (a *app) findAgent(ctx context.Context, name string) (path string, owner string, err error) {
	if _, err := os.Stat(name); err == nil || strings.ContainsRune(name, os.PathSeparator) {
		return name, "", nil
	}
	word, _, pinned := strings.Cut(name, "@")
	if agent.CheckName(word) != nil {
		return name, "", nil
	}
	if own := a.home.path(agentsDir + "/" + word); !pinned && isAgent(own) {
		return own, "", nil
	}
	var r agentReply
	err = a.client.call(ctx, http.MethodPost, "/v1/agents/get", map[string]string{"agent": name}, &r)
	if err == nil {
		a.print.say("%s of %s, sha256:%s", r.Name, r.Node, r.Digest.String()[:16])
	}
	return r.Path, r.Owner, err
}

func (l *localAPI) agents(w http.ResponseWriter, _ *http.Request) error {
	reply(w, l.installed.rows())
	return nil
}

// offerAgent looks at the agents of this machine again, and answers with one.
func (l *localAPI) offerAgent(w http.ResponseWriter, r *http.Request) error {
	var req shareRequest
	if err := readJSON(r, &req); err != nil {
		return err
	}
	if err := l.installed.look(r.Context()); err != nil {
		return err
	}
	named := func(a *ownAgent) bool { return a.Name == req.Name }
	a, ok := l.installed.find(named)
	if ok && req.To != nil {
		if err := l.installed.share(r.Context(), req.Name, req.To); err != nil {
			return err
		}
		a, ok = l.installed.find(named)
	}
	if !ok {
		return fail("not_found", "see those of this machine with: balance agents", "this machine has no agent %s that it can offer", req.Name)
	}
	me := l.who.me()
	reply(w, agentRow{Agent: a.Agent, Node: me.Name, Owner: me.Owner, Self: true})
	return nil
}

func (l *localAPI) removeAgent(w http.ResponseWriter, r *http.Request) error {
	name := r.PathValue("agent")
	folder := l.home.path(agentsDir + "/" + name)
	if agent.CheckName(name) != nil || !isAgent(folder) {
		return fail("not_found", "see those of this machine with: balance agents", "this machine has no agent %s", clean(name, false))
	}
	if err := os.RemoveAll(folder); err != nil {
		return err
	}
	if err := l.installed.share(r.Context(), name, nil); err != nil {
		return err
	}
	reply(w, struct{}{})
	return nil
}

func (l *localAPI) getAgent(w http.ResponseWriter, r *http.Request) error {
	var req struct {
		Agent string `json:"agent"`
	}
	if err := readJSON(r, &req); err != nil {
		return err
	}
	a, err := l.installed.get(r.Context(), req.Agent)
	if err != nil {
		return err
	}
	reply(w, a)
	return nil
}
