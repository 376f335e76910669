package main

import (
	"context"
	"log/slog"
	"net/netip"
	"time"

	"github.com/balanceai/balance/exec/dispatch"
	"github.com/balanceai/balance/exec/fleet"
	"github.com/balanceai/balance/mesh"
	"github.com/balanceai/balance/mesh/identity"
	"github.com/balanceai/balance/mesh/member"
	"github.com/balanceai/balance/mesh/wire"
	"github.com/balanceai/balance/store"
	"github.com/balanceai/balance/store/replica"
)

// news is what the mesh tells about other machines. It is queued, because the
// parts that tell it must not wait for those that want to know.
type news struct {
	paths   chan pathNews
	members chan memberNews
	over    chan struct{} // closed when nobody listens any more
}

type pathNews struct {
	id   identity.ID
	path mesh.Path
}

type memberNews struct {
	id    identity.ID
	state string
	meta  []byte
}

func newNews() *news {
	return &news{make(chan pathNews, 1024), make(chan memberNews, 1024), make(chan struct{})}
}

func (n *news) path(id identity.ID, p mesh.Path) {
	select {
	case n.paths <- pathNews{id, p}:
	case <-n.over:
	}
}

func (n *news) member(id identity.ID, state string, meta []byte) {
	select {
	case n.members <- memberNews{id, state, meta}:
	case <-n.over:
	}
}

// stop says that nobody listens any more.
func (n *news) stop() { close(n.over) }

// gossip is what a node says of itself in the few bytes that ride on the gossip
// of who is alive. It is not signed: whoever relays it could change it, so it
// is a rumour like every address, and the executor decides on its own facts.
type gossip struct {
	Addrs [][]byte `cbor:"1,keyasint,omitempty"` // UDP addresses, as netip.AddrPort marshals them
	Live  []byte   `cbor:"2,keyasint,omitempty"` // a fleet.Live
	Homes [][]byte `cbor:"3,keyasint,omitempty"` // relays that reach it: the first bytes of their identities
}

// homeName is how many bytes of an identity name a relay in the gossip: enough
// to tell members apart, where a wrong guess is a relay that does not answer.
const homeName = 8

const maxGossipAddrs = 6

func encodeGossip(addrs []netip.AddrPort, homes []identity.ID, live fleet.Live) ([]byte, error) {
	var g gossip
	for _, id := range homes {
		g.Homes = append(g.Homes, id[:homeName])
	}
	for _, a := range addrs[:min(len(addrs), maxGossipAddrs)] {
		b, err := a.MarshalBinary()
		if err != nil {
			return nil, err
		}
		g.Addrs = append(g.Addrs, b)
	}
	b, err := wire.Marshal(live.Trim())
	if err != nil {
		return nil, err
	}
	g.Live = b
	return wire.Marshal(g)
}

func decodeGossip(b []byte) (addrs []netip.AddrPort, homes [][]byte, live *fleet.Live, err error) {
	var g gossip
	if err := wire.Unmarshal(b, &g); err != nil {
		return nil, nil, nil, err
	}
	for _, raw := range g.Addrs[:min(len(g.Addrs), maxGossipAddrs)] {
		var a netip.AddrPort
		if err := a.UnmarshalBinary(raw); err != nil {
			return nil, nil, nil, err
		}
		addrs = append(addrs, a)
	}
	if len(g.Live) > 0 {
		live = &fleet.Live{}
		if err := wire.Unmarshal(g.Live, live); err != nil {
			return nil, nil, nil, err
		}
	}
	return addrs, g.Homes, live, nil
}

// meeting tells the parts that want to know what the mesh says about others.
type meeting struct {
	news      *news
	node      *mesh.Node
	db        *store.Store
	who       *roster
	view      *fleet.View
	alive     *member.List
	replica   *replica.Replica
	custody   *custody
	submitted *dispatch.Dispatcher
	log       *slog.Logger

	states map[identity.ID]string // as last heard
}

// run passes news on until ctx ends.
func (m *meeting) run(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case n := <-m.news.paths:
			m.path(ctx, n)
		case n := <-m.news.members:
			m.member(n)
		}
	}
}

func (m *meeting) path(ctx context.Context, n pathNews) {
	m.view.SetPath(n.id, m.who.path(n.path))
	if n.path.Kind == mesh.None {
		return
	}
	m.alive.Poke(n.id)
	if n.path.Kind < mesh.Direct { // no UDP address
		return
	}
	if err := m.db.SaveAddr(ctx, n.id, n.path.Addr, time.Now()); err != nil && ctx.Err() == nil {
		m.log.Warn("remember an address", "error", err)
	}
}

// path turns the mesh's words into those of the view.
func (r *roster) path(p mesh.Path) fleet.Path {
	out := fleet.Path{Kind: p.Kind.String(), RTT: p.RTT}
	if p.Kind == mesh.Relayed {
		out.Via = r.name(p.Via)
	}
	if p.Addr.IsValid() {
		out.Addr = p.Addr.String()
	}
	return out
}

func (m *meeting) member(n memberNews) {
	m.view.SetState(n.id, n.state)
	before := m.states[n.id]
	m.states[n.id] = n.state
	if len(n.meta) > 0 {
		addrs, homes, live, err := decodeGossip(n.meta)
		if err != nil {
			m.log.Debug("gossip that is none", "node", n.id.Short(), "error", err)
		} else {
			m.node.AddAddrs(n.id, addrs...)
			m.node.SetHomes(n.id, m.who.withPrefix(homes))
			if live != nil {
				m.view.SetLive(n.id, *live)
			}
		}
	}
	if n.state == before { // news of a member that is what it was
		return
	}
	switch n.state {
	case member.Up:
		m.replica.Met(n.id)
		m.submitted.NodeUp(n.id)
		m.custody.met(n.id)
	case member.Down:
		m.submitted.NodeDown(n.id)
	}
}
