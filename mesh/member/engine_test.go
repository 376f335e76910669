package member

import (
	"log/slog"
	"net"
	"net/netip"
	"testing"

	"github.com/hashicorp/memberlist"

	"github.com/balanceai/balance/mesh/identity"
)

// Nobody can speak for a member at another address than the member's own, nor
// bring in who is no member.
func TestCheck(t *testing.T) {
	mesh := identity.MeshID{1}
	self, member, stranger := identity.ID{1}, identity.ID{2}, identity.ID{3}
	l := &List{
		cfg:       Config{Mesh: mesh, Self: self, Member: func(id identity.ID) bool { return id == member }},
		transport: &transport{port: 2},
	}
	at := func(a netip.Addr) net.IP { return a.AsSlice() }
	for _, c := range []struct {
		what string
		node memberlist.Node
		ok   bool
	}{
		{"the node itself", memberlist.Node{Name: self.String(), Addr: at(mesh.Address(self)), Port: 2}, true},
		{"a member", memberlist.Node{Name: member.String(), Addr: at(mesh.Address(member)), Port: 2}, true},
		{"a member at another's address", memberlist.Node{Name: member.String(), Addr: at(mesh.Address(stranger)), Port: 2}, false},
		{"a member at another port", memberlist.Node{Name: member.String(), Addr: at(mesh.Address(member)), Port: 3}, false},
		{"a member in another mesh", memberlist.Node{Name: member.String(), Addr: at(identity.MeshID{2}.Address(member)), Port: 2}, false},
		{"a stranger", memberlist.Node{Name: stranger.String(), Addr: at(mesh.Address(stranger)), Port: 2}, false},
		{"no identity", memberlist.Node{Name: "node1", Addr: at(mesh.Address(member)), Port: 2}, false},
		{"no address", memberlist.Node{Name: member.String(), Port: 2}, false},
	} {
		if err := l.check(&c.node); (err == nil) != c.ok {
			t.Errorf("%s: %v", c.what, err)
		}
	}
}

func TestSuspicionInTheLog(t *testing.T) {
	var got []string
	log := newLogger(slog.New(slog.DiscardHandler), func(name string) { got = append(got, name) })
	log.Printf("[INFO] memberlist: Suspect %s has failed, no acks received", "somebody")
	log.Printf("[DEBUG] memberlist: Failed UDP ping: %s (timeout reached)", "nobody")
	if len(got) != 1 || got[0] != "somebody" {
		t.Errorf("suspected %q", got)
	}
}
