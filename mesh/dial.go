package mesh

import (
	"context"
	"net"
	"net/netip"
	"sync"
	"time"
)

// A connection is asked for anew each dialAgain, dialTries times in all, and
// the first one that comes about is taken. TCP itself repeats a lost request
// after one second, then after two more, then four.
const (
	dialAgain = 300 * time.Millisecond
	dialTries = 5
)

// dial connects to a TCP port in the overlay.
func (t *tunnel) dial(ctx context.Context, to netip.AddrPort) (net.Conn, error) {
	var tries sync.WaitGroup
	defer tries.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	type result struct {
		conn net.Conn
		err  error
	}
	results := make(chan result)
	begin := func() {
		c, err := t.net.DialTCP(ctx, t.addr, to)
		select {
		case results <- result{c, err}:
		case <-ctx.Done(): // too late
			if c != nil {
				c.Close()
			}
		}
	}
	again := time.NewTicker(dialAgain)
	defer again.Stop()
	tries.Go(begin)
	for left := dialTries - 1; ; {
		select {
		case r := <-results:
			return r.conn, r.err
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-again.C:
			if left > 0 {
				left--
				tries.Go(begin)
			}
		}
	}
}
