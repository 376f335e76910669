package discovery

import (
	"net/netip"
	"testing"
	"time"
)

func newTestSpeaker(cfg *Config, sent func([]byte, netip.AddrPort)) *speaker {
	return &speaker{
		cfg: cfg, book: newBook(cfg), zone: "eth0", limit: newLimiter(), send: sent,
		group: netip.AddrPortFrom(group4, mdnsPort),
	}
}

// What a flood costs: divide by the packets a second.
func BenchmarkHostilePackets(b *testing.B) {
	cfg := testConfig(0, members(100), &finds{})
	s := newTestSpeaker(&cfg, func([]byte, netip.AddrPort) {})
	s.settle([]netip.Prefix{netip.MustParsePrefix("10.9.8.1/24")}, time.Now())
	packets := hostilePackets(1000)
	from := netip.MustParseAddrPort("10.9.8.254:5353")
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		s.receive(packets[i%len(packets)], from, time.Now())
	}
}
