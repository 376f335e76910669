package run

import (
	"context"
	"fmt"
	"net"
	"strconv"
	"strings"

	"github.com/balanceai/balance/exec/isolate"
	"github.com/balanceai/balance/exec/supervise"
	"github.com/balanceai/balance/exec/task"
)

// Served is what a run that serves gets of its machine.
type Served struct {
	Env     map[string]string
	Weights string // path of the file that it needs; empty for none
	Close   func() // when the run has ended, or is left
}

// Variables that tell a program that serves where it is to listen, and where its
// weights are.
const (
	portVar    = "BALANCE_PORT"
	weightsVar = "BALANCE_WEIGHTS"
)

// serve readies what the run needs, if it serves. over ends that.
func (x *live) serve(ctx context.Context) (over func(), err error) {
	if x.spec.Serve == nil || x.r.cfg.Serve == nil {
		return func() {}, nil
	}
	ln, err := listenApart(ctx, 0)
	if err != nil {
		return nil, fmt.Errorf("find a port for the run: %w", err)
	}
	x.port = ln.Addr().(*net.TCPAddr).Port
	_ = ln.Close()
	if !x.spec.Serve.Weights.IsZero() {
		x.report()
		x.event(&task.Event{Type: task.EventNote, Message: "bringing the weights, where they are not here yet"})
	}
	got, err := x.r.cfg.Serve(ctx, x.ask(), x.port, false)
	if err != nil {
		return nil, fmt.Errorf("serve: %w", err)
	}
	x.served = got
	return got.Close, nil
}

// serveAgain lets others ask a run that an earlier life has started.
func (x *live) serveAgain(o *supervise.Order) (over func()) {
	if x.spec.Serve == nil || x.r.cfg.Serve == nil {
		return func() {}
	}
	port, err := portOf(o.Env)
	if err == nil {
		var got Served
		if got, err = x.r.cfg.Serve(context.Background(), x.ask(), port, true); err == nil {
			return got.Close
		}
	}
	x.r.cfg.Log.Error("a run that serves is not reached any more", "run", x.id, "err", err)
	return func() {}
}

func portOf(env []string) (int, error) {
	for _, v := range env {
		if text, ok := strings.CutPrefix(v, portVar+"="); ok {
			return strconv.Atoi(text)
		}
	}
	return 0, fmt.Errorf("its order has no %s", portVar)
}

func (x *live) ask() Ask { return Ask{Run: x.id, Attempt: x.attempt, From: x.from, Spec: &x.spec} }

// command is the run's command. Where the run serves, the words for its port and
// its weights are filled in.
func (x *live) command() []string {
	if x.port == 0 {
		return x.spec.Command
	}
	fill := strings.NewReplacer(task.PortWord, strconv.Itoa(x.port), task.WeightsWord, x.served.Weights)
	out := make([]string, len(x.spec.Command))
	for i, word := range x.spec.Command {
		out[i] = fill.Replace(word)
	}
	return out
}

// unreachable refuses a run that serves where nobody could ask it.
func (r *Runner) unreachable(spec *task.Spec, level string) []task.Reason {
	switch {
	case spec.Serve == nil:
		return nil
	case r.cfg.Serve == nil:
		return []task.Reason{task.Reasonf("serve", "takes no runs that serve")}
	case level != isolate.Process:
		return []task.Reason{task.Reasonf("isolation", "would put the run into a sandbox, where nobody reaches what it serves: that is for machines that run your programs without one")}
	}
	return nil
}
