// Balance joins the machines that people own into one private pool, in which
// any member can run an agent on whichever machine fits it best.
//
// This package is the program: the daemon's wiring (up.go, routes.go), the
// commands, which speak to the daemon over its Unix socket, and the demo. What
// the program does is in the packages that it wires.
package main

import (
	"context"
	"errors"
	"io"
	"os"

	"charm.land/fang/v2"
	"github.com/spf13/cobra"

	"github.com/balanceai/balance/exec/agent"
	"github.com/balanceai/balance/exec/dispatch"
	"github.com/balanceai/balance/exec/place"
	"github.com/balanceai/balance/store"
	"github.com/balanceai/balance/tui"
)

// version is set when a release is built.
var version = "dev"

func main() {
	os.Exit(program(context.Background(), os.Args[1:], os.Stdin, os.Stdout, os.Stderr, os.Getenv))
}

// app is what every command needs.
type app struct {
	env      func(string) string
	in       *os.File
	print    *printer
	homeFlag string
	screen   tui.Options
	home     home
	client   *client
	exit     exitError // of a run that was followed
}

// program is main without its process: it returns the exit code.
func program(ctx context.Context, args []string, in *os.File, out, errs io.Writer, env func(string) string) int {
	a := &app{env: env, in: in, print: newPrinter(out, errs, env)}
	root := a.root()
	root.SetArgs(args)
	root.SetOut(out)
	root.SetErr(errs)
	err := fang.Execute(ctx, root,
		fang.WithVersion(version),
		fang.WithErrorHandler(func(io.Writer, fang.Styles, error) {}))
	if err != nil {
		return a.print.fault(err)
	}
	return int(a.exit)
}

// root is the command tree.
func (a *app) root() *cobra.Command {
	root := &cobra.Command{
		Use:   "balance",
		Short: "Run and serve agents on hardware that people own",
		Long: "Balance joins the machines that people own into one private pool: an encrypted mesh\n" +
			"with no server, in which any member can run an agent on whichever machine fits it best.\n\n" +
			"Without a command it opens the terminal UI.",
		Args:              cobra.NoArgs,
		PersistentPreRunE: a.setUp,
		RunE:              a.openUI,
	}
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		return fail("usage", "see: "+cmd.CommandPath()+" --help", "%v", err)
	})
	flags := root.PersistentFlags()
	flags.StringVar(&a.homeFlag, "home", "", "folder of the node's state (BALANCE_HOME; default: balance in the XDG state folder)")
	flags.BoolVar(&a.print.json, "json", false, "print JSON for programs")
	flags.BoolVarP(&a.print.quiet, "quiet", "q", false, "print the answer alone")
	a.uiFlags(root)
	root.AddGroup(
		&cobra.Group{ID: "mesh", Title: "Machines"},
		&cobra.Group{ID: "run", Title: "Runs"},
		&cobra.Group{ID: "more", Title: "More"})
	root.SetHelpCommandGroupID("more")
	root.SetCompletionCommandGroupID("more")
	root.AddCommand(a.meshCommands()...)
	root.AddCommand(a.runCommands()...)
	root.AddCommand(a.moreCommands()...)
	usageErrors(root)
	a.exitCodes(root)
	return root
}

// usageErrors gives wrong arguments the exit code of a usage error.
func usageErrors(cmd *cobra.Command) {
	if check := cmd.Args; check != nil {
		cmd.Args = func(cmd *cobra.Command, args []string) error {
			if err := check(cmd, args); err != nil {
				return fail("usage", "see: "+cmd.CommandPath()+" --help", "%v", err)
			}
			return nil
		}
	}
	for _, sub := range cmd.Commands() {
		usageErrors(sub)
	}
}

// exitCodes keeps the exit code of a run from what shows errors, which would ask
// the terminal for its colours and take what is typed for the answer.
func (a *app) exitCodes(cmd *cobra.Command) {
	if run := cmd.RunE; run != nil {
		cmd.RunE = func(cmd *cobra.Command, args []string) error {
			err := run(cmd, args)
			if code, ok := errors.AsType[exitError](err); ok {
				a.exit, err = code, nil
			}
			return err
		}
	}
	for _, sub := range cmd.Commands() {
		a.exitCodes(sub)
	}
}

func (a *app) setUp(*cobra.Command, []string) error {
	h, err := findHome(a.homeFlag, a.env)
	if err != nil {
		return err
	}
	a.home, a.client = h, newClient(h)
	return nil
}

// errorCode gives an error of another package its code.
func errorCode(err error) string {
	var ambiguous *store.AmbiguousError
	var param *agent.ParameterError
	switch {
	case errors.As(err, &param):
		return "usage"
	case errors.Is(err, store.ErrNotFound), errors.Is(err, place.ErrNoNode):
		return "not_found"
	case errors.As(err, &ambiguous), errors.Is(err, place.ErrAmbiguous):
		return "ambiguous"
	case errors.Is(err, dispatch.ErrClosed):
		return "not_running"
	case errors.Is(err, context.DeadlineExceeded):
		return "timeout"
	}
	return "failure"
}
