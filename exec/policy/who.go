package policy

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"github.com/balanceai/balance/mesh/identity"
)

// Asker is who wants a run on a machine, as the membership log has it.
type Asker struct {
	Owner string
	Node  string // name of the machine that sends the run
	Role  string // of that machine, one of the roles
}

// Roles of members that a grant can be for, as package trust names them.
const (
	RoleAdmin  = "admin"
	RoleMember = "member"
)

// fits reports whether a grant is for who asks. Names are compared byte by byte:
// one that looks like another is another.
func (g *Grant) fits(who Asker) bool {
	return who.Owner != "" && (g.Owner == AnyOwner || g.Owner == who.Owner) &&
		(g.Node == "" || g.Node == who.Node) && (g.Role == "" || g.Role == who.Role)
}

// rank orders grants: what says more about who it is for counts first.
func (g *Grant) rank() int {
	rank := 0
	if g.Node != "" {
		rank += 4
	}
	if g.Owner != AnyOwner {
		rank += 2
	}
	if g.Role != "" {
		rank++
	}
	return rank
}

// Grant finds the grant for who asks: of those that fit, the one that is the
// most exact about whom it is for. Others count for nothing.
func (t Terms) Grant(who Asker) (Grant, bool) {
	var best *Grant
	for i := range t.Others {
		if g := &t.Others[i]; g.fits(who) && (best == nil || g.rank() > best.rank()) {
			best = g
		}
	}
	if best == nil {
		return Grant{}, false
	}
	return *best, true
}

// Who names whom a grant is for, in a few words.
func (g *Grant) Who() string {
	who := g.Owner
	if who == AnyOwner {
		who = "every member"
	}
	if g.Role != "" {
		who += " as " + g.Role
	}
	if g.Node != "" {
		who += " from " + g.Node
	}
	return who
}

func (g *Grant) checkWho() error {
	if g.Owner != AnyOwner {
		if err := identity.ValidName(g.Owner); err != nil {
			return fmt.Errorf("owner: %w", err)
		}
	}
	switch {
	case g.Node != "" && g.Owner == AnyOwner:
		return fmt.Errorf("node %.40q: say whose machine it is: owner", g.Node) // whoever joins chooses a name
	case g.Node != "" && identity.ValidName(g.Node) != nil:
		return fmt.Errorf("node: %w", identity.ValidName(g.Node))
	case g.Role != "" && g.Role != RoleAdmin && g.Role != RoleMember:
		return fmt.Errorf("unknown role %.40q: admin and member are known", g.Role)
	}
	return nil
}

// Words are several words in one value, with a space between two: records nest
// four levels at most, and a grant is the fourth of an offer.
type Words string

// List returns the words.
func (w Words) List() []string { return strings.Fields(string(w)) }

// Has reports whether a word is among them.
func (w Words) Has(word string) bool { return slices.Contains(w.List(), word) }

// MarshalJSON writes a list.
func (w Words) MarshalJSON() ([]byte, error) { return json.Marshal(w.List()) }

// UnmarshalJSON reads one.
func (w *Words) UnmarshalJSON(b []byte) error {
	var list []string
	if err := json.Unmarshal(b, &list); err != nil {
		return err
	}
	*w = Words(strings.Join(list, " "))
	return nil
}
