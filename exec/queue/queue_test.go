package queue

import (
	"slices"
	"strconv"
	"testing"
	"time"

	"pgregory.net/rapid"
)

var start = time.Unix(1_800_000_000, 0)

func waiter(run, owner string, share float64, priority int, waited time.Duration) Waiter {
	return Waiter{Held: Held{Owner: owner, Share: share, Since: start.Add(-waited)}, Run: run, Priority: priority}
}

func runs(waiters []Waiter, order []int) []string {
	var out []string
	for _, i := range order {
		out = append(out, waiters[i].Run)
	}
	return out
}

func TestOrder(t *testing.T) {
	waiters := []Waiter{
		waiter("a1", "ada", 0.5, 0, 30*time.Second),
		waiter("a2", "ada", 0.5, 0, 20*time.Second),
		waiter("b1", "bob", 0.5, 0, 10*time.Second),
		waiter("a3", "ada", 0.5, 5, time.Second),
		waiter("b2", "bob", 0.5, 0, 5*time.Second),
	}
	for name, c := range map[string]struct {
		had   []Held // until start
		going []Held
		want  []string
	}{
		"nobody has had anything":    {nil, nil, []string{"b1", "a3", "a1", "b2", "a2"}},
		"one has a run that goes on": {nil, []Held{{"bob", 0.5, start.Add(-time.Minute)}}, []string{"a3", "a1", "a2", "b1", "b2"}},
		"one has had more":           {[]Held{{"ada", 0.1, start.Add(-time.Minute)}}, nil, []string{"b1", "b2", "a3", "a1", "a2"}},
		"one has had a little more":  {[]Held{{"ada", 0.6, start}}, nil, []string{"b1", "b2", "a3", "a1", "a2"}},
		"which is a turn ahead":      {[]Held{{"ada", 0.4, start}}, nil, []string{"b1", "a3", "b2", "a1", "a2"}},
	} {
		var u Usage
		for _, h := range c.had {
			u.Add(h, start)
		}
		if got := runs(waiters, u.Order(c.going, waiters, start)); !slices.Equal(got, c.want) {
			t.Errorf("%s: %v, want %v", name, got, c.want)
		}
	}
}

// What somebody has had is not held against them for ever.
func TestForget(t *testing.T) {
	var u Usage
	u.Add(Held{"ada", 1, start.Add(-time.Minute)}, start)
	waiters := []Waiter{waiter("a", "ada", 0.5, 0, 0), waiter("b", "bob", 0.5, 0, 0)}
	if got := runs(waiters, u.Order([]Held{{"bob", 0.01, start}}, waiters, start.Add(time.Minute))); got[0] != "b" {
		t.Errorf("a minute after: %v", got)
	}
	if got := runs(waiters, u.Order([]Held{{"bob", 0.01, start.Add(3 * time.Hour)}}, waiters, start.Add(3*time.Hour))); got[0] != "a" {
		t.Errorf("three hours after: %v", got)
	}
}

// Whoever waits has a turn, once; no owner has two more turns than another one
// whose runs are as large; and the order does not depend on that of the waiters.
func TestOrderProperties(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		n := rapid.IntRange(0, 20).Draw(t, "n")
		var waiters []Waiter
		for i := range n {
			waiters = append(waiters, waiter(
				"r"+strconv.Itoa(i), rapid.SampledFrom([]string{"ada", "bob", "eve"}).Draw(t, "owner"), 0.25,
				rapid.IntRange(-1, 1).Draw(t, "priority"), time.Duration(rapid.IntRange(0, 3).Draw(t, "waited"))*time.Second))
		}
		var u Usage
		order := u.Order(nil, waiters, start)
		got := runs(waiters, order)
		shuffled := rapid.Permutation(waiters).Draw(t, "shuffled")
		if again := runs(shuffled, u.Order(nil, shuffled, start)); !slices.Equal(got, again) {
			t.Fatalf("%v, and %v in another order", got, again)
		}
		left := map[string]int{}
		for _, w := range waiters {
			left[w.Owner]++
		}
		turns := map[string]int{}
		for _, i := range order {
			for owner := range left {
				if left[owner] > 0 && turns[owner] < turns[waiters[i].Owner] {
					t.Fatalf("%v: %s has another turn before %s", got, waiters[i].Owner, owner)
				}
			}
			turns[waiters[i].Owner]++
			left[waiters[i].Owner]--
		}
		if len(order) != n {
			t.Fatalf("%d turns for %d", len(order), n)
		}
	})
}
