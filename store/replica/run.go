package replica

import (
	"context"
	"errors"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"github.com/balanceai/balance/mesh/identity"
	"github.com/balanceai/balance/mesh/wire"
)

// chore is what one member is owed.
type chore struct {
	push []*wire.Entry
	pull []string      // topics
	kick chan struct{} // ends a back-off
}

// Push gives stored entries of the topic mesh to the members that are up. It is
// for what they cannot have from others: this node's own entries, and those that
// a new member brought here. It returns at once.
func (r *Replica) Push(list ...*wire.Entry) {
	r.news(func() { r.fresh = append(r.fresh, list...) })
}

// Give gives stored entries of a run to one member, if it is up. It returns at
// once.
func (r *Replica) Give(peer identity.ID, list ...*wire.Entry) {
	r.news(func() { r.gifts[peer] = append(r.gifts[peer], list...) })
}

// Met tells that a member came up: it is pulled from. It returns at once.
func (r *Replica) Met(peer identity.ID) { r.Want(peer, wire.TopicMesh) }

// Want has a topic pulled from a member. It returns at once.
func (r *Replica) Want(peer identity.ID, topic string) {
	r.news(func() {
		if !slices.Contains(r.wants[peer], topic) {
			r.wants[peer] = append(r.wants[peer], topic)
		}
	})
}

func (r *Replica) news(store func()) {
	r.mu.Lock()
	store()
	r.mu.Unlock()
	select {
	case r.wake <- struct{}{}:
	default:
	}
}

// Run talks to the other members until ctx ends.
func (r *Replica) Run(ctx context.Context) error {
	var workers sync.WaitGroup
	defer workers.Wait()
	timer := time.NewTimer(r.pause())
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-timer.C:
			timer.Reset(r.pause())
			if live := r.Live(); len(live) > 0 {
				r.Met(live[rand.IntN(len(live))])
			}
		case <-r.wake:
			r.distribute(ctx, &workers)
		}
	}
}

// pause is the interval give or take a half, so that nodes do not fall into step.
func (r *Replica) pause() time.Duration { return r.interval/2 + rand.N(r.interval) }

// distribute owes the news to the members that they concern, and talks to those
// that are not talked to yet.
func (r *Replica) distribute(ctx context.Context, workers *sync.WaitGroup) {
	live := r.Live()
	r.mu.Lock()
	defer r.mu.Unlock()
	fresh, gifts, wants := r.fresh, r.gifts, r.wants
	r.fresh, r.gifts, r.wants = nil, map[identity.ID][]*wire.Entry{}, map[identity.ID][]string{}
	owe := func(peer identity.ID, change func(*chore)) {
		c, busy := r.work[peer]
		if !busy {
			c = &chore{kick: make(chan struct{}, 1)}
			r.work[peer] = c
			workers.Go(func() { r.attend(ctx, peer, c) })
		}
		change(c)
	}
	for _, peer := range live {
		if news := slices.Concat(fresh, gifts[peer]); len(news) > 0 {
			owe(peer, func(c *chore) { c.owe(news, nil) })
		}
	}
	for peer, topics := range wants {
		owe(peer, func(c *chore) {
			c.owe(nil, topics)
			select {
			case c.kick <- struct{}{}:
			default:
			}
		})
	}
}

func (c *chore) owe(push []*wire.Entry, pull []string) {
	c.push = append(c.push, push...)
	for _, topic := range pull {
		if !slices.Contains(c.pull, topic) {
			c.pull = append(c.pull, topic)
		}
	}
	if len(c.push) > maxQueue {
		c.push = nil
	}
}

// attend does what a member is owed, with back-off, until it is owed nothing or
// is not up any more.
func (r *Replica) attend(ctx context.Context, peer identity.ID, c *chore) {
	for wait := minBackoff; ; {
		r.mu.Lock()
		push, pull := c.push, c.pull
		c.push, c.pull = nil, nil
		if len(push) == 0 && len(pull) == 0 {
			delete(r.work, peer)
			r.mu.Unlock()
			return
		}
		r.mu.Unlock()
		err := r.talk(ctx, peer, push, pull)
		if err == nil {
			wait = minBackoff
			continue
		}
		r.Log.Debug("ledger not synced", "peer", peer.Short(), "retry_in", wait, "error", err)
		select {
		case <-ctx.Done():
		case <-c.kick:
			wait = minBackoff
		case <-time.After(wait):
			wait = min(2*wait, maxBackoff)
		}
		up := slices.Contains(r.Live(), peer)
		r.mu.Lock()
		if ctx.Err() != nil || !up {
			delete(r.work, peer)
			r.mu.Unlock()
			return
		}
		c.push, push = push, c.push // those first that came first
		c.owe(push, pull)
		r.mu.Unlock()
	}
}

// talk is one turn with a member. A few of them go on at a time.
func (r *Replica) talk(ctx context.Context, peer identity.ID, push []*wire.Entry, pull []string) error {
	select {
	case r.asking <- struct{}{}:
		defer func() { <-r.asking }()
	case <-ctx.Done():
		return ctx.Err()
	}
	if err := r.push(ctx, peer, push); err != nil {
		return err
	}
	for _, topic := range pull {
		err := r.Pull(ctx, peer, topic)
		if errors.Is(err, errNotThere) && topic != wire.TopicMesh {
			continue
		}
		if err != nil {
			return err
		}
	}
	return nil
}
