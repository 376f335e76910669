// Package lease says how long a machine may go on with a run that somebody may
// start again elsewhere, so that two machines never do it at a time.
//
// The two sides share no clock and no message arrives for certain, so the lease
// hangs on what came back. The machine ([Holder]) gives out stamps; whoever
// dispatches the run ([Giver]) sends the last one back. A stamp that came back
// proves that the giver was there after the moment at which it was made, and the
// lease runs from that moment. The giver counts from when it got that stamp,
// which was later. So, however long a request lay in a queue:
//
//   - The machine stops before the giver believes that it may have to, as far as
//     both clocks run at the same speed. [Margin] is for what they do not, and
//     for the time that it takes to kill.
//   - A machine that nobody has answered yet has no lease. It starts nothing.
//
// Time is that of [Now], which goes on while a machine sleeps and which nobody
// can set. The types here do no I/O and have no clock of their own.
package lease

import (
	"errors"
	"math/rand/v2"
	"sync"
	"time"
)

// Lengths of leases.
const (
	// Default bridges a restart of the submitter, a change of network and a short
	// sleep. It is also how long a run that is lost waits for its next attempt.
	Default = 5 * time.Minute
	// Shortest leaves time for three renewals over a slow path.
	Shortest = time.Second
	// Longest is for who leaves a machine alone for a while.
	Longest = 30 * 24 * time.Hour
)

// Margin is how long after its end a lease counts as held. Clocks of computers
// differ by less than a part in a thousand; a machine looks at its clock each
// [Step], and kills at once.
func Margin(length time.Duration) time.Duration {
	return min(length/2, 3*time.Second) + length/1000
}

// Step is how often a machine looks whether its lease has run out, and Every how
// often one is renewed: twice in vain and it still holds.
func Step(length time.Duration) time.Duration  { return min(length/20, time.Second) }
func Every(length time.Duration) time.Duration { return length / 4 }

// ErrLapsed says that a lease has run out, which is for good.
var ErrLapsed = errors.New("the lease has run out")

// Holder is the machine's side of a lease. It is safe for concurrent use.
type Holder struct {
	length time.Duration

	mu     sync.Mutex
	stamp  uint64        // the last one
	made   time.Duration // when
	until  time.Duration // 0: nobody has answered yet
	lapsed bool
}

// NewHolder returns a lease that nobody has granted yet.
func NewHolder(length time.Duration) *Holder { return &Holder{length: length} }

// Resume returns a lease that an earlier life of the program held.
func Resume(length, until time.Duration) *Holder { return &Holder{length: length, until: until} }

// Renew takes the stamp that the giver saw last, 0 for none, and returns the one
// that it is to see next. A stamp other than the last one grants nothing.
func (h *Holder) Renew(now time.Duration, seen uint64) (next uint64, err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.expired(now) {
		return 0, ErrLapsed
	}
	if seen != 0 && seen == h.stamp {
		h.until = h.made + h.length
		if h.expired(now) {
			return 0, ErrLapsed
		}
	}
	for next == 0 || next == h.stamp {
		next = rand.Uint64() // no stamp of an earlier life of the program is one of this
	}
	h.stamp, h.made = next, now
	return next, nil
}

// Until returns when the lease ends; 0 where nobody has granted it yet.
func (h *Holder) Until() time.Duration {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.until
}

// Lapsed reports whether the lease was held and has run out.
func (h *Holder) Lapsed(now time.Duration) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.expired(now)
}

func (h *Holder) expired(now time.Duration) bool {
	h.lapsed = h.lapsed || h.until > 0 && now >= h.until
	return h.lapsed
}

// Giver is the dispatcher's side of a lease.
type Giver struct {
	length time.Duration

	mu    sync.Mutex
	stamp uint64        // the last one that came
	came  time.Duration // when
	until time.Duration // the latest at which the machine may stop
}

// NewGiver returns a lease of which only is known that nothing that came after
// now was answered: the one who gave it before may have ended.
func NewGiver(length, now time.Duration) *Giver {
	return &Giver{length: length, until: now + length}
}

// Seen returns the stamp to send. From then on the lease counts as granted,
// whether the request arrives or not.
func (g *Giver) Seen() uint64 {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.stamp != 0 {
		g.until = max(g.until, g.came+g.length)
	}
	return g.stamp
}

// Came takes the machine's next stamp.
func (g *Giver) Came(now time.Duration, stamp uint64) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.stamp, g.came = stamp, now
}

// Free returns when the machine has certainly stopped, if nothing is sent from
// now on.
func (g *Giver) Free() time.Duration {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.until + Margin(g.length)
}
