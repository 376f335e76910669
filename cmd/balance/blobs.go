package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"github.com/balanceai/balance/exec/blob"
	"github.com/balanceai/balance/exec/policy"
	"github.com/balanceai/balance/exec/task"
	"github.com/balanceai/balance/mesh/identity"
	"github.com/balanceai/balance/mesh/wire"
)

func (a *app) blobsCommand() *cobra.Command {
	var budget string
	cmd := &cobra.Command{
		Use:   "blobs",
		Short: "List the large files that machines keep, such as the weights of models",
		Long: "List the large files that machines keep, such as the weights of models. A file is known by the hash of its\n" +
			"content: whoever has got it can give it to others, so it comes into the mesh once.",
		Example: "  balance blobs add llama.gguf\n  balance blobs get llama.gguf\n  balance blobs --budget 200GiB",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			var list filesReply
			if budget == "" {
				if err := a.client.get(cmd.Context(), "/v1/files", &list); err != nil {
					return err
				}
				return a.printFiles(list)
			}
			n, err := task.ParseBytes(budget)
			if err != nil {
				return fail("usage", "for example: --budget 200GiB", "--budget: %v", err)
			}
			req := map[string]task.Bytes{"budget": n}
			if err := a.client.call(cmd.Context(), http.MethodPut, "/v1/files/budget", req, &list); err != nil {
				return err
			}
			return a.printFiles(list)
		},
	}
	cmd.Flags().StringVar(&budget, "budget", "", "how much of this machine's disk they may take; those that were brought and not used the longest go first")
	cmd.AddCommand(a.blobsAddCommand(), a.blobsGetCommand(), a.blobsRemoveCommand())
	return cmd
}

func (a *app) printFiles(list filesReply) error {
	return a.print.answer(list, func(w io.Writer) error {
		var rows [][]string
		for _, f := range list.Files {
			rows = append(rows, []string{f.Name, f.Size.String(), f.Hash.String()[:16], strings.Join(f.On, ", "), forWhom(f.To)})
		}
		if err := table(w, []string{"NAME", "SIZE", "SHA256", "ON", "TO"}, rows); err != nil {
			return err
		}
		a.print.say("%v of %v for files are in use on this machine", list.Used, list.Budget)
		return nil
	})
}

func (a *app) blobsAddCommand() *cobra.Command {
	var name string
	var to []string
	cmd := &cobra.Command{
		Use:   "add FILE",
		Short: "Keep a file on this machine and give it to others",
		Long: "Keep a file on this machine and give it to others: to your own machines, and to those of the owners that are\n" +
			"named with --to. The machine keeps a copy, which shares its place on the disk where the file system can.",
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			for _, owner := range to {
				if err := identity.ValidName(owner); err != nil && owner != policy.AnyOwner {
					return fail("usage", "", "--to: %v", err)
				}
			}
			if !a.home.joined() {
				return a.client.down(os.ErrNotExist)
			}
			blobs, err := blob.Open(a.home.path(blobsDir))
			if err != nil {
				return err
			}
			k, err := blobs.Add(cmd.Context(), args[0], name, to)
			if err != nil {
				return err
			}
			return a.print.answer(k, func(w io.Writer) error {
				_, err := fmt.Fprintf(w, "%s  %s  %v\n", k.Hash, k.Name, k.Size)
				return err
			})
		},
	}
	cmd.Flags().StringVar(&name, "name", "", "what it is called (default: the name of the file)")
	cmd.Flags().StringSliceVar(&to, "to", nil, "other owners who may have it, or \"*\" for every member")
	return cmd
}

func (a *app) blobsGetCommand() *cobra.Command {
	var req getRequest
	var sum, out string
	cmd := &cobra.Command{
		Use:   "get NAME|HASH",
		Short: "Bring a file here, and print where it is",
		Long: "Bring a file here, and print where it is: from the nearest machines that hold it, from several at once. Only\n" +
			"when none does it is read from the URL of --from. What comes is verified by its hash.",
		Example: "  balance blobs get llama.gguf\n  balance blobs get llama.gguf --from https://example.org/llama.gguf --sha256 9f86d0…",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) (err error) {
			req.File = args[0]
			if sum != "" {
				if req.Hash, err = wire.ParseHash(sum); err != nil {
					return fail("usage", "", "--sha256: %v", err)
				}
			}
			f, err := a.getFile(cmd.Context(), req)
			if err == nil && out != "" {
				err = copyFile(f.Path, out)
				f.Path = out
			}
			if err != nil {
				return err
			}
			return a.print.answer(f, func(w io.Writer) error {
				_, err := fmt.Fprintln(w, f.Path)
				return err
			})
		},
	}
	cmd.Flags().StringVar(&req.From, "from", "", "URL to read it from when no machine holds it")
	cmd.Flags().StringVar(&sum, "sha256", "", "the hash that it must have; needed with --from")
	cmd.Flags().StringVarP(&out, "output", "o", "", "copy it to this file, which must not be there")
	return cmd
}

func (a *app) getFile(ctx context.Context, req getRequest) (f fileReply, err error) {
	b, err := json.Marshal(req)
	if err != nil {
		return f, err
	}
	resp, err := a.client.do(ctx, http.MethodPost, "/v1/files/get", bytes.NewReader(b))
	if err != nil {
		return f, err
	}
	defer resp.Body.Close()
	err = stream(resp, func(p getProgress) error {
		switch {
		case p.Problem != nil:
			return p.Problem
		case p.File != nil:
			f = *p.File
		case a.print.errTTY && p.Have > 0:
			a.print.say("%v of %v, from %s", task.Bytes(p.Have), p.Size, clean(strings.Join(p.From, ", "), false))
		}
		return nil
	})
	if err == nil && f.Path == "" {
		err = fmt.Errorf("the node has stopped: ask again, and it goes on where it was")
	}
	return f, err
}

// copyFile copies a file to a place where there is none.
func copyFile(from, to string) (err error) {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o666)
	if err != nil {
		return err
	}
	if _, err = io.Copy(out, in); err != nil {
		out.Close()
		return err
	}
	return out.Close()
}

func (a *app) blobsRemoveCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "remove NAME|HASH",
		Short: "Take a file away from this machine",
		Args:  cobra.ExactArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			blobs, err := blob.Open(a.home.path(blobsDir))
			if err != nil {
				return err
			}
			list, err := blobs.Kept()
			if err != nil {
				return err
			}
			rows := make([]*fileRow, 0, len(list))
			for _, k := range list {
				rows = append(rows, &fileRow{Name: k.Name, Hash: k.Hash})
			}
			r, err := find(rows, args[0])
			if err != nil {
				return fail("not_found", "see what there is with: balance blobs", "this machine keeps no %s", args[0])
			}
			return blobs.Unkeep(r.Hash)
		},
	}
}
