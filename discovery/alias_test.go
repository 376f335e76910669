package discovery

import (
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"

	"github.com/balanceai/balance/mesh/identity"
)

func TestTagTextRoundTrip(t *testing.T) {
	tg := randomTag()
	text := tagText(1988889, tg)
	if len(text) != tagTextLen {
		t.Fatalf("tag text %q has %d bytes, want %d", text, len(text), tagTextLen)
	}
	packet := mustPack(&dns.Msg{Answer: []dns.RR{&dns.TXT{
		Hdr: dns.RR_Header{Name: serviceName, Rrtype: dns.TypeTXT, Class: dns.ClassINET},
		Txt: []string{versionText, text},
	}}})
	gotText, e, got, ok := findTagText(packet)
	if !ok || gotText != text || e != 1988889 || got != tg {
		t.Errorf("findTagText = %q %d %x %v", gotText, e, got, ok)
	}
	for n := range packet {
		if _, _, _, ok := findTagText(packet[:n]); ok && n < len(packet) {
			t.Errorf("found a tag in the first %d of %d bytes", n, len(packet))
		}
	}
}

func TestEpochs(t *testing.T) {
	at := time.Unix(1_790_000_100, 500)
	e := epochAt(at)
	end := at.Add(untilNext(at))
	if epochAt(end) != e+1 || epochAt(end.Add(-1)) != e {
		t.Errorf("epoch %d of %v does not end after %v", e, at, untilNext(at))
	}
	for _, d := range []int{-2, -1, 0, 1, 2} {
		if got, want := near(epoch(100+d), 100), d >= -1 && d <= 1; got != want {
			t.Errorf("near(100%+d, 100) = %v", d, got)
		}
	}
	if !near(0, 0) || !near(0, 1) || !near(1<<32-1, 0) {
		t.Error("near is wrong around 0")
	}
}

// T8, the part that needs an hour: what a node sends in five epochs holds no
// name and no key, and what it sends in one has nothing in common with what it
// sends in another but what all nodes send, its addresses and its port.
func TestAnHourOnTheLinkTellsNothing(t *testing.T) {
	w := newWire(3)
	texts := map[epoch]map[string]bool{} // of station 0, by epoch
	var packets [][]byte
	for range 4 * 60 {
		w.run(15 * time.Second)
		for _, st := range w.stations {
			for _, p := range st.sent {
				packets = append(packets, p.packet)
				if st == w.stations[0] {
					e := epochAt(p.at)
					if texts[e] == nil {
						texts[e] = map[string]bool{}
					}
					collectTexts(texts[e], p.msg(t))
				}
			}
			st.sent = nil
		}
	}
	checkTellsNothing(t, packets)
	if len(texts) < 5 {
		t.Fatalf("%d epochs in an hour, want 5 or more", len(texts))
	}
	for e, some := range texts {
		if len(some) < 3 {
			t.Errorf("epoch %d: only %d texts", e, len(some))
		}
		for other, others := range texts {
			if e >= other {
				continue
			}
			for x := range some {
				for y := range others {
					if s := commonPart(x, y); len(s) > 6 { // of random text, 1 in 10^7
						t.Errorf("epochs %d and %d have %q in common: %q and %q", e, other, s, x, y)
					}
				}
			}
		}
	}
}

// collectTexts collects the labels and strings of a message that not all nodes
// have, without the epoch in a tag.
func collectTexts(out map[string]bool, m *dns.Msg) {
	add := func(s string) {
		switch s {
		case "_balance", "_udp", "local", versionText:
		default:
			out[s] = true
		}
	}
	for _, rr := range append(m.Answer, m.Extra...) {
		names := []string{rr.Header().Name}
		switch rr := rr.(type) {
		case *dns.PTR:
			names = append(names, rr.Ptr)
		case *dns.SRV:
			names = append(names, rr.Target)
		case *dns.TXT:
			for _, s := range rr.Txt {
				if strings.HasPrefix(s, tagPrefix) {
					s = s[len(tagPrefix)+32/5+1:] // 32 bits of epoch
				}
				add(s)
			}
		}
		for _, name := range names {
			for _, label := range dns.SplitDomainName(name) {
				add(label)
			}
		}
	}
}

func commonPart(x, y string) (longest string) {
	for i := range x {
		for j := i + len(longest) + 1; j <= len(x); j++ {
			if !strings.Contains(y, x[i:j]) {
				break
			}
			longest = x[i:j]
		}
	}
	return longest
}

// What other versions of the program compute must be the same.
func TestAliasIsPinned(t *testing.T) {
	a := aliasOf([32]byte{0: 1, 31: 2}, identity.ID{0: 3, 31: 4}, 1988889)
	got := a.instance + " " + a.host + " " + tagText(1988889, a.tag)
	if want := "bauxsdekg7mb6 7z32fpg4fiyq4 t=aapfsgjxix3bbnap46jund6r2lqu4qb6"; got != want {
		t.Errorf("alias\n%s\nwant\n%s", got, want)
	}
}
