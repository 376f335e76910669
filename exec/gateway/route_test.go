package gateway

import (
	"testing"
	"time"

	"pgregory.net/rapid"
)

func TestRank(t *testing.T) {
	const ms = time.Millisecond
	at := func(id byte, c candidate) candidate { c.id[0] = id; return c }
	for name, c := range map[string]struct {
		list []candidate
		want byte
	}{
		"loaded before idle":              {[]candidate{at(1, candidate{self: true}), at(2, candidate{loaded: true, queue: 3, rtt: 20 * ms})}, 2},
		"not behind too many":             {[]candidate{at(1, candidate{self: true}), at(2, candidate{loaded: true, queue: 9, rtt: ms})}, 1},
		"the shorter queue":               {[]candidate{at(1, candidate{self: true, loaded: true, queue: 2}), at(2, candidate{loaded: true, rtt: 50 * ms})}, 2},
		"the nearer one":                  {[]candidate{at(1, candidate{loaded: true, rtt: 40 * ms}), at(2, candidate{loaded: true, rtt: 2 * ms})}, 2},
		"this machine":                    {[]candidate{at(1, candidate{loaded: true, rtt: ms}), at(2, candidate{loaded: true, self: true})}, 2},
		"a conversation stays":            {[]candidate{at(1, candidate{loaded: true, self: true}), at(2, candidate{loaded: true, home: true, rtt: 60 * ms})}, 2},
		"but not in a longer queue":       {[]candidate{at(1, candidate{loaded: true, self: true}), at(2, candidate{loaded: true, home: true, queue: 3, rtt: ms})}, 1},
		"and not where it was thrown out": {[]candidate{at(1, candidate{loaded: true}), at(2, candidate{home: true})}, 1},
		"who has failed comes last":       {[]candidate{at(1, candidate{loaded: true, self: true, home: true, failed: true}), at(2, candidate{queue: 30})}, 2},
	} {
		if got := rank(7, c.list); got[0].id[0] != c.want {
			t.Errorf("%s: %d (%s), want %d", name, got[0].id[0], got[0].why, c.want)
		}
	}
}

// Among equals each conversation has a place of its own, all places get some,
// and one that is lost moves no conversation of the others.
func TestRendezvous(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		n := rapid.IntRange(2, 8).Draw(t, "machines")
		lost := rapid.IntRange(0, n-1).Draw(t, "lost")
		counts := make([]int, n)
		for conversation := range uint64(400) {
			var all, rest []candidate
			for i := range n {
				c := candidate{loaded: true}
				c.id[0] = byte(i)
				all = append(all, c)
				if i != lost {
					rest = append(rest, c)
				}
			}
			first := rank(conversation, all)[0].id
			counts[first[0]]++
			if again := rank(conversation, rest)[0].id; int(first[0]) != lost && again != first {
				t.Fatalf("conversation %d has moved from %v to %v", conversation, first, again)
			}
		}
		for i, c := range counts {
			if c < 400/n/3 {
				t.Fatalf("machine %d of %d has %d conversations of 400", i, n, c)
			}
		}
	})
}
