package main

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"strconv"

	"golang.org/x/sync/errgroup"

	"github.com/balanceai/balance/discovery"
	"github.com/balanceai/balance/exec/fleet"
	"github.com/balanceai/balance/exec/task"
	"github.com/balanceai/balance/mesh"
	"github.com/balanceai/balance/mesh/identity"
	"github.com/balanceai/balance/mesh/member"
	"github.com/balanceai/balance/mesh/trust"
	"github.com/balanceai/balance/mesh/wire"
	"github.com/balanceai/balance/store"
	"github.com/balanceai/balance/store/replica"
)

// The steps of up that need more than a line.

func notJoined(h home) error {
	return fail("not_joined", "found a mesh with: balance init; or join one with: balance join INVITE", "this node belongs to no mesh (home %s)", h)
}

// openRoster evaluates the log, and writes down which WireGuard key this node
// uses if the log does not say so yet.
func openRoster(ctx context.Context, h home, db *store.Store, keys identity.Keys) (*roster, error) {
	id, ok := db.Mesh()
	if !ok {
		return nil, notJoined(h)
	}
	who := &roster{mesh: id, self: keys.Identity.ID(), entries: db.Entries}
	if err := who.load(ctx); err != nil {
		return nil, err
	}
	if _, ok := who.now().Members[who.self]; !ok {
		return nil, errors.New("the keys in the home folder are not those of the member that the ledger belongs to")
	}
	if who.me().WG == keys.WG.Public() {
		return who, nil
	}
	_, err := db.Append(ctx, task.Draft{Topic: wire.TopicMesh, Kind: trust.KindWGBind, Record: trust.WGBind{WG: keys.WG.Public()}})
	if err != nil {
		return nil, err
	}
	return who, who.load(ctx)
}

// settingPort is where the ledger file keeps the UDP port.
const settingPort = "udp-port"

// keptPort completes the address to listen on with the port that the node had
// last time, where it is free.
func keptPort(ctx context.Context, db *store.Store, listen netip.AddrPort) (netip.AddrPort, error) {
	if !listen.IsValid() {
		listen = netip.AddrPortFrom(netip.IPv6Unspecified(), 0)
	}
	if listen.Port() != 0 {
		return listen, nil
	}
	kept, err := db.Setting(ctx, settingPort)
	if err != nil {
		return listen, err
	}
	port, err := strconv.ParseUint(kept, 10, 16)
	if err != nil {
		return listen, nil // none yet
	}
	want := netip.AddrPortFrom(listen.Addr(), uint16(port))
	probe, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(want))
	if err != nil {
		return listen, nil // somebody else has it now
	}
	return want, probe.Close()
}

// settleRuns is how many of the newest runs that have ended are looked at for
// what is left to do, such as a countersignature that a crash prevented.
const settleRuns = 100

// unsettled returns this node's runs that may not be over.
func unsettled(ctx context.Context, db *store.Store) ([]task.Status, error) {
	active, err := db.Runs(ctx, store.RunFilter{Own: true, Active: true})
	if err != nil {
		return nil, err
	}
	newest, err := db.Runs(ctx, store.RunFilter{Own: true, Limit: settleRuns})
	return append(active, newest...), err
}

// ports are those of the overlay at which members call this one.
type ports struct {
	api, gossip net.Listener
	packets     net.PacketConn
}

func openPorts(node *mesh.Node) (p ports, err error) {
	defer func() {
		if err != nil {
			p.close()
		}
	}()
	if p.api, err = node.Listen(apiPort); err != nil {
		return p, err
	}
	if p.gossip, err = node.Listen(gossipPort); err != nil {
		return p, err
	}
	p.packets, err = node.ListenPacket(gossipPort)
	return p, err
}

// close closes them again, those too that are served by somebody who has closed
// them already.
func (p *ports) close() {
	for _, c := range []io.Closer{p.api, p.gossip, p.packets} {
		if c != nil {
			_ = c.Close()
		}
	}
}

// openMembers starts the gossip of who is alive.
func openMembers(node *mesh.Node, at ports, self identity.ID, who *roster, f *facts, held func() fleet.Held, heard *news, log *slog.Logger) (*member.List, error) {
	return member.Start(member.Config{
		Mesh: who.now().Mesh, Self: self, Listener: at.gossip, Packets: at.packets, Roster: who.others, Member: who.has, OnChange: heard.member, Log: log,
		Dial: func(ctx context.Context, id identity.ID) (net.Conn, error) { return node.Dial(ctx, id, gossipPort) },
		Meta: func() []byte {
			b, err := encodeGossip(node.Addrs(), node.Homes(), f.sampler.Live(held()))
			if err != nil {
				log.Error("encode gossip", "error", err)
			}
			return b
		},
	})
}

// follow keeps everything that depends on the log in step with it: the roster,
// the peers of the tunnel, the members in the view and their offers.
func follow(ctx context.Context, who *roster, db *store.Store, node *mesh.Node, view *fleet.View) error {
	stored, err := db.Addrs(ctx)
	if err != nil {
		return err
	}
	addrs := map[identity.ID][]netip.AddrPort{}
	for _, a := range stored {
		addrs[a.Peer] = append(addrs[a.Peer], a.Addr)
	}
	who.each(func(s *trust.State) {
		var peers []mesh.Peer
		var members []fleet.Node
		for _, m := range s.List() {
			n := fleet.Node{ID: m.ID, Name: m.Name, Owner: m.Owner, Address: s.Mesh.Address(m.ID).String(), State: fleet.Down, Path: fleet.Path{Kind: fleet.PathNone}}
			if m.ID == who.self {
				n.Self, n.State, n.Path.Kind = true, fleet.Up, fleet.PathSelf
			} else {
				peers = append(peers, mesh.Peer{ID: m.ID, WG: m.WG, Addrs: addrs[m.ID], Guests: keysOf(s.Guests[m.ID])})
			}
			members = append(members, n)
		}
		node.SetPeers(peers)
		view.SetMembers(members)
		useRelays(node, who.self, view)
	})
	offers, err := db.Latest(ctx, fleet.KindOffer)
	if err != nil {
		return err
	}
	takeOffers(view, offers)
	useRelays(node, who.self, view)
	return nil
}

// useRelays tells the mesh who relays for this machine: its owner's other
// machines first.
func useRelays(node *mesh.Node, self identity.ID, view *fleet.View) {
	nodes, _ := view.Snapshot()
	i := slices.IndexFunc(nodes, func(n fleet.Node) bool { return n.ID == self })
	if i < 0 {
		return
	}
	owner := nodes[i].Owner
	var own, others []mesh.Relay
	for _, n := range nodes {
		switch {
		case n.Offer == nil || !n.Offer.Terms.Relays(n.Owner, owner, ""):
		case n.Owner == owner:
			own = append(own, asRelay(n))
		default:
			others = append(others, asRelay(n))
		}
	}
	node.SetRelays(append(own, others...))
}

func asRelay(n fleet.Node) mesh.Relay {
	r := mesh.Relay{ID: n.ID}
	for _, s := range n.Offer.Streams[:min(len(n.Offer.Streams), maxRelayStreams)] {
		if a, err := netip.ParseAddrPort(s); err == nil {
			r.Streams = append(r.Streams, a)
		}
	}
	return r
}

// maxRelayStreams is how many TCP addresses of one relay are tried.
const maxRelayStreams = 8

// takeOffers puts the offers among entries into the view.
func takeOffers(view *fleet.View, entries []*wire.Entry) {
	for _, e := range entries {
		var o fleet.Offer
		if e.Kind == fleet.KindOffer && wire.Unmarshal(e.Payload, &o) == nil {
			view.SetOffer(e.Author, &o)
		}
	}
}

// onCommit is told of every entry that the ledger stores. Writers wait for it,
// so it only passes on.
func onCommit(changed chan<- []*wire.Entry, r *replica.Replica, c *custody) func([]*wire.Entry) {
	return func(fresh []*wire.Entry) {
		c.committed(fresh)
		var all, own []*wire.Entry
		for _, e := range fresh {
			if e.Topic != wire.TopicMesh {
				continue
			}
			all = append(all, e)
			if e.Author == r.Self {
				own = append(own, e)
			}
		}
		if len(own) > 0 {
			r.Push(own...)
		}
		if len(all) > 0 {
			changed <- all
		}
	}
}

// keepUp evaluates what the ledger has stored until ctx ends.
func keepUp(ctx context.Context, changed <-chan []*wire.Entry, who *roster, node *mesh.Node, view *fleet.View, log *slog.Logger) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case fresh := <-changed:
			if changesRoster(fresh) {
				if err := who.load(ctx); err != nil && ctx.Err() == nil {
					log.Error("evaluate the mesh's log", "error", err)
				}
			}
			takeOffers(view, fresh)
			useRelays(node, who.self, view)
		}
	}
}

// serveDNS answers for the mesh's names on the overlay and, where the user has
// chosen one, on a loopback address, which it returns as it came to be.
func serveDNS(ctx context.Context, group *errgroup.Group, node *mesh.Node, host netip.AddrPort, n *names, log *slog.Logger) (netip.AddrPort, error) {
	pc, err := node.ListenPacket(dnsPort)
	if err != nil {
		return host, err
	}
	ln, err := node.Listen(dnsPort)
	if err != nil {
		pc.Close()
		return host, err
	}
	group.Go(func() error { return discovery.Serve(ctx, n.now, pc, ln, log) })
	if !host.IsValid() {
		return host, nil
	}
	hostLn, err := net.Listen("tcp", host.String())
	if err != nil {
		return host, hint(err, "choose another address with --dns")
	}
	hostPC, err := net.ListenPacket("udp", hostLn.Addr().String())
	if err != nil {
		hostLn.Close()
		return host, hint(err, "choose another address with --dns")
	}
	group.Go(func() error { return discovery.Serve(ctx, n.now, hostPC, hostLn, log) })
	return hostLn.Addr().(*net.TCPAddr).AddrPort(), nil
}
