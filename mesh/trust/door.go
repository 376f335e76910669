package trust

import (
	"errors"
	"fmt"
	"time"

	"github.com/balanceai/balance/mesh/identity"
)

// Reasons for which a door refuses a joiner, for errors.Is.
var (
	ErrInviteUnknown = errors.New("this node did not issue the invite")
	ErrInviteExpired = errors.New("the invite has expired")
	ErrInviteUsed    = errors.New("the invite was used by another node")
)

// Answer decides a join request at the door, the node door that issued the
// invite. It returns the admission to write, or the member that the same
// request made before. The caller writes the admission and the evidence in one
// transaction, so that an invite is used once.
func (s *State) Answer(door identity.ID, u InviteUsed, now time.Time) (admit *Admit, already *Member, err error) {
	if err := u.Verify(s.Mesh); err != nil {
		return nil, nil, err
	}
	for _, m := range s.Members {
		if m.Join != u.Statement.Join {
			continue
		}
		if m.ID != u.Statement.ID {
			return nil, nil, ErrInviteUsed
		}
		return nil, &m, nil
	}
	v, ok := s.Invites[u.Statement.Join]
	if !ok || v.By != door {
		return nil, nil, ErrInviteUnknown
	}
	if now.After(v.Expires()) {
		return nil, nil, fmt.Errorf("%w at %s", ErrInviteExpired, v.Expires().Format(time.RFC3339))
	}
	if m, ok := s.Members[u.Statement.ID]; ok {
		return nil, &m, nil // a member joins again: the invite stays unused
	}
	return &Admit{
		ID: u.Statement.ID, Name: s.freeName(u.Statement.Name), Owner: v.Owner, Role: v.Role, Rights: v.Rights, Join: v.Join,
	}, nil, nil
}

// freeName returns wish, or wish with the first number that makes it unique.
func (s *State) freeName(wish string) string {
	if identity.ValidName(wish) != nil {
		wish = "node"
	}
	taken := map[string]bool{}
	for _, m := range s.Members {
		taken[m.Name] = true
	}
	name := wish
	for n := 2; taken[name]; n++ {
		name = fmt.Sprintf("%.36s-%d", wish, n)
	}
	return name
}
