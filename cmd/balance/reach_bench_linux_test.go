package main

import (
	"context"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/balanceai/balance/mesh/meshtest/netlab"
)

// BenchmarkReach measures how long it takes until a node that has been started,
// or has moved to another network, and one that stays have an answer of each
// other. Ping is asked for every 20 ms, so that no answer is waited for longer
// than it takes to come.
func BenchmarkReach(b *testing.B) {
	b.Run("start", func(b *testing.B) {
		lab := netlab.New(b)
		_, nodes := labMesh(b, lab, lab.Router(netlab.Easy, "192.168.1").Host("a"), lab.Internet.Host("b"))
		mover, other := nodes[0], nodes[1]
		awaitPeers("direct", nodes...)
		measure(b, func() time.Duration {
			mover.process.Kill()
			start := time.Now()
			mover.up()
			mover.answered(other)
			return time.Since(start)
		})
	})
	for _, c := range []struct {
		name   string
		silent bool // the one that moves asks for nothing
	}{{"roam", false}, {"roam-silent", true}} {
		b.Run(c.name, func(b *testing.B) {
			lab := netlab.New(b)
			home, office := lab.Router(netlab.Easy, "192.168.1"), lab.Router(netlab.Easy, "192.168.2")
			_, nodes := labMesh(b, lab, home.Host("a"), lab.Internet.Host("b"))
			mover, other := nodes[0], nodes[1]
			to, next := office, home
			measure(b, func() time.Duration {
				awaitPeers("direct", nodes...)
				mover.Roam(to)
				to, next = next, to
				start := time.Now()
				if !c.silent {
					mover.answered(other)
				}
				other.answered(mover)
				return time.Since(start)
			})
		})
	}
}

// answered pings another node every 20 ms until there is an answer.
func (n *labNode) answered(other *labNode) {
	n.t.Helper()
	ctx, cancel := context.WithTimeout(n.t.Context(), labPatience)
	var pings sync.WaitGroup
	defer pings.Wait()
	defer cancel()
	answer := make(chan struct{}, 1)
	for tick := time.Tick(20 * time.Millisecond); ; {
		pings.Go(func() {
			if n.pingWithin(ctx, other).Error == "" {
				select {
				case answer <- struct{}{}:
				default:
				}
			}
		})
		select {
		case <-answer:
			return
		case <-ctx.Done():
			n.t.Fatalf("%s has no answer of %s within %v", n.Name, other.Name, labPatience)
		case <-tick:
		}
	}
}

// measure reports percentiles of a time that is measured again and again.
func measure(b *testing.B, once func() time.Duration) {
	b.Helper()
	var took []time.Duration
	for range b.N {
		took = append(took, once())
	}
	slices.Sort(took)
	for _, p := range []struct {
		unit  string
		share float64
	}{{"p50-ms", 0.5}, {"p95-ms", 0.95}, {"max-ms", 1}} {
		b.ReportMetric(millis(took[int(p.share*float64(len(took)-1)+0.5)]), p.unit)
	}
	b.ReportMetric(0, "ns/op")
}
