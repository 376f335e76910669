package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/balanceai/balance/mesh"
	"github.com/balanceai/balance/mesh/identity"
)

// netcheckReply is the answer of GET /v1/netcheck.
type netcheckReply struct {
	Node      string         `json:"node"`
	Port      int            `json:"port"`      // UDP
	Addresses []string       `json:"addresses"` // told to others
	NAT       mesh.NAT       `json:"nat"`
	UDP       mesh.UDP       `json:"udp"`
	IPv4      bool           `json:"ipv4"`
	IPv6      bool           `json:"ipv6"`
	Seen      []seenReply    `json:"seen"`
	Multicast multicastReply `json:"multicast"`
	Mapping   mappingReply   `json:"port_mapping"`
	Relays    []relayReply   `json:"relays"`
}

// seenReply is what somebody outside saw the node come from.
type seenReply struct {
	By   string    `json:"by"` // empty: a STUN server
	At   string    `json:"at"`
	As   string    `json:"as"`
	Time time.Time `json:"time"`
}

// multicastReply is what multicast on the local network does.
type multicastReply struct {
	On         bool     `json:"on"`
	Interfaces []string `json:"interfaces"`
	Own        bool     `json:"own_heard"` // the node's own announcements come back
	Heard      []string `json:"heard"`     // members
}

// mappingReply is the port that the router forwards.
type mappingReply struct {
	Asked    bool   `json:"asked"`
	Protocol string `json:"protocol,omitempty"`
	External string `json:"external,omitempty"`
	Usable   bool   `json:"usable"` // the address is one of the internet
}

// relayReply is a member that relays.
type relayReply struct {
	Node  string   `json:"node"`
	Path  string   `json:"path"`
	Addr  string   `json:"endpoint,omitempty"`
	Via   string   `json:"via,omitempty"`
	RTTMS float64  `json:"rtt_ms"`
	Home  bool     `json:"home"` // this node is reached by it
	TCP   []string `json:"tcp"`  // where it relays by TCP
}

// hearTime is what neighbours are given to answer a multicast question.
const hearTime = time.Second

// check looks at the network anew.
func (l *localAPI) check(ctx context.Context) netcheckReply {
	heard := time.After(0)
	if l.lan != nil {
		l.lan.Kick()
		heard = time.After(hearTime)
	}
	r := l.node.Netcheck(ctx)
	select {
	case <-heard:
	case <-ctx.Done():
	}
	out := netcheckReply{
		Node: l.who.me().Name, Port: int(r.Port), Addresses: texts(r.Addrs), NAT: r.NAT, UDP: r.UDP, IPv4: r.IPv4, IPv6: r.IPv6,
		Seen: []seenReply{}, Multicast: l.multicast(), Relays: []relayReply{},
		Mapping: mappingReply{Asked: r.MapPort, Protocol: r.Mapping.Protocol, Usable: r.Mapping.Usable},
	}
	if r.Mapping.External.IsValid() {
		out.Mapping.External = r.Mapping.External.String()
	}
	for _, s := range r.Sights {
		seen := seenReply{At: s.At.String(), As: s.Us.String(), Time: s.When}
		if !s.By.IsZero() {
			seen.By = l.who.name(s.By)
		}
		out.Seen = append(out.Seen, seen)
	}
	for _, relay := range r.Relays {
		path := l.who.path(relay.Path)
		out.Relays = append(out.Relays, relayReply{
			Node: l.who.name(relay.ID), Path: path.Kind, Addr: path.Addr, Via: path.Via, RTTMS: millis(path.RTT),
			Home: relay.Home, TCP: texts(relay.Streams),
		})
	}
	return out
}

func texts(addrs []netip.AddrPort) []string {
	out := make([]string, len(addrs))
	for i, a := range addrs {
		out[i] = a.String()
	}
	return out
}

// multicast tells what the announcements on the local network came to.
func (l *localAPI) multicast() multicastReply {
	m := multicastReply{On: l.lan != nil, Interfaces: []string{}, Heard: []string{}}
	if l.lan == nil {
		return m
	}
	h := l.lan.Hearing()
	m.Interfaces, m.Own = append(m.Interfaces, h.Interfaces...), !h.Own.IsZero()
	for id := range h.Members {
		m.Heard = append(m.Heard, l.who.name(id))
	}
	slices.Sort(m.Heard)
	return m
}

func (l *localAPI) netcheck(w http.ResponseWriter, r *http.Request) error {
	reply(w, l.check(r.Context()))
	return nil
}

// networkReply is what a node tells other members of its network: the answer of
// GET /v1/network on the overlay address.
type networkReply struct {
	Time   time.Time    `json:"time"`
	NAT    mesh.NAT     `json:"nat"`
	UDP    mesh.UDP     `json:"udp"`
	Port   uint16       `json:"port"` // UDP
	SeenAs []netip.Addr `json:"seen_as"`
	Mapped bool         `json:"mapped"` // a router forwards its port
}

func networkOf(r mesh.Report) networkReply {
	n := networkReply{Time: time.Now(), NAT: r.NAT, UDP: r.UDP, Port: r.Port, Mapped: r.Mapping.Usable}
	for _, s := range r.Sights {
		if a := s.Us.Addr(); !slices.Contains(n.SeenAs, a) {
			n.SeenAs = append(n.SeenAs, a)
		}
	}
	return n
}

func (p *peerAPI) network(w http.ResponseWriter, _ *http.Request) {
	reply(w, networkOf(p.node.Report()))
}

// maxNetwork bounds what a member says of its network, in bytes.
const maxNetwork = 64 << 10

// askNetwork asks a member about its network, and how much its clock is ahead of
// ours.
func askNetwork(ctx context.Context, peers *http.Client, id identity.ID) (n networkReply, ahead time.Duration, err error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+id.String()+"/v1/network", nil)
	if err != nil {
		return n, 0, err
	}
	start := time.Now()
	resp, err := peers.Do(req)
	if err != nil {
		return n, 0, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return n, 0, fmt.Errorf("it answered %s", resp.Status)
	}
	err = json.NewDecoder(io.LimitReader(resp.Body, maxNetwork)).Decode(&n)
	return n, n.Time.Sub(start.Add(time.Since(start) / 2)), err
}

func (a *app) netcheckCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "netcheck",
		Short: "Tell what this machine's network is like",
		Long: "Tell what this machine's network is like: what routers do to it, who sees it come from where, and which relays\n" +
			"there are. It asks other members for that, and nobody else but STUN servers that you have chosen.",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			var r netcheckReply
			if err := a.client.get(cmd.Context(), "/v1/netcheck", &r); err != nil {
				return err
			}
			return a.print.answer(r, func(w io.Writer) error { return printNetcheck(w, &r) })
		},
	}
}

// natWords and udpWords say in words what the words of the JSON mean.
var (
	natWords = map[mesh.NAT]string{
		mesh.NATNone:    "none: others see an address of this machine",
		mesh.NATEasy:    "easy: all others see one address",
		mesh.NATHard:    "hard: each other machine sees another address",
		mesh.NATUnknown: "unknown: fewer than two machines outside have answered",
	}
	udpWords = map[mesh.UDP]string{
		mesh.UDPWorks:   "works",
		mesh.UDPLocal:   "works on the local network; nobody outside has answered",
		mesh.UDPBlocked: "blocked: members are reached by TCP",
		mesh.UDPUnknown: "unknown: nobody has answered",
	}
)

func printNetcheck(w io.Writer, r *netcheckReply) error {
	fmt.Fprintf(w, "%s, UDP port %d\n", r.Node, r.Port)
	fmt.Fprintf(w, "  UDP        %s\n  NAT        %s\n", udpWords[r.UDP], natWords[r.NAT])
	var families []string
	if r.IPv4 {
		families = append(families, "IPv4")
	}
	if r.IPv6 {
		families = append(families, "IPv6")
	}
	fmt.Fprintf(w, "  outside    %s\n", orNone(families))
	fmt.Fprintf(w, "  told       %s\n  mapping    %s\n  multicast  %s\n", orNone(r.Addresses), mappingWords(r.Mapping), multicastWords(r.Multicast))
	if len(r.Seen) > 0 {
		var rows [][]string
		for _, s := range r.Seen {
			by := s.By
			if by == "" {
				by = "STUN server"
			}
			rows = append(rows, []string{by, s.At, s.As})
		}
		fmt.Fprintln(w)
		if err := table(w, []string{"SEEN BY", "AT", "AS"}, rows); err != nil {
			return err
		}
	}
	fmt.Fprintln(w)
	if len(r.Relays) == 0 {
		_, err := fmt.Fprintln(w, "no member relays for this one")
		return err
	}
	var rows [][]string
	for _, relay := range r.Relays {
		rtt, home := "", ""
		if relay.RTTMS > 0 {
			rtt = fmt.Sprintf("%.2f ms", relay.RTTMS)
		}
		if relay.Home {
			home = "yes"
		}
		rows = append(rows, []string{relay.Node, pathName(relay.Path, relay.Via), rtt, home, strings.Join(relay.TCP, " ")})
	}
	return table(w, []string{"RELAY", "PATH", "RTT", "HOME", "TCP"}, rows)
}

func orNone(list []string) string {
	if len(list) == 0 {
		return "none"
	}
	return strings.Join(list, " ")
}

func mappingWords(m mappingReply) string {
	switch {
	case !m.Asked:
		return "not asked for"
	case m.Protocol == "":
		return "none: not needed, or the router gives none"
	case !m.Usable:
		return fmt.Sprintf("%s by %s, behind another NAT", m.External, m.Protocol)
	}
	return fmt.Sprintf("%s by %s", m.External, m.Protocol)
}

func multicastWords(m multicastReply) string {
	switch {
	case !m.On:
		return "off"
	case !m.Own && len(m.Heard) == 0:
		return "nothing comes back on " + orNone(m.Interfaces)
	}
	return fmt.Sprintf("works on %s; heard: %s", orNone(m.Interfaces), orNone(m.Heard))
}
