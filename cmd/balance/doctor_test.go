package main

import (
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/balanceai/balance/mesh"
)

func TestDiagnose(t *testing.T) {
	seenAs := func(s ...string) (out []netip.Addr) {
		for _, a := range s {
			out = append(out, netip.MustParseAddr(a))
		}
		return out
	}
	// A machine at home that reaches all that it should.
	healthy := func() *exam {
		return &exam{
			net: netcheckReply{
				Node: "home", Port: 4000, Addresses: []string{"192.168.1.5:4000"}, NAT: mesh.NATEasy, UDP: mesh.UDPWorks,
				Multicast: multicastReply{On: true, Interfaces: []string{"eth0"}, Own: true},
				Relays:    []relayReply{{Node: "pub", Path: "direct", TCP: []string{"203.0.113.1:443"}}},
			},
			own:    networkReply{NAT: mesh.NATEasy, UDP: mesh.UDPWorks, Port: 4000, SeenAs: seenAs("198.51.100.9")},
			others: []nodeRow{{Name: "pub", State: "up", Path: "direct"}},
		}
	}
	relayed := func(e *exam, there networkReply) {
		e.peers = append(e.peers, peerExam{nodeRow: nodeRow{Name: "far", State: "up", Path: "relay", Via: "pub"}, net: &there})
		e.others = append(e.others, e.peers[0].nodeRow)
	}
	for _, c := range []struct {
		name   string
		change func(e *exam)
		want   []string // level and words of each finding
	}{
		{"healthy", func(*exam) {}, nil},
		{"alone", func(e *exam) { e.others, e.net.Relays = nil, nil }, nil},
		{"rules", func(e *exam) { e.status.RulesError = "line 3" }, []string{"problem: policy.yaml"}},
		{"no sandbox", func(e *exam) { e.status.NoSandbox, e.status.Offers = "no bwrap", true }, []string{"note: no sandbox"}},
		{"loopback", func(e *exam) { e.net.Addresses = []string{"127.0.0.1:4000"} }, []string{"warning: loopback"}},
		{"hard", func(e *exam) { e.net.NAT = mesh.NATHard }, []string{"note: hard NAT"}},
		{"hard with a forwarded port", func(e *exam) {
			e.net.NAT, e.net.Mapping = mesh.NATHard, mappingReply{Protocol: "pcp", Usable: true}
		}, nil},
		{"two NATs", func(e *exam) { e.net.Mapping = mappingReply{Protocol: "upnp"} }, []string{"note: another NAT"}},
		{"UDP blocked", func(e *exam) {
			e.net.UDP, e.net.NAT, e.others[0].Path, e.net.Relays[0].Path = mesh.UDPBlocked, mesh.NATUnknown, "tcp", "tcp"
		}, []string{"warning: UDP does not get out"}},
		{"off the net", func(e *exam) { e.others[0].Path, e.net.Relays[0].Path = "none", "none" }, []string{"problem: no member answers", "warning: no relay answers"}},
		{"no relay", func(e *exam) { e.net.Relays = nil }, []string{"note: relay: own"}},
		{"no relay, and one is needed", func(e *exam) {
			e.net.Relays = nil
			e.others = append(e.others, nodeRow{Name: "far", State: "down", Path: "none"})
		}, []string{"warning: relay: own"}},
		{"no multicast", func(e *exam) { e.net.Multicast.Own = false }, []string{"warning: multicast does not work"}},
		{"isolated by the access point", func(e *exam) {
			e.others = append(e.others, nodeRow{Name: "near", State: "up", Path: "lan", Addr: "192.168.1.6:4000"})
		}, []string{"note: near"}},
		{"a neighbour was heard", func(e *exam) {
			e.others = append(e.others, nodeRow{Name: "near", State: "up", Path: "lan", Addr: "192.168.1.6:4000"})
			e.net.Multicast.Heard = []string{"near"}
		}, nil},
		{"clock of one", func(e *exam) {
			e.peers = []peerExam{{nodeRow: e.others[0], net: &networkReply{}, ahead: time.Hour}, {nodeRow: e.others[0], net: &networkReply{}}}
		}, []string{"warning: the clock of pub is 1h0m0s ahead of"}},
		{"own clock", func(e *exam) {
			p := peerExam{nodeRow: e.others[0], net: &networkReply{}, ahead: time.Hour}
			e.peers = []peerExam{p, p, {nodeRow: e.others[0], net: &networkReply{}}}
		}, []string{"warning: this machine's clock is 1h0m0s behind"}},
		{"hard and hard", func(e *exam) {
			e.own.NAT = mesh.NATHard
			relayed(e, networkReply{NAT: mesh.NATHard, UDP: mesh.UDPWorks})
		}, []string{"warning: far is relayed by pub: both are behind"}},
		{"easy and hard", func(e *exam) { relayed(e, networkReply{NAT: mesh.NATHard, UDP: mesh.UDPWorks}) }, []string{"warning: far is behind a router"}},
		{"UDP blocked there", func(e *exam) { relayed(e, networkReply{UDP: mesh.UDPBlocked}) }, []string{"warning: network of far"}},
		{"one router", func(e *exam) {
			relayed(e, networkReply{NAT: mesh.NATEasy, UDP: mesh.UDPWorks, SeenAs: seenAs("198.51.100.9")})
		}, []string{"warning: one router"}},
		{"a firewall there", func(e *exam) { relayed(e, networkReply{NAT: mesh.NATNone, UDP: mesh.UDPWorks, Port: 5}) }, []string{"warning: UDP port 5"}},
		{"a firewall here", func(e *exam) {
			e.own.Mapped = true
			relayed(e, networkReply{NAT: mesh.NATEasy, UDP: mesh.UDPWorks})
		}, []string{"warning: UDP port 4000"}},
		{"not known", func(e *exam) { relayed(e, networkReply{NAT: mesh.NATUnknown, UDP: mesh.UDPWorks}) }, []string{"warning: --stun"}},
		{"easy and easy", func(e *exam) { relayed(e, networkReply{NAT: mesh.NATEasy, UDP: mesh.UDPWorks}) }, []string{"warning: should be possible"}},
		{"it cannot be asked", func(e *exam) {
			relayed(e, networkReply{})
			e.peers[0].net = nil
		}, []string{"warning: did not tell"}},
		{"down", func(e *exam) {
			e.about = "pub"
			e.peers = []peerExam{{nodeRow: nodeRow{Name: "pub", State: "down", Path: "none"}}}
		}, []string{"problem: pub does not answer"}},
		{"asked about a good one", func(e *exam) {
			e.about = "pub"
			e.peers = []peerExam{{nodeRow: e.others[0], net: &networkReply{}}}
		}, []string{"note: pub is reached over direct"}},
	} {
		e := healthy()
		c.change(e)
		got := diagnose(e)
		ok := len(got) == len(c.want)
		wrong := false
		for i, f := range got {
			if !ok {
				break
			}
			level, words, _ := strings.Cut(c.want[i], ": ")
			ok = f.Level == level && strings.Contains(f.What+" "+f.Do, words) && (f.Do != "" || level == levelNote)
			wrong = wrong || level != levelNote
		}
		if !ok {
			t.Errorf("%s: %+v, want %q", c.name, got, c.want)
		} else if newDoctorReply(got).OK == wrong {
			t.Errorf("%s: ok is %v", c.name, !wrong)
		}
	}
}

func TestPingTally(t *testing.T) {
	var tally pingTally
	var got []string
	for _, p := range []pingReply{
		{Node: "b", Path: "relay", Via: "pub", RTTMS: 3},
		{Node: "b", Path: "direct", Addr: "203.0.113.9:41841", RTTMS: 1},
		{Node: "b", Path: "direct", Addr: "203.0.113.9:41841", RTTMS: 2},
		{Node: "b", Path: "none", Error: "no answer"},
	} {
		got = append(got, tally.add(p))
	}
	got = append(got, tally.summary())
	want := []string{
		"b: 3.00 ms relayed by pub", "b: 1.00 ms now over direct 203.0.113.9:41841", "b: 2.00 ms over direct 203.0.113.9:41841",
		"b: no answer", "4 sent, 3 answered; min 1.00, median 2.00, max 3.00 ms",
	}
	if !slices.Equal(got, want) {
		t.Errorf("got %q", got)
	}
	if got := (&pingTally{sent: 2}).summary(); got != "2 sent, 0 answered" {
		t.Errorf("got %q", got)
	}
}
