package mesh

import (
	"cmp"
	"context"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/balanceai/balance/mesh/identity"
)

// NAT says what the routers before a node do to its UDP port (RFC 4787).
type NAT string

// Kinds of NAT.
const (
	NATUnknown NAT = "unknown" // fewer than two others outside have seen the node
	NATNone    NAT = "none"    // it has a public address itself
	NATEasy    NAT = "easy"    // its mapping is the same for all: endpoint-independent
	NATHard    NAT = "hard"    // each destination sees another one
)

// UDP says how far a node's datagrams get.
type UDP string

// Reaches of UDP.
const (
	UDPUnknown UDP = "unknown" // nobody has answered
	UDPWorks   UDP = "works"
	UDPLocal   UDP = "lan"     // members on the own network alone have answered
	UDPBlocked UDP = "blocked" // members are reached by TCP alone
)

// Sight is what somebody outside the node's network saw it come from.
type Sight struct {
	By   identity.ID // zero: a STUN server
	At   netip.AddrPort
	Us   netip.AddrPort
	When time.Time
}

// RelayPath is a relay that the node knows.
type RelayPath struct {
	Relay
	Path Path // its Kind is None where it has not answered
	Home bool // the node is reached by it
}

// Mapping is a port that the router forwards. Usable says that the address is
// one of the internet; if not, the router is behind another NAT.
type Mapping struct {
	Protocol string // pcp, nat-pmp or upnp; empty: there is none
	External netip.AddrPort
	Usable   bool
}

// Report is what a node knows of its network.
type Report struct {
	Port       uint16           // UDP, of the host
	Addrs      []netip.AddrPort // told to others
	NAT        NAT
	UDP        UDP
	IPv4, IPv6 bool    // somebody outside the node's network has answered by it
	Sights     []Sight // the newest first
	Relays     []RelayPath
	MapPort    bool // the router is asked to forward the port
	Mapping    Mapping
}

const (
	checkTime    = 2 * time.Second // for answers
	checkMembers = 8               // that are asked beside the relays
)

// Netcheck asks relays, some other members and the STUN servers for a sign of
// life, for two seconds at most, and reports what the node's network is like.
func (n *Node) Netcheck(ctx context.Context) Report {
	ctx, cancel := context.WithTimeout(ctx, checkTime)
	defer cancel()
	start := n.bind.now()
	var asked sync.WaitGroup
	if n.stun != nil {
		asked.Go(func() { n.stun.ask(ctx) })
	}
	for _, p := range n.witnesses() {
		asked.Go(func() { _, _ = p.knock(ctx) }) // silence is a result
	}
	asked.Wait()
	return n.report(start)
}

// Report is Netcheck of what is known already.
func (n *Node) Report() Report { return n.report(n.bind.now().add(-sightLife)) }

// witnesses are the peers whose answers tell most: the relays, and of the other
// members those that are reached over the internet.
func (n *Node) witnesses() []*peer {
	n.mu.RLock()
	defer n.mu.RUnlock()
	var relays []*peer
	for _, id := range n.relayIDs() {
		if p := n.members[id]; p != nil {
			relays = append(relays, p)
		}
	}
	type other struct {
		*peer
		kind Kind
	}
	var others []other
	for _, p := range n.members {
		if kind := p.path().Kind; kind != LAN && !slices.Contains(relays, p) {
			others = append(others, other{p, kind})
		}
	}
	slices.SortFunc(others, func(a, b other) int { return cmp.Compare(b.kind, a.kind) })
	for _, o := range others[:min(len(others), checkMembers)] {
		relays = append(relays, o.peer)
	}
	return relays
}

// report draws conclusions from what has been seen since start, and says as well
// what was seen a little before.
func (n *Node) report(start instant) Report {
	n.local.refresh()
	now, wall := n.bind.now(), time.Now()
	r := Report{Port: n.Port(), Addrs: n.candidates(), MapPort: n.mapper != nil}
	m := n.mapping()
	_, usable := n.forwarded()
	r.Mapping = Mapping{m.Protocol, m.External, usable}
	var fresh []Sight
	lately := false
	for _, s := range n.sights.newest(now) {
		if n.local.kind(s.at.Addr()) == LAN {
			continue
		}
		out := Sight{At: s.at, Us: s.us, When: wall.Add(-now.sub(s.when))}
		if s.by != nil {
			out.By = s.by.id
		}
		r.Sights = append(r.Sights, out)
		if s.when >= start {
			fresh = append(fresh, out)
			lately = lately || s.when.within(keepHome, now)
		}
	}
	for _, s := range fresh {
		r.IPv4, r.IPv6 = r.IPv4 || s.Us.Addr().Is4(), r.IPv6 || s.Us.Addr().Is6()
	}
	paths := n.reportRelays(&r)
	r.UDP = udpOf(len(fresh) > 0, lately, paths)
	if r.UDP != UDPBlocked { // what was seen before it was blocked is no more
		if r.NAT = natOf(n.ownAddrs(), fresh); r.NAT == NATUnknown {
			r.NAT = natOf(n.ownAddrs(), r.Sights)
		}
	} else {
		r.NAT = NATUnknown
	}
	return r
}

// reportRelays enters the relays, and returns the paths to all members.
func (n *Node) reportRelays(r *Report) (paths []Path) {
	n.mu.RLock()
	defer n.mu.RUnlock()
	for _, p := range n.members {
		paths = append(paths, p.path())
	}
	for _, relay := range n.relays {
		out := RelayPath{Relay: relay, Home: slices.Contains(n.homes, relay.ID)}
		if p := n.members[relay.ID]; p != nil {
			out.Path = p.path()
		}
		r.Relays = append(r.Relays, out)
	}
	return paths
}

// ownAddrs returns the addresses of the host.
func (t *tunnel) ownAddrs() (out []netip.Addr) {
	for _, a := range t.localAddrs() {
		out = append(out, a.Addr())
	}
	return out
}

// natOf concludes from what others saw of a host with some addresses. IPv6 is
// looked at where there is nothing else.
func natOf(own []netip.Addr, sights []Sight) NAT {
	var v4, v6 []Sight
	for _, s := range sights {
		switch us := s.Us.Addr(); {
		case !isPublic(us), us == s.At.Addr(): // by somebody behind the same router
		case us.Is4():
			v4 = append(v4, s)
		default:
			v6 = append(v6, s)
		}
	}
	if len(v4) == 0 {
		v4 = v6
	}
	places := map[netip.AddrPort]bool{}
	for _, s := range v4 {
		places[s.At] = true
		if slices.Contains(own, s.Us.Addr()) {
			return NATNone
		}
	}
	switch {
	case len(places) < 2:
		return NATUnknown
	case slices.ContainsFunc(v4, func(s Sight) bool { return s.Us != v4[0].Us }):
		return NATHard
	}
	return NATEasy
}

// udpOf concludes from whether somebody outside has answered, and did so within
// the time in which a relay is asked, and from the paths to all members. A stream
// is used only where UDP reaches no relay.
func udpOf(outside, lately bool, paths []Path) UDP {
	has := func(k Kind) bool { return slices.ContainsFunc(paths, func(p Path) bool { return p.Kind == k }) }
	switch {
	case has(TCP) && !lately:
		return UDPBlocked
	case outside, has(Direct):
		return UDPWorks
	case has(LAN):
		return UDPLocal
	}
	return UDPUnknown
}
