package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/balanceai/balance/exec/blob"
	"github.com/balanceai/balance/exec/serve"
	"github.com/balanceai/balance/exec/task"
)

func (a *app) serveCommand() *cobra.Command {
	var req serveRequest
	var off bool
	cmd := &cobra.Command{
		Use:   "serve [MODEL|FILE.gguf]",
		Short: "Have a model served by an engine of a machine where it fits, or list those that are",
		Long: "Have a model served by an engine of a machine where it fits: a file of weights (llama-server), a model that\n" +
			"Ollama knows by its name, or the name of a repository (vLLM). The engine has to be installed there. This\n" +
			"machine sees to it until it is told --off, over restarts: a replica that fails is started again, one whose\n" +
			"machine is lost on another one. Without an argument it lists what this machine sees to.",
		Example: "  balance serve tiny.gguf\n  balance serve llama.gguf --ctx 16384 --idle 30m\n  balance serve llama3.2:3b --node gpu-1 --node gpu-2 --replicas 2\n  balance serve --off tiny",
		Args:    cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			switch {
			case len(args) == 0 && off:
				return fail("usage", "see what is served with: balance serve", "--off: which model?")
			case len(args) == 0:
				return a.listServed(cmd.Context())
			case off:
				return a.client.call(cmd.Context(), http.MethodDelete, "/v1/served/"+url.PathEscape(args[0]), nil, nil)
			case req.Replicas < 1 || req.Replicas > 100:
				return fail("usage", "", "--replicas: want a number from 1 to 100")
			case req.Context < 0 || req.Context > 1<<24:
				return fail("usage", "", "--ctx: want a number of tokens")
			}
			return a.serve(cmd.Context(), args[0], req)
		},
	}
	f := cmd.Flags()
	f.IntVar(&req.Replicas, "replicas", 1, "on how many machines")
	f.StringSliceVar(&req.Nodes, "node", nil, "machine that it may be on; repeatable (default: any)")
	f.StringVar(&req.Name, "name", "", "as others ask for it (default: the model's name, or that of the file)")
	f.StringVar(&req.Engine, "engine", "", "llama-server, ollama or vllm (default: what the model looks like)")
	f.IntVar(&req.Context, "ctx", 0, "tokens of context (default: 8192, or what the model was trained for if that is less)")
	f.Var(unit[task.Bytes]{&req.VRAM, task.ParseBytes, "bytes"}, "vram", "memory that it takes, instead of the estimate from its weights")
	f.Var(unit[time.Duration]{&req.Idle, task.ParseDuration, "duration"}, "idle", "end a replica that nobody has asked for so long; the next request starts it again")
	f.BoolVar(&off, "off", false, "serve it no more")
	return cmd
}

// serve keeps the weights, if they are a file of this machine, and has the model
// served.
func (a *app) serve(ctx context.Context, model string, req serveRequest) error {
	req.Model = model
	if serve.IsFile(model) {
		hash, err := a.keepWeights(ctx, model)
		if err != nil {
			return err
		}
		if hash != "" {
			req.Model, req.Engine = hash, cmp.Or(req.Engine, serve.Llama)
			req.Name = cmp.Or(req.Name, serve.NameOf(model))
		}
	}
	var row servedRow
	if err := a.client.call(ctx, http.MethodPost, "/v1/served", req, &row); err != nil {
		return err
	}
	return a.print.answer(row, func(w io.Writer) error {
		takes := ""
		if row.Takes > 0 {
			takes = fmt.Sprintf(", which takes %v", row.Takes)
		}
		_, err := fmt.Fprintf(w, "%s by %s%s: see where with: balance models\n", row.Model, row.Engine, takes)
		return err
	})
}

// keepWeights keeps a file of this machine for others to fetch, and returns its
// hash; empty where there is no such file here, so that it is one of the mesh's.
func (a *app) keepWeights(ctx context.Context, path string) (string, error) {
	if _, err := os.Stat(path); errors.Is(err, fs.ErrNotExist) && filepath.Base(path) == path {
		return "", nil
	}
	if !a.home.joined() {
		return "", a.client.down(os.ErrNotExist)
	}
	blobs, err := blob.Open(a.home.path(blobsDir))
	if err != nil {
		return "", err
	}
	k, err := blobs.Add(ctx, path, "", nil)
	return k.Hash.String(), err
}

func (a *app) listServed(ctx context.Context) error {
	rows := []servedRow{}
	if err := a.client.get(ctx, "/v1/served", &rows); err != nil {
		return err
	}
	return a.print.answer(rows, func(w io.Writer) error { return printServed(w, rows) })
}

func printServed(w io.Writer, rows []servedRow) error {
	var out [][]string
	for _, r := range rows {
		var on []string
		for _, o := range r.On {
			on = append(on, o.words())
		}
		why := r.Why
		if r.Resting > 0 {
			why = strings.TrimPrefix(why+fmt.Sprintf("; %d at rest until somebody asks", r.Resting), "; ")
		}
		out = append(out, []string{r.Model, r.Engine, strconv.Itoa(r.Replicas), r.Takes.String(), strings.Join(on, ", "), why})
	}
	return table(w, []string{"MODEL", "ENGINE", "REPLICAS", "TAKES", "ON", "WHY NOT"}, out)
}

// words tell of a replica where it is and how it is.
func (r replicaRow) words() string {
	switch {
	case r.Serves:
		return r.Name
	case r.State == task.Running:
		return r.Name + " (loads)"
	case r.Name == "":
		return string(r.State)
	}
	return r.Name + " (" + string(r.State) + ")"
}

func (l *localAPI) serveModel(w http.ResponseWriter, r *http.Request) error {
	var req serveRequest
	if err := readJSON(r, &req); err != nil {
		return err
	}
	m, err := l.served.add(r.Context(), req)
	if err != nil {
		return err
	}
	l.gateway.models.changed()
	rows, err := l.served.rows(r.Context())
	if err != nil {
		return err
	}
	for _, row := range rows {
		if row.Model == m.Name {
			reply(w, row)
			return nil
		}
	}
	return fail("failure", "", "%s is not served any more", m.Name)
}

func (l *localAPI) servedModels(w http.ResponseWriter, r *http.Request) error {
	rows, err := l.served.rows(r.Context())
	if err != nil {
		return err
	}
	reply(w, rows)
	return nil
}

func (l *localAPI) unserveModel(w http.ResponseWriter, r *http.Request) error {
	if err := l.served.remove(r.Context(), r.PathValue("model")); err != nil {
		return err
	}
	l.gateway.models.changed()
	reply(w, struct{}{})
	return nil
}
