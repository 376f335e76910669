package main

import (
	"bytes"
	"context"
	"fmt"
	"slices"
	"sync"

	"github.com/balanceai/balance/mesh/identity"
	"github.com/balanceai/balance/mesh/trust"
	"github.com/balanceai/balance/mesh/wire"
)

// roster holds what the mesh's log means: who belongs. It evaluates the log
// again whenever an entry that can change the answer arrives.
type roster struct {
	self    identity.ID
	mesh    identity.MeshID
	entries func(ctx context.Context, topic string) ([]*wire.Entry, error)

	mu    sync.Mutex
	state *trust.State
	apply []func(*trust.State)
}

// load evaluates the log as it is now and tells whoever asked.
func (r *roster) load(ctx context.Context) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	entries, err := r.entries(ctx, wire.TopicMesh)
	if err != nil {
		return err
	}
	state, err := trust.Evaluate(r.mesh, entries)
	if err != nil {
		return fmt.Errorf("the log of the mesh: %w", err)
	}
	r.state = state
	for _, f := range r.apply {
		f(state)
	}
	return nil
}

// now returns the newest state.
func (r *roster) now() *trust.State {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.state
}

// me returns this node's own membership.
func (r *roster) me() trust.Member { return r.now().Members[r.self] }

// each calls f with the state now and whenever it changes. f must not call the
// roster.
func (r *roster) each(f func(*trust.State)) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.apply = append(r.apply, f)
	f(r.state)
}

// name returns what people call a node.
func (r *roster) name(id identity.ID) string {
	if m, ok := r.now().Members[id]; ok {
		return m.Name
	}
	return id.Short()
}

// has reports whether somebody is a member.
func (r *roster) has(id identity.ID) bool {
	_, ok := r.now().Members[id]
	return ok
}

// others returns the ids of the other members.
func (r *roster) others() []identity.ID {
	var ids []identity.ID
	for id := range r.now().Members {
		if id != r.self {
			ids = append(ids, id)
		}
	}
	return ids
}

// withPrefix returns the members whose identities begin with one of a list.
func (r *roster) withPrefix(prefixes [][]byte) []identity.ID {
	state := r.now()
	var ids []identity.ID
	for _, p := range prefixes {
		for id := range state.Members {
			if len(p) == homeName && bytes.HasPrefix(id[:], p) {
				ids = append(ids, id)
			}
		}
	}
	return ids
}

// trustKinds are the kinds of entries that can change who belongs.
var trustKinds = []string{trust.KindGenesis, trust.KindAdmit, trust.KindInvite, trust.KindInviteUsed, trust.KindWGBind, trust.KindGuest, trust.KindGuestEnd}

func changesRoster(entries []*wire.Entry) bool {
	return slices.ContainsFunc(entries, func(e *wire.Entry) bool { return slices.Contains(trustKinds, e.Kind) })
}

// admit filters entries of the topic mesh that a member sent: only what members
// wrote is kept, so that nobody can fill our disk. Those whom the entries
// themselves admit count as members.
func (r *roster) admit(ctx context.Context, entries []*wire.Entry) ([]*wire.Entry, error) {
	state := r.now()
	if changesRoster(entries) {
		known, err := r.entries(ctx, wire.TopicMesh)
		if err != nil {
			return nil, err
		}
		var verified []*wire.Entry
		for _, e := range entries {
			if slices.Contains(trustKinds, e.Kind) && e.Kind != trust.KindGenesis && e.Verify(state.Mesh) == nil {
				verified = append(verified, e)
			}
		}
		if state, err = trust.Evaluate(r.mesh, append(known, verified...)); err != nil {
			return nil, err
		}
	}
	var out []*wire.Entry
	for _, e := range entries {
		if _, ok := state.Members[e.Author]; ok && e.Kind != trust.KindGenesis {
			out = append(out, e)
		}
	}
	return out, nil
}
