package main

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"os/signal"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/balanceai/balance/exec/policy"
)

func (a *app) exposeCommand() *cobra.Command {
	var e exposure
	var off bool
	cmd := &cobra.Command{
		Use:   "expose [[HOST:]PORT]",
		Short: "Open a TCP service of this machine to the mesh, or list those that are",
		Long: "Open a TCP service of this machine to the mesh, at the same port of the machine's name there. It stays open\n" +
			"over restarts of the node until it is closed with --off. Your own machines may connect; others are named with\n" +
			"--to. What is changed is said anew as a whole. Without an argument it lists what is open.",
		Example: "  balance expose 8000 --as _http._tcp --to ben\n  balance expose nas.local:445 --port 4450\n  balance expose --off 8000",
		Args:    cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			switch {
			case len(args) == 0 && (off || !reflect.DeepEqual(e, exposure{})):
				return fail("usage", "for example: balance expose 8000", "which port?")
			case len(args) == 0:
				return a.listExposed(cmd.Context())
			case off:
				return a.client.call(cmd.Context(), http.MethodDelete, "/v1/exposed/"+url.PathEscape(args[0]), nil, nil)
			}
			return a.expose(cmd.Context(), args[0], e)
		},
	}
	f := cmd.Flags()
	f.Uint16Var(&e.Port, "port", 0, "the port in the mesh, where it is to be another one")
	f.StringVar(&e.Type, "as", "", "publish it by DNS-SD as a service of this type, such as _http._tcp")
	f.StringVar(&e.Name, "name", "", "what it is called there: \"NAME on MACHINE\" (default: the machine's name)")
	f.StringArrayVar(&e.Text, "text", nil, "key=value to publish with it, such as path=/v1; can be repeated")
	f.StringSliceVar(&e.To, "to", nil, "other owners who may connect, or \"*\" for every member")
	f.BoolVar(&off, "off", false, "close the service at this port of the mesh")
	return cmd
}

func (a *app) expose(ctx context.Context, target string, e exposure) error {
	if !strings.Contains(target, ":") {
		target = "127.0.0.1:" + target
	}
	_, portText, err := net.SplitHostPort(target)
	if err != nil {
		return fail("usage", "for example: balance expose 8000", "%v", err)
	}
	port, err := parsePort(portText)
	if err != nil {
		return err
	}
	e.Target = target
	if e.Port == 0 {
		e.Port = port
	}
	if err := a.client.call(ctx, http.MethodPost, "/v1/exposed", e, &e); err != nil {
		return err
	}
	var s statusReply
	var nodes []nodeRow
	if err := a.client.get(ctx, "/v1/status", &s); err != nil {
		return err
	}
	if err := a.client.get(ctx, "/v1/nodes", &nodes); err != nil {
		return err
	}
	for _, owner := range e.To {
		if owner != policy.AnyOwner && !slices.ContainsFunc(nodes, func(n nodeRow) bool { return n.Owner == owner }) {
			a.print.say("no machine of this mesh belongs to %s yet", owner)
		}
	}
	return a.print.answer(e, func(w io.Writer) error {
		_, err := fmt.Fprintf(w, "%s.%s.internal:%d → %s, for %s\n", s.Name, s.Mesh, e.Port, e.Target, forWhom(append([]string{s.Owner}, e.To...)))
		return err
	})
}

func (a *app) listExposed(ctx context.Context) error {
	var list []exposure
	if err := a.client.get(ctx, "/v1/exposed", &list); err != nil {
		return err
	}
	return a.print.answer(list, func(w io.Writer) error {
		var out [][]string
		for _, e := range list {
			out = append(out, []string{strconv.Itoa(int(e.Port)), e.Target, e.Type, e.Name, forWhom(e.To), strings.Join(e.Text, " ")})
		}
		return table(w, []string{"PORT", "TARGET", "TYPE", "NAME", "TO", "TEXT"}, out)
	})
}

// forWhom lists owners for people.
func forWhom(owners []string) string {
	if slices.Contains(owners, policy.AnyOwner) {
		return "everybody"
	}
	return strings.Join(owners, ", ")
}

func (a *app) forwardCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "forward [LOCAL_ADDR:]LOCAL_PORT NODE:PORT",
		Short: "Carry connections to a port of this host to a service of a machine",
		Long: "Carry connections to a port of this host to a service of a machine, until Ctrl-C. It listens on loopback.\n" +
			"Port 0 is any free one; which one it is, is printed.",
		Example: "  balance forward 8000 gpu-1:8000\n  balance forward 0 gpu-1:22",
		Args:    cobra.ExactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			at, err := parseLocal(args[0])
			if err != nil {
				return err
			}
			node, port, err := net.SplitHostPort(args[1])
			if err != nil {
				return fail("usage", "for example: balance forward 8000 gpu-1:8000", "%v", err)
			}
			ctx, cancel := signal.NotifyContext(cmd.Context(), syscall.SIGINT, syscall.SIGTERM)
			defer cancel()
			return a.forward(ctx, at, node, port)
		},
	}
}

// parseLocal reads an address of loopback, or a port of the usual one.
func parseLocal(s string) (at netip.AddrPort, err error) {
	if !strings.Contains(s, ":") {
		s = "127.0.0.1:" + s
	}
	if host, port, err := net.SplitHostPort(s); err == nil && host == "localhost" {
		s = "127.0.0.1:" + port
	}
	return parseLoopback("LOCAL_PORT", s, "balance forward 8000 gpu-1:8000")
}

// forward listens until ctx ends.
func (a *app) forward(ctx context.Context, at netip.AddrPort, node, port string) error {
	var p portReply
	path := "/v1/nodes/" + url.PathEscape(node) + "/ports/" + url.PathEscape(port)
	if err := a.client.get(ctx, path, &p); err != nil {
		return err
	}
	path = fmt.Sprintf("/v1/nodes/%s/ports/%d", p.ID, p.Port)
	ln, err := net.Listen("tcp", at.String())
	if err != nil {
		return hint(err, "choose another port, or 0 for any")
	}
	defer context.AfterFunc(ctx, func() { ln.Close() })()
	f := forwardReply{Listen: ln.Addr().String(), Node: p.Node, Port: p.Port}
	err = a.print.answer(f, func(w io.Writer) error {
		_, err := fmt.Fprintf(w, "%s → %s:%d\n", f.Listen, f.Node, f.Port)
		return err
	})
	if err != nil {
		return err
	}
	var streams sync.WaitGroup
	defer streams.Wait()
	own := ownUser{ln, slog.New(slog.NewTextHandler(a.print.err, nil))}
	for {
		c, err := own.Accept()
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return err
		}
		streams.Go(func() {
			defer c.Close()
			if err := a.client.carry(ctx, path, c); err != nil && ctx.Err() == nil {
				a.print.fault(err)
			}
		})
	}
}
