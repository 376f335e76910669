package discovery

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"

	"github.com/balanceai/balance/mesh/identity"
)

// station is a speaker on a link that exists in the test alone, and in its
// time.
type station struct {
	speaker
	found finds
	sent  []sentPacket
}

type sentPacket struct {
	at     time.Time
	packet []byte
	to     netip.AddrPort
}

func (p sentPacket) msg(t *testing.T) *dns.Msg {
	t.Helper()
	m := new(dns.Msg)
	if err := m.Unpack(p.packet); err != nil {
		t.Fatalf("sent a packet that does not parse: %v", err)
	}
	return m
}

// wire joins stations. Each hears what any of them multicasts, itself too.
type wire struct {
	now      time.Time
	stations []*station
}

func newWire(n int) *wire {
	w := &wire{now: time.Unix(1_790_000_000, 0)}
	ids := members(n)
	for i := range n {
		w.add(i, testConfig(i, ids, nil))
	}
	return w
}

func (w *wire) add(i int, cfg Config) *station {
	st := &station{}
	cfg.Found = st.found.add
	cfg.Now = func() time.Time { return w.now }
	from := netip.AddrPortFrom(stationAddr(i), mdnsPort)
	st.speaker = *newTestSpeaker(&cfg, func(packet []byte, to netip.AddrPort) {
		st.sent = append(st.sent, sentPacket{w.now, packet, to})
		for _, other := range w.stations {
			if to == other.group || to == netip.AddrPortFrom(other.here[0].Addr(), mdnsPort) {
				other.receive(packet, from, w.now)
			}
		}
	})
	w.stations = append(w.stations, st)
	st.settle([]netip.Prefix{netip.PrefixFrom(stationAddr(i), 24), netip.MustParsePrefix("fe80::1/64")}, w.now)
	return st
}

func stationAddr(i int) netip.Addr { return netip.AddrFrom4([4]byte{10, 9, 8, byte(i + 1)}) }

// run lets time pass.
func (w *wire) run(d time.Duration) {
	for end := w.now.Add(d); ; {
		next := end
		for _, st := range w.stations {
			if at := st.next(); at.Before(next) {
				next = at
			}
		}
		if next.After(w.now) {
			w.now = next
		}
		if !w.now.Before(end) {
			return
		}
		for _, st := range w.stations {
			st.tick(w.now)
		}
	}
}

func (st *station) count(t *testing.T, response bool) (n int) {
	t.Helper()
	for _, p := range st.sent {
		if p.msg(t).Response == response {
			n++
		}
	}
	return n
}

func TestStationsFindEachOther(t *testing.T) {
	w := newWire(3)
	w.run(5 * time.Second)
	for i, st := range w.stations {
		for j := range w.stations {
			got := st.found.of(member(j))
			if i == j {
				if got != nil {
					t.Errorf("%d found itself", i)
				}
				continue
			}
			want := []netip.AddrPort{
				netip.AddrPortFrom(stationAddr(j), uint16(41000+j)),
				netip.MustParseAddrPort(fmt.Sprintf("[fe80::1%%eth0]:%d", 41000+j)),
			}
			if !slices.Equal(got, want) {
				t.Errorf("%d found %d at %v, want %v once", i, j, got, want)
			}
		}
	}
}

func TestStrangersHearNothingOfUse(t *testing.T) {
	w := newWire(2)
	cfg := testConfig(7, []identity.ID{member(0), member(1)}, nil)
	cfg.Key[0]++
	stranger := w.add(7, cfg)
	w.run(5 * time.Second)
	if stranger.found.calls != 0 {
		t.Error("a holder of another key recognised a member")
	}
	if got := w.stations[0].found.of(member(7)); got != nil {
		t.Error("a member took a stranger for a member")
	}
}

func TestScheduleSlowsDown(t *testing.T) {
	w := newWire(1)
	st := w.stations[0]
	start := w.now
	w.run(10 * time.Second)
	var asked, told []time.Duration
	for _, p := range st.sent {
		at := p.at.Sub(start)
		if p.msg(t).Response {
			told = append(told, at.Truncate(time.Second))
		} else {
			asked = append(asked, at.Truncate(time.Second))
		}
	}
	if want := []time.Duration{0, time.Second, 3 * time.Second}; !slices.Equal(told, want) {
		t.Errorf("announced at %v, want %v", told, want)
	}
	if want := []time.Duration{0, time.Second, 3 * time.Second, 7 * time.Second}; !slices.Equal(asked, want) {
		t.Errorf("asked at %v, want %v", asked, want)
	}
	w.run(24 * time.Hour)
	if n := st.count(t, false); n < 30 || n > 45 {
		t.Errorf("%d queries in a day, want about one an hour", n)
	}
	if n, want := st.count(t, true), 3+3*24*4; n < want-3 || n > want+3 {
		t.Errorf("%d announcements in a day, want about %d", n, want)
	}
}

func TestRestartsDoNotFlood(t *testing.T) {
	w := newWire(1)
	for range 1000 {
		w.stations[0].restart(w.now)
		w.run(10 * time.Millisecond)
	}
	if n := len(w.stations[0].sent); n > 24 {
		t.Errorf("%d packets in 10 s of restarts, want at most 2 a second", n)
	} else if n < 12 {
		t.Errorf("%d packets in 10 s of restarts: each restart puts the next packet off", n)
	}
}

func question(name string, qtype, class uint16) dns.Question {
	return dns.Question{Name: name, Qtype: qtype, Qclass: class}
}

func TestQueries(t *testing.T) {
	const in, qu = dns.ClassINET, dns.ClassINET | topBit
	near := netip.MustParseAddrPort("10.9.8.77:5353")
	legacy := netip.MustParseAddrPort("10.9.8.77:34567")
	far := netip.MustParseAddrPort("203.0.113.9:5353")
	farLegacy := netip.MustParseAddrPort("203.0.113.9:34567")

	w := newWire(1)
	st := w.stations[0]
	w.run(10 * time.Second)
	instance, host := st.alias.instance+"."+serviceName, st.alias.host+".local."
	ptr := func(ttl uint32) []dns.RR {
		rr := dns.Copy(st.records[recService].rr)
		rr.Header().Ttl = ttl
		return []dns.RR{rr}
	}
	tests := []struct {
		name  string
		q     dns.Question
		known []dns.RR
		from  netip.AddrPort
		want  string // types of the answers; types of what is added
		to    netip.AddrPort
	}{
		{"browse", question(serviceName, dns.TypePTR, in), nil, near, "PTR; SRV TXT A AAAA", st.group},
		{"browse in capitals", question("_BALANCE._udp.Local.", dns.TypePTR, in), nil, near, "PTR; SRV TXT A AAAA", st.group},
		{"browse, already known", question(serviceName, dns.TypePTR, in), ptr(ttl), near, "", netip.AddrPort{}},
		{"browse, known but old", question(serviceName, dns.TypePTR, in), ptr(ttl/2 - 1), near, "PTR; SRV TXT A AAAA", st.group},
		{"types", question(typesName, dns.TypePTR, in), nil, near, "PTR;", st.group},
		{"service", question(instance, dns.TypeSRV, in), nil, near, "SRV; A AAAA", st.group},
		{"text", question(instance, dns.TypeTXT, in), nil, near, "TXT;", st.group},
		{"all of the instance", question(instance, dns.TypeANY, dns.ClassANY), nil, near, "SRV TXT; A AAAA", st.group},
		{"address", question(host, dns.TypeA, in), nil, near, "A;", st.group},
		{"address of IPv6", question(host, dns.TypeAAAA, in), nil, near, "AAAA;", st.group},
		{"unicast wanted", question(serviceName, dns.TypePTR, qu), nil, near, "PTR; SRV TXT A AAAA", near},
		{"unicast wanted from elsewhere", question(serviceName, dns.TypePTR, qu), nil, far, "", netip.AddrPort{}},
		{"plain resolver", question(serviceName, dns.TypePTR, in), nil, legacy, "PTR; SRV TXT A AAAA", legacy},
		{"plain resolver from elsewhere", question(serviceName, dns.TypePTR, in), nil, farLegacy, "", netip.AddrPort{}},
		{"another service", question("_ipp._tcp.local.", dns.TypePTR, in), nil, near, "", netip.AddrPort{}},
		{"another instance", question("x."+serviceName, dns.TypeSRV, in), nil, near, "", netip.AddrPort{}},
		{"another class", question(serviceName, dns.TypePTR, dns.ClassCHAOS), nil, near, "", netip.AddrPort{}},
		{"another type", question(serviceName, dns.TypeMX, in), nil, near, "", netip.AddrPort{}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			w.run(2 * time.Second)
			st.query.at = w.now.Add(time.Hour) // only answers are of interest
			st.sent = nil
			asked := w.now
			st.receive(mustPack(&dns.Msg{MsgHdr: dns.MsgHdr{Id: 4711}, Question: []dns.Question{tt.q}, Answer: tt.known}), tt.from, w.now)
			w.run(time.Second)
			if tt.want == "" {
				if len(st.sent) != 0 {
					t.Fatalf("answered with %v", st.sent[0].msg(t))
				}
				return
			}
			if len(st.sent) != 1 {
				t.Fatalf("%d answers, want 1", len(st.sent))
			}
			p := st.sent[0]
			m := p.msg(t)
			if got := typeNames(m.Answer) + ";" + prefixed(typeNames(m.Extra)); got != tt.want || p.to != tt.to {
				t.Errorf("answered %q to %v, want %q to %v", got, p.to, tt.want, tt.to)
			}
			switch delay := p.at.Sub(asked); {
			case p.to == st.group && (delay < 20*time.Millisecond || delay > 120*time.Millisecond):
				t.Errorf("answered all after %v, want 20 to 120 ms", delay)
			case p.to != st.group && delay != 0:
				t.Errorf("answered one after %v, want at once", delay)
			}
			checkForm(t, m, tt.from.Port() != mdnsPort)
		})
	}
}

func prefixed(s string) string {
	if s == "" {
		return ""
	}
	return " " + s
}

func typeNames(rrs []dns.RR) string {
	var out []string
	for _, rr := range rrs {
		out = append(out, dns.TypeToString[rr.Header().Rrtype])
	}
	return strings.Join(out, " ")
}

// checkForm checks what RFC 6762 says of every response.
func checkForm(t *testing.T, m *dns.Msg, legacy bool) {
	t.Helper()
	if !m.Response || !m.Authoritative || m.Rcode != 0 {
		t.Errorf("header %+v", m.MsgHdr)
	}
	if legacy != (m.Id == 4711) || legacy != (len(m.Question) == 1) {
		t.Errorf("id %d and %d questions in an answer that is legacy: %v", m.Id, len(m.Question), legacy)
	}
	for _, rr := range append(m.Answer, m.Extra...) {
		h := rr.Header()
		if flush := h.Class&topBit != 0; flush != (!legacy && h.Rrtype != dns.TypePTR) {
			t.Errorf("cache flush %v: %v", flush, rr)
		}
		if legacy && h.Ttl > 10 {
			t.Errorf("a time to live of %d for a plain resolver", h.Ttl)
		}
	}
}

func TestOneRecordIsMulticastOnceASecond(t *testing.T) {
	w := newWire(1)
	st := w.stations[0]
	w.run(10 * time.Second)
	st.sent = nil
	start := w.now
	for i := range 1000 {
		from := netip.AddrPortFrom(stationAddr(i%200), mdnsPort)
		st.receive(mustPack(&dns.Msg{Question: []dns.Question{question(serviceName, dns.TypePTR, dns.ClassINET)}}), from, w.now)
		w.run(10 * time.Millisecond)
	}
	most := int(w.now.Sub(start)/time.Second) + 1
	if n := len(st.sent); n < 5 || n > most {
		t.Errorf("%d answers to 1000 queries in %v, want at most %d", n, w.now.Sub(start), most)
	}
}

func TestGoodbyeIsNotAnAddress(t *testing.T) {
	w := newWire(1)
	w.stations[0].shout(0, w.now)
	bye := w.stations[0].sent[0]
	for _, rr := range bye.msg(t).Answer {
		if rr.Header().Ttl != 0 {
			t.Errorf("a goodbye with a time to live: %v", rr)
		}
	}
	cfg := testConfig(1, members(2), nil)
	late := w.add(1, cfg)
	late.receive(bye.packet, netip.AddrPortFrom(stationAddr(0), mdnsPort), w.now)
	if late.found.calls != 0 {
		t.Error("a goodbye was reported as a find")
	}
}

func TestANewAddressIsAnnounced(t *testing.T) {
	w := newWire(2)
	w.run(time.Hour + time.Minute)
	moved := netip.MustParsePrefix("10.9.8.200/24")
	w.stations[0].settle([]netip.Prefix{moved}, w.now)
	w.run(200 * time.Millisecond)
	if got := w.stations[1].found.of(member(0)); !slices.Contains(got, netip.AddrPortFrom(moved.Addr(), 41000)) {
		t.Errorf("found %v, want the new address too", got)
	}
}
