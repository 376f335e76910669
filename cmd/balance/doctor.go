package main

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"

	"github.com/balanceai/balance/exec/fleet"
	"github.com/balanceai/balance/exec/place"
	"github.com/balanceai/balance/mesh"
)

// Levels of findings. With one of the first two something is wrong.
const (
	levelProblem = "problem" // something does not work
	levelWarning = "warning" // something works worse than it could
	levelNote    = "note"    // as it is meant to be, and good to know
)

// finding is something that was found out, and what to do about it.
type finding struct {
	Level string `json:"level"`
	What  string `json:"what"`
	Do    string `json:"do,omitempty"`
}

// doctorReply is the answer of GET /v1/doctor.
type doctorReply struct {
	OK       bool      `json:"ok"` // there is neither a problem nor a warning
	Findings []finding `json:"findings"`
}

func newDoctorReply(list []finding) doctorReply {
	ok := !slices.ContainsFunc(list, func(f finding) bool { return f.Level != levelNote })
	return doctorReply{ok, append([]finding{}, list...)}
}

// exam is what the findings come from.
type exam struct {
	status statusReply
	net    netcheckReply
	own    networkReply // the same as other members are told it
	others []nodeRow
	peers  []peerExam // of others, those that were asked
	about  string     // the one member that this is about; empty: all
}

// peerExam is what another member says.
type peerExam struct {
	nodeRow

	net   *networkReply // nil: it could not be asked
	ahead time.Duration // its clock
}

// diagnose draws the conclusions.
func diagnose(e *exam) []finding {
	out := slices.Concat(ofThisNode(e), ofUDP(e), ofRelays(e), ofMulticast(e), ofClocks(e))
	for i := range e.peers {
		out = append(out, ofPeer(e, &e.peers[i])...)
	}
	return out
}

func ofThisNode(e *exam) (out []finding) {
	if e.status.RulesError != "" {
		out = append(out, finding{levelProblem, "the file policy.yaml is not in force, an older state of it is: " + e.status.RulesError, "correct it; check it with: balance policy check"})
	}
	if e.status.Duty != "" {
		out = append(out, finding{levelNote, "this machine is " + e.status.Duty + ": it takes no runs", "end that with: balance resume"})
	}
	if e.status.NoSandbox != "" && e.status.Offers {
		out = append(out, finding{levelNote, "this machine has no sandbox, so it takes other owners' runs only where its rules trust them: " + e.status.NoSandbox, "see docs/isolation.md; on Debian: apt-get install bubblewrap"})
	}
	if e.status.NamesError != "" {
		out = append(out, finding{levelWarning, "programs of this host do not find machines by name: " + e.status.NamesError, "see docs/dns.md"})
	}
	if len(e.net.Addresses) > 0 && !slices.ContainsFunc(e.net.Addresses, func(s string) bool {
		a, err := netip.ParseAddrPort(s)
		return err == nil && !a.Addr().IsLoopback()
	}) {
		out = append(out, finding{levelWarning, "this node has loopback addresses alone: other machines do not reach it", "start it without --listen, on a host that has a network"})
	}
	return out
}

func ofUDP(e *exam) (out []finding) {
	answered := slices.ContainsFunc(e.others, func(r nodeRow) bool { return r.Path != fleet.PathNone })
	switch {
	case e.net.UDP == mesh.UDPBlocked:
		out = append(out, finding{
			levelWarning, "UDP does not get out of this machine's network: members are reached by TCP, through a relay",
			fmt.Sprintf("let UDP pass in the firewalls of this host and of its network: out to any port, in to port %d", e.net.Port),
		})
	case len(e.others) > 0 && !answered:
		f := finding{levelProblem, "no member answers: this machine is off the net, or its UDP is blocked, or all are down", "see whether this machine has a network, and whether the others run"}
		if !offersTCP(e) {
			f.Do += "; where UDP is blocked, a member with a public address can help: balance up --relay-tcp :443"
		}
		out = append(out, f)
	}
	m := e.net.Mapping
	switch {
	case m.Protocol != "" && !m.Usable:
		out = append(out, finding{levelNote, fmt.Sprintf("the router forwards port %d, but is itself behind another NAT, of the provider for example", e.net.Port), "forward the port on that one too, or use IPv6 or a relay"})
	case e.net.NAT == mesh.NATHard && !m.Usable:
		out = append(out, finding{
			levelNote, "the router gives this machine another port for each destination (a hard NAT): others behind such routers reach it through relays alone",
			forwardPort(e.net.Port),
		})
	}
	return out
}

// forwardPort is what makes a machine reachable behind its router.
func forwardPort(port int) string {
	return fmt.Sprintf("allow port mapping (UPnP, NAT-PMP or PCP) on the router; or forward UDP port %d to this machine there, and start the node with --advertise ADDRESS:PORT", port)
}

func offersTCP(e *exam) bool {
	return slices.ContainsFunc(e.net.Relays, func(r relayReply) bool { return len(r.TCP) > 0 })
}

func ofRelays(e *exam) []finding {
	if len(e.others) == 0 {
		return nil
	}
	needed := slices.ContainsFunc(e.others, func(r nodeRow) bool { return r.Path == fleet.PathNone || r.Path == fleet.PathRelay })
	if len(e.net.Relays) == 0 {
		f := finding{levelNote, "no member relays for this one: where no direct path can be had, there is none", "write relay: own or relay: all into policy.yaml of a machine with a public address"}
		if needed {
			f.Level = levelWarning
		}
		if e.net.NAT == mesh.NATNone {
			f.Do += ", this one for example"
		}
		return []finding{f}
	}
	if slices.ContainsFunc(e.net.Relays, func(r relayReply) bool { return r.Path != fleet.PathNone }) {
		return nil
	}
	var names []string
	for _, r := range e.net.Relays {
		names = append(names, r.Node)
	}
	f := finding{levelWarning, "no relay answers: " + strings.Join(names, ", "), "see whether they run: balance nodes"}
	if !offersTCP(e) {
		f.Do += "; none is reached by TCP, for which one has to run: balance up --relay-tcp :443"
	}
	return []finding{f}
}

func ofMulticast(e *exam) []finding {
	m := e.net.Multicast
	if !m.On || len(m.Interfaces) == 0 {
		return nil
	}
	if !m.Own && len(m.Heard) == 0 {
		return []finding{{levelWarning, "multicast does not work on " + strings.Join(m.Interfaces, ", ") + ": members on this network are found by stored addresses alone", "let UDP port 5353 to 224.0.0.251 and ff02::fb pass in this host's firewall"}}
	}
	var silent []string
	for _, r := range e.others {
		if r.Path == fleet.PathLAN && r.State == fleet.Up && !slices.Contains(m.Heard, r.Name) && sameNet(r.Addr) {
			silent = append(silent, r.Name)
		}
	}
	if len(silent) == 0 {
		return nil
	}
	return []finding{{levelNote, "multicast does not come here from members on this network: " + strings.Join(silent, ", ") + "; they were found by stored addresses", "if they do announce themselves, the access point isolates its clients: allow multicast there"}}
}

// sameNet reports whether a LAN path can be one on which multicast is expected.
func sameNet(endpoint string) bool {
	a, err := netip.ParseAddrPort(endpoint)
	return err == nil && !a.Addr().IsLoopback()
}

// maxClock is how far clocks may be apart unnoticed: invites and names on the
// local network live for minutes.
const maxClock = time.Minute

func ofClocks(e *exam) (out []finding) {
	var far []*peerExam
	asked := 0
	for i := range e.peers {
		if p := &e.peers[i]; p.net != nil {
			asked++
			if p.ahead.Abs() > maxClock {
				far = append(far, p)
			}
		}
	}
	const do = "set the clock by NTP"
	if len(far) > 1 && len(far) > asked/2 {
		slices.SortFunc(far, func(a, b *peerExam) int { return cmp.Compare(a.ahead, b.ahead) })
		return []finding{{levelWarning, "this machine's clock " + clockWords(-far[len(far)/2].ahead) + " those of most others", do}}
	}
	for _, p := range far {
		out = append(out, finding{levelWarning, fmt.Sprintf("the clock of %s %s this machine's", p.Name, clockWords(p.ahead)), do + ", here or there"})
	}
	return out
}

func clockWords(ahead time.Duration) string {
	if ahead < 0 {
		return fmt.Sprintf("is %v behind", -ahead.Round(time.Second))
	}
	return fmt.Sprintf("is %v ahead of", ahead.Round(time.Second))
}

// ofPeer tells how a member is reached, if that is not as it should be or it was
// asked about.
func ofPeer(e *exam, p *peerExam) []finding {
	switch p.Path {
	case fleet.PathRelay:
		f := ofRelayed(e, p)
		f.What = fmt.Sprintf("%s is %s: %s", p.Name, pathWords(p.Path, p.Addr, p.Via), f.What)
		return []finding{f}
	case fleet.PathNone:
		return []finding{{levelProblem, p.Name + " does not answer by any way", "see there whether it runs and has a network: balance status, balance doctor"}}
	case fleet.PathTCP:
		return []finding{{levelWarning, fmt.Sprintf("%s is reached by TCP alone, at %s", p.Name, p.Addr), "let UDP pass between the two; who blocks it is told by: balance netcheck, here and there"}}
	}
	if e.about == "" {
		return nil
	}
	return []finding{{Level: levelNote, What: fmt.Sprintf("%s is reached %s: the best that there is", p.Name, pathWords(p.Path, p.Addr, p.Via))}}
}

// ofRelayed tells why a member is not reached directly.
func ofRelayed(e *exam, p *peerExam) finding {
	n, own := p.net, e.own
	if n == nil {
		return finding{levelWarning, "it did not tell what its network is like", "see there: balance netcheck"}
	}
	names := map[bool]string{true: "this machine", false: p.Name}
	open := func(r networkReply) bool { return r.NAT == mesh.NATNone || r.Mapped }
	switch {
	case own.UDP == mesh.UDPBlocked || n.UDP == mesh.UDPBlocked:
		where := names[own.UDP == mesh.UDPBlocked]
		return finding{levelWarning, "UDP does not get out of the network of " + where, "let UDP pass in the firewalls there"}
	case own.NAT != mesh.NATNone && slices.ContainsFunc(own.SeenAs, func(a netip.Addr) bool { return slices.Contains(n.SeenAs, a) }):
		return finding{
			levelWarning, "both are behind one router, but do not reach each other on its network: a firewall on one of them drops UDP, or the access point isolates its clients",
			fmt.Sprintf("let UDP ports %d (here) and %d (there) in, or allow clients of the access point to reach each other", own.Port, n.Port),
		}
	case open(own) || open(*n):
		at, port := p.Name, int(n.Port)
		if open(own) {
			at, port = "this machine", e.net.Port
		}
		return finding{
			levelWarning, "nothing comes in at " + at + ", which has a public address: a firewall, of the host or its provider, drops it",
			fmt.Sprintf("let UDP port %d in there", port),
		}
	case own.NAT == mesh.NATHard && n.NAT == mesh.NATHard:
		return finding{levelWarning, "both are behind routers that give each destination another port (hard NATs)", "allow port mapping on one of the two routers, or forward a UDP port there; see docs/network.md"}
	case own.NAT == mesh.NATHard || n.NAT == mesh.NATHard:
		return finding{
			levelWarning, names[own.NAT == mesh.NATHard] + " is behind a router that gives each destination another port (a hard NAT), and the other one lets in only whom its machine has called",
			"allow port mapping on one of the two routers, or forward a UDP port there; see docs/network.md",
		}
	case own.NAT == mesh.NATUnknown || n.NAT == mesh.NATUnknown:
		return finding{levelWarning, "what the routers do is not known, as too few machines outside have seen " + names[own.NAT == mesh.NATUnknown], "try again in a minute, or choose STUN servers: balance up --stun HOST:PORT"}
	}
	return finding{levelWarning, "a direct path should be possible, and was not found yet", "try again in a minute; if it stays so, a firewall between the two drops UDP"}
}

const (
	maxAsked   = 16              // members that are asked
	upgradable = 3 * time.Second // for a relayed path to become a direct one
)

// doctor looks at the network and asks others about theirs.
func (l *localAPI) doctor(w http.ResponseWriter, r *http.Request) error {
	e := &exam{}
	var nodes []fleet.Node
	if name := r.FormValue("node"); name != "" {
		all, _ := l.view.Snapshot()
		id, err := place.Pin(all, name)
		if err != nil {
			return hint(err, "see the machines with: balance nodes")
		}
		if id == l.self {
			return fail("usage", "without a name it is about this machine: balance doctor", "%s is this machine", name)
		}
		e.about = l.who.name(id)
	}
	e.net = l.check(r.Context())
	e.own = networkOf(l.node.Report())
	e.status = l.describeSelf()
	for _, n := range l.picture() {
		if !n.Self && (e.about == "" || n.Name == e.about) {
			nodes = append(nodes, n)
		}
	}
	e.peers = l.askPeers(r.Context(), nodes, e.about != "")
	for _, row := range nodeRows(l.picture()) {
		if !row.Self {
			e.others = append(e.others, row)
		}
	}
	reply(w, newDoctorReply(diagnose(e)))
	return nil
}

// askPeers asks members about their networks: those that are up, first those
// that are relayed; all that are given where all is set.
func (l *localAPI) askPeers(ctx context.Context, nodes []fleet.Node, all bool) []peerExam {
	if !all {
		nodes = slices.DeleteFunc(nodes, func(n fleet.Node) bool { return n.State == fleet.Down })
	}
	slices.SortStableFunc(nodes, func(a, b fleet.Node) int {
		rank := func(n fleet.Node) int {
			if n.Path.Kind == fleet.PathRelay {
				return 0
			}
			return 1
		}
		return cmp.Compare(rank(a), rank(b))
	})
	nodes = nodes[:min(len(nodes), maxAsked)]
	out := make([]peerExam, len(nodes))
	var asked sync.WaitGroup
	for i, n := range nodes {
		asked.Go(func() { out[i] = l.askPeer(ctx, n) })
	}
	asked.Wait()
	return out
}

// askPeer asks one, and gives its path time to become a direct one.
func (l *localAPI) askPeer(ctx context.Context, n fleet.Node) (p peerExam) {
	ctx, cancel := context.WithTimeout(ctx, upgradable)
	defer cancel()
	if net, ahead, err := askNetwork(ctx, l.peers, n.ID); err == nil {
		p.net, p.ahead = &net, ahead
	} else {
		l.log.Debug("ask about a network", "node", n.ID.Short(), "error", err)
	}
	for l.node.Path(n.ID).Kind < mesh.Direct && ctx.Err() == nil {
		if _, err := l.node.Ping(ctx, n.ID); err == nil {
			select {
			case <-ctx.Done():
			case <-time.After(200 * time.Millisecond):
			}
		}
	}
	n.Path = l.who.path(l.node.Path(n.ID))
	p.nodeRow = nodeRows([]fleet.Node{n})[0]
	return p
}

func (a *app) doctorCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "doctor [NODE]",
		Short: "Find what hinders direct paths, and say what to do",
		Long: "Find what hinders direct paths, to all machines or to one, and say what to do.\n\n" +
			"The exit code is 1 where something is wrong.",
		Args:              cobra.MaximumNArgs(1),
		ValidArgsFunction: a.completeNodes,
		RunE: func(cmd *cobra.Command, args []string) error {
			q := url.Values{}
			if len(args) > 0 {
				q.Set("node", args[0])
			}
			var r doctorReply
			if err := a.client.get(cmd.Context(), "/v1/doctor?"+q.Encode(), &r); err != nil {
				d := describe(err)
				if d.Code != "not_running" && d.Code != "not_joined" {
					return err
				}
				r = newDoctorReply([]finding{{levelProblem, d.Message, d.Hint}})
			}
			if err := a.print.answer(r, func(w io.Writer) error { return printFindings(w, r.Findings) }); err != nil {
				return err
			}
			if !r.OK {
				return exitError(exitFailure)
			}
			return nil
		},
	}
}

func printFindings(w io.Writer, list []finding) error {
	for _, f := range list {
		if _, err := fmt.Fprintf(w, "%s: %s\n", f.Level, clean(f.What, false)); err != nil {
			return err
		}
		if f.Do != "" {
			fmt.Fprintf(w, "  %s\n", clean(f.Do, false))
		}
	}
	if len(list) == 0 {
		_, err := fmt.Fprintln(w, "nothing is wrong")
		return err
	}
	return nil
}
