// Package mesh is a private network between nodes: who is given a roster of
// peers can listen, and dial each of them by identity, over whatever UDP path
// works at the moment.
//
// Every packet travels in WireGuard, whose protocol and implementation are
// untouched. It runs over one UDP port, under a network stack inside this
// process, so that it needs no root and no other program sees it. Each node has
// one IPv6 address in the overlay, computed from its identity; WireGuard makes
// the source address of whatever arrives authentic, and [Node.Who] turns it back
// into an identity.
//
// What a node promises:
//   - Who is not in the roster, and is no expected joiner, gets no byte in
//     answer to anything, and cannot tell that the node exists. A peer that
//     leaves the roster is such a stranger at once.
//   - Addresses of peers are rumours. One is used after it has answered a probe
//     that only the peer can answer, and a path is changed by nothing else.
//   - A first contact takes two round trips, and a lost datagram delays it by a
//     fraction of a second.
//   - A joiner, the holder of an invite, reaches one port of the door and
//     nothing else.
//
// Package trust decides who belongs; package member tells who is alive.
package mesh

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/balanceai/balance/mesh/hostnet"
	"github.com/balanceai/balance/mesh/identity"
	"github.com/balanceai/balance/mesh/netstack"
)

// mtu is the largest packet in the overlay, in bytes: what IPv6 demands of every
// network, so that the tunnel's datagrams pass wherever IPv6 and most tunnels do.
const mtu = 1280

// overhead is what WireGuard adds to a packet, in bytes: a header of 16 and a tag
// of 16.
const overhead = 32

// Config says what a node is.
type Config struct {
	Keys identity.Keys
	Mesh identity.MeshID
	// Listen is the UDP port of the host. Port 0 is any free one, an
	// unspecified address is all of the host's, of IPv4 and IPv6.
	Listen netip.AddrPort
	// Advertise, if there are any, are the addresses that the node tells others,
	// and no others: where a router forwards a port, or where the host's own
	// addresses are nobody's business.
	Advertise []netip.AddrPort
	// STUN are servers, host:port, that are asked where the node is seen from,
	// as members are asked anyway.
	STUN []string
	// MapPort has the router of the local network asked to forward the UDP port,
	// where the host has no public address and Advertise says nothing.
	MapPort bool
	Log     *slog.Logger
	// TUN lets every program of the host use the mesh, through an interface of
	// the kernel's. It needs CAP_NET_ADMIN, and Linux.
	TUN bool
	// Open are the host's ports that members reach over that interface. All
	// others let in only what answers.
	Open []uint16
	// Private are the ports at which members take whoever calls for the node
	// itself: other programs of the host do not reach them over the interface,
	// and guests do not reach them at all.
	Private []uint16
	// GuestPort is the UDP port that is opened while the node carries guests; 0
	// is any free one.
	GuestPort uint16
	// OnPath is told when the path to a member appears, moves to another
	// address or is lost. It is called from one goroutine, may be nil, may
	// block shortly, and must not close the node.
	OnPath func(identity.ID, Path)
	// Relay says whether this node passes on what one member sends to another,
	// which it cannot read, and how many bytes per second of all that the first
	// one sends; 0 is any number. Nil is never. It must not block.
	Relay func(from, to identity.ID) (rate int, ok bool)
	// Busy says how busy the host's processors are, in percent. Nodes to which
	// this one is a relay are told when there is little left. Nil is not known. It
	// must not block.
	Busy func() int
}

// Peer is a member to be reached.
type Peer struct {
	ID    identity.ID
	WG    identity.WGPublic // zero: not known yet, and so not reachable
	Addrs []netip.AddrPort  // stored UDP addresses; eight are used
	// Guests are the keys of the plain WireGuard devices that the member carries.
	Guests []identity.WGPublic
}

// ErrUnknownPeer means that an identity is not in the roster.
var ErrUnknownPeer = errors.New("no such peer in the roster")

// ErrNoTUN means that there can be no interface for programs of the host, as
// [Config] asks for. The text says why and what to do.
var ErrNoTUN = hostnet.ErrUnavailable

// Node is a node's end of the mesh. Its methods are safe for concurrent use.
type Node struct {
	*tunnel
	cfg     Config
	self    identity.ID
	door    netip.Addr
	carrier *carrier

	junction  *junction
	guests    *guests       // nil: none; guarded by configure
	guestPort atomic.Uint32 // the one in use or used last; 0: none

	mu        sync.RWMutex
	members   map[identity.ID]*peer
	carriedBy map[netip.Addr]identity.ID // by address of the guest
	joiners   map[identity.ID]*joiner
	relays    []Relay       // that may be used, as told
	homes     []identity.ID // those with a path that is kept open
	calling   chan struct{} // has something in it when relays may have to be called

	rosters uint64 // how many there were; guarded by configure
}

// Open starts a node, which is up when it returns.
func Open(cfg Config) (*Node, error) {
	self := cfg.Keys.Identity.ID()
	n := &Node{
		cfg:       cfg,
		self:      self,
		door:      cfg.Mesh.DoorAddress(),
		members:   map[identity.ID]*peer{},
		carriedBy: map[netip.Addr]identity.ID{},
		joiners:   map[identity.ID]*joiner{},
		carrier:   newCarrier(cfg.Relay, cfg.Busy),
		calling:   make(chan struct{}, 1),
	}
	n.guestPort.Store(uint32(cfg.GuestPort))
	var pass func(from, to *peer, frames [][]byte) int
	var load func(*peer) byte
	if cfg.Relay != nil {
		pass, load = n.carrier.take, n.carrier.load
	}
	var err error
	n.tunnel, err = openTunnel(tunnelConfig{
		key:    cfg.Keys.WG,
		listen: cfg.Listen,
		told:   cfg.Advertise,
		addrs:  []netip.Addr{cfg.Mesh.Address(self), n.door},
		accept: n.accept,
		host:   cfg.host(),
		fork:   n.fork,
		log:    cfg.Log,
		onPath: n.onPath,
		relay:  pass,
		load:   load,
		beat:   n.beat,
		fits:   n.fits,
		stun:   cfg.STUN,
		ports:  cfg.MapPort,
		roused: n.roused,
		behind: n.behind,
	})
	if err != nil {
		return nil, err
	}
	n.watch.Go(n.callRelays)
	return n, nil
}

// host describes the interface for programs of the host, or returns nil where
// there is to be none.
func (c *Config) host() *hostnet.Config {
	if !c.TUN {
		return nil
	}
	return &hostnet.Config{Prefix: c.Mesh.Prefix(), Joiner: c.Mesh.IsJoiner, Private: c.Private, Open: c.Open}
}

// Close takes the node out of the network: listeners and connections fail. It
// waits until nothing of the node runs.
func (n *Node) Close() error {
	n.mu.Lock()
	for _, j := range n.joiners {
		j.end.Stop()
	}
	n.mu.Unlock()
	n.close()
	n.configure.Lock()
	defer n.configure.Unlock()
	n.closeGuests()
	return nil
}

// accept is the filter of what arrives from WireGuard: a joiner reaches the
// door's one port, and nobody else does.
func (n *Node) accept(p netstack.Packet) bool {
	switch {
	case n.cfg.Mesh.IsJoiner(p.Src):
		return p.Proto == netstack.TCP && p.Dst == n.door && p.DstPort == DoorPort
	case n.cfg.Mesh.IsGuest(p.Src):
		return p.Dst == n.addr && n.guestsMay(p)
	}
	return p.Dst != n.door
}

func (n *Node) onPath(p *peer, path Path) {
	n.mu.RLock()
	relays := slices.ContainsFunc(n.relays, func(r Relay) bool { return r.ID == p.id })
	n.mu.RUnlock()
	if relays {
		n.settleHomes()
		if path.Kind == None { // if there was a stream, it is dead
			n.bind.streams.hangUp(func(to *peer) bool { return to == p })
		}
		n.streamsWanted()
	}
	if n.cfg.OnPath != nil && !p.id.IsZero() {
		n.cfg.OnPath(p.id, path)
	}
}

// Port returns the UDP port of the host.
func (n *Node) Port() uint16 { return n.bind.port() }

// Address returns the node's address in the overlay.
func (n *Node) Address() netip.Addr { return n.addr }

// Interface returns the name and the index of the interface for programs of the
// host. Without one the name is empty.
func (n *Node) Interface() (name string, index int) {
	if n.host == nil {
		return "", 0
	}
	return n.host.Interface()
}

// SetPeers makes list the roster. Who is not in it any more loses its session
// at once; who has another WireGuard key gets a new one. Of two members with one
// WireGuard key, or one identity, the first counts.
func (n *Node) SetPeers(list []Peer) {
	n.configure.Lock()
	defer n.configure.Unlock()
	n.rosters++
	fresh, kept := n.compare(list)
	if kept < len(n.members) {
		n.removeMembers()
	}
	if len(fresh) > 0 {
		n.addMembers(fresh)
		n.assignAll() // one of them may be a relay to the others
		n.keepHomes()
	}
}

// compare marks the members that stay, tells them their addresses, and returns
// the others of a roster, and how many stay. The caller holds configure.
func (n *Node) compare(list []Peer) (fresh []Peer, kept int) {
	own := n.cfg.Keys.WG.Public()
	keys := map[identity.WGPublic]bool{} // of the fresh ones, if they are new
	for _, m := range list {
		if m.ID == n.self || m.WG == own || m.WG == (identity.WGPublic{}) || keys[m.WG] {
			continue
		}
		switch p := n.bind.withKey(m.WG); {
		case p == nil || p.id.IsZero():
			keys[m.WG] = true
			fresh = append(fresh, m)
		case p.claimed == n.rosters:
		case p.id == m.ID:
			p.claimed, p.kept = n.rosters, n.rosters
			p.store(m.Addrs)
			n.setMemberGuests(p, m.Guests)
			kept++
		default:
			p.claimed = n.rosters
			fresh = append(fresh, m)
		}
	}
	return fresh, kept
}

// removeMembers removes the members that are not marked. The caller holds
// configure.
func (n *Node) removeMembers() {
	var gone []*peer
	n.mu.Lock()
	for id, p := range n.members {
		if p.kept != n.rosters {
			gone = append(gone, p)
			delete(n.members, id)
		}
	}
	n.mu.Unlock()
	n.removePeers(gone)
	for _, p := range gone {
		n.setMemberGuests(p, nil)
	}
	n.carrier.forget(gone)
}

// addMembers adds members that are not there. The caller holds configure.
func (n *Node) addMembers(list []Peer) {
	added := make([]*peer, 0, len(list))
	guests := map[*peer][]identity.WGPublic{}
	n.mu.Lock()
	for _, m := range list {
		if n.members[m.ID] != nil {
			continue
		}
		p := newPeer(n.bind, m.WG, n.cfg.Mesh.Address(m.ID))
		p.id, p.claimed, p.kept = m.ID, n.rosters, n.rosters
		p.store(m.Addrs)
		n.members[m.ID] = p
		added = append(added, p)
		if len(m.Guests) > 0 {
			guests[p] = m.Guests
		}
	}
	n.mu.Unlock()
	for p, keys := range guests {
		n.setMemberGuests(p, keys)
	}
	n.addPeers(added)
}

// roused is called when a peer wakes.
func (n *Node) roused(p *peer) {
	if !p.id.IsZero() {
		n.assign(p)
	}
}

// member returns a peer of the roster, or nil.
func (n *Node) member(id identity.ID) *peer {
	n.mu.RLock()
	defer n.mu.RUnlock()
	return n.members[id]
}

// AddAddrs adds addresses at which a member may be: rumours, which are tried
// and never trusted. The newest eight are kept. Those of unknown peers are
// dropped.
func (n *Node) AddAddrs(id identity.ID, addrs ...netip.AddrPort) {
	if p := n.member(id); p != nil {
		p.hear(addrs)
	}
}

// Listen listens on a TCP port of the node's overlay address. Connections come
// from members alone; their remote address is a *net.TCPAddr of the overlay.
func (n *Node) Listen(port uint16) (net.Listener, error) {
	return n.net.ListenTCP(netip.AddrPortFrom(n.addr, port))
}

// ListenPacket opens a UDP port of the node's overlay address.
func (n *Node) ListenPacket(port uint16) (net.PacketConn, error) {
	return n.net.ListenUDP(netip.AddrPortFrom(n.addr, port))
}

// Dial connects to a TCP port of a member, or of the node itself.
func (n *Node) Dial(ctx context.Context, id identity.ID, port uint16) (net.Conn, error) {
	addr := n.addr
	if id != n.self {
		p := n.member(id)
		if p == nil {
			return nil, fmt.Errorf("dial %s: %w", id.Short(), ErrUnknownPeer)
		}
		addr = p.addr
	}
	c, err := n.dial(ctx, netip.AddrPortFrom(addr, port))
	if err != nil {
		return nil, fmt.Errorf("dial %s: %w", id.Short(), err)
	}
	return c, nil
}

// Who returns the member, or the node itself, that an overlay address belongs
// to.
func (n *Node) Who(addr netip.Addr) (identity.ID, bool) {
	if addr == n.addr {
		return n.self, true
	}
	if p := n.bind.at(addr); p != nil && !p.id.IsZero() {
		return p.id, true
	}
	return identity.ID{}, false
}

// NetworkChanged makes the node look for its peers from where it is now, and
// tell them. It does so itself when it notices that the host's network is
// another one or that the machine slept.
func (n *Node) NetworkChanged() {
	n.networkChanged()
}

// fits returns the size of the largest packet that reaches an overlay address in
// one datagram.
func (n *Node) fits(addr netip.Addr) int {
	if p := n.bind.at(addr); p != nil {
		return int(p.size.Load())
	}
	return 0
}

// Path returns how packets reach a member: the path in use or used last. It is
// [None] while no address has answered.
func (n *Node) Path(id identity.ID) Path {
	if p := n.member(id); p != nil {
		return p.path()
	}
	return Path{}
}

// Ping asks a member for a sign of life and repeats that until it answers or
// ctx ends; then the error is [ErrNoAnswer]. RTT is the time of this one round
// trip.
func (n *Node) Ping(ctx context.Context, id identity.ID) (Path, error) {
	p := n.member(id)
	if p == nil {
		return Path{}, fmt.Errorf("ping %s: %w", id.Short(), ErrUnknownPeer)
	}
	path, err := p.knock(ctx)
	if err != nil {
		return Path{}, fmt.Errorf("ping %s: %w", id.Short(), err)
	}
	return path, nil
}
