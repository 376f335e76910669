package dispatch

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"

	"github.com/balanceai/balance/exec/task"
)

// A gang is a run that has no machine: its driver has machines keep what the ranks
// need, all of them or none, submits a run for each rank, pinned to its machine,
// and follows them. A rank that could start says so and waits. When all have said
// so, they may. When one is not taken after all, the others are cancelled and other
// machines are asked; when one has failed or is lost, the gang has, and the others
// are cancelled.
//
// Which run is which rank is in the ledger before any of them is, so that a
// later life takes up the same ones. The journal has what they say, each event
// with its number at its rank.

// gang is what its driver knows of the ranks.
type gang struct {
	*run
	ranks   []rankState
	refused []task.Verdict // machines that have not taken a rank, and why
	going   bool           // all were told to start
	failed  *rankState     // the first one that has failed; nil: none yet
	ended   bool           // the ranks were told to end
	forced  bool           // at once
	helpers sync.WaitGroup // goroutines of follow
}

// rankState is where a rank stands.
type rankState struct {
	task.Rank
	rank  int
	seen  uint64 // number of its last event that is in the gang's journal
	ready bool
	told  bool // to start
	lost  bool
	end   *task.Event // nil while it goes on
}

func (s *rankState) over() bool { return s.end != nil || s.lost }

// nowhere reports whether no machine has taken the rank.
func (s *rankState) nowhere() bool { return s.end != nil && s.end.State == task.Unplaced }

// rankEvent is an event of a rank.
type rankEvent struct {
	rank  int
	event *task.Event
}

// isGang reports whether the run is one on several machines.
func (r *run) isGang() bool { return r.spec.Gang != nil && r.spec.Member == nil }

// bringGang brings a gang to its end: nil once that is in the journal.
func (r *run) bringGang(ctx context.Context) error {
	g := &gang{run: r}
	seen := map[string]uint64{}
	err := r.insist(ctx, "recall", func(ctx context.Context) error {
		return r.journal.Read(ctx, 0, false, func(e *task.Event) error {
			r.room.take(e)
			r.announced = r.announced || e.Type == task.EventPlaced && e.Attempt == r.placed.Attempt
			seen[e.Member] = max(seen[e.Member], e.Source)
			return nil
		})
	})
	if err != nil {
		return err
	}
	for {
		if len(r.placed.Ranks) == 0 {
			if err := g.gather(ctx); err != nil {
				return err
			}
		}
		if len(r.placed.Ranks) == 0 {
			break
		}
		if g.ranks, err = g.muster(ctx, seen); err == nil {
			err = g.follow(ctx)
		}
		r.unhold()
		if err != nil {
			return err
		}
		if g.failed == nil || !g.failed.nowhere() || g.going || g.cancelled() {
			return g.finish(ctx)
		}
		if err := g.again(ctx); err != nil {
			return err
		}
	}
	if r.cancelled() {
		return g.finish(ctx)
	}
	return r.insist(ctx, "end", r.endNowhere)
}

// verdict is why a machine has not taken a rank.
func (g *gang) verdict(ctx context.Context, s *rankState) task.Verdict {
	out := task.Verdict{Node: s.Node, Name: s.Name, Reasons: []task.Reason{{Rule: "gang", Text: "did not take its rank", Ever: true}}}
	attempts, err := g.d.Why(ctx, s.Run)
	if err != nil || len(attempts) == 0 {
		return out
	}
	for _, v := range attempts[len(attempts)-1].Ranking {
		if v.Node == s.Node && len(v.Reasons) > 0 {
			out.Reasons = bounded(v.Reasons)
		}
	}
	return out
}

// again lets the ranks go, after some were not taken, so that other machines are
// asked.
func (g *gang) again(ctx context.Context) error {
	for i := range g.ranks {
		if s := &g.ranks[i]; s.nowhere() {
			g.refused = append(g.refused, g.verdict(ctx, s))
		}
	}
	note := task.Event{Type: task.EventNote, Message: failure(g.refused[len(g.refused)-1]) + "; the other ranks are let go"}
	if err := g.insist(ctx, "note", func(context.Context) error { return g.log(note) }); err != nil {
		return err
	}
	g.failed, g.ended, g.forced = nil, false, false
	g.mu.Lock()
	defer g.mu.Unlock()
	g.placed.Ranks = nil // the next choice is another attempt
	return nil
}

// members is what all ranks know of each other.
func (g *gang) members(ranks []task.Rank) task.Member {
	m := task.Member{Gang: g.id, Port: g.spec.Gang.Port}
	for _, r := range ranks {
		m.Runs, m.Nodes = append(m.Runs, r.Run), append(m.Nodes, r.Node)
	}
	return m
}

// specOf is the spec of the run of a rank.
func (g *gang) specOf(rank int, m task.Member) task.Spec {
	spec := g.spec
	m.Rank = rank
	spec.Gang, spec.Member, spec.Node, spec.Wait = nil, &m, m.Nodes[rank].String(), 0
	return spec
}

// muster submits the ranks that are not in the ledger yet.
func (g *gang) muster(ctx context.Context, seen map[string]uint64) ([]rankState, error) {
	out := make([]rankState, len(g.placed.Ranks))
	m := g.members(g.placed.Ranks)
	for i, r := range g.placed.Ranks {
		out[i] = rankState{Rank: r, rank: i, seen: seen[r.Run]}
	}
	for i, r := range g.placed.Ranks {
		spec := g.specOf(i, m)
		err := g.insist(ctx, "submit a rank", func(ctx context.Context) error {
			if g.d.active(r.Run) != nil {
				return nil
			}
			if _, err := g.d.status(ctx, r.Run); !errors.Is(err, task.ErrNoRun) {
				return err
			}
			return g.d.submitAs(ctx, r.Run, task.Submit{Spec: spec}, g.secrets)
		})
		if err != nil {
			return nil, err
		}
	}
	return out, g.insist(ctx, "announce", g.announce)
}

// follow takes what the ranks say until all have ended, or are lost.
func (g *gang) follow(ctx context.Context) error {
	ctx, stop := context.WithCancel(ctx)
	defer g.helpers.Wait()
	defer stop()
	news := make(chan rankEvent)
	for _, s := range g.ranks {
		g.helpers.Go(func() { g.listen(ctx, news, s) })
	}
	for slices.ContainsFunc(g.ranks, func(s rankState) bool { return !s.over() }) {
		g.dismiss(ctx)
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-g.wake: // it may be cancelled
		case e := <-news:
			if err := g.heard(ctx, e); err != nil {
				return err
			}
		}
	}
	return nil
}

// listen passes on the events of a rank.
func (g *gang) listen(ctx context.Context, news chan<- rankEvent, s rankState) {
	after := uint64(0) // whether it is ready, or was lost, is found out anew
	for {
		err := g.d.Events(ctx, s.Run, after, true, func(e *task.Event) error {
			select {
			case <-ctx.Done():
				return ctx.Err()
			case news <- rankEvent{s.rank, e}:
				after = e.Seq
				return nil
			}
		})
		if err == nil || ctx.Err() != nil {
			return
		}
		sleep(ctx, g.d.times.retryMin) // at the start of a life it may not have a driver yet
	}
}

// heard takes an event of a rank.
func (g *gang) heard(ctx context.Context, e rankEvent) error {
	s := &g.ranks[e.rank]
	switch {
	case e.event.Type == task.EventReady:
		s.ready, s.told = true, false // once more, where its machine's node was started again
	case e.event.Type == task.EventStarted:
		s.ready, s.told = true, true
	case e.event.State == task.Lost:
		s.lost = true
	case e.event.Type == task.EventNote && e.event.State != "":
		s.lost = false
	case e.event.Type == task.EventFinished:
		s.end = e.event
	}
	if g.failed == nil && (s.lost || s.end != nil && s.end.State != task.Succeeded) {
		g.failed = s
	}
	if err := g.relay(ctx, s, e.event); err != nil {
		return err
	}
	return g.release(ctx)
}

// relay writes an event of a rank into the gang's journal, once.
func (g *gang) relay(ctx context.Context, s *rankState, e *task.Event) error {
	if e.Seq <= s.seen || e.Type == task.EventPlaced || e.Type == task.EventReady {
		return nil
	}
	out := task.Event{
		Type: e.Type, Time: e.Time, Stream: e.Stream, Data: e.Data, Binary: e.Binary, Offset: e.Offset, State: e.State, Message: e.Message,
		Rank: &s.rank, Member: s.Run, Source: e.Seq,
	}
	switch e.Type {
	case task.EventNote:
		out.State = "" // of the rank, not of the gang
	case task.EventFinished:
		out.Type, out.State, out.ExitCode, out.Outputs = task.EventEnded, e.State, e.ExitCode, e.Outputs
	}
	g.room.take(&out) // its machine's events have had to find room already
	err := g.insist(ctx, "relay", func(context.Context) error { return g.logOf(s, out) })
	if err == nil {
		s.seen = e.Seq
	}
	return err
}

// logOf writes an event of a rank's machine.
func (g *gang) logOf(s *rankState, e task.Event) error {
	e.Run, e.Attempt, e.Node = g.id, g.placed.Attempt, s.Name
	return g.journal.Append(&e)
}

// release lets all ranks start, once all could.
func (g *gang) release(ctx context.Context) error {
	if g.failed != nil || slices.ContainsFunc(g.ranks, func(s rankState) bool { return !s.ready }) {
		return nil
	}
	held := slices.ContainsFunc(g.ranks, func(s rankState) bool { return !s.told })
	if !g.going {
		g.going = true
		if !held { // an earlier life has told them
			return nil
		}
		err := g.insist(ctx, "start", func(ctx context.Context) error {
			return g.write(ctx, task.KindStarted, task.Started{Attempt: g.placed.Attempt, Millis: g.d.cfg.Now().UnixMilli()})
		})
		if err != nil {
			return err
		}
	}
	for i := range g.ranks {
		if s := &g.ranks[i]; !s.told && s.end == nil {
			s.told = true
			g.helpers.Go(func() { g.tellGo(ctx, s.Rank) })
		}
	}
	return nil
}

// tellGo tells a rank to start, and keeps at it: a machine that does not hear of
// it ends the rank after a while, and so the gang.
func (g *gang) tellGo(ctx context.Context, r task.Rank) {
	exec := g.d.cfg.Executor(r.Node)
	for delay := g.d.times.retryMin; ctx.Err() == nil; delay = min(2*delay, g.d.times.retryMax) {
		err := exec.Go(ctx, r.Run)
		if err == nil || errors.Is(err, task.ErrNoRun) {
			return
		}
		g.d.cfg.Log.Warn("a rank is not told to start yet", "run", r.Run, "node", r.Name, "err", err)
		sleep(ctx, delay)
	}
}

// dismiss ends the ranks that go on, once the gang is to end.
func (g *gang) dismiss(ctx context.Context) {
	g.mu.Lock()
	wish := g.cancel
	g.mu.Unlock()
	force := wish == forceCancel
	if wish == goOn && g.failed == nil || g.ended && (g.forced || !force) {
		return
	}
	g.ended, g.forced = true, force
	for i := range g.ranks {
		run := g.ranks[i].Run
		m := g.d.active(run)
		if g.ranks[i].end != nil || m == nil {
			continue
		}
		// In the ledger first: a machine that is lost learns of it when it is back.
		if err := m.wants(ctx, force); err != nil {
			g.d.cfg.Log.Error("a rank cannot be cancelled", "run", run, "err", err)
			continue
		}
		g.helpers.Go(func() { _ = g.d.Cancel(ctx, run, force) }) // one that has ended meanwhile is no error
	}
}

// finish writes how the gang has ended: as its first rank that has failed.
func (g *gang) finish(ctx context.Context) error {
	fin := task.Finished{Attempt: g.placed.Attempt, State: task.Succeeded}
	switch s := g.failed; {
	case g.cancelled():
		fin.State, fin.ExitCode, fin.Reason = task.Cancelled, -1, cancelReason
		if s != nil && s.end != nil && s.end.ExitCode != nil {
			fin.ExitCode = *s.end.ExitCode
		}
	case s == nil:
	case s.lost:
		fin.State, fin.ExitCode, fin.Reason = task.Failed, -1, fmt.Sprintf("rank %d was lost with %s", s.rank, s.Name)
	default:
		fin.State, fin.ExitCode, fin.Reason = task.Failed, -1, fmt.Sprintf("rank %d on %s %s", s.rank, s.Name, s.end.State)
		if s.end.ExitCode != nil {
			fin.ExitCode = *s.end.ExitCode
		}
		if s.end.Message != "" {
			fin.Reason += ": " + shorten(s.end.Message, maxReason)
		}
	}
	err := g.insist(ctx, "finish", func(ctx context.Context) error { return g.write(ctx, task.KindFinished, fin) })
	if err != nil {
		return err
	}
	return g.insist(ctx, "end", func(ctx context.Context) error {
		return g.logEnd(task.Status{State: fin.State, ExitCode: &fin.ExitCode, Reason: fin.Reason})
	})
}
