package discovery

import (
	"bytes"
	"hash/maphash"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/miekg/dns"
)

const (
	maxPacket = 1500 // bytes; an announcement has about 300
	headerLen = 12
)

// receive takes in one packet from the link. The cheap tests come first: most
// of what is multicast on a network has nothing to do with us.
func (s *speaker) receive(packet []byte, from netip.AddrPort, now time.Time) {
	if len(packet) < headerLen || len(packet) > maxPacket {
		return
	}
	if isResponse(packet) {
		s.hear(packet, from, now)
		return
	}
	if !s.concerns(packet) || !s.limit.allow(from.Addr(), now) {
		return
	}
	var m dns.Msg
	if m.Unpack(packet) == nil && m.Opcode == dns.OpcodeQuery {
		s.answerQuery(&m, from, now)
	}
}

// concerns reports whether a query can be for one of our names. At its first
// occurrence in a packet a name is not compressed.
func (s *speaker) concerns(packet []byte) bool {
	lower := s.lower[:len(packet)]
	for i, c := range packet {
		if 'A' <= c && c <= 'Z' {
			c += 'a' - 'A'
		}
		lower[i] = c
	}
	return bytes.Contains(lower, []byte("_balance")) || bytes.Contains(lower, []byte("_dns-sd")) ||
		bytes.Contains(lower, []byte(s.alias.host))
}

// hear reports the member that a response announces, if it is one.
func (s *speaker) hear(packet []byte, from netip.AddrPort, now time.Time) {
	text, e, t, ok := findTagText(packet)
	if !ok {
		return
	}
	if e == s.epoch && t == s.alias.tag {
		s.book.note(s.cfg.Self, now) // it went out, and came back
		return
	}
	id, ok := s.book.find(e, t, epochAt(s.cfg.Now()), now)
	if !ok || !s.limit.allow(from.Addr(), now) {
		return
	}
	s.book.note(id, now)
	var m dns.Msg
	if m.Unpack(packet) != nil {
		return
	}
	var addrs []netip.AddrPort
	for _, a := range addresses(append(m.Answer, m.Extra...), text) {
		if s.plausible(a.Addr()) {
			addrs = append(addrs, s.zoned(a))
		}
	}
	if addrs = s.book.fresh(id, addrs, now); len(addrs) > 0 {
		s.cfg.Found(id, addrs)
	}
}

// addresses returns where the instance is whose TXT record holds text.
func addresses(rrs []dns.RR, text string) []netip.AddrPort {
	txt := pick(rrs, func(rr *dns.TXT) bool {
		return slices.Contains(rr.Txt, text) && slices.Contains(rr.Txt, versionText)
	})
	if len(txt) == 0 {
		return nil
	}
	srv := pick(rrs, func(rr *dns.SRV) bool { return strings.EqualFold(rr.Hdr.Name, txt[0].Hdr.Name) })
	if len(srv) == 0 || srv[0].Port == 0 {
		return nil
	}
	var out []netip.AddrPort
	add := func(ip []byte) {
		if a, ok := netip.AddrFromSlice(ip); ok {
			out = append(out, netip.AddrPortFrom(a.Unmap(), srv[0].Port))
		}
	}
	for _, rr := range pick(rrs, func(rr *dns.A) bool { return strings.EqualFold(rr.Hdr.Name, srv[0].Target) }) {
		add(rr.A)
	}
	for _, rr := range pick(rrs, func(rr *dns.AAAA) bool { return strings.EqualFold(rr.Hdr.Name, srv[0].Target) }) {
		add(rr.AAAA)
	}
	return out
}

// pick returns the records of one type that fit. A record with no time to live
// is a goodbye and never fits.
func pick[T dns.RR](rrs []dns.RR, fits func(T) bool) (out []T) {
	for _, rr := range rrs {
		if r, ok := rr.(T); ok && r.Header().Ttl > 0 && fits(r) {
			out = append(out, r)
		}
	}
	return out
}

// plausible reports whether an address can be one on this link, or behind a
// reflector in the same site. Others are never reported.
func (s *speaker) plausible(a netip.Addr) bool {
	return !a.IsMulticast() && !a.IsUnspecified() && (a.IsPrivate() || s.onLink(a))
}

// zoned completes a link-local address of IPv6, which means nothing without
// the interface.
func (s *speaker) zoned(a netip.AddrPort) netip.AddrPort {
	if a.Addr().Is6() && a.Addr().IsLinkLocalUnicast() {
		return netip.AddrPortFrom(a.Addr().WithZone(s.zone), a.Port())
	}
	return a
}

// limiter is a budget of packets for each sender. Senders share 256 budgets by
// a hash that they cannot predict, so that its size is fixed and one of them
// exhausts only its own.
type limiter struct {
	seed    maphash.Seed
	buckets [256]bucket
}

type bucket struct {
	spent float64 // packets
	at    time.Time
}

const (
	budgetRate  = 10 // packets a second
	budgetBurst = 20
)

func newLimiter() limiter { return limiter{seed: maphash.MakeSeed()} }

func (l *limiter) allow(from netip.Addr, now time.Time) bool {
	b := &l.buckets[maphash.Comparable(l.seed, from)%uint64(len(l.buckets))]
	b.spent = max(0, b.spent-budgetRate*now.Sub(b.at).Seconds())
	b.at = now
	if b.spent+1 > budgetBurst {
		return false
	}
	b.spent++
	return true
}
