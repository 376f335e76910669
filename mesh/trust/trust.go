// Package trust decides who belongs to a mesh.
//
// Authority is a log of signed entries in the ledger's topic "mesh". The log
// has no order that everybody sees: nodes write at the same time, in
// partitions, and learn of each other's entries late. So what the log means is
// defined on the set of its entries. [Evaluate] is a pure function of that set:
// two nodes that hold the same entries agree on every member, in whatever order
// the entries reached them.
//
// Authors are settled from the most senior down. The founder has rank 1; whoever
// an author of rank r admits has rank r+1. Where several authors admit one key,
// the most senior counts. An author that gives one number of its chain to two
// entries is not believed from that number on.
package trust

import (
	"bytes"
	"cmp"
	"crypto/hkdf"
	"crypto/sha256"
	"errors"
	"fmt"
	"slices"

	"github.com/balanceai/balance/mesh/identity"
	"github.com/balanceai/balance/mesh/wire"
)

// Member is a node that belongs to the mesh.
type Member struct {
	ID     identity.ID
	Name   string // unique in the mesh
	Owner  string
	Role   Role
	Rank   int // 1 is the founder; lower is more senior
	Rights Rights
	WG     identity.WGPublic // zero until the node has said which key it uses
	By     identity.ID       // who admitted it
	Join   identity.ID       // with which invite; zero for none
	Since  int64             // admitter's clock, Unix milliseconds
	Admit  wire.Hash         // the entry that admitted it
}

// May reports whether the member has all the rights in r.
func (m Member) May(r Rights) bool { return m.Rights&r == r }

// OpenInvite is an invite in the log together with its author.
type OpenInvite struct {
	Invite
	By identity.ID
}

// State is what a set of entries means.
type State struct {
	Mesh    identity.MeshID
	Genesis Genesis
	Members map[identity.ID]Member
	Invites map[identity.ID]OpenInvite // by join key; those not used
	Guests  map[identity.ID][]Guest    // by the member that carries them
	Ignored map[wire.Hash]string       // entries that count for nothing, and why
}

// List returns the members by name.
func (s *State) List() []Member {
	out := make([]Member, 0, len(s.Members))
	for _, m := range s.Members {
		out = append(out, m)
	}
	slices.SortFunc(out, func(a, b Member) int { return cmp.Compare(a.Name, b.Name) })
	return out
}

// DiscoveryKey is a key that members share and nobody else can compute. It
// makes announcements on a LAN recognisable to members alone.
func (s *State) DiscoveryKey() [32]byte {
	k, err := hkdf.Key(sha256.New, s.Genesis.Secret[:], s.Mesh[:], "balance/discovery/1", 32)
	if err != nil {
		panic(err) // the length is a constant
	}
	return [32]byte(k)
}

// MeshID checks that e founds a mesh and returns the mesh's id. The caller of a
// join compares it with the id in the invite.
func MeshID(e *wire.Entry) (identity.MeshID, Genesis, error) {
	var g Genesis
	if e.Kind != KindGenesis || e.Topic != wire.TopicMesh {
		return identity.MeshID{}, g, fmt.Errorf("a mesh starts with a genesis record, not with %s", e.Kind)
	}
	if err := e.Verify(identity.MeshID{}); err != nil {
		return identity.MeshID{}, g, err
	}
	if err := wire.Unmarshal(e.Payload, &g); err != nil {
		return identity.MeshID{}, g, fmt.Errorf("genesis: %w", err)
	}
	if err := errors.Join(identity.CheckID(e.Author), identity.ValidName(g.Mesh), identity.ValidName(g.Name), identity.ValidName(g.Owner)); err != nil {
		return identity.MeshID{}, g, fmt.Errorf("genesis: %w", err)
	}
	return identity.MeshID(e.Hash()), g, nil
}

// Evaluate returns what a set of verified entries of the topic "mesh" means in a
// mesh. Entries of kinds that it does not know are left alone. It fails only
// when the mesh's genesis is not among them.
func Evaluate(mesh identity.MeshID, entries []*wire.Entry) (*State, error) {
	s := &State{
		Members: map[identity.ID]Member{},
		Invites: map[identity.ID]OpenInvite{},
		Guests:  map[identity.ID][]Guest{},
		Ignored: map[wire.Hash]string{},
	}
	var genesis *wire.Entry
	byAuthor := map[identity.ID][]*wire.Entry{}
	for _, e := range entries {
		switch e.Kind {
		case KindGenesis:
			if e.Hash() == wire.Hash(mesh) {
				genesis = e
			} else {
				s.Ignored[e.Hash()] = "it founds another mesh"
			}
		case KindAdmit, KindInvite, KindInviteUsed, KindWGBind, KindGuest, KindGuestEnd:
			byAuthor[e.Author] = append(byAuthor[e.Author], e)
		}
	}
	if genesis == nil {
		return nil, errors.New("no genesis record")
	}
	var err error
	if s.Mesh, s.Genesis, err = MeshID(genesis); err != nil {
		return nil, err
	}
	for author := range byAuthor {
		byAuthor[author] = s.straighten(byAuthor[author])
	}

	founder := Member{
		ID: genesis.Author, Name: s.Genesis.Name, Owner: s.Genesis.Owner, Role: Admin, Rank: 1, Rights: AllRights,
		By: genesis.Author, Since: genesis.Millis, Admit: genesis.Hash(),
	}
	for layer := []Member{founder}; len(layer) > 0; {
		for _, m := range layer {
			s.Members[m.ID] = m
		}
		layer = s.admittedBy(layer, byAuthor)
	}
	for author, list := range byAuthor {
		if _, ok := s.Members[author]; !ok {
			for _, e := range list {
				s.Ignored[e.Hash()] = "its author is not a member"
			}
		}
	}
	s.bindKeys(byAuthor)
	s.uniqueNames()
	for id, m := range s.Members {
		if list := s.guestsOf(m, byAuthor[id]); len(list) > 0 {
			s.Guests[id] = list
		}
	}
	return s, nil
}

// straighten puts an author's entries into the order of its chain, without
// repetitions, and stops where the chain forks.
func (s *State) straighten(list []*wire.Entry) []*wire.Entry {
	slices.SortFunc(list, func(a, b *wire.Entry) int {
		return cmp.Or(cmp.Compare(a.Segment, b.Segment), cmp.Compare(a.Seq, b.Seq), bytes.Compare(a.Raw, b.Raw))
	})
	list = slices.CompactFunc(list, func(a, b *wire.Entry) bool { return bytes.Equal(a.Raw, b.Raw) })
	for i := 1; i < len(list); i++ {
		if list[i].Segment != list[i-1].Segment || list[i].Seq != list[i-1].Seq {
			continue
		}
		for _, e := range list[i-1:] {
			s.Ignored[e.Hash()] = "its author gave one number to two entries"
		}
		return list[:i-1]
	}
	return list
}

// admittedBy returns the next layer: the keys that a layer of members, all of
// one rank, admits and that are not members yet.
func (s *State) admittedBy(layer []Member, byAuthor map[identity.ID][]*wire.Entry) []Member {
	next := map[identity.ID]Member{}
	for _, by := range layer {
		for _, m := range s.authorAdmits(by, byAuthor[by.ID]) {
			if _, senior := s.Members[m.ID]; senior {
				s.Ignored[m.Admit] = "a senior has admitted this key"
				continue
			}
			if other, ok := next[m.ID]; ok {
				if bytes.Compare(other.Admit[:], m.Admit[:]) < 0 {
					m, other = other, m
				}
				s.Ignored[other.Admit] = "another member of the same rank has admitted this key"
			}
			next[m.ID] = m
		}
	}
	out := make([]Member, 0, len(next))
	for _, m := range next {
		out = append(out, m)
	}
	slices.SortFunc(out, func(a, b Member) int { return bytes.Compare(a.Admit[:], b.Admit[:]) })
	return out
}

// authorAdmits walks one author's chain and returns those whom it validly
// admits, one for each key and one for each invite.
func (s *State) authorAdmits(by Member, chain []*wire.Entry) []Member {
	var out []Member
	invites := map[identity.ID]Invite{}
	proofs := map[identity.ID]JoinStatement{}
	admitted := map[identity.ID]bool{}
	for _, e := range chain {
		var err error
		switch e.Kind {
		case KindInvite:
			var v Invite
			if err = wire.Unmarshal(e.Payload, &v); err == nil {
				err = by.MayAdmit(v.Owner, v.Role, v.Rights)
			}
			if err == nil {
				invites[v.Join] = v
				if _, senior := s.Invites[v.Join]; !senior {
					s.Invites[v.Join] = OpenInvite{v, by.ID}
				}
			}
		case KindInviteUsed:
			var u InviteUsed
			if err = wire.Unmarshal(e.Payload, &u); err == nil {
				err = u.Verify(s.Mesh)
			}
			if err == nil {
				proofs[u.Statement.Join] = u.Statement
			}
		case KindAdmit:
			var m Member
			if m, err = by.admit(e, invites, proofs); err == nil && admitted[m.ID] {
				err = errors.New("its author has admitted this key before")
			}
			if err == nil {
				admitted[m.ID] = true
				out = append(out, m)
				delete(invites, m.Join)
				if s.Invites[m.Join].By == by.ID {
					delete(s.Invites, m.Join)
				}
			}
		}
		if err != nil {
			s.Ignored[e.Hash()] = err.Error()
		}
	}
	return out
}

// admit checks one admission by a member against what the member may do and,
// where an invite was used, against the invite and the evidence.
func (by Member) admit(e *wire.Entry, invites map[identity.ID]Invite, proofs map[identity.ID]JoinStatement) (Member, error) {
	var a Admit
	if err := wire.Unmarshal(e.Payload, &a); err != nil {
		return Member{}, err
	}
	if err := errors.Join(identity.CheckID(a.ID), identity.ValidName(a.Name), by.MayAdmit(a.Owner, a.Role, a.Rights)); err != nil {
		return Member{}, err
	}
	if !a.Join.IsZero() {
		v, ok := invites[a.Join]
		switch {
		case !ok:
			return Member{}, errors.New("the invite is not its author's, or was used before")
		case v.Owner != a.Owner || v.Role != a.Role || v.Rights != a.Rights:
			return Member{}, errors.New("the admission grants something else than its invite")
		case e.Millis > v.NotAfter:
			return Member{}, errors.New("the invite had expired")
		case proofs[a.Join].ID != a.ID:
			return Member{}, errors.New("no evidence that this key used the invite")
		}
	}
	return Member{
		ID: a.ID, Name: a.Name, Owner: a.Owner, Role: a.Role, Rank: by.Rank + 1, Rights: a.Rights,
		By: by.ID, Join: a.Join, Since: e.Millis, Admit: e.Hash(),
	}, nil
}

// MayAdmit says whether a member may admit a node with this owner, role and
// rights.
func (by Member) MayAdmit(owner string, role Role, rights Rights) error {
	switch {
	case identity.ValidName(owner) != nil:
		return identity.ValidName(owner)
	case role != Admin && role != MemberRole:
		return fmt.Errorf("unknown %v", role)
	case rights&^AllRights != 0:
		return fmt.Errorf("unknown rights %#x", rights)
	case by.Role == Admin:
		return nil
	case !by.May(MayInvite):
		return fmt.Errorf("%s may not admit nodes", by.Name)
	case owner != by.Owner:
		return fmt.Errorf("%s may admit nodes of its owner %s alone", by.Name, by.Owner)
	case role != MemberRole:
		return fmt.Errorf("%s may not admit an admin", by.Name)
	case rights&^by.Rights != 0:
		return fmt.Errorf("%s may not grant rights that it lacks", by.Name)
	}
	return nil
}

// bindKeys gives every member the WireGuard key that it named last. A key that
// two members name belongs to the senior one.
func (s *State) bindKeys(byAuthor map[identity.ID][]*wire.Entry) {
	owner := map[identity.WGPublic]identity.ID{}
	for _, m := range s.bySeniority() {
		for _, e := range slices.Backward(byAuthor[m.ID]) {
			if e.Kind != KindWGBind {
				continue
			}
			var b WGBind
			err := wire.Unmarshal(e.Payload, &b)
			if err == nil {
				err = identity.CheckWG(b.WG)
			}
			if err == nil && !owner[b.WG].IsZero() {
				err = errors.New("a senior member uses this WireGuard key")
			}
			if err != nil {
				s.Ignored[e.Hash()] = err.Error()
				continue
			}
			owner[b.WG] = m.ID
			m.WG = b.WG
			s.Members[m.ID] = m
			break
		}
	}
}

// MaxGuests is how many guests one member can have at a time: all others keep
// their addresses.
const MaxGuests = 32

// guestsOf walks one member's chain and returns the guests that it carries at
// the end of it, in the order in which it let them in.
func (s *State) guestsOf(by Member, chain []*wire.Entry) []Guest {
	var list []Guest
	for _, e := range chain {
		var err error
		switch e.Kind {
		case KindGuest:
			var g Guest
			if err = wire.Unmarshal(e.Payload, &g); err == nil {
				err = by.MayCarry(g, list)
			}
			if err == nil {
				list = append(list, g)
			}
		case KindGuestEnd:
			var end GuestEnd
			if err = wire.Unmarshal(e.Payload, &end); err == nil {
				list = slices.DeleteFunc(list, func(g Guest) bool { return g.WG == end.WG })
			}
		}
		if err != nil {
			s.Ignored[e.Hash()] = err.Error()
		}
	}
	return list
}

// MayCarry says whether a member may have a guest beside those that it has.
func (by Member) MayCarry(g Guest, has []Guest) error {
	if err := errors.Join(identity.ValidName(g.Name), identity.CheckWG(g.WG)); err != nil {
		return err
	}
	switch {
	case !by.May(MayInvite):
		return fmt.Errorf("%s may not let guests in", by.Name)
	case g.NotAfter < 0:
		return errors.New("a guest that was never good")
	case len(has) >= MaxGuests:
		return fmt.Errorf("a machine carries up to %d guests", MaxGuests)
	case slices.ContainsFunc(has, func(o Guest) bool { return o.Name == g.Name }):
		return fmt.Errorf("%s has a guest %s already", by.Name, g.Name)
	case slices.ContainsFunc(has, func(o Guest) bool { return o.WG == g.WG }):
		return fmt.Errorf("%s has a guest with this key already", by.Name)
	}
	return nil
}

// uniqueNames appends the start of the id to the name of a member whose name a
// senior one has.
func (s *State) uniqueNames() {
	taken := map[string]bool{}
	for _, m := range s.bySeniority() {
		if taken[m.Name] {
			m.Name = fmt.Sprintf("%.31s-%s", m.Name, m.ID.Short())
			s.Members[m.ID] = m
		}
		taken[m.Name] = true
	}
}

func (s *State) bySeniority() []Member {
	out := s.List()
	slices.SortFunc(out, func(a, b Member) int {
		return cmp.Or(cmp.Compare(a.Rank, b.Rank), bytes.Compare(a.Admit[:], b.Admit[:]))
	})
	return out
}
