package discovery

import (
	"net/netip"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/balanceai/balance/mesh/identity"
)

func testBook(ids []identity.ID) *book {
	cfg := testConfig(0, ids, nil)
	return newBook(&cfg)
}

func TestMembersAreRecognisedWhateverTheirClock(t *testing.T) {
	now := time.Now()
	b := testBook(members(3))
	for i, e := range []epoch{1000, 1001, 999, 0, 1 << 31, 1<<32 - 1} {
		if !near(e, 1000) {
			now = now.Add(farEvery)
		}
		if id, ok := b.find(e, aliasOf(testKey, member(1), e).tag, 1000, now); !ok || id != member(1) {
			t.Errorf("%d: a member is not recognised in epoch %d at 1000", i, e)
		}
		if _, ok := b.find(e, aliasOf(testKey, member(0), e).tag, 1000, now); ok {
			t.Error("a node recognises itself")
		}
		if _, ok := b.find(e, aliasOf(testKey, member(9), e).tag, 1000, now); ok {
			t.Error("who is no member is recognised")
		}
		if _, ok := b.find(e, aliasOf(testKey, member(1), e+1).tag, 1000, now); ok {
			t.Error("a tag of another epoch is recognised")
		}
	}
}

func TestANewMemberIsRecognised(t *testing.T) {
	ids := members(2)
	cfg := testConfig(0, nil, nil)
	cfg.Members = func() []identity.ID { return ids }
	b := newBook(&cfg)
	now := time.Now()
	find := func(n int) bool {
		_, ok := b.find(7, aliasOf(testKey, member(n), 7).tag, 7, now)
		return ok
	}
	if !find(1) || find(2) {
		t.Fatal("the first members are not as given")
	}
	ids = members(3)
	if now = now.Add(pageAge); !find(2) {
		t.Errorf("a new member is not recognised after %v", pageAge)
	}
	ids = members(4)
	if b.forget(); !find(3) {
		t.Error("a new member is not recognised after forget")
	}
}

// Forged epochs displace only each other.
func TestForgedEpochsDoNotHideAMember(t *testing.T) {
	b := testBook(members(3))
	now := time.Now()
	honest := func() bool {
		_, ok := b.find(5, aliasOf(testKey, member(1), 5).tag, 1000, now)
		return ok
	}
	if !honest() {
		t.Fatal("a member with a wrong clock is not recognised")
	}
	for i := range 100 {
		now = now.Add(farEvery)
		b.find(epoch(5000+i), tag{}, 1000, now)
	}
	if !honest() {
		t.Error("forged epochs made the book forget a member")
	}
}

// Forged epochs cost a page every other second.
func TestForgedEpochsAreBounded(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		asked := 0
		cfg := testConfig(0, nil, nil)
		cfg.Members = func() []identity.ID { asked++; return members(3) }
		b := newBook(&cfg)
		start := time.Now()
		now := start
		for _, e := range rapid.SliceOfN(rapid.OneOf(rapid.Uint32(), rapid.Uint32Range(998, 1002)), 1, 400).Draw(t, "epochs") {
			now = now.Add(time.Duration(rapid.Int64Range(0, int64(200*time.Millisecond)).Draw(t, "after")))
			b.find(epoch(e), tag{}, 1000, now)
			if len(b.pages) > farPages+3 {
				t.Fatalf("%d pages", len(b.pages))
			}
		}
		most := 1 + int(now.Sub(start)/farEvery) + (farPages+3)*int(1+now.Sub(start)/pageAge)
		if asked > most {
			t.Errorf("%d pages written in %v, want at most %d", asked, now.Sub(start), most)
		}
	})
}

func TestAnAddressIsReportedOnceAMinute(t *testing.T) {
	b := testBook(members(3))
	now := time.Now()
	addr := func(i int) netip.AddrPort {
		return netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i)}), 1)
	}
	if got := b.fresh(member(1), []netip.AddrPort{addr(1), addr(2), addr(1)}, now); len(got) != 2 {
		t.Errorf("first report: %v", got)
	}
	now = now.Add(repeatAfter - 1)
	if got := b.fresh(member(1), []netip.AddrPort{addr(1), addr(3)}, now); len(got) != 1 || got[0] != addr(3) {
		t.Errorf("within a minute: %v", got)
	}
	if got := b.fresh(member(2), []netip.AddrPort{addr(1)}, now); len(got) != 1 {
		t.Errorf("the same address of another member: %v", got)
	}
	now = now.Add(1)
	if got := b.fresh(member(1), []netip.AddrPort{addr(1), addr(3)}, now); len(got) != 1 || got[0] != addr(1) {
		t.Errorf("after a minute: %v", got)
	}
	total := 0
	for i := range 10_000 {
		total += len(b.fresh(member(1), []netip.AddrPort{addr(i)}, now))
	}
	if total > maxSighted || len(b.seen[member(1)]) > maxSighted {
		t.Errorf("%d addresses of one member reported at once, %d kept", total, len(b.seen[member(1)]))
	}
}
