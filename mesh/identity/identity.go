// Package identity holds the keys of a node and the names derived from them.
//
// A node has two key pairs that are made independently: an Ed25519 key that
// signs what the node says (its public half is the node's [ID]), and an X25519
// key that only WireGuard uses. A signed statement binds the second to the
// first; see package trust.
//
// Private keys are values that cannot be printed, marshalled or compared by
// accident: every way that fmt, slog and encoding/json know to turn a value
// into text gives "(secret)".
package identity

import (
	"crypto/ed25519"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base32"
	"encoding/hex"
	"errors"
	"fmt"
	"net/netip"

	"filippo.io/edwards25519"
)

// ID is a node's identity: its Ed25519 public key.
type ID [ed25519.PublicKeySize]byte

// MeshID names a mesh: the SHA-256 of its genesis record.
type MeshID [sha256.Size]byte

// Signature is an Ed25519 signature made by [Key.Sign].
type Signature [ed25519.SignatureSize]byte

// base32Lower is RFC 4648 base32 in lower case: safe in file names, URLs and
// DNS labels, and selected by a double click.
var base32Lower = base32.NewEncoding("abcdefghijklmnopqrstuvwxyz234567").WithPadding(base32.NoPadding)

// String returns the ID as 52 characters of lower-case base32.
func (id ID) String() string { return base32Lower.EncodeToString(id[:]) }

// Short returns the first eight characters of the ID, for people.
func (id ID) Short() string { return id.String()[:8] }

// IsZero reports whether id is the zero value, which no node has.
func (id ID) IsZero() bool { return id == ID{} }

// MarshalText makes an ID a JSON string.
func (id ID) MarshalText() ([]byte, error) { return []byte(id.String()), nil }

// UnmarshalText is the inverse of [ID.MarshalText].
func (id *ID) UnmarshalText(text []byte) error {
	got, err := ParseID(string(text))
	if err != nil {
		return err
	}
	*id = got
	return nil
}

// ParseID reads the form that [ID.String] writes.
func ParseID(s string) (ID, error) {
	var id ID
	b, err := base32Lower.DecodeString(s)
	if err != nil || len(b) != len(id) {
		return ID{}, fmt.Errorf("parse node id %q: want %d characters of base32", s, base32Lower.EncodedLen(len(id)))
	}
	copy(id[:], b)
	if id.String() != s { // the last character of base32 has spare bits
		return ID{}, fmt.Errorf("parse node id %q: not the canonical form", s)
	}
	return id, nil
}

// String returns the mesh id in hexadecimal.
func (m MeshID) String() string { return hex.EncodeToString(m[:]) }

// Short returns the first eight hexadecimal digits, for people.
func (m MeshID) Short() string { return hex.EncodeToString(m[:4]) }

// Fields of the overlay address: fd, 40 bits of the mesh id, 16 bits of
// subnet, 64 bits of interface id.
const (
	subnetMembers = 0 // interface id = SHA-256 of the node's identity
	subnetJoiners = 1 // interface id = SHA-256 of the join key of an invite
	subnetDoors   = 2 // interface id 1: the node that answers a joiner
	subnetGuests  = 3 // interface id = SHA-256 of the carrier's identity and the guest's WireGuard key
)

func (m MeshID) address(subnet byte, iface []byte) netip.Addr {
	var a [16]byte
	a[0] = 0xfd
	copy(a[1:6], m[:5])
	a[7] = subnet
	copy(a[8:], iface)
	return netip.AddrFrom16(a)
}

// Address returns the overlay address of a member: an IPv6 unique local
// address (RFC 4193) computed from the mesh and the identity, never claimed.
func (m MeshID) Address(id ID) netip.Addr {
	h := sha256.Sum256(id[:])
	return m.address(subnetMembers, h[:8])
}

// JoinAddress returns the overlay address that the holder of an invite uses
// until it is a member. id is the public half of the invite's join key.
func (m MeshID) JoinAddress(id ID) netip.Addr {
	h := sha256.Sum256(id[:])
	return m.address(subnetJoiners, h[:8])
}

// DoorAddress returns the one address that a joiner can reach: every node
// that issued an invite answers on it, inside WireGuard.
func (m MeshID) DoorAddress() netip.Addr {
	return m.address(subnetDoors, []byte{7: 1})
}

// GuestAddress returns the overlay address of a guest, a plain WireGuard device
// that a member carries. The carrier is part of it, so that no member can give
// its own guest the address of another one's.
func (m MeshID) GuestAddress(carrier ID, guest WGPublic) netip.Addr {
	h := sha256.Sum256(append(carrier[:], guest[:]...))
	return m.address(subnetGuests, h[:8])
}

// Prefix returns the overlay's network: every address of the mesh is in it.
func (m MeshID) Prefix() netip.Prefix {
	return netip.PrefixFrom(m.address(0, nil), 48)
}

// IsJoiner reports whether addr is a [MeshID.JoinAddress] of this mesh.
func (m MeshID) IsJoiner(addr netip.Addr) bool { return m.inSubnet(addr, subnetJoiners) }

// IsGuest reports whether addr is a [MeshID.GuestAddress] of this mesh.
func (m MeshID) IsGuest(addr netip.Addr) bool { return m.inSubnet(addr, subnetGuests) }

func (m MeshID) inSubnet(addr netip.Addr, subnet byte) bool {
	a := addr.As16()
	return m.Prefix().Contains(addr) && a[6] == 0 && a[7] == subnet
}

// Key is the private half of a node's identity. The zero Key is not usable.
type Key struct{ secret ed25519.PrivateKey }

// NewKey makes a random identity.
func NewKey() (Key, error) {
	_, secret, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return Key{}, fmt.Errorf("make identity key: %w", err)
	}
	return Key{secret}, nil
}

// KeyFromSeed returns the key that RFC 8032 derives from a 32-byte seed.
func KeyFromSeed(seed [ed25519.SeedSize]byte) Key {
	return Key{ed25519.NewKeyFromSeed(seed[:])}
}

// Seed returns the 32 bytes that [KeyFromSeed] makes the key from. It is for
// key files and recovery words only.
func (k Key) Seed() [ed25519.SeedSize]byte { return [ed25519.SeedSize]byte(k.secret.Seed()) }

// ID returns the public half.
func (k Key) ID() ID { return ID(k.secret.Public().(ed25519.PublicKey)) }

// Sign signs body as a statement of one kind in one mesh. Neither a statement
// of another kind nor one of another mesh verifies with the same signature.
func (k Key) Sign(kind string, mesh MeshID, body []byte) Signature {
	return Signature(ed25519.Sign(k.secret, signedBytes(kind, mesh, body)))
}

// Verify reports whether sig is id's signature on body as a statement of kind
// in mesh. It refuses keys that [CheckID] refuses only if they were checked at
// admission: the check is not repeated here.
func Verify(id ID, kind string, mesh MeshID, body []byte, sig Signature) bool {
	return ed25519.Verify(id[:], signedBytes(kind, mesh, body), sig[:])
}

// signedBytes is the domain separation of every signature of Balance:
// "balance/<kind>/1\0" ‖ mesh id ‖ body.
func signedBytes(kind string, mesh MeshID, body []byte) []byte {
	b := make([]byte, 0, len("balance//1\x00")+len(kind)+len(mesh)+len(body))
	b = append(b, "balance/"...)
	b = append(b, kind...)
	b = append(b, "/1\x00"...)
	b = append(b, mesh[:]...)
	return append(b, body...)
}

// ErrWeakID is returned by [CheckID].
var ErrWeakID = errors.New("not a safe Ed25519 public key")

// CheckID refuses public keys for which the standard library's verification
// is too lenient: encodings that are not canonical, and points of small order,
// for which one signature verifies for every message.
func CheckID(id ID) error {
	p, err := new(edwards25519.Point).SetBytes(id[:])
	if err != nil {
		return fmt.Errorf("%w: not on the curve", ErrWeakID)
	}
	if subtle.ConstantTimeCompare(p.Bytes(), id[:]) != 1 {
		return fmt.Errorf("%w: encoding is not canonical", ErrWeakID)
	}
	if new(edwards25519.Point).MultByCofactor(p).Equal(edwards25519.NewIdentityPoint()) == 1 {
		return fmt.Errorf("%w: small order", ErrWeakID)
	}
	return nil
}

// ValidName reports whether s can name a node, a mesh or an owner: a DNS label
// of lower-case letters, digits and hyphens, as those names appear in DNS.
func ValidName(s string) error {
	switch {
	case s == "":
		return errors.New("a name cannot be empty")
	case len(s) > 40:
		return fmt.Errorf("name %q is longer than 40 characters", s)
	case s[0] == '-' || s[len(s)-1] == '-':
		return fmt.Errorf("name %q: starts or ends with a hyphen", s)
	}
	for _, r := range s {
		if r != '-' && (r < 'a' || r > 'z') && (r < '0' || r > '9') {
			return fmt.Errorf("name %q: use lower-case letters, digits and hyphens", s)
		}
	}
	return nil
}
