package main

import (
	"cmp"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"time"

	"github.com/spf13/cobra"

	"github.com/balanceai/balance/exec/task"
	"github.com/balanceai/balance/mesh/identity"
	"github.com/balanceai/balance/mesh/trust"
	"github.com/balanceai/balance/store"
)

// For whom runs were, as seen by the owner of this machine.
const (
	usageOwn   = "own"   // the owner's, on the owner's machines
	usageUsed  = "used"  // the owner's, on machines of others
	usageGiven = "given" // of others, on this machine
)

// usageRow is one element of the answer of GET /v1/usage: what some runs used,
// by the accounts that the machines have signed.
type usageRow struct {
	Way     string     `json:"way"` // own, used or given
	Who     string     `json:"who"` // the other owner, the other machine, or the agent
	Runs    int        `json:"runs"`
	Signed  int        `json:"receipts"` // of the runs: signed by both sides
	WallMS  uint64     `json:"wall_ms"`
	CPUMS   uint64     `json:"cpu_ms"`
	GPUMS   uint64     `json:"gpu_ms"`
	Memory  task.Bytes `json:"peak_memory"` // the largest
	VRAM    task.Bytes `json:"peak_vram"`   // the largest
	InBytes task.Bytes `json:"bytes_in"`
	Out     task.Bytes `json:"bytes_out"` // output files
	Output  task.Bytes `json:"output"`    // written to standard output and error

	Models task.ModelUsage `json:"models"` // what they asked of models
}

func (u *usageRow) add(r *task.Status) {
	u.Runs++
	if r.Receipt {
		u.Signed++
	}
	u.WallMS += r.Usage.WallMS
	u.CPUMS += r.Usage.CPUMS
	u.GPUMS += r.Usage.GPUMS
	u.Memory = max(u.Memory, r.Usage.MaxRSS)
	u.VRAM = max(u.VRAM, r.Usage.PeakVRAM)
	u.InBytes += r.Usage.InBytes
	u.Out += r.Usage.OutBytes
	u.Output += r.Usage.Output
	u.Models.Add(r.Usage.Models)
}

// usageOf adds up runs that have ended since a moment.
func usageOf(runs []task.Status, members map[identity.ID]trust.Member, self identity.ID, by string, since time.Time) []usageRow {
	rows := map[[2]string]*usageRow{}
	for i := range runs {
		r := &runs[i]
		if r.Usage == nil || r.Finished.Before(since) {
			continue
		}
		way, who := counterpart(r, members, self, by)
		key := [2]string{way, who}
		if rows[key] == nil {
			rows[key] = &usageRow{Way: way, Who: who}
		}
		rows[key].add(r)
	}
	out := []usageRow{}
	for _, u := range rows {
		out = append(out, *u)
	}
	slices.SortFunc(out, func(a, b usageRow) int { return cmp.Or(cmp.Compare(a.Way, b.Way), cmp.Compare(a.Who, b.Who)) })
	return out
}

// counterpart says for whom a run was, and under which name it is added up.
func counterpart(r *task.Status, members map[identity.ID]trust.Member, self identity.ID, by string) (way, who string) {
	name := func(id identity.ID) trust.Member {
		m, ok := members[id]
		if !ok {
			m.Name, m.Owner = id.Short(), id.Short() // who is gone has used nevertheless
		}
		return m
	}
	mine, from, on := name(self).Owner, name(r.Submitter), name(r.NodeID)
	other := on
	switch {
	case from.Owner != mine:
		way, other = usageGiven, from
	case on.Owner != mine:
		way = usageUsed
	default:
		way = usageOwn
	}
	switch by {
	case "agent":
		return way, cmp.Or(r.Agent, "(command)")
	case "node":
		return way, other.Name
	}
	return way, other.Owner
}

// usageBy are the words that --by takes.
var usageBy = []string{"owner", "node", "agent"}

func (l *localAPI) usage(w http.ResponseWriter, r *http.Request) error {
	by, since := r.FormValue("by"), time.Time{}
	if !slices.Contains(usageBy, by) {
		return fail("usage", "", "by: %q is none of owner, node and agent", by)
	}
	if ms, err := strconv.ParseInt(r.FormValue("since_ms"), 10, 64); err == nil {
		since = time.UnixMilli(ms)
	} else if r.FormValue("since_ms") != "" {
		return fail("usage", "", "since_ms: %v", err)
	}
	runs, err := l.db.Runs(r.Context(), store.RunFilter{Since: since})
	if err != nil {
		return err
	}
	reply(w, usageOf(runs, l.who.now().Members, l.self, by, since))
	return nil
}

func (a *app) usageCommand() *cobra.Command {
	var by, since string
	cmd := &cobra.Command{
		Use:   "usage",
		Short: "Add up what runs have used: yours on machines of others, and theirs here",
		Long: "Add up what the runs that this machine knows have used, by the accounts that the machines have signed:\n" +
			"own (yours, on your machines), used (yours, on machines of others) and given (of others, on this machine).",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			q := url.Values{"by": {by}}
			if !slices.Contains(usageBy, by) {
				return fail("usage", "for example: --by owner", "--by: %q is none of owner, node and agent", by)
			}
			if since != "" {
				d, err := task.ParseDuration(since)
				if err != nil {
					return fail("usage", "for example: --since 7d", "--since: %v", err)
				}
				q.Set("since_ms", strconv.FormatInt(time.Now().Add(-d).UnixMilli(), 10))
			}
			rows := []usageRow{}
			if err := a.client.get(cmd.Context(), "/v1/usage?"+q.Encode(), &rows); err != nil {
				return err
			}
			return a.print.answer(rows, func(w io.Writer) error { return printUsage(w, by, rows) })
		},
	}
	cmd.Flags().StringVar(&by, "by", "owner", "owner, node or agent")
	cmd.Flags().StringVar(&since, "since", "", "only of runs that ended within this time, like 7d")
	return cmd
}

func printUsage(w io.Writer, by string, rows []usageRow) error {
	var out [][]string
	for _, u := range rows {
		out = append(out, []string{
			u.Way, u.Who, strconv.Itoa(u.Runs), strconv.Itoa(u.Signed), seconds(u.WallMS), seconds(u.CPUMS), seconds(u.GPUMS),
			u.Memory.String(), u.VRAM.String(), u.InBytes.String(), u.Out.String(), u.Models.Tokens().String(),
		})
	}
	return table(w, []string{"WAY", map[string]string{"owner": "OWNER", "node": "NODE", "agent": "AGENT"}[by], "RUNS", "RECEIPTS", "TIME", "CPU", "GPU", "MEMORY", "VRAM", "IN", "OUT", "TOKENS"}, out)
}

func seconds(ms uint64) string {
	return fmt.Sprint((time.Duration(ms) * time.Millisecond).Round(10 * time.Millisecond))
}
