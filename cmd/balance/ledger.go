package main

import (
	"fmt"
	"io"
	"net/url"
	"strconv"

	"github.com/spf13/cobra"
)

// moreCommands are those that people need less often.
func (a *app) moreCommands() []*cobra.Command {
	cmds := []*cobra.Command{a.ledgerCommand(), a.demoCommand(), a.versionCommand()}
	for _, c := range cmds {
		c.GroupID = "more"
	}
	return cmds
}

func (a *app) ledgerCommand() *cobra.Command {
	var topic string
	var limit int
	list := &cobra.Command{
		Use:   "list",
		Short: "List the newest entries",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			q := url.Values{"limit": {strconv.Itoa(limit)}}
			if topic != "" {
				q.Set("topic", topic)
			}
			entries := []ledgerEntry{}
			if err := a.client.get(cmd.Context(), "/v1/ledger?"+q.Encode(), &entries); err != nil {
				return err
			}
			return a.print.answer(entries, func(w io.Writer) error { return printEntries(w, entries) })
		},
	}
	list.Flags().StringVar(&topic, "topic", "", `"mesh" or the id of a run`)
	list.Flags().IntVar(&limit, "limit", 50, "number of entries")

	verify := &cobra.Command{
		Use:   "verify",
		Short: "Check every chain and every signature",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			var r verifyReply
			if err := a.client.get(cmd.Context(), "/v1/ledger/verify", &r); err != nil {
				return err
			}
			err := a.print.answer(r, func(w io.Writer) error {
				if r.OK {
					_, err := fmt.Fprintf(w, "all %d entries in %d topics are sound\n", r.Entries, r.Topics)
					return err
				}
				_, err := fmt.Fprintf(w, "bad entry: topic %s, author %s, segment %d, number %d: %s\n", r.Bad.Topic, r.Bad.Author, r.Bad.Segment, r.Bad.Seq, clean(r.Bad.Why, false))
				return err
			})
			if err == nil && !r.OK {
				return exitError(exitFailure)
			}
			return err
		},
	}
	cmd := &cobra.Command{Use: "ledger", Short: "Look at the signed record of what happened", Args: cobra.NoArgs, RunE: list.RunE}
	cmd.Flags().AddFlagSet(list.Flags())
	cmd.AddCommand(list, verify)
	return cmd
}

func printEntries(w io.Writer, entries []ledgerEntry) error {
	var rows [][]string
	for _, e := range entries {
		rows = append(rows, []string{e.Time.Local().Format("2006-01-02 15:04:05.000"), e.Topic, e.Author, strconv.FormatUint(e.Seq, 10), e.Kind, e.Hash.String()[:12], e.Summary})
	}
	return table(w, []string{"TIME", "TOPIC", "AUTHOR", "SEQ", "KIND", "HASH", "WHAT"}, rows)
}

func (a *app) versionCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "version",
		Short: "Print the version",
		Args:  cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			v := map[string]string{"version": version, "go": goVersion()}
			return a.print.answer(v, func(w io.Writer) error {
				_, err := fmt.Fprintf(w, "balance %s (%s)\n", version, goVersion())
				return err
			})
		},
	}
}
