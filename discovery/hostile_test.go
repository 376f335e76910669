package discovery

import (
	"bytes"
	"encoding/hex"
	"math/rand/v2"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"
)

// hostilePackets makes packets as an attacker on the link would send them: a
// fifth each of announcements with forged tags of this epoch and of any,
// announcements with a member's tag and forged addresses, queries for us, and
// noise.
func hostilePackets(n int) [][]byte {
	now := epochAt(time.Now())
	out := make([][]byte, n)
	for i := range out {
		switch i % 5 {
		case 0:
			out[i] = forged(now, randomTag())
		case 1:
			out[i] = forged(epoch(rand.Uint32()), randomTag())
		case 2:
			out[i] = forged(now, aliasOf(testKey, member(4), now).tag)
		case 3:
			out[i] = mustPack(&dns.Msg{Question: []dns.Question{{Name: serviceName, Qtype: dns.TypePTR, Qclass: dns.ClassINET}}})
		default:
			out[i] = make([]byte, rand.N(200))
			for j := range out[i] {
				out[i][j] = byte(rand.Uint32())
			}
		}
	}
	return out
}

func randomTag() (t tag) {
	for i := range t {
		t[i] = byte(rand.Uint32())
	}
	return t
}

// forged is an announcement with a random address on the link.
func forged(e epoch, t tag) []byte {
	s := speaker{cfg: &Config{Key: testKey, Port: 666, Now: time.Now}}
	addr := netip.AddrFrom4([4]byte{10, 9, byte(rand.Uint32()), byte(rand.Uint32())})
	s.here = []netip.Prefix{netip.PrefixFrom(addr, 24)}
	s.rename(time.Now())
	s.records[recTXT].rr.(*dns.TXT).Txt[1] = tagText(e, t)
	var packet []byte
	s.send = func(b []byte, _ netip.AddrPort) { packet = b }
	s.shout(ttl, time.Time{})
	return packet
}

func mustPack(m *dns.Msg) []byte {
	b, err := m.Pack()
	if err != nil {
		panic(err)
	}
	return b
}

// checkTellsNothing looks for the members' identities and the key, as bytes
// and as text, and for the given words.
func checkTellsNothing(t *testing.T, packets [][]byte, words ...string) {
	t.Helper()
	secrets := [][]byte{testKey[:8], []byte(hex.EncodeToString(testKey[:8]))}
	for i := range labMembers {
		id := member(i)
		secrets = append(secrets, id[:6], []byte(id.Short()), []byte(hex.EncodeToString(id[:4])))
	}
	for _, w := range words {
		if len(w) > 3 { // shorter ones occur by chance
			secrets = append(secrets, []byte(strings.ToLower(w)))
		}
	}
	for _, p := range packets {
		for _, s := range secrets {
			if bytes.Contains(bytes.ToLower(p), s) {
				t.Errorf("%q is in the packet %q", s, p)
			}
		}
	}
}
