package main

import (
	"context"
	"log/slog"
	"net/http"
	"sync"
	"time"

	"github.com/balanceai/balance/exec/fleet"
	"github.com/balanceai/balance/mesh/identity"
)

// watch brings the live measurements of all machines into the view while
// somebody looks, and costs nothing while nobody does.
type watch struct {
	self  identity.ID
	view  *fleet.View
	own   *fleet.Sampler
	peers *http.Client
	log   *slog.Logger

	mu       sync.Mutex
	watchers int
	stop     context.CancelFunc
	done     chan struct{}
}

// begin starts the streams for the first who looks. The caller calls the
// function that it returns when it looks no more.
func (w *watch) begin() (end func()) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.watchers++
	if w.watchers == 1 {
		var ctx context.Context
		ctx, w.stop = context.WithCancel(context.Background())
		w.done = make(chan struct{})
		go func() { defer close(w.done); w.run(ctx) }()
	}
	return sync.OnceFunc(func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		if w.watchers--; w.watchers == 0 {
			w.stop()
			<-w.done
		}
	})
}

// run follows this machine and every one that is up.
func (w *watch) run(ctx context.Context) {
	var streams sync.WaitGroup
	defer streams.Wait()
	streams.Go(func() {
		_ = w.own.Watch(ctx, func(s fleet.Sample) error { w.view.AddSample(w.self, s); return nil }) // ends with ctx
	})
	following := map[identity.ID]bool{}
	ended := make(chan identity.ID)
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		nodes, _ := w.view.Snapshot()
		for _, n := range nodes {
			if n.Self || n.State != fleet.Up || following[n.ID] {
				continue
			}
			following[n.ID] = true
			streams.Go(func() {
				w.follow(ctx, n.ID)
				select {
				case ended <- n.ID:
				case <-ctx.Done():
				}
			})
		}
		select {
		case <-ctx.Done():
			return
		case id := <-ended:
			delete(following, id)
			<-tick.C // not at once again
		case <-tick.C:
		}
	}
}

// follow streams one machine's measurements until it goes away.
func (w *watch) follow(ctx context.Context, id identity.ID) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+id.String()+"/v1/samples", nil)
	if err != nil {
		return
	}
	resp, err := w.peers.Do(req)
	if err != nil {
		return
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return
	}
	err = stream(resp, func(s fleet.Sample) error {
		w.view.AddSample(id, s)
		return nil
	})
	if err != nil && ctx.Err() == nil {
		w.log.Debug("measurements of a machine", "node", id.Short(), "error", err)
	}
}
