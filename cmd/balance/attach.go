package main

import (
	"context"
	"errors"
	"io"
	"net/http"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/balanceai/balance/exec/task"
)

func (a *app) attachCommand() *cobra.Command {
	var keys, out string
	var noStdin bool
	cmd := &cobra.Command{
		Use:   "attach RUN",
		Short: "Sit at a run: see what it writes from now on, and type into it",
		Long: "Sit at a run: see what it writes from now on, and type into it if it was started with -i.\n\n" +
			"At a run with a terminal of its own (balance run -it) each key goes to the run. The keys ctrl-p ctrl-q\n" +
			"detach, and the run goes on. Whoever attaches last has the input.",
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			detach, err := parseKeys(keys)
			if err != nil {
				return err
			}
			var at attachReply
			if err := a.client.call(cmd.Context(), http.MethodPost, runPath(args[0], "/attach"), nil, &at); err != nil {
				return err
			}
			f := &follower{app: a, name: at.Name, out: out, attached: true, stdin: at.Stdin && !noStdin, run: at.Run, last: at.After, gaps: task.Gaps{Joined: true}}
			if at.TTY && !a.print.json {
				f.term = a.terminal(detach)
			}
			return f.join(cmd.Context())
		},
	}
	detachFlag(cmd, &keys)
	cmd.Flags().BoolVarP(&noStdin, "no-stdin", "n", false, "look on, and type nothing")
	cmd.Flags().StringVar(&out, "out", "", "folder for the output files (default: NAME-ID in the current folder)")
	return cmd
}

func detachFlag(cmd *cobra.Command, keys *string) {
	cmd.Flags().StringVar(keys, "detach-keys", defaultDetach, "keys that leave a run with a terminal, which goes on")
}

// join follows a run that has begun, from now on.
func (f *follower) join(ctx context.Context) error {
	ctx = f.catchInterrupts(ctx, false)
	defer f.undo()
	defer f.term.giveBack()
	if f.term != nil {
		f.chat("attached to %s", f.run)
	}
	f.sit(ctx)
	return f.goOn(ctx, nil)
}

// sit gives the run the terminal, where it has one too, and what comes from
// standard input.
func (f *follower) sit(ctx context.Context) {
	if f.term != nil {
		if err := f.term.take(ctx, f.leave); err != nil {
			f.chat("the terminal cannot be used: %v", err)
			f.term = nil
		} else {
			go f.sendSize(ctx, f.size)
		}
	}
	switch {
	case f.stdin && f.term != nil:
		go f.sendTyped(ctx)
	case f.stdin:
		go f.sendStdin(ctx)
	}
}

// sendStdin sends standard input to its end.
func (f *follower) sendStdin(ctx context.Context) {
	resp, err := f.client.do(ctx, http.MethodPost, runPath(f.id(), "/stdin"), io.NopCloser(f.in))
	if err == nil {
		resp.Body.Close()
	} else if f.ending() == nil && ctx.Err() == nil {
		f.chat("standard input: %v", err)
	}
}

// sendTyped sends what is typed. Where the node went away in between it goes on;
// what was on its way then is lost.
func (f *follower) sendTyped(ctx context.Context) {
	err := f.untilAnswered(ctx, func() error {
		keys := f.term.typing()
		defer func() { _ = keys.Close() }()
		resp, err := f.client.do(ctx, http.MethodPost, runPath(f.id(), "/stdin"), keys)
		if err == nil {
			resp.Body.Close()
		}
		return err
	})
	if err != nil && f.ending() == nil && ctx.Err() == nil {
		f.chat("standard input: %v", err)
	}
}

// sendSize tells the run the size of the terminal whenever that is not what it
// has. What it has of nobody changes twice, so that the program draws anew.
func (f *follower) sendSize(ctx context.Context, has task.Terminal) {
	changed := make(chan os.Signal, 1)
	signal.Notify(changed, syscall.SIGWINCH)
	defer signal.Stop(changed)
	send := func(size task.Terminal) {
		_ = f.untilAnswered(ctx, func() error { // a run that is over needs none
			return f.client.call(ctx, http.MethodPost, runPath(f.id(), "/size"), size, nil)
		})
		has = size
	}
	if now := f.term.size(); has == (task.Terminal{}) {
		send(task.Terminal{Rows: now.Rows, Cols: now.Cols + 1})
	}
	for {
		if now := f.term.size(); now != has {
			send(now)
			continue
		}
		select {
		case <-ctx.Done():
			return
		case <-changed:
		}
	}
}

// untilAnswered asks the node again for as long as it is away.
func (f *follower) untilAnswered(ctx context.Context, ask func() error) error {
	for {
		err := ask()
		var p *problem
		if err == nil || ctx.Err() != nil || f.ending() != nil || errors.As(err, &p) && p.Code != "not_running" {
			return err
		}
		time.Sleep(200 * time.Millisecond)
	}
}
