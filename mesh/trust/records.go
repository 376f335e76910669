package trust

import (
	"errors"
	"fmt"
	"time"

	"github.com/balanceai/balance/mesh/identity"
	"github.com/balanceai/balance/mesh/wire"
)

// Kinds of entries in the topic [wire.TopicMesh] that say who belongs. The
// last four are reserved: they are stored and passed on, and change nothing.
const (
	KindGenesis    = "genesis"
	KindAdmit      = "admit"
	KindInvite     = "invite"
	KindInviteUsed = "invite-used"
	KindWGBind     = "wgbind"
	KindGuest      = "guest"
	KindGuestEnd   = "guest-end"

	KindRevoke  = "revoke"
	KindRenew   = "renew"
	KindRecover = "recover"
	KindFork    = "fork"
)

// Role says whom a member may admit.
type Role uint8

// The roles.
const (
	Admin      Role = 1 // anyone
	MemberRole Role = 2 // further nodes of its own owner
)

func (r Role) String() string {
	switch r {
	case Admin:
		return "admin"
	case MemberRole:
		return "member"
	}
	return fmt.Sprintf("role(%d)", uint8(r))
}

// Rights is a set of what a member may do.
type Rights uint8

// The rights.
const (
	MayDispatch Rights = 1 << iota // send runs to others
	MayExecute                     // be sent runs
	MayInvite                      // admit nodes of the same owner
	MayRelay                       // forward ciphertext

	AllRights = MayDispatch | MayExecute | MayInvite | MayRelay
)

// Genesis is the first record of a mesh. Its author is the founder, who is an
// admin; the SHA-256 of the entry is the mesh id. It is signed with a zero mesh
// id.
type Genesis struct {
	Mesh     string      `cbor:"1,keyasint"` // name, a DNS label
	Secret   [32]byte    `cbor:"2,keyasint"` // known to members alone; see [State.DiscoveryKey]
	Recovery identity.ID `cbor:"3,keyasint"` // public half of the recovery key
	Name     string      `cbor:"4,keyasint"` // of the founder's node
	Owner    string      `cbor:"5,keyasint"`
}

// Admit makes a key a member.
type Admit struct {
	ID     identity.ID `cbor:"1,keyasint"`
	Name   string      `cbor:"2,keyasint"`
	Owner  string      `cbor:"3,keyasint"`
	Role   Role        `cbor:"4,keyasint"`
	Rights Rights      `cbor:"5,keyasint"`
	Join   identity.ID `cbor:"6,keyasint"` // the invite that was used: [Invite].Join; zero for none
}

// Invite announces that its author will admit one node, which proves that it
// holds the secret. Only public halves of the join keys are in it.
type Invite struct {
	Join     identity.ID       `cbor:"1,keyasint"`
	WG       identity.WGPublic `cbor:"2,keyasint"`
	Owner    string            `cbor:"3,keyasint"`
	Role     Role              `cbor:"4,keyasint"`
	Rights   Rights            `cbor:"5,keyasint"`
	NotAfter int64             `cbor:"6,keyasint"` // Unix milliseconds
}

// Expires returns the time after which the invite is void.
func (v Invite) Expires() time.Time { return time.UnixMilli(v.NotAfter) }

// JoinStatement is what a joiner signs, with its identity and with the join key
// of the invite, to be admitted.
type JoinStatement struct {
	Nonce [32]byte          `cbor:"1,keyasint"` // chosen by the door for this request
	ID    identity.ID       `cbor:"2,keyasint"`
	WG    identity.WGPublic `cbor:"3,keyasint"`
	Name  string            `cbor:"4,keyasint"` // wished for; the door may give another
	Join  identity.ID       `cbor:"5,keyasint"`
}

// InviteUsed is the evidence on which a node was admitted.
type InviteUsed struct {
	Statement JoinStatement      `cbor:"1,keyasint"`
	JoinSig   identity.Signature `cbor:"2,keyasint"`
	IDSig     identity.Signature `cbor:"3,keyasint"`
}

// kindJoin is the domain of the two signatures in [InviteUsed].
const kindJoin = "join"

// SignJoin makes the evidence that a joiner sends.
func SignJoin(mesh identity.MeshID, node identity.Keys, join identity.Key, nonce [32]byte, name string) (InviteUsed, error) {
	s := JoinStatement{Nonce: nonce, ID: node.Identity.ID(), WG: node.WG.Public(), Name: name, Join: join.ID()}
	body, err := wire.Marshal(s)
	if err != nil {
		return InviteUsed{}, err
	}
	return InviteUsed{s, join.Sign(kindJoin, mesh, body), node.Identity.Sign(kindJoin, mesh, body)}, nil
}

// Verify checks both signatures and the keys that they introduce.
func (u InviteUsed) Verify(mesh identity.MeshID) error {
	body, err := wire.Marshal(u.Statement)
	if err != nil {
		return err
	}
	if err := identity.CheckID(u.Statement.ID); err != nil {
		return fmt.Errorf("joiner's identity: %w", err)
	}
	if err := identity.CheckWG(u.Statement.WG); err != nil {
		return fmt.Errorf("joiner's WireGuard key: %w", err)
	}
	if !identity.Verify(u.Statement.ID, kindJoin, mesh, body, u.IDSig) ||
		!identity.Verify(u.Statement.Join, kindJoin, mesh, body, u.JoinSig) {
		return errors.New("join request: signature does not verify")
	}
	return nil
}

// Guest lets a plain WireGuard device into the mesh, which its author carries:
// no member, it has an address and no say. It belongs to the author's owner.
type Guest struct {
	WG       identity.WGPublic `cbor:"1,keyasint"`
	Name     string            `cbor:"2,keyasint"` // unique among its author's guests
	NotAfter int64             `cbor:"3,keyasint"` // Unix milliseconds; 0: good until it is taken back
}

// Expires returns the time after which the guest is not carried any more; zero
// for never.
func (g Guest) Expires() time.Time {
	if g.NotAfter == 0 {
		return time.Time{}
	}
	return time.UnixMilli(g.NotAfter)
}

// GuestEnd takes back its author's guest of a key.
type GuestEnd struct {
	WG identity.WGPublic `cbor:"1,keyasint"`
}

// WGBind says which WireGuard key its author uses. The newest one counts.
type WGBind struct {
	WG identity.WGPublic `cbor:"1,keyasint"`
}
