package gateway

import (
	"cmp"
	"fmt"
	"hash/fnv"
	"slices"
	"strings"
	"time"

	"github.com/balanceai/balance/exec/fleet"
	"github.com/balanceai/balance/mesh/identity"
)

// candidate is a member that has a model, as the gateway sees it now.
type candidate struct {
	id     identity.ID
	name   string
	self   bool
	loaded bool
	queue  int           // requests before this one
	rtt    time.Duration // 0 where not measured
	home   bool          // it has answered this conversation last
	failed bool          // it has failed a request lately
	why    string        // filled in by rank
}

// loading is how many requests a machine may have before it, and still answer
// sooner than one that has to load the model first.
const loading = 8

// rank orders candidates by who answers soonest. A conversation stays where the
// engine has worked it out already, as long as that is not busier than its share
// of all requests by more than a quarter. Among equals a conversation always
// comes to the same member (rendezvous hashing), whichever gateway asks.
func rank(conversation uint64, list []candidate) []candidate {
	total := 0
	for _, c := range list {
		total += c.queue
	}
	for i := range list {
		c := &list[i]
		c.home = c.home && c.loaded && !c.failed && bounded(c.queue, total, len(list))
		c.why = c.describe()
	}
	slices.SortStableFunc(list, func(a, b candidate) int {
		return cmp.Or(
			first(!a.failed, !b.failed),
			first(a.home, b.home),
			cmp.Compare(a.wait(), b.wait()),
			cmp.Compare(a.distance(), b.distance()),
			cmp.Compare(weight(conversation, b.id), weight(conversation, a.id)),
		)
	})
	return list
}

func first(a, b bool) int {
	switch {
	case a == b:
		return 0
	case a:
		return -1
	}
	return 1
}

// bounded reports whether one more request leaves a member within a quarter
// more than its share.
func bounded(queue, total, members int) bool {
	return 4*(queue+1)*members < 5*(total+1)+4*members
}

// wait is what is before a request, in requests.
func (c *candidate) wait() int {
	if c.loaded {
		return c.queue
	}
	return c.queue + loading
}

// distance puts round trips into classes: what differs by less than that is
// not worth a model's cache.
func (c *candidate) distance() int {
	switch {
	case c.self:
		return 0
	case c.rtt > 0 && c.rtt < 5*time.Millisecond:
		return 1
	case c.rtt > 0 && c.rtt < 25*time.Millisecond:
		return 2
	case c.rtt > 0 && c.rtt < 100*time.Millisecond:
		return 3
	}
	return 4
}

// weight is the rendezvous hash of a conversation and a member.
func weight(conversation uint64, id identity.ID) uint64 {
	h := fnv.New64a()
	fmt.Fprintf(h, "%x %s", conversation, id)
	return h.Sum64()
}

// describe says in one line what speaks for and against a member.
func (c *candidate) describe() string {
	words := []string{"not loaded"}
	if c.loaded {
		words[0] = "loaded"
	}
	if c.home {
		words = append(words, "has this conversation")
	}
	switch c.queue {
	case 0:
		words = append(words, "idle")
	default:
		words = append(words, fmt.Sprintf("%d before", c.queue))
	}
	switch {
	case c.self:
		words = append(words, "this machine")
	case c.rtt > 0:
		words = append(words, fmt.Sprintf("%.1f ms away", float64(c.rtt)/float64(time.Millisecond)))
	}
	if c.failed {
		words = append(words, "failed lately")
	}
	return strings.Join(words, ", ")
}

// candidates lists the members that have a model and grant it, in the order in
// which they are asked; and, where there are none, why not.
func (g *Gateway) candidates(c *Caller, a *ask) (list []candidate, refused string) {
	nodes := g.cfg.View()
	g.mu.Lock()
	defer g.mu.Unlock()
	home := g.homes[a.conversation]
	for _, n := range nodes {
		_, loaded, ok := n.Has(a.model)
		own := false // it has others load it for its own user, whatever it offers itself
		if n.ID == g.cfg.Self {
			var e Engine
			e, loaded, ok = g.local(a.model)
			own = e.URL == "" && c.Owner == g.cfg.Owner && c.Via == ""
		}
		if !ok || n.State == fleet.Down || n.Offer == nil {
			continue
		}
		if reason := refuses(&n, c, a.model); reason != "" && !own {
			refused = n.Name + " " + reason
			continue
		}
		m := candidate{id: n.ID, name: n.Name, self: n.ID == g.cfg.Self, loaded: loaded, queue: g.busy[n.ID], rtt: n.Path.RTT, home: home == n.ID}
		if m.self {
			m.queue = max(m.queue, g.asked)
		} else if n.Live != nil {
			m.queue = max(m.queue, n.Live.Asked)
		}
		m.failed = time.Since(g.failed[n.ID]) < avoid
		list = append(list, m)
	}
	return rank(a.conversation, list), refused
}
