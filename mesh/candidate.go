package mesh

import "time"

// Load of relays, in 255ths; see [wire.Probe]. A relay that is not crowded is as
// good as an idle one.
const (
	crowded  = 191                    // from here on a relay is avoided
	crowding = 100 * time.Millisecond // of round trip, which a full one is worse by than one that is not crowded
)

// origin is where an address of a peer is known from.
type origin int

const (
	heard  origin = iota // only an authenticated ping that came from it
	rumour               // somebody said so
	roster               // stored, or from an invite
	relay                // a relay that both may reach
)

// Most candidates of each origin: a flood of rumours cannot push out what is
// stored.
var candidateLimit = [...]int{heard: 4, rumour: 8, roster: 8, relay: 4}

// candidate is a way that may reach the peer.
type candidate struct {
	hop
	kind      Kind
	origin    origin
	rtt       time.Duration // smoothed; 0: it never answered
	known     instant       // learnt, or heard of again
	heard     instant       // an authenticated ping came from it
	pinged    instant
	size      int     // bytes of the largest ping that it answered, if that is more than any path carries
	sounded   instant // when a larger one was last tried
	soundings int     // tries without an answer
	waiting   instant // the first ping since the last answer
	answered  instant
}

// better reports whether traffic should move from another path to c. Round
// trips must differ clearly, so that it does not move to and fro.
func (c *candidate) better(than *candidate) bool {
	if c.kind != than.kind {
		return c.kind > than.kind
	}
	mine, other := c.cost(), than.cost()
	return mine < other*3/4 && other-mine > time.Millisecond
}

// cost returns what paths of one kind are compared by: the round trip, and for a
// crowded relay what its load makes worse of that.
func (c *candidate) cost() time.Duration {
	if !c.isCrowded() {
		return c.rtt
	}
	return c.rtt + crowding*time.Duration(c.via.load.Load()-crowded)/(255-crowded)
}

func (c *candidate) isCrowded() bool { return c.via != nil && c.via.isCrowded() }

// owes reports whether an answer of c is outstanding, and silent whether it is
// overdue.
func (c *candidate) owes() bool { return c.waiting > c.answered }

func (c *candidate) silent(now instant) bool {
	return c.owes() && !c.waiting.within(retry+4*c.rtt, now)
}

// strange reports whether c is an address of which nothing was ever heard, and
// that may be behind a NAT.
func (c *candidate) strange() bool { return c.kind == Direct && c.answered == 0 && c.heard == 0 }
