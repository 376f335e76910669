package discovery

import (
	"encoding/binary"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/miekg/dns"
)

const (
	serviceName = "_balance._udp.local."
	typesName   = "_services._dns-sd._udp.local." // enumerates services, RFC 6763 section 9

	mdnsPort  = 5353
	ttl       = 120     // seconds: a pseudonym outlives its epoch by no more
	legacyTTL = 10      // seconds: RFC 6762 section 6.7
	topBit    = 1 << 15 // of a class: unicast wanted in a question, cache flush in a record

	announcements = 3           // at the start and in each epoch
	maxQuestions  = 16          // of one query that are looked at
	minGap        = time.Second // between two queries, or two answers with one record
	maxGap        = time.Hour   // between two queries: RFC 6762 section 5.2
)

// speaker is what one link says and makes of what it hears: multicast DNS
// without sockets or goroutines of its own. Its methods are called by one
// goroutine. Time is given; only the epoch comes from the wall clock.
type speaker struct {
	cfg   *Config
	book  *book
	zone  string         // the interface, for link-local addresses of IPv6
	group netip.AddrPort // where everybody on the link listens
	send  func(packet []byte, to netip.AddrPort)

	here     []netip.Prefix // this host's addresses on the link
	epoch    epoch
	epochEnd time.Time
	alias    alias
	records  []record
	announce schedule
	query    schedule
	answerAt time.Time // when records that were asked for are multicast
	limit    limiter
	lower    [maxPacket]byte
}

type record struct {
	rr    dns.RR
	asked bool
	sent  time.Time // by multicast
}

// Positions in speaker.records. The addresses of the host follow.
const (
	recTypes = iota
	recService
	recSRV
	recTXT
	recAddress
)

// schedule is something done ever more slowly. The zero value is never due.
type schedule struct {
	at, last time.Time
	times    int // since the start
}

func (s *schedule) start(at time.Time) {
	if s.times == 0 && !s.at.IsZero() {
		return // it is about to start
	}
	if earliest := s.last.Add(minGap); at.Before(earliest) {
		at = earliest
	}
	s.at, s.times = at, 0
}

func (s *schedule) stop() { s.at = time.Time{} }

func (s *schedule) due(now time.Time) bool { return !s.at.IsZero() && !now.Before(s.at) }

func (s *schedule) done(now time.Time) {
	gap := min(maxGap, minGap<<min(s.times, 20))
	s.at, s.last, s.times = now.Add(gap), now, s.times+1
}

// jitter is how long RFC 6762 wants a responder to wait, so that not all speak
// at once.
func jitter() time.Duration { return 20*time.Millisecond + rand.N(100*time.Millisecond) }

// settle makes the speaker use the given addresses. It starts to announce and
// to query if they are new.
func (s *speaker) settle(here []netip.Prefix, now time.Time) {
	if slices.Equal(s.here, here) {
		return
	}
	s.here = here
	s.rename(now)
	s.restart(now)
}

// restart announces and asks again as at the start.
func (s *speaker) restart(now time.Time) {
	at := now.Add(jitter())
	s.announce.start(at)
	s.query.start(at)
}

// rename takes the alias of this epoch. There is no goodbye to the old one:
// next to the new one it would tell that both are the same node.
func (s *speaker) rename(now time.Time) {
	wall := s.cfg.Now()
	s.epoch, s.epochEnd = epochAt(wall), now.Add(untilNext(wall))
	s.alias = aliasOf(s.cfg.Key, s.cfg.Self, s.epoch)
	instance, host := s.alias.instance+"."+serviceName, s.alias.host+".local."
	own := func(name string, rrtype uint16) dns.RR_Header {
		return dns.RR_Header{Name: name, Rrtype: rrtype, Class: dns.ClassINET | topBit, Ttl: ttl}
	}
	shared := func(name string) dns.RR_Header {
		return dns.RR_Header{Name: name, Rrtype: dns.TypePTR, Class: dns.ClassINET, Ttl: ttl}
	}
	s.records = []record{
		recTypes:   {rr: &dns.PTR{Hdr: shared(typesName), Ptr: serviceName}},
		recService: {rr: &dns.PTR{Hdr: shared(serviceName), Ptr: instance}},
		recSRV:     {rr: &dns.SRV{Hdr: own(instance, dns.TypeSRV), Port: s.cfg.Port, Target: host}},
		recTXT:     {rr: &dns.TXT{Hdr: own(instance, dns.TypeTXT), Txt: []string{versionText, tagText(s.epoch, s.alias.tag)}}},
	}
	for _, p := range s.here {
		var rr dns.RR = &dns.AAAA{Hdr: own(host, dns.TypeAAAA), AAAA: p.Addr().AsSlice()}
		if p.Addr().Is4() {
			rr = &dns.A{Hdr: own(host, dns.TypeA), A: p.Addr().AsSlice()}
		}
		s.records = append(s.records, record{rr: rr})
	}
}

// next returns when tick has something to do.
func (s *speaker) next() time.Time {
	at := s.epochEnd
	for _, t := range []time.Time{s.announce.at, s.query.at, s.answerAt} {
		if !t.IsZero() && t.Before(at) {
			at = t
		}
	}
	return at
}

// tick says what is due.
func (s *speaker) tick(now time.Time) {
	if epochAt(s.cfg.Now()) != s.epoch {
		s.rename(now)
		s.announce.start(now)
	}
	if s.announce.due(now) {
		s.shout(ttl, now)
		if s.announce.done(now); s.announce.times == announcements {
			s.announce.stop()
		}
	}
	if s.query.due(now) {
		s.ask()
		s.query.done(now)
	}
	if !s.answerAt.IsZero() && !now.Before(s.answerAt) {
		s.answer(now)
	}
}

// shout multicasts all records that are ours with the given time to live. A
// time of 0 says goodbye.
func (s *speaker) shout(ttl uint32, now time.Time) {
	m := response()
	for i := recService; i < len(s.records); i++ {
		rr := dns.Copy(s.records[i].rr)
		rr.Header().Ttl = ttl
		m.Answer = append(m.Answer, rr)
		s.records[i].sent = now
	}
	s.pack(m, s.group)
}

// ask queries for other nodes. It gives our own instance as an answer already
// known, so that we do not answer ourselves.
func (s *speaker) ask() {
	m := new(dns.Msg)
	m.Question = []dns.Question{{Name: serviceName, Qtype: dns.TypePTR, Qclass: dns.ClassINET}}
	m.Answer = []dns.RR{s.records[recService].rr}
	s.pack(m, s.group)
}

// answer multicasts the records that were asked for, except those that
// everybody heard within the last second.
func (s *speaker) answer(now time.Time) {
	s.answerAt = time.Time{}
	asked := make([]bool, len(s.records))
	for i := range s.records {
		r := &s.records[i]
		asked[i] = r.asked && now.Sub(r.sent) >= minGap
		r.asked = false
	}
	m := s.reply(asked)
	if len(m.Answer) == 0 {
		return
	}
	for i := range s.records {
		if asked[i] {
			s.records[i].sent = now
		}
	}
	s.pack(m, s.group)
}

// answerQuery notes what a query asks of us, and answers at once where it
// wants the answer for itself: by the top bit of its class, or because it is
// of a resolver that knows nothing of multicast (RFC 6762 section 6.7).
func (s *speaker) answerQuery(m *dns.Msg, from netip.AddrPort, now time.Time) {
	legacy := from.Port() != mdnsPort
	direct := make([]bool, len(s.records))
	for _, q := range m.Question[:min(len(m.Question), maxQuestions)] {
		for i := range s.records {
			if !answers(s.records[i].rr, q) || knows(m.Answer, s.records[i].rr) {
				continue
			}
			if legacy || q.Qclass&topBit != 0 {
				direct[i] = true
				continue
			}
			s.records[i].asked = true
			if s.answerAt.IsZero() {
				s.answerAt = now.Add(jitter())
			}
		}
	}
	reply := s.reply(direct)
	if len(reply.Answer) == 0 || !s.onLink(from.Addr()) {
		return
	}
	if legacy {
		makeLegacy(reply, m)
	}
	s.pack(reply, from)
}

func answers(rr dns.RR, q dns.Question) bool {
	h := rr.Header()
	class := q.Qclass &^ topBit
	return (q.Qtype == h.Rrtype || q.Qtype == dns.TypeANY) &&
		(class == dns.ClassINET || class == dns.ClassANY) && strings.EqualFold(q.Name, h.Name)
}

// knows reports whether a query lists rr among the answers that it needs no
// more. Only shared records are worth the look.
func knows(known []dns.RR, rr dns.RR) bool {
	ours, ok := rr.(*dns.PTR)
	if !ok {
		return false
	}
	return slices.ContainsFunc(known, func(rr dns.RR) bool {
		k, ok := rr.(*dns.PTR)
		return ok && k.Hdr.Ttl >= ttl/2 && strings.EqualFold(k.Hdr.Name, ours.Hdr.Name) && strings.EqualFold(k.Ptr, ours.Ptr)
	})
}

// reply returns a response with the records that were asked for, and with
// those that who asked will want next.
func (s *speaker) reply(asked []bool) *dns.Msg {
	m := response()
	extra := len(s.records)
	switch {
	case asked[recService]:
		extra = recSRV
	case asked[recSRV]:
		extra = recAddress
	}
	for i := range s.records {
		switch {
		case asked[i]:
			m.Answer = append(m.Answer, s.records[i].rr)
		case i >= extra:
			m.Extra = append(m.Extra, s.records[i].rr)
		}
	}
	return m
}

// makeLegacy gives a reply the form that plain DNS has.
func makeLegacy(reply, query *dns.Msg) {
	reply.Id, reply.Question = query.Id, query.Question
	for _, section := range [][]dns.RR{reply.Answer, reply.Extra} {
		for i, rr := range section {
			section[i] = dns.Copy(rr)
			section[i].Header().Class &^= topBit
			section[i].Header().Ttl = legacyTTL
		}
	}
}

func response() *dns.Msg {
	return &dns.Msg{MsgHdr: dns.MsgHdr{Response: true, Authoritative: true}}
}

func (s *speaker) pack(m *dns.Msg, to netip.AddrPort) {
	m.Compress = true
	if b, err := m.Pack(); err == nil { // what others sent may not pack again
		s.send(b, to)
	}
}

func (s *speaker) onLink(a netip.Addr) bool {
	a = a.Unmap().WithZone("")
	return a.IsLinkLocalUnicast() || slices.ContainsFunc(s.here, func(p netip.Prefix) bool { return p.Contains(a) })
}

// isResponse tells responses from queries. The packet is at least as long as a
// header.
func isResponse(packet []byte) bool { return binary.BigEndian.Uint16(packet[2:])&(1<<15) != 0 }
