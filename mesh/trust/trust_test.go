package trust

import (
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/balanceai/balance/mesh/identity"
	"github.com/balanceai/balance/mesh/wire"
)

// author writes a chain of entries for one key.
type author struct {
	keys identity.Keys
	mesh identity.MeshID
	seq  uint64
	prev wire.Hash
	now  int64
}

func newAuthor(n int) *author {
	seed := [32]byte{1, byte(n), byte(n >> 8)}
	return &author{
		keys: identity.Keys{Identity: identity.KeyFromSeed(seed), WG: identity.WGKeyFromBytes(seed)},
		now:  1_700_000_000_000,
	}
}

func (a *author) id() identity.ID { return a.keys.Identity.ID() }

func (a *author) entry(kind string, record any) *wire.Entry {
	payload, err := wire.Marshal(record)
	if err != nil {
		panic(err)
	}
	e, err := wire.NewEntry(a.keys.Identity, a.mesh, wire.Body{
		Topic: wire.TopicMesh, Segment: 1, Seq: a.seq, Prev: a.prev, Kind: kind, Millis: a.now, Payload: payload,
	})
	if err != nil {
		panic(err)
	}
	a.seq, a.prev, a.now = a.seq+1, e.Hash(), a.now+1
	return e
}

func found(a *author) *wire.Entry {
	g := a.entry(KindGenesis, Genesis{Mesh: "lab", Secret: [32]byte{1}, Recovery: newAuthor(999).id(), Name: "n0", Owner: "ana"})
	a.mesh = identity.MeshID(g.Hash())
	return g
}

func admitOf(a *author, name, owner string) Admit {
	return Admit{ID: a.id(), Name: name, Owner: owner, Role: MemberRole, Rights: AllRights}
}

func evaluate(t testing.TB, entries ...*wire.Entry) *State {
	t.Helper()
	s, err := Evaluate(meshOf(entries), entries)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// meshOf returns the id of the mesh that the first genesis founds.
func meshOf(entries []*wire.Entry) identity.MeshID {
	for _, e := range entries {
		if e.Kind == KindGenesis {
			return identity.MeshID(e.Hash())
		}
	}
	return identity.MeshID{}
}

// lab is a mesh of a founder and an author that is no member yet, with an open
// invite for it.
type lab struct {
	ana, ben *author
	join     *author // holds the join key of the invite
	entries  []*wire.Entry
}

func newLab(owner string) *lab {
	l := &lab{ana: newAuthor(0), ben: newAuthor(1), join: newAuthor(100)}
	l.entries = append(l.entries, found(l.ana))
	l.ben.mesh = l.ana.mesh
	l.entries = append(l.entries, l.ana.entry(KindInvite, Invite{
		Join: l.join.id(), WG: l.join.keys.WG.Public(), Owner: owner, Role: MemberRole, Rights: AllRights, NotAfter: l.ana.now + 3_600_000,
	}))
	return l
}

func (l *lab) evidence(t testing.TB, who *author) InviteUsed {
	t.Helper()
	u, err := SignJoin(l.ana.mesh, who.keys, l.join.keys.Identity, [32]byte{5}, "laptop")
	if err != nil {
		t.Fatal(err)
	}
	return u
}

func TestJoin(t *testing.T) {
	l := newLab("ben")
	s := evaluate(t, l.entries...)
	now := time.UnixMilli(l.ana.now)

	admit, already, err := s.Answer(l.ana.id(), l.evidence(t, l.ben), now)
	if err != nil || already != nil {
		t.Fatalf("Answer = %v, %v, %v", admit, already, err)
	}
	l.entries = append(l.entries,
		l.ana.entry(KindInviteUsed, l.evidence(t, l.ben)), l.ana.entry(KindAdmit, admit),
		l.ben.entry(KindWGBind, WGBind{l.ben.keys.WG.Public()}))
	s = evaluate(t, l.entries...)
	m, ok := s.Members[l.ben.id()]
	if !ok || m.Owner != "ben" || m.Name != "laptop" || m.Rank != 2 || m.WG != l.ben.keys.WG.Public() {
		t.Fatalf("member after join: %+v, ignored %v", m, s.Ignored)
	}
	if len(s.Invites) != 0 {
		t.Error("a used invite is still open")
	}

	// The same identity asks again, and another one tries the used invite.
	if _, already, err := s.Answer(l.ana.id(), l.evidence(t, l.ben), now); err != nil || already == nil || already.ID != l.ben.id() {
		t.Errorf("second request of the same node = %v, %v", already, err)
	}
	if _, _, err := s.Answer(l.ana.id(), l.evidence(t, newAuthor(2)), now); !errors.Is(err, ErrInviteUsed) {
		t.Errorf("another node with the used invite: %v", err)
	}
}

func TestAnswerRefuses(t *testing.T) {
	l := newLab("ben")
	s := evaluate(t, l.entries...)
	now := time.UnixMilli(l.ana.now)
	good := l.evidence(t, l.ben)
	if _, _, err := s.Answer(l.ana.id(), good, now.Add(2*time.Hour)); !errors.Is(err, ErrInviteExpired) {
		t.Errorf("after expiry: %v", err)
	}
	if _, _, err := s.Answer(newAuthor(3).id(), good, now); !errors.Is(err, ErrInviteUnknown) {
		t.Errorf("at another door: %v", err)
	}
	for name, change := range map[string]func(*InviteUsed){
		"nonce":  func(u *InviteUsed) { u.Statement.Nonce[0]++ },
		"name":   func(u *InviteUsed) { u.Statement.Name = "root" },
		"id":     func(u *InviteUsed) { u.Statement.ID = newAuthor(3).id() },
		"weak":   func(u *InviteUsed) { u.Statement.ID = identity.ID{1} },
		"wg":     func(u *InviteUsed) { u.Statement.WG = identity.WGPublic{} },
		"join":   func(u *InviteUsed) { u.Statement.Join = newAuthor(3).id() },
		"idsig":  func(u *InviteUsed) { u.IDSig[3]++ },
		"keysig": func(u *InviteUsed) { u.JoinSig[3]++ },
	} {
		u := good
		change(&u)
		if _, _, err := s.Answer(l.ana.id(), u, now); err == nil {
			t.Errorf("%s changed: admitted", name)
		}
	}
	// A name that is taken, and one that is no name.
	u, _ := SignJoin(l.ana.mesh, l.ben.keys, l.join.keys.Identity, [32]byte{}, "n0")
	if a, _, err := s.Answer(l.ana.id(), u, now); err != nil || a.Name != "n0-2" {
		t.Errorf("taken name: %+v, %v", a, err)
	}
	u, _ = SignJoin(l.ana.mesh, l.ben.keys, l.join.keys.Identity, [32]byte{}, "../x")
	if a, _, err := s.Answer(l.ana.id(), u, now); err != nil || a.Name != "node" {
		t.Errorf("bad name: %+v, %v", a, err)
	}
}

// What an admission may not do, whatever its author writes into the log (T17).
func TestAdmissionsBeyondTheInvite(t *testing.T) {
	base := func() (*lab, InviteUsed) { l := newLab("ben"); return l, l.evidence(t, l.ben) }
	for name, forge := range map[string]func(l *lab, a *Admit) []*wire.Entry{
		"asks for admin":     func(l *lab, a *Admit) []*wire.Entry { a.Role = Admin; return nil },
		"asks other owner":   func(l *lab, a *Admit) []*wire.Entry { a.Owner = "ana"; return nil },
		"asks fewer rights":  func(l *lab, a *Admit) []*wire.Entry { a.Rights = 1; return nil },
		"asks other rights":  func(l *lab, a *Admit) []*wire.Entry { a.Rights = 0xff; return nil },
		"admits another key": func(l *lab, a *Admit) []*wire.Entry { a.ID = newAuthor(4).id(); return nil },
		"weak key":           func(l *lab, a *Admit) []*wire.Entry { a.ID = identity.ID{1}; return nil },
		"bad name":           func(l *lab, a *Admit) []*wire.Entry { a.Name = "\x1b[2J"; return nil },
		"unknown invite":     func(l *lab, a *Admit) []*wire.Entry { a.Join = newAuthor(4).id(); return nil },
		"expired": func(l *lab, a *Admit) []*wire.Entry {
			l.ana.now += 2 * 3_600_000
			return nil
		},
		"invite used twice": func(l *lab, a *Admit) []*wire.Entry {
			first := *a
			a.ID = newAuthor(4).id()
			return []*wire.Entry{l.ana.entry(KindAdmit, first)}
		},
	} {
		l, proof := base()
		a := Admit{ID: l.ben.id(), Name: "laptop", Owner: "ben", Role: MemberRole, Rights: AllRights, Join: l.join.id()}
		l.entries = append(l.entries, l.ana.entry(KindInviteUsed, proof))
		l.entries = append(l.entries, forge(l, &a)...)
		last := l.ana.entry(KindAdmit, a)
		s := evaluate(t, append(l.entries, last)...)
		if s.Ignored[last.Hash()] == "" {
			t.Errorf("%s: counts", name)
		}
	}
}

// A member may invite further nodes of its own owner; an admin anyone.
func TestWhoMayAdmit(t *testing.T) {
	ana, ben, carl := newAuthor(0), newAuthor(1), newAuthor(2)
	g := found(ana)
	ben.mesh = ana.mesh
	for _, test := range []struct {
		name   string
		ben    Admit
		carl   Admit
		counts bool
	}{
		{"member, same owner", admitOf(ben, "b", "ben"), admitOf(carl, "c", "ben"), true},
		{"member, other owner", admitOf(ben, "b", "ben"), admitOf(carl, "c", "ana"), false},
		{"member makes an admin", admitOf(ben, "b", "ben"), Admit{carl.id(), "c", "ben", Admin, AllRights, identity.ID{}}, false},
		{"member without the right", Admit{ben.id(), "b", "ben", MemberRole, MayDispatch, identity.ID{}}, Admit{carl.id(), "c", "ben", MemberRole, MayDispatch, identity.ID{}}, false},
		{"member grants what it lacks", Admit{ben.id(), "b", "ben", MemberRole, MayInvite, identity.ID{}}, Admit{carl.id(), "c", "ben", MemberRole, MayInvite | MayExecute, identity.ID{}}, false},
		{"admin, other owner", Admit{ben.id(), "b", "ben", Admin, AllRights, identity.ID{}}, admitOf(carl, "c", "carl"), true},
		{"admin makes an admin", Admit{ben.id(), "b", "ben", Admin, AllRights, identity.ID{}}, Admit{carl.id(), "c", "carl", Admin, AllRights, identity.ID{}}, true},
	} {
		a, b := *ana, *ben
		s := evaluate(t, g, a.entry(KindAdmit, test.ben), b.entry(KindAdmit, test.carl))
		if _, ok := s.Members[carl.id()]; ok != test.counts {
			t.Errorf("%s: member %v, want %v (%v)", test.name, ok, test.counts, s.Ignored)
		}
	}
}

func TestStrangersRecordsCountForNothing(t *testing.T) {
	ana, eve := newAuthor(0), newAuthor(1)
	g := found(ana)
	eve.mesh = ana.mesh
	e := eve.entry(KindAdmit, admitOf(eve, "e", "eve"))
	s := evaluate(t, g, e, eve.entry(KindWGBind, WGBind{eve.keys.WG.Public()}))
	if len(s.Members) != 1 || !strings.Contains(s.Ignored[e.Hash()], "not a member") {
		t.Errorf("members %v, ignored %v", s.Members, s.Ignored)
	}
	if _, err := Evaluate(ana.mesh, []*wire.Entry{e}); err == nil {
		t.Error("a log without genesis is accepted")
	}
	second := found(newAuthor(7))
	if s := evaluate(t, g, second); len(s.Members) != 1 || s.Ignored[second.Hash()] == "" {
		t.Error("a second genesis counts")
	}
}

func TestGenesisMustBeSound(t *testing.T) {
	ana := newAuthor(0)
	for name, g := range map[string]Genesis{
		"mesh name": {Mesh: "La b", Name: "n0", Owner: "ana"},
		"node name": {Mesh: "lab", Name: "", Owner: "ana"},
		"owner":     {Mesh: "lab", Name: "n0", Owner: "\x1b"},
	} {
		e := newAuthor(0).entry(KindGenesis, g)
		if _, err := Evaluate(identity.MeshID(e.Hash()), []*wire.Entry{e}); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	good := found(ana)
	good.Sig[0]++
	if _, _, err := MeshID(good); !errors.Is(err, wire.ErrSignature) {
		t.Errorf("genesis with a bad signature: %v", err)
	}
}

func TestReservedKindsAreCarriedNotObeyed(t *testing.T) {
	l := newLab("ben")
	for _, kind := range []string{KindRevoke, KindRenew, KindRecover, KindFork, "offer", "from-the-future"} {
		l.entries = append(l.entries, l.ana.entry(kind, map[int]int{1: 1}))
	}
	s := evaluate(t, l.entries...)
	if len(s.Members) != 1 || len(s.Invites) != 1 || len(s.Ignored) != 0 {
		t.Errorf("reserved kinds changed the state: %+v", s)
	}
}

// history draws entries by up to eight keys: sensible and hopeless admissions,
// keys bound by several members, invites, and authors that fork their chain.
func history(t *rapid.T) []*wire.Entry {
	authors := make([]*author, 8)
	for i := range authors {
		authors[i] = newAuthor(i)
	}
	entries := []*wire.Entry{found(authors[0])}
	owners := []string{"ana", "ben"}
	for _, a := range authors[1:] {
		a.mesh = authors[0].mesh
	}
	for range rapid.IntRange(1, 40).Draw(t, "operations") {
		by := authors[rapid.IntRange(0, 7).Draw(t, "author")]
		who := authors[rapid.IntRange(0, 7).Draw(t, "subject")]
		if rapid.IntRange(0, 15).Draw(t, "fork") == 0 && by.seq > 1 {
			fork := *by // the chain goes on twice from here
			entries = append(entries, fork.entry(KindWGBind, WGBind{newAuthor(50).keys.WG.Public()}))
		}
		switch rapid.SampledFrom([]string{KindAdmit, KindAdmit, KindAdmit, KindWGBind, KindInvite, KindGuest, KindGuestEnd}).Draw(t, "kind") {
		case KindAdmit:
			entries = append(entries, by.entry(KindAdmit, Admit{
				ID: who.id(), Name: fmt.Sprintf("n%d", rapid.IntRange(0, 3).Draw(t, "name")), Owner: rapid.SampledFrom(owners).Draw(t, "owner"),
				Role: rapid.SampledFrom([]Role{Admin, MemberRole}).Draw(t, "role"), Rights: Rights(rapid.IntRange(0, 15).Draw(t, "rights")),
			}))
		case KindWGBind:
			entries = append(entries, by.entry(KindWGBind, WGBind{who.keys.WG.Public()}))
		case KindGuest:
			entries = append(entries, by.entry(KindGuest, guestOf(rapid.IntRange(0, 3).Draw(t, "guest"), fmt.Sprintf("g%d", rapid.IntRange(0, 3).Draw(t, "guest name")))))
		case KindGuestEnd:
			entries = append(entries, by.entry(KindGuestEnd, GuestEnd{guestOf(rapid.IntRange(0, 3).Draw(t, "guest"), "").WG}))
		case KindInvite:
			j := newAuthor(200 + rapid.IntRange(0, 3).Draw(t, "invite"))
			entries = append(entries, by.entry(KindInvite, Invite{Join: j.id(), WG: j.keys.WG.Public(), Owner: "ana", Role: MemberRole, Rights: AllRights, NotAfter: by.now + 10}))
		}
	}
	return entries
}

// The state is a function of the set of entries: neither order nor repetition
// matters (T38).
func TestOrderDoesNotMatter(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		entries := history(t)
		want, err := Evaluate(meshOf(entries), slices.Clone(entries))
		if err != nil {
			t.Fatal(err)
		}
		seed := rapid.Uint64().Draw(t, "seed")
		r := rand.New(rand.NewPCG(seed, 1))
		for range 6 {
			again := slices.Clone(entries)
			r.Shuffle(len(again), func(i, j int) { again[i], again[j] = again[j], again[i] })
			again = append(again, again[:r.IntN(len(again))]...)
			got, err := Evaluate(meshOf(entries), again)
			if err != nil {
				t.Fatal(err)
			}
			if !reflect.DeepEqual(got, want) {
				t.Fatalf("another order gives\n%+v\nnot\n%+v", got, want)
			}
		}
	})
}

// Independent checks of what Evaluate promises, that know nothing of how it
// works: everyone's admitter is a senior member, entitled to it; nothing that a
// junior writes changes a senior.
func TestSeniority(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		entries := history(t)
		s, err := Evaluate(meshOf(entries), slices.Clone(entries))
		if err != nil {
			t.Fatal(err)
		}
		names := map[string]bool{}
		keys := map[identity.WGPublic]bool{}
		for _, m := range s.Members {
			if names[m.Name] {
				t.Fatalf("two members are called %s", m.Name)
			}
			names[m.Name] = true
			if m.WG != (identity.WGPublic{}) && keys[m.WG] {
				t.Fatalf("two members use one WireGuard key")
			}
			keys[m.WG] = true
			if m.Rank == 1 {
				continue
			}
			by, ok := s.Members[m.By]
			if !ok || by.Rank != m.Rank-1 {
				t.Fatalf("%s of rank %d was admitted by %+v", m.Name, m.Rank, by)
			}
			if by.Role != Admin && (m.Role == Admin || m.Owner != by.Owner || m.Rights&^by.Rights != 0 || by.Rights&MayInvite == 0) {
				t.Fatalf("%+v admitted %+v", by, m)
			}
		}

		without := s.bySeniority()[len(s.Members)-1]
		var rest []*wire.Entry
		for _, e := range entries {
			if e.Author != without.ID {
				rest = append(rest, e)
			}
		}
		if without.Rank == 1 {
			return
		}
		before, err := Evaluate(meshOf(entries), rest)
		if err != nil {
			t.Fatal(err)
		}
		strip := func(m map[identity.ID]Member) map[identity.ID]Member {
			out := maps.Clone(m)
			for id, v := range out {
				if v.Rank >= without.Rank {
					delete(out, id)
				}
			}
			return out
		}
		if got, want := strip(s.Members), strip(before.Members); !reflect.DeepEqual(got, want) {
			t.Fatalf("a junior's entries changed seniors: %v, without them %v", got, want)
		}
	})
}

func FuzzEvaluate(f *testing.F) {
	l := newLab("ben")
	a := l.ana.entry(KindAdmit, admitOf(l.ben, "b", "ben"))
	f.Add(a.Payload, uint8(0))
	f.Add(l.entries[1].Payload, uint8(1))
	f.Add(l.ana.entry(KindGuest, guestOf(1, "phone")).Payload, uint8(4))
	f.Add(l.ana.entry(KindGuestEnd, GuestEnd{guestOf(1, "").WG}).Payload, uint8(5))
	f.Fuzz(func(t *testing.T, payload []byte, kind uint8) {
		ana := newAuthor(0)
		g := found(ana)
		kinds := []string{KindAdmit, KindInvite, KindInviteUsed, KindWGBind, KindGuest, KindGuestEnd}
		e, err := wire.NewEntry(ana.keys.Identity, ana.mesh, wire.Body{
			Topic: wire.TopicMesh, Segment: 1, Seq: 1, Prev: g.Hash(), Kind: kinds[int(kind)%len(kinds)], Payload: payload,
		})
		if err != nil {
			t.Skip("not an entry: ", err)
		}
		if _, err := Evaluate(ana.mesh, []*wire.Entry{g, e}); err != nil {
			t.Fatal(err)
		}
	})
}
