package replica

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"time"

	"github.com/balanceai/balance/mesh/identity"
	"github.com/balanceai/balance/mesh/wire"
)

// Handler answers other nodes. It serves all paths below /v1/ledger/. To whom a
// topic does not concern, it is not there.
func (r *Replica) Handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("POST /v1/ledger/{topic}/since", r.serve(r.serveSince))
	mux.HandleFunc("POST /v1/ledger/{topic}", r.serve(r.servePush))
	return http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		ctx, cancel := context.WithTimeout(req.Context(), r.timeout)
		defer cancel()
		end, _ := ctx.Deadline()
		// Before anything is answered: the server reads what is left of the
		// body of a request that was refused.
		conn := http.NewResponseController(w)
		if err := errors.Join(conn.SetReadDeadline(end), conn.SetWriteDeadline(end)); err != nil {
			r.Log.Error("the connection takes no deadline", "error", err)
			http.Error(w, "internal error", http.StatusInternalServerError)
			return
		}
		defer func() { _ = conn.SetWriteDeadline(time.Time{}) }() // for the next request; fails where there is none
		if _, ok := r.Caller(req); !ok {
			http.NotFound(w, req)
			return
		}
		mux.ServeHTTP(w, req.WithContext(ctx))
	})
}

type answer func(ctx context.Context, peer identity.ID, topic string, w http.ResponseWriter, req *http.Request)

// serve lets in whom a topic concerns, a few at a time.
func (r *Replica) serve(f answer) http.HandlerFunc {
	return func(w http.ResponseWriter, req *http.Request) {
		peer, ok := r.Caller(req)
		topic := req.PathValue("topic")
		if !ok || !r.Gate(peer, topic) {
			http.NotFound(w, req)
			return
		}
		ctx := req.Context()
		select {
		case r.serving <- struct{}{}:
			defer func() { <-r.serving }()
		case <-ctx.Done():
			http.Error(w, "busy", http.StatusServiceUnavailable)
			return
		}
		f(ctx, peer, topic, w, req)
	}
}

func (r *Replica) serveSince(ctx context.Context, peer identity.ID, topic string, w http.ResponseWriter, req *http.Request) {
	var heads []wire.Head
	if err := json.NewDecoder(http.MaxBytesReader(w, req.Body, maxHeads)).Decode(&heads); err != nil {
		http.Error(w, "heads: "+err.Error(), http.StatusBadRequest)
		return
	}
	list, err := r.Ledger.Since(ctx, topic, heads, r.page)
	if err != nil {
		r.Log.Warn("cannot tell a node what it lacks", "peer", peer.Short(), "topic", topic, "error", err)
		http.Error(w, "internal error", http.StatusInternalServerError)
		return
	}
	if topic == wire.TopicMesh {
		if err := r.meetIfAhead(ctx, peer, heads); err != nil {
			r.Log.Warn("cannot compare heads", "peer", peer.Short(), "error", err)
		}
	}
	page, _ := appendLines(nil, list)
	w.Header().Set("Content-Type", "application/x-ndjson")
	_, _ = w.Write(page) // the node asks again
}

func (r *Replica) servePush(ctx context.Context, peer identity.ID, topic string, w http.ResponseWriter, req *http.Request) {
	list, err := readLines(req.Body)
	if errors.Is(err, errForm) {
		r.Alarm(peer, err)
	}
	var gap bool
	if err == nil {
		_, gap, err = r.take(ctx, peer, topic, list)
	}
	switch {
	case errors.Is(err, errForm), errors.Is(err, wire.ErrSignature):
		http.Error(w, err.Error(), http.StatusUnprocessableEntity)
	case err != nil:
		r.Log.Warn("cannot store what a node sent", "peer", peer.Short(), "topic", topic, "error", err)
		http.Error(w, "internal error", http.StatusInternalServerError)
	case gap:
		r.Want(peer, topic) // it has more than it sent
	}
}

// meetIfAhead has a node pulled from whose heads show that it holds more. Heads
// that were acted on before are not again: some of what it holds may be of no
// use here.
func (r *Replica) meetIfAhead(ctx context.Context, peer identity.ID, heads []wire.Head) error {
	list, err := r.Ledger.Heads(ctx, wire.TopicMesh)
	if err != nil {
		return err
	}
	own := map[place]uint64{}
	for _, h := range list {
		own[place{h.Author, h.Segment}] = h.Seq + 1
	}
	var ahead wire.Hash // of all of them, in any order
	for _, h := range heads {
		if h.Seq >= own[place{h.Author, h.Segment}] {
			for i, b := range h.Hash {
				ahead[i] ^= b
			}
		}
	}
	r.mu.Lock()
	before := r.ahead[peer]
	r.ahead[peer] = ahead
	r.mu.Unlock()
	if ahead != before && ahead != (wire.Hash{}) {
		r.Met(peer)
	}
	return nil
}
