package main

import (
	"encoding/binary"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/balanceai/balance/exec/task"
	"github.com/balanceai/balance/mesh"
	"github.com/balanceai/balance/mesh/meshtest/netlab"
)

// openNAT stands for no router: a public address.
const openNAT = netlab.NAT("open")

// bestPath is what two nodes come to: each at least knows what a third one sees
// of the other.
func bestPath(x, y netlab.NAT) string {
	switch {
	case x == netlab.NoUDP || y == netlab.NoUDP:
		return "relay"
	case x == openNAT || y == openNAT, x == netlab.Cone || y == netlab.Cone:
		return "direct"
	case x == netlab.Hard || y == netlab.Hard: // the port that it will be seen at cannot be known
		return "relay"
	}
	return "direct"
}

// Members behind every kind of router reach each other: all pairs, in one mesh
// with one member at a public address. All LANs have the same addresses, as
// homes have, and so have the bridges for containers on all hosts.
func TestNATMatrix(t *testing.T) {
	if testing.Short() {
		t.Skip("takes half a minute")
	}
	kinds := []netlab.NAT{openNAT, netlab.Easy, netlab.Cone, netlab.Hard, netlab.NoUDP}
	lab := netlab.New(t)
	pub := newRelayNode(t, lab.Internet.Host("pub"))
	nodes := map[netlab.NAT][2]*labNode{}
	var others []*labNode
	var easy, blocked []*netlab.Network
	for _, kind := range kinds {
		var two [2]*labNode
		for i := range two {
			network := lab.Internet
			switch kind {
			case openNAT:
			case netlab.NoUDP: // as soon as it has joined
				network = lab.Router(netlab.Easy, "192.168.1")
				blocked = append(blocked, network)
			default:
				network = lab.Router(kind, "192.168.1")
			}
			if kind == netlab.Easy {
				easy = append(easy, network)
			}
			host := network.Host(fmt.Sprintf("%s%d", kind, i+1))
			host.Docker()
			two[i] = newLabNode(t, host)
		}
		nodes[kind] = two
		others = append(others, two[:]...)
	}
	neighbour := newLabNode(t, easy[0].Host("easy3"))
	others = append(others, neighbour)
	start := time.Now()
	foundLab(pub, others...)
	for _, n := range blocked {
		n.SetNAT(netlab.NoUDP)
	}
	t.Logf("%d nodes after %v", 1+len(others), time.Since(start).Round(time.Millisecond))

	var report [][]string
	for i, x := range kinds {
		for _, y := range kinds[i:] {
			pair := fmt.Sprintf("%s-%s", x, y)
			t.Run(pair, func(t *testing.T) {
				a, b := nodes[x][0].during(t), nodes[y][1].during(t)
				report = append(report, append([]string{pair}, a.meets(b, bestPath(x, y))...))
				if via := a.ping(b).Via; (x == netlab.NoUDP || y == netlab.NoUDP) && via != pub.Name {
					t.Errorf("without UDP the path is via %q", via)
				}
			})
		}
	}
	t.Run("neighbours", func(t *testing.T) {
		a, b := nodes[netlab.Easy][0].during(t), neighbour.during(t)
		report = append(report, append([]string{"neighbours"}, a.meets(b, "lan")...))
	})
	for kind, want := range map[netlab.NAT]netcheckReply{
		openNAT:      {NAT: mesh.NATNone, UDP: mesh.UDPWorks},
		netlab.Easy:  {NAT: mesh.NATEasy, UDP: mesh.UDPWorks},
		netlab.Cone:  {NAT: mesh.NATEasy, UDP: mesh.UDPWorks},
		netlab.Hard:  {NAT: mesh.NATHard, UDP: mesh.UDPWorks},
		netlab.NoUDP: {NAT: mesh.NATUnknown, UDP: mesh.UDPBlocked},
	} {
		t.Run("netcheck "+string(kind), func(t *testing.T) {
			n := nodes[kind][0].during(t)
			var r netcheckReply
			n.eventually("netcheck tells its network", func() bool {
				if err := json.Unmarshal([]byte(n.must("netcheck", "--json")), &r); err != nil {
					t.Fatal(err)
				}
				return r.NAT == want.NAT && r.UDP == want.UDP
			})
			if !slices.ContainsFunc(r.Relays, func(r relayReply) bool { return r.Node == pub.Name && r.RTTMS > 0 && len(r.TCP) > 0 }) {
				t.Errorf("relays: %+v", r.Relays)
			}
			t.Log(n.must("netcheck"))
		})
	}
	t.Run("doctor", func(t *testing.T) {
		for _, c := range []struct {
			a, b netlab.NAT
			want string // of what is found; empty: nothing is wrong
		}{
			{netlab.Easy, netlab.Easy, ""},
			{netlab.Hard, netlab.Hard, "both are behind routers that give each destination another port"},
			{netlab.Hard, netlab.Easy, "this machine is behind a router"},
			{netlab.Easy, netlab.NoUDP, "UDP does not get out of the network of noudp2"},
		} {
			a, b := nodes[c.a][0].during(t), nodes[c.b][1].during(t)
			var said string
			a.eventually(fmt.Sprintf("%s tells of %s: %s", a.Name, b.Name, c.want), func() bool {
				out, err := a.balance("doctor", b.Name)
				said = out
				return (err == nil) == (c.want == "") && strings.Contains(out, c.want)
			})
			t.Logf("%s about %s:\n%s", a.Name, b.Name, said)
		}
	})
	var out strings.Builder
	if err := table(&out, []string{"PAIR", "RUN", "BEST PATH AFTER", "PATH", "VIA", "RTT"}, report); err != nil {
		t.Fatal(err)
	}
	t.Log("\n" + out.String())
}

// A router that forwards the port on request makes a node behind it reachable,
// though it is a hard one. The node gives the port back.
func TestPortMapping(t *testing.T) {
	if testing.Short() {
		t.Skip("takes some seconds")
	}
	lab := netlab.New(t)
	home, office := lab.Router(netlab.Hard, "192.168.1"), lab.Router(netlab.Hard, "192.168.1")
	home.MapPorts()
	_, nodes := labMesh(t, lab, home.Host("a"), office.Host("b"))
	a, b := nodes[0], nodes[1]
	a.knows(b)
	b.knows(a)
	awaitPeers("direct", nodes...)
	var r netcheckReply
	if err := json.Unmarshal([]byte(a.must("netcheck", "--json")), &r); err != nil {
		t.Fatal(err)
	}
	want := mappingReply{Asked: true, Protocol: "nat-pmp", External: fmt.Sprintf("%s:%d", a.Public(), r.Port), Usable: true}
	if r.Mapping != want || !slices.Contains(r.Addresses, want.External) {
		t.Errorf("the mapping is %+v, want %+v; told are %q", r.Mapping, want, r.Addresses)
	}
	if to := home.Forwarded()[uint16(r.Port)]; to != a.Addr() {
		t.Errorf("the router forwards the port to %v", to)
	}
	start := time.Now()
	a.must("down")
	t.Logf("down after %v", time.Since(start).Round(time.Millisecond))
	a.eventually("the port is given back", func() bool { return len(home.Forwarded()) == 0 })
}

// meets has one node use another at once, waits until they are on a kind of path
// in both directions, and returns figures about it: how long the run took, how
// long after its beginning that path was in use, and the path.
func (n *labNode) meets(other *labNode, path string) []string {
	n.t.Helper()
	n.knows(other)
	start := time.Now()
	n.runs(other)
	run := time.Since(start)
	n.eventually(other.Name+" over "+path, func() bool { return n.ping(other).Path == path })
	best := time.Since(start)
	other.eventually(n.Name+" over "+path, func() bool { return other.ping(n).Path == path })
	p := n.ping(other)
	if (p.Path == "relay") != (p.Via != "") {
		n.t.Errorf("the path to %s: %v", other.Name, p)
	}
	return []string{
		run.Round(time.Millisecond).String(), best.Round(time.Millisecond).String(), p.Path, p.Via,
		fmt.Sprintf("%.2f ms", p.RTTMS),
	}
}

// labMesh is a mesh of one node that relays, at a public address, and others on
// hosts.
func labMesh(t testing.TB, lab *netlab.Lab, hosts ...*netlab.Host) (pub *labNode, nodes []*labNode) {
	t.Helper()
	pub = newRelayNode(t, lab.Internet.Host("pub"))
	for _, h := range hosts {
		nodes = append(nodes, newLabNode(t, h))
	}
	foundLab(pub, nodes...)
	return pub, nodes
}

// awaitPeers waits until every node of some sees every other one up, over a kind
// of path.
func awaitPeers(path string, nodes ...*labNode) {
	nodes[0].t.Helper()
	for _, a := range nodes {
		for _, b := range nodes {
			if a != b {
				a.eventually(b.Name+" over "+path, func() bool {
					a.ping(b) // a path without traffic need not become better
					r := a.sees(b)
					return r.State == "up" && r.Offers && r.Path == path
				})
			}
		}
	}
}

// orders returns the permutations of the first n numbers.
func orders(n int) [][]int {
	if n == 0 {
		return [][]int{nil}
	}
	var out [][]int
	for _, o := range orders(n - 1) {
		for i := range n {
			out = append(out, slices.Insert(slices.Clone(o), i, n-1))
		}
	}
	return out
}

// With the internet cut, the nodes of one LAN find each other again after a power
// cut, in whichever order they come back, one of them with another address, and
// without multicast, too.
func TestOffline(t *testing.T) {
	if testing.Short() {
		t.Skip("takes half a minute")
	}
	lab := netlab.New(t)
	home := lab.Router(netlab.Easy, "192.168.1")
	pub, nodes := labMesh(t, lab, home.Host("a"), home.Host("b"), home.Host("c"))
	awaitPeers("lan", nodes...)
	pub.process.Kill()
	home.Cut()
	for _, c := range []struct {
		name  string
		nodes []*labNode
	}{{"two", nodes[:2]}, {"three", nodes}} {
		for _, multicast := range []bool{true, false} {
			if !multicast {
				home.DropMulticast()
			}
			for _, order := range orders(len(c.nodes)) {
				t.Run(fmt.Sprintf("%s, multicast %v, %v", c.name, multicast, order), func(t *testing.T) {
					for _, n := range nodes {
						n.process.Kill()
					}
					c.nodes[order[0]].Roam(home)
					start := time.Now()
					var up []*labNode
					for _, i := range order {
						n := c.nodes[i].during(t)
						n.up()
						c.nodes[i].process = n.process
						up = append(up, n)
					}
					awaitPeers("lan", up...)
					t.Logf("all see each other after %v", time.Since(start).Round(time.Millisecond))
					for i, n := range up {
						n.runs(up[(i+1)%len(up)])
					}
				})
			}
		}
		home.PassMulticast()
	}
}

// A mesh on IPv6 alone works as one on IPv4 does.
func TestIPv6Underlay(t *testing.T) {
	lab := netlab.New(t)
	var nodes []*labNode
	for _, name := range []string{"a", "b", "c"} {
		nodes = append(nodes, newLabNode(t, lab.Internet6.Host(name)))
	}
	foundLab(nodes[0], nodes[1:]...)
	awaitPeers("direct", nodes...)
	nodes[1].runs(nodes[2])
	if p := nodes[1].ping(nodes[2]); !strings.HasPrefix(p.Addr, "[2001:db8:") {
		t.Errorf("the path is %v", p)
	}
}

// A hole between two nodes, in one direction or both, is gone around, and the
// direct path is taken again when the hole is filled.
func TestHole(t *testing.T) {
	if testing.Short() {
		t.Skip("takes some seconds")
	}
	lab := netlab.New(t)
	_, nodes := labMesh(t, lab, lab.Internet.Host("a"), lab.Internet.Host("b"))
	a, b := nodes[0], nodes[1]
	awaitPeers("direct", nodes...)
	type way struct{ from, to *labNode }
	for _, holes := range [][]way{{{a, b}}, {{b, a}}, {{a, b}, {b, a}}} {
		for _, h := range holes {
			lab.Hole(h.from.Host, h.to.Host)
		}
		start := time.Now()
		a.runs(b)
		around := time.Since(start)
		awaitPeers("relay", nodes...)
		start = time.Now()
		for _, h := range holes {
			lab.Fill(h.from.Host, h.to.Host)
		}
		awaitPeers("direct", nodes...)
		t.Logf("a run around the hole ended after %v; direct again %v after it was filled", around.Round(time.Millisecond), time.Since(start).Round(time.Millisecond))
		a.runs(b)
	}
}

// Every one of many dispatches over a link that is slow and loses almost
// every third packet is run once and answered.
func TestBadLink(t *testing.T) {
	if testing.Short() {
		t.Skip("takes half a minute")
	}
	lab := netlab.New(t)
	_, nodes := labMesh(t, lab, lab.Internet.Host("a"), lab.Internet.Host("b"))
	a, b := nodes[0], nodes[1]
	awaitPeers("direct", nodes...)
	a.Shape(100*time.Millisecond, 0.3)
	const runs, together = 200, 100
	spec := task.Spec{
		Driver: task.DriverProcess, Command: []string{"true"}, Node: b.Name,
		Needs: task.Needs{CPU: 1, Memory: 1 << 20},
	}
	var group errgroup.Group
	group.SetLimit(together)
	var done atomic.Int64
	start := time.Now()
	for range runs {
		group.Go(func() error {
			id, err := a.client.submit(t.Context(), submission{Spec: spec}, func(e task.Event) error {
				if e.Type == task.EventFinished && e.ExitCode != nil && *e.ExitCode == 0 {
					done.Add(1)
				}
				return nil
			})
			if err != nil {
				return fmt.Errorf("%s: %w", id, err)
			}
			return nil
		})
	}
	if err := group.Wait(); err != nil {
		t.Error(err)
	}
	took := time.Since(start)
	t.Logf("%d of %d dispatches in %v", done.Load(), runs, took.Round(time.Millisecond))
	if done.Load() != runs {
		t.Errorf("%d of %d dispatches came to a good end", done.Load(), runs)
	}
}

// serveSTUN answers binding requests on a host as RFC 8489 has it, until the test
// ends.
func serveSTUN(t *testing.T, h *netlab.Host) string {
	t.Helper()
	c, err := h.ListenUDP(3478)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	t.Cleanup(func() { _ = c.Close(); <-done })
	go func() {
		defer close(done)
		buf := make([]byte, 1500)
		for {
			n, from, err := c.ReadFromUDPAddrPort(buf)
			if err != nil {
				return
			}
			if n < 20 {
				continue
			}
			b := append([]byte{1, 1, 0, 12}, buf[4:20]...)
			b = append(b, 0, 0x20, 0, 8, 0, 1)
			b = binary.BigEndian.AppendUint16(b, from.Port()^0x2112)
			ip := from.Addr().Unmap().As4()
			b = binary.BigEndian.AppendUint32(b, binary.BigEndian.Uint32(ip[:])^0x2112A442)
			_, _ = c.WriteToUDPAddrPort(b, from)
		}
	}()
	return fmt.Sprintf("%s:3478", h.Addr())
}

// One member outside and one STUN server tell what kind of NAT there is, which
// one of them alone does not.
func TestSTUN(t *testing.T) {
	if testing.Short() {
		t.Skip("takes some seconds")
	}
	lab := netlab.New(t)
	server := serveSTUN(t, lab.Internet.Host("stun"))
	pub := newLabNode(t, lab.Internet.Host("pub"))
	a := newLabNode(t, lab.Router(netlab.Easy, "192.168.1").Host("a"), "--stun", server)
	foundLab(pub, a)
	a.knows(pub)
	var r netcheckReply
	a.eventually("it knows its NAT", func() bool {
		if err := json.Unmarshal([]byte(a.must("netcheck", "--json")), &r); err != nil {
			t.Fatal(err)
		}
		return r.NAT == mesh.NATEasy
	})
	want := fmt.Sprintf("%s:%d", a.Public(), r.Port)
	if !slices.ContainsFunc(r.Seen, func(s seenReply) bool { return s.By == "" && s.At == server && s.As == want }) {
		t.Errorf("no server has seen it as %s: %+v", want, r.Seen)
	}
}
