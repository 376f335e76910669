package meshtest_test

import (
	"context"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"github.com/balanceai/balance/mesh/meshtest"
)

// A crowd of nodes in one process: each reaches some of those that it knows. A
// node knows its neighbours on a ring, 50 of them, and not all: every pair of
// nodes costs two key exchanges, which for all pairs of 1,000 nodes take two
// cores more than half a minute.
func TestCrowd(t *testing.T) {
	const (
		called = 3 // by each node
		within = 60 * time.Second
		atOnce = 32 // calls
	)
	n, near := 1000, 25 // neighbours on either side
	if meshtest.Race {
		n, near = 30, 5
	}
	start := time.Now()
	m := meshtest.Prepare(t, n)
	m.Knows = func(node, other int) bool {
		d := (node - other + n) % n
		return min(d, n-d) <= near
	}
	for i := range n {
		m.Start(i)
	}
	t.Logf("%d nodes run after %v", n, time.Since(start))
	ctx, cancel := context.WithTimeout(t.Context(), within)
	defer cancel()
	var calls sync.WaitGroup
	free := make(chan struct{}, atOnce)
	for i := range n {
		for range called {
			to := (i + n + 1 + rand.N(near) - rand.N(2)*(near+1)) % n
			free <- struct{}{}
			calls.Go(func() {
				defer func() { <-free }()
				if err := m.Talk(ctx, i, to); err != nil {
					t.Errorf("node %d does not reach node %d: %v", i, to, err)
				}
			})
		}
	}
	calls.Wait()
	t.Logf("%d calls have been answered after %v", n*called, time.Since(start))
}
