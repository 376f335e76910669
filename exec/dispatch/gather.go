package dispatch

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"time"

	"github.com/balanceai/balance/exec/task"
	"github.com/balanceai/balance/mesh/identity"
)

// gatherTries bounds how often machines are asked for a gang that does not wait.
// Two gangs that each hold what the other one wants both let go, and the pauses in
// between grow until one is first.
const gatherTries = 6

// gather chooses the machines of a gang, once each keeps what its rank needs. Where
// there are too few it waits, or finds that the gang has no place.
func (g *gang) gather(ctx context.Context) error {
	for try := 1; ; try++ {
		p, fit, err := g.rankAll()
		if err != nil {
			return err
		}
		asked := g.nominate(&p, fit)
		if asked {
			refused := g.reserve(ctx, p)
			if len(refused) == 0 {
				return g.record(ctx, p)
			}
			g.unhold()
			g.refused = append(g.refused, refused...)
			if p, _, err = g.rankAll(); err != nil {
				return err
			}
		}
		switch {
		case p.Wait && !g.placed.Wait:
			if err := g.record(ctx, p); err != nil {
				return err
			}
			if err := g.insist(ctx, "note", g.noteWait); err != nil {
				return err
			}
		case !p.Wait && (!asked || try >= gatherTries || g.cancelled()):
			return g.record(ctx, p)
		}
		if err := g.pause(ctx, try); err != nil {
			return err
		}
	}
}

// rankAll is the choice of no machines, with the verdicts on all, and those that
// fit. It waits if there may be enough later.
func (g *gang) rankAll() (p task.Place, fit task.Ranking, err error) {
	n := g.spec.Gang.Nodes
	ranking, more := g.d.rank(&g.spec, max(maxVerdicts, n), g.hasRefused)
	fit = slices.Clone(ranking.Best())
	ranking = slices.Insert(ranking, len(fit), g.refused...)
	possible := 0
	for _, v := range ranking {
		if could(v) {
			possible++
		}
	}
	p, err = g.place(task.Verdict{}, ranking, more)
	p.Wait = !g.cancelled() && g.mayWait(ranking) && possible >= n
	return p, fit, err
}

// nominate makes a choice of the best machines, if enough fit.
func (g *gang) nominate(p *task.Place, fit task.Ranking) bool {
	n := g.spec.Gang.Nodes
	if len(fit) < n || g.cancelled() || !g.movable() {
		return false
	}
	names := make([]string, n)
	for i, v := range fit[:n] {
		names[i] = v.Name
		p.Ranks = append(p.Ranks, task.Rank{Run: task.NewID(), Node: v.Node, Name: v.Name})
	}
	p.Name = strings.Join(names[:min(n, mostNamed)], ", ")
	if n > mostNamed {
		p.Name += fmt.Sprintf(" and %d more", n-mostNamed)
	}
	p.Wait = false
	return true
}

// reserve has each machine keep what its rank needs, and returns those that do not.
func (g *gang) reserve(ctx context.Context, p task.Place) []task.Verdict {
	ctx, g.letGo = context.WithCancel(ctx)
	m := g.members(p.Ranks)
	said := make(chan answer)
	for i, r := range p.Ranks {
		spec := g.specOf(i, m)
		bid := task.Bid{Run: r.Run, From: g.d.cfg.Self, Spec: spec.Outline()}
		g.bids.Go(func() { g.stand(ctx, r.Node, bid, said) })
	}
	timer := time.NewTimer(g.d.times.probe)
	defer timer.Stop()
	silent := slices.Clone(p.Ranks)
	var out []task.Verdict
	for len(silent) > 0 {
		select {
		case <-ctx.Done():
			return out
		case <-timer.C:
			for _, r := range silent {
				out = append(out, unheard(r.Node, r.Name, errors.New("nothing came")))
			}
			return out
		case a := <-said:
			i := slices.IndexFunc(silent, func(r task.Rank) bool { return r.Node == a.node })
			if a.held == nil {
				out = append(out, unheard(a.node, silent[i].Name, a.err))
			}
			silent = slices.Delete(silent, i, i+1)
		}
	}
	return out
}

// unheard is the verdict on a machine that has not kept what it was asked for.
func unheard(node identity.ID, name string, err error) task.Verdict {
	v := task.Verdict{Node: node, Name: name, Reasons: []task.Reason{{Rule: ruleReach, Text: shorten(fmt.Sprintf("was not reached: %v", err), maxReason), Ever: true}}}
	if no, ok := errors.AsType[*task.Refusal](err); ok {
		v.Reasons = bounded(no.Reasons)
	}
	return v
}

// record writes a choice.
func (g *gang) record(ctx context.Context, p task.Place) error {
	return g.insist(ctx, "place", func(ctx context.Context) error {
		g.mu.Lock()
		defer g.mu.Unlock()
		if err := g.writeLocked(ctx, task.Draft{Topic: g.id, Kind: task.KindPlace, Record: p}); err != nil {
			return err
		}
		g.placed, g.announced = p, false
		return nil
	})
}

// pause waits until machines are asked again: those that have refused too, where
// there are too few others, as what they lack may be free by then. Two gangs do not
// meet again.
func (g *gang) pause(ctx context.Context, try int) error {
	others, _ := g.d.rank(&g.spec, g.spec.Gang.Nodes, g.hasRefused)
	if len(others.Best()) >= g.spec.Gang.Nodes {
		return ctx.Err()
	}
	g.refused = slices.DeleteFunc(g.refused, could)
	pause := min(g.d.times.gang<<min(try-1, 8), g.d.times.look)
	g.wait(ctx, pause/2+rand.N(pause/2))
	return ctx.Err()
}

func (g *gang) hasRefused(id identity.ID) bool {
	return slices.ContainsFunc(g.refused, func(v task.Verdict) bool { return v.Node == id })
}
