package discovery

import (
	"net/netip"
	"runtime"
	"testing"
	"time"

	"github.com/miekg/dns"

	"github.com/balanceai/balance/mesh/identity"
)

// T9: forged announcements make no peer, and no memory.
func TestForgedAnnouncements(t *testing.T) {
	var found finds
	cfg := testConfig(0, members(100), &found)
	s := newTestSpeaker(&cfg, func([]byte, netip.AddrPort) {})
	s.settle([]netip.Prefix{netip.MustParsePrefix("10.9.8.1/16")}, time.Now())
	packets := hostilePackets(10_000)
	start, now := heap(), time.Now()
	for i, p := range packets {
		from := netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 9, byte(i >> 8), byte(i)}), mdnsPort)
		s.receive(p, from, now.Add(time.Duration(i)*100*time.Microsecond))
	}
	grown := heap() - start
	if grown > 1<<20 {
		t.Errorf("memory grew by %d bytes", grown)
	}
	t.Logf("memory grew by %d bytes", grown)
	for id, addrs := range found.addrs {
		if id != member(4) { // whose tag the forger has heard
			t.Errorf("a member was found by a forged tag: %v", addrs)
		} else if len(addrs) > maxSighted {
			t.Errorf("%d addresses within a second", len(addrs))
		}
	}
	runtime.KeepAlive(s)
	runtime.KeepAlive(packets)
}

func heap() int64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}

// A forger who has heard a tag can name addresses, but none on the internet.
func TestImplausibleAddressesAreNotReported(t *testing.T) {
	now := time.Now()
	tests := map[string]bool{
		"10.9.8.7": true, "192.168.1.1": true, "203.0.113.7": true, "169.254.1.2": true,
		"fd00::1": true, "fe80::1": true, "2001:db8::1": true,
		"8.8.8.8": false, "203.0.114.7": false, "127.0.0.1": false, "0.0.0.0": false, "224.0.0.251": false,
		"255.255.255.255": false, "2001:db8:1::1": false, "::1": false, "::": false, "ff02::1": false, "::ffff:8.8.8.8": false,
	}
	for text, want := range tests {
		var found finds
		cfg := testConfig(0, members(2), &found)
		s := newTestSpeaker(&cfg, func([]byte, netip.AddrPort) {})
		s.settle([]netip.Prefix{netip.MustParsePrefix("203.0.113.1/24"), netip.MustParsePrefix("2001:db8::5/64")}, now)

		peer := cfg
		peer.Self = member(1)
		p := newTestSpeaker(&peer, func(b []byte, _ netip.AddrPort) {
			s.receive(b, netip.MustParseAddrPort("203.0.113.9:5353"), now)
		})
		addr := netip.MustParseAddr(text)
		p.settle([]netip.Prefix{netip.PrefixFrom(addr, addr.BitLen())}, now)
		p.shout(ttl, now)
		if got := found.calls > 0; got != want {
			t.Errorf("%s reported: %v, want %v", text, got, want)
		}
	}
}

// Announcements with a part missing, or with parts that do not belong
// together, point nowhere.
func TestIncompleteAnnouncements(t *testing.T) {
	change := map[string]func(*dns.Msg){
		"nothing":            func(*dns.Msg) {},
		"no text":            func(m *dns.Msg) { m.Answer[2] = m.Answer[0] },
		"no service":         func(m *dns.Msg) { m.Answer[1] = m.Answer[0] },
		"no address":         func(m *dns.Msg) { m.Answer = m.Answer[:3] },
		"port 0":             func(m *dns.Msg) { m.Answer[1].(*dns.SRV).Port = 0 },
		"another version":    func(m *dns.Msg) { m.Answer[2].(*dns.TXT).Txt[0] = "v=2" },
		"another host":       func(m *dns.Msg) { m.Answer[1].(*dns.SRV).Target = "printer.local." },
		"another instance":   func(m *dns.Msg) { m.Answer[1].Header().Name = "x." + serviceName },
		"service said bye":   func(m *dns.Msg) { m.Answer[1].Header().Ttl = 0 },
		"address said bye":   func(m *dns.Msg) { m.Answer[3].Header().Ttl = 0 },
		"in capitals":        func(m *dns.Msg) { m.Answer[1].(*dns.SRV).Hdr.Name = upper(m.Answer[1].Header().Name) },
		"addresses as extra": func(m *dns.Msg) { m.Answer, m.Extra = m.Answer[:3], m.Answer[3:] },
	}
	whole := map[string]bool{"nothing": true, "in capitals": true, "addresses as extra": true}
	now := time.Now()
	for name, change := range change {
		var found finds
		cfg := testConfig(0, members(2), &found)
		s := newTestSpeaker(&cfg, nil)
		s.settle([]netip.Prefix{netip.MustParsePrefix("10.9.8.1/24")}, now)
		peer := cfg
		peer.Self = member(1)
		p := newTestSpeaker(&peer, func(b []byte, _ netip.AddrPort) {
			var m dns.Msg
			if err := m.Unpack(b); err != nil {
				t.Fatal(err)
			}
			change(&m)
			s.receive(mustPack(&m), netip.MustParseAddrPort("10.9.8.2:5353"), now)
		})
		p.settle([]netip.Prefix{netip.MustParsePrefix("10.9.8.2/24")}, now)
		p.shout(ttl, now)
		if got := found.calls > 0; got != whole[name] {
			t.Errorf("%s: found %v, want %v", name, got, whole[name])
		}
	}
}

func upper(s string) string {
	b := []byte(s)
	for i, c := range b {
		if 'a' <= c && c <= 'z' {
			b[i] = c - 'a' + 'A'
		}
	}
	return string(b)
}

func TestOneSenderHasABudget(t *testing.T) {
	l := newLimiter()
	now := time.Now()
	flooder := netip.MustParseAddr("10.0.0.1")
	passed := 0
	for i := range 10_000 {
		if l.allow(flooder, now.Add(time.Duration(i)*time.Millisecond)) {
			passed++
		}
	}
	if most := budgetBurst + budgetRate*10 + 1; passed > most || passed < most-3 {
		t.Errorf("%d of 10,000 packets in 10 s passed, want %d", passed, most)
	}
	others := 0
	for i := range 100 {
		if l.allow(netip.AddrFrom4([4]byte{10, 0, 1, byte(i)}), now.Add(10*time.Second)) {
			others++
		}
	}
	if others < 90 { // of 256 budgets, one is spent
		t.Errorf("only %d of 100 others have a budget left", others)
	}
}

// FuzzReceive feeds a link with anything at all. It must survive, find only
// members at plausible addresses, and send only to the link.
func FuzzReceive(f *testing.F) {
	for _, p := range hostilePackets(10) {
		f.Add(p, uint16(mdnsPort))
	}
	f.Add([]byte("\x00\x00\x84\x00\x00\x00\x00\x01\x00\x00\x00\x00\xc0\x0c\x00\x10\x00\x01"), uint16(mdnsPort)) // a name that points at itself
	f.Add(mustPack(&dns.Msg{Question: []dns.Question{question(serviceName, dns.TypeANY, dns.ClassANY|topBit)}}), uint16(1))
	f.Fuzz(func(t *testing.T, packet []byte, port uint16) {
		from := netip.AddrPortFrom(netip.MustParseAddr("10.9.8.2"), port)
		cfg := testConfig(0, members(5), nil)
		var s *speaker
		cfg.Found = func(id identity.ID, addrs []netip.AddrPort) {
			for _, a := range addrs {
				if id == cfg.Self || a.Port() == 0 || !s.plausible(a.Addr()) {
					t.Errorf("found %v at %v", id.Short(), a)
				}
			}
		}
		s = newTestSpeaker(&cfg, func(b []byte, to netip.AddrPort) {
			if to != from && to != s.group || len(b) > maxPacket {
				t.Errorf("sent %d bytes to %v", len(b), to)
			}
		})
		now := time.Now()
		s.settle([]netip.Prefix{netip.MustParsePrefix("10.9.8.1/24")}, now)
		s.receive(packet, from, now)
		s.tick(now.Add(time.Second))
	})
}
