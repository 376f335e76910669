package run

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/balanceai/balance/exec/isolate"
	"github.com/balanceai/balance/exec/task"
	"github.com/balanceai/balance/mesh/identity"
)

// A rank of a gang is a run that waits, once it could start, until its submitter
// says that all the others could: the barrier. It meets them on loopback, so that
// neither the program nor the host knows of the mesh: the rank listens at a port
// of its own, and at a port for each other rank this node listens and carries
// what comes to that rank's machine.

// muster is how long a rank holds its machine for the others.
const muster = 10 * time.Minute

// rally is where a rank meets the others. Nil for a run that is none.
type rally struct {
	ports []int        // by rank; its own is where the program is to listen
	own   net.Listener // keeps that port until the program starts; nil afterwards

	stop    context.CancelFunc
	others  []net.Listener
	streams sync.WaitGroup
}

// Go lets a rank start: all the others are there. A run that has started already
// is no error.
func (r *Runner) Go(ctx context.Context, run string) error {
	x, err := r.going(ctx, run)
	if err != nil {
		return err
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	if !isClosed(x.word) {
		close(x.word)
	}
	return nil
}

// gather waits for the others of the run's gang, if it is a rank of one.
func (x *live) gather(ctx context.Context) error {
	m := x.spec.Member
	if m == nil {
		return nil
	}
	want := make([]int, m.Size())
	want[m.Rank] = m.Port
	meet, err := x.meet(want, true)
	if err != nil {
		return fmt.Errorf("rank %d: %w", m.Rank, err)
	}
	if x.append(&task.Event{Type: task.EventReady, Entries: x.unsent}) == nil {
		x.unsent = nil
	}
	timer := time.NewTimer(muster)
	defer timer.Stop()
	select {
	case <-x.word:
		_ = meet.own.Close()
		meet.own = nil
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-timer.C:
		return &end{state: task.Failed, reason: fmt.Sprintf("the others of its gang were not there within %s", task.FormatDuration(muster))}
	}
}

// regather opens the ways to the others again, for a rank that an earlier life
// has started.
func (x *live) regather() {
	if x.spec.Member == nil || x.rally != nil {
		return
	}
	var ports []int
	b, err := os.ReadFile(x.portsPath())
	if err == nil {
		err = json.Unmarshal(b, &ports)
	}
	if err == nil && len(ports) != x.spec.Member.Size() {
		err = fmt.Errorf("%s: %d ports for %d ranks", x.portsPath(), len(ports), x.spec.Member.Size())
	}
	if err == nil {
		_, err = x.meet(ports, false)
	}
	if err != nil {
		x.r.cfg.Log.Error("a rank does not reach the others of its gang any more", "run", x.id, "err", err)
	}
}

func (x *live) portsPath() string { return filepath.Join(x.dir, "ports") }

// meet listens for a rank at the ports that are wanted; 0 is any. With keep, that
// of the rank itself too.
func (x *live) meet(want []int, keep bool) (*rally, error) {
	m := x.spec.Member
	ctx, stop := context.WithCancel(context.Background())
	meet := &rally{ports: slices.Clone(want), stop: stop}
	for rank := range want {
		if rank == m.Rank && !keep {
			continue
		}
		listen := listenAt
		if rank == m.Rank && want[rank] == 0 {
			listen = listenApart
		}
		ln, err := listen(ctx, want[rank])
		if err != nil {
			meet.close()
			return nil, err
		}
		meet.ports[rank] = ln.Addr().(*net.TCPAddr).Port
		if rank == m.Rank {
			meet.own = ln
			continue
		}
		meet.others = append(meet.others, ln)
		meet.streams.Go(func() { x.lead(ctx, meet, ln, rank) })
	}
	b, err := json.Marshal(meet.ports)
	if err == nil {
		err = os.WriteFile(x.portsPath(), b, 0o600)
	}
	if err != nil {
		meet.close()
		return nil, err
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	x.rally = meet
	return meet, nil
}

func listenAt(ctx context.Context, port int) (net.Listener, error) {
	return (&net.ListenConfig{}).Listen(ctx, "tcp4", local(port))
}

// Ports that systems do not give to outgoing connections by themselves: one that
// is let go for the program to listen at is not taken in between.
const (
	firstApart = 20_000
	lastApart  = 32_000
)

// listenApart listens at any of those.
func listenApart(ctx context.Context, _ int) (ln net.Listener, err error) {
	for range 100 {
		ln, err = listenAt(ctx, firstApart+rand.IntN(lastApart-firstApart))
		if err == nil {
			return ln, nil
		}
	}
	return nil, err
}

func local(port int) string { return net.JoinHostPort("127.0.0.1", strconv.Itoa(port)) }

// lead carries connections to another rank until the listener is closed.
func (x *live) lead(ctx context.Context, meet *rally, ln net.Listener, rank int) {
	m := x.spec.Member
	for {
		c, err := ln.Accept()
		if err != nil {
			if !errors.Is(err, net.ErrClosed) {
				x.r.cfg.Log.Error("a rank does not reach another one any more", "run", x.id, "rank", rank, "err", err)
			}
			return
		}
		meet.streams.Go(func() {
			defer c.Close()
			if err := x.r.cfg.Join(ctx, m.Nodes[rank], m.Runs[rank], c); err != nil && ctx.Err() == nil {
				x.r.cfg.Log.Warn("a rank is not reached", "run", x.id, "rank", rank, "err", err)
			}
		})
	}
}

// lastWords is how long what a rank has said before it ended may be on its way.
const lastWords = 5 * time.Second

// close ends all ways to the others. What is on its way still arrives: a rank
// that has said its last word may end before its node has passed it on.
func (g *rally) close() {
	if g == nil {
		return
	}
	if g.own != nil {
		_ = g.own.Close()
	}
	for _, ln := range g.others {
		_ = ln.Close()
	}
	late := time.AfterFunc(lastWords, g.stop)
	defer late.Stop()
	g.streams.Wait()
	g.stop()
}

// environ tells a rank who and where it is, in this program's words and in those
// of torchrun.
func (g *rally) environ(m *task.Member) map[string]string {
	hosts := make([]string, len(g.ports))
	for i, port := range g.ports {
		hosts[i] = local(port)
	}
	rank, size := strconv.Itoa(m.Rank), strconv.Itoa(m.Size())
	return map[string]string{
		"BALANCE_GANG": m.Gang, "BALANCE_RANK": rank, "BALANCE_SIZE": size,
		"BALANCE_LEADER": hosts[0], "BALANCE_HOSTS": strings.Join(hosts, ","), "BALANCE_PORT": strconv.Itoa(g.ports[m.Rank]),
		"RANK": rank, "WORLD_SIZE": size, "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1", "GROUP_RANK": rank,
		"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": strconv.Itoa(g.ports[0]),
	}
}

// Times for a rank to listen, once its program has started.
const (
	listenTime = time.Minute
	listenStep = 50 * time.Millisecond
)

// Dial connects another machine of a gang with the rank that is here. A rank that
// does not listen yet is waited for: the others know no more of it than that it
// was started when they were. Whoever is not of the gang gets [task.ErrNoRun].
func (r *Runner) Dial(ctx context.Context, run string, from identity.ID) (net.Conn, error) {
	x, err := r.going(ctx, run)
	if err != nil {
		return nil, err
	}
	m := x.spec.Member
	if m == nil || !slices.Contains(m.Nodes, from) {
		return nil, task.ErrNoRun
	}
	ctx, cancel := context.WithTimeout(ctx, listenTime)
	defer cancel()
	select {
	case <-x.begun:
	case <-x.over:
		return nil, task.ErrNoRun
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	x.mu.Lock()
	meet := x.rally
	x.mu.Unlock()
	if meet == nil {
		return nil, task.ErrNoRun
	}
	for {
		c, err := (&net.Dialer{}).DialContext(ctx, "tcp4", local(meet.ports[m.Rank]))
		if !errors.Is(err, syscall.ECONNREFUSED) {
			return c, err
		}
		select {
		case <-time.After(listenStep):
		case <-x.over:
			return nil, err
		case <-ctx.Done():
			return nil, err
		}
	}
}

// apart refuses a rank that would not reach the others.
func (r *Runner) apart(spec *task.Spec, level string) []task.Reason {
	switch {
	case spec.Member == nil:
		return nil
	case r.cfg.Join == nil:
		return []task.Reason{task.Reasonf("gang", "takes no ranks of gangs")}
	case level != isolate.Process:
		return []task.Reason{task.Reasonf("isolation", "would put the rank into a sandbox, where it does not meet the others: a gang is for machines that run your programs without one")}
	case spec.Member.Nodes[spec.Member.Rank] != r.cfg.Self:
		return []task.Reason{task.Reasonf("gang", "is not the machine of rank %d", spec.Member.Rank)}
	}
	return nil
}
