package trust

import (
	"fmt"
	"reflect"
	"testing"

	"github.com/balanceai/balance/mesh/identity"
	"github.com/balanceai/balance/mesh/wire"
)

func guestOf(n int, name string) Guest {
	return Guest{WG: newAuthor(300 + n).keys.WG.Public(), Name: name}
}

func TestGuests(t *testing.T) {
	ana, ben, eve := newAuthor(0), newAuthor(1), newAuthor(2)
	g := found(ana)
	ben.mesh, eve.mesh = ana.mesh, ana.mesh
	phone, tablet := guestOf(1, "phone"), guestOf(2, "tablet")
	entries := []*wire.Entry{
		g, ana.entry(KindAdmit, admitOf(ben, "b", "ben")),
		ana.entry(KindGuest, phone), ana.entry(KindGuest, tablet), ben.entry(KindGuest, phone), // a name and a key may be another member's too
		ben.entry(KindGuestEnd, GuestEnd{tablet.WG}), // none of ben's
	}
	s := evaluate(t, entries...)
	if got := s.Guests; !reflect.DeepEqual(got, map[identity.ID][]Guest{ana.id(): {phone, tablet}, ben.id(): {phone}}) || len(s.Ignored) > 0 {
		t.Fatalf("guests %v, ignored %v", got, s.Ignored)
	}
	refused := []*wire.Entry{
		ana.entry(KindGuest, guestOf(3, "phone")), // the name is taken
		ana.entry(KindGuest, guestOf(1, "watch")), // the key is
		ana.entry(KindGuest, guestOf(4, "no name")),
		ana.entry(KindGuest, Guest{Name: "zero"}),
		ana.entry(KindGuest, Guest{WG: guestOf(5, "").WG, Name: "late", NotAfter: -1}),
		eve.entry(KindGuest, guestOf(6, "e")), // no member
		eve.entry(KindGuestEnd, GuestEnd{phone.WG}),
	}
	again := evaluate(t, append(entries, refused...)...)
	for _, e := range refused {
		if again.Ignored[e.Hash()] == "" {
			t.Errorf("%s of %s counts", e.Kind, e.Author.Short())
		}
	}
	if !reflect.DeepEqual(again.Guests, s.Guests) {
		t.Errorf("guests %v, want %v", again.Guests, s.Guests)
	}
	// Taken back, name and key are free again.
	s = evaluate(t, append(entries, refused[0], ana.entry(KindGuestEnd, GuestEnd{phone.WG}), ana.entry(KindGuest, guestOf(3, "phone")))...)
	if got := s.Guests[ana.id()]; !reflect.DeepEqual(got, []Guest{tablet, guestOf(3, "phone")}) {
		t.Errorf("after one was taken back: %v", got)
	}
}

func TestGuestsNeedTheRight(t *testing.T) {
	ana, ben := newAuthor(0), newAuthor(1)
	g := found(ana)
	ben.mesh = ana.mesh
	a := admitOf(ben, "b", "ben")
	a.Rights = AllRights &^ MayInvite
	e := ben.entry(KindGuest, guestOf(1, "phone"))
	if s := evaluate(t, g, ana.entry(KindAdmit, a), e); len(s.Guests) > 0 || s.Ignored[e.Hash()] == "" {
		t.Errorf("a member that may not invite carries %v", s.Guests)
	}
}

func TestGuestsAreBounded(t *testing.T) {
	ana := newAuthor(0)
	entries := []*wire.Entry{found(ana)}
	for i := range MaxGuests + 3 {
		entries = append(entries, ana.entry(KindGuest, guestOf(i, fmt.Sprintf("g%d", i))))
	}
	if s := evaluate(t, entries...); len(s.Guests[ana.id()]) != MaxGuests || len(s.Ignored) != 3 {
		t.Errorf("%d guests, %d refused", len(s.Guests[ana.id()]), len(s.Ignored))
	}
}

// What an author says after its chain has forked counts for nothing, nor does it
// take back what it said before.
func TestGuestsOfAForkedChain(t *testing.T) {
	ana := newAuthor(0)
	entries := []*wire.Entry{found(ana), ana.entry(KindGuest, guestOf(1, "phone"))}
	fork := *ana
	entries = append(entries, ana.entry(KindGuest, guestOf(2, "x")), fork.entry(KindGuestEnd, GuestEnd{guestOf(1, "").WG}))
	if s := evaluate(t, entries...); !reflect.DeepEqual(s.Guests[ana.id()], []Guest{guestOf(1, "phone")}) {
		t.Errorf("guests %v", s.Guests)
	}
}
