package wire

import (
	"bytes"
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base32"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"time"

	"github.com/balanceai/balance/mesh/identity"
)

// MaxInviteEndpoints bounds the addresses in an invite, so that it fits a QR
// code that a phone can read.
const MaxInviteEndpoints = 3

// Invite is what a new node needs to reach one node of a mesh, the door, and
// to be let in once.
//
// As bytes: version 1, mesh id (32), WireGuard public key of the door (32),
// secret (16), expiry in Unix seconds (4, big endian), number of endpoints
// (1), each 4 or 6, with 16 added for TCP, then the IP address (4 or 16 bytes) and port (2); at the
// end the first 4 bytes of the SHA-256 of all that. As text: "BAL1" and the
// bytes in Crockford's base32, which survives being read aloud.
type Invite struct {
	Mesh      identity.MeshID
	Door      identity.WGPublic
	Secret    InviteSecret
	Expires   time.Time        // whole seconds
	Endpoints []netip.AddrPort // UDP
	Streams   []netip.AddrPort // TCP; see mesh.Node.ServeStreams
}

// overTCP marks an endpoint that is a TCP address.
const overTCP = 16

// InviteSecret is the part of an invite that lets its holder in.
type InviteSecret [16]byte

// Format keeps the secret out of logs and errors.
func (InviteSecret) Format(f fmt.State, _ rune) { _, _ = f.Write([]byte("(secret)")) }

// NewInviteSecret makes a random secret.
func NewInviteSecret() (s InviteSecret, err error) {
	_, err = rand.Read(s[:])
	return s, err
}

// JoinKeys are what both sides derive from an invite's secret. The mesh's log
// holds the public halves of the first two alone.
type JoinKeys struct {
	Sign identity.Key   // the joiner signs the door's nonce with it
	WG   identity.WGKey // the joiner's WireGuard key until it is a member
	PSK  [32]byte       // WireGuard preshared key between joiner and door
}

// Keys derives the join keys: HKDF-SHA-256 (RFC 5869) of the secret, salted
// with the mesh id.
func (s InviteSecret) Keys(mesh identity.MeshID) JoinKeys {
	prk := must(hkdf.Extract(sha256.New, s[:], mesh[:]))
	derive := func(info string) [32]byte {
		return [32]byte(must(hkdf.Expand(sha256.New, prk, "balance/join/1/"+info, 32)))
	}
	return JoinKeys{
		Sign: identity.KeyFromSeed(derive("ed25519")),
		WG:   identity.WGKeyFromBytes(derive("x25519")),
		PSK:  derive("psk"),
	}
}

// Errors of [ParseInvite], for errors.Is.
var (
	ErrNoInvite      = errors.New("this is not an invite")
	ErrInviteDamaged = errors.New("the invite is damaged")
	ErrInviteVersion = errors.New("the invite is of another version of balance")
)

const (
	invitePrefix  = "BAL1"
	inviteVersion = 1
	inviteHead    = 1 + 32 + 32 + 16 + 4 + 1
	inviteSum     = 4
	maxInvite     = inviteHead + MaxInviteEndpoints*(1+16+2) + inviteSum
)

// crockford is Crockford's base32 alphabet: no I, L, O or U.
var crockford = base32.NewEncoding("0123456789ABCDEFGHJKMNPQRSTVWXYZ").WithPadding(base32.NoPadding)

// String returns the invite as one word.
func (v *Invite) String() string { return invitePrefix + crockford.EncodeToString(v.encode()) }

func (v *Invite) encode() []byte {
	b := []byte{inviteVersion}
	b = append(b, v.Mesh[:]...)
	b = append(b, v.Door[:]...)
	b = append(b, v.Secret[:]...)
	b = binary.BigEndian.AppendUint32(b, uint32(v.Expires.Unix()))
	b = append(b, byte(len(v.Endpoints)+len(v.Streams)))
	for _, e := range v.Endpoints {
		b = appendEndpoint(b, e, 0)
	}
	for _, e := range v.Streams {
		b = appendEndpoint(b, e, overTCP)
	}
	sum := sha256.Sum256(b)
	return append(b, sum[:inviteSum]...)
}

func appendEndpoint(b []byte, e netip.AddrPort, mark byte) []byte {
	family := byte(6)
	if e.Addr().Is4() {
		family = 4
	}
	b = append(b, family+mark)
	b = append(b, e.Addr().AsSlice()...)
	return binary.BigEndian.AppendUint16(b, e.Port())
}

// ParseInvite reads the text of an invite. Case, spaces, line ends and hyphens
// do not matter; O is read as 0, I and L as 1.
func ParseInvite(text string) (*Invite, error) {
	word := strings.Map(func(r rune) rune {
		switch {
		case r == ' ' || r == '\n' || r == '\r' || r == '\t' || r == '-':
			return -1
		case r >= 'a' && r <= 'z':
			return r - 'a' + 'A'
		}
		return r
	}, text)
	body, ok := strings.CutPrefix(word, invitePrefix)
	if !ok {
		return nil, fmt.Errorf("%w: it does not start with %s", ErrNoInvite, invitePrefix)
	}
	body = strings.NewReplacer("O", "0", "I", "1", "L", "1").Replace(body)
	if len(body) > crockford.EncodedLen(maxInvite) {
		return nil, fmt.Errorf("%w: it is too long", ErrInviteDamaged)
	}
	b, err := crockford.DecodeString(body)
	if err != nil {
		return nil, fmt.Errorf("%w: a character was changed", ErrInviteDamaged)
	}
	return decodeInvite(b)
}

func decodeInvite(b []byte) (*Invite, error) {
	if len(b) < inviteHead+inviteSum {
		return nil, fmt.Errorf("%w: the end is missing", ErrInviteDamaged)
	}
	b, tail := b[:len(b)-inviteSum], b[len(b)-inviteSum:]
	if sum := sha256.Sum256(b); !bytes.Equal(sum[:inviteSum], tail) {
		return nil, fmt.Errorf("%w: the checksum does not match; copy it again, whole", ErrInviteDamaged)
	}
	if b[0] != inviteVersion {
		return nil, fmt.Errorf("%w: version %d, this program reads version %d", ErrInviteVersion, b[0], inviteVersion)
	}
	v := &Invite{
		Mesh:    identity.MeshID(b[1:33]),
		Door:    identity.WGPublic(b[33:65]),
		Secret:  InviteSecret(b[65:81]),
		Expires: time.Unix(int64(binary.BigEndian.Uint32(b[81:85])), 0),
	}
	count, rest := int(b[85]), b[inviteHead:]
	if count > MaxInviteEndpoints {
		return nil, fmt.Errorf("%w: %d endpoints", ErrInviteDamaged, count)
	}
	for range count {
		if len(rest) == 0 {
			return nil, fmt.Errorf("%w: endpoint", ErrInviteDamaged)
		}
		size := map[byte]int{4: 4, 6: 16}[rest[0]&^overTCP]
		if size == 0 || len(rest) < 1+size+2 {
			return nil, fmt.Errorf("%w: endpoint", ErrInviteDamaged)
		}
		addr, _ := netip.AddrFromSlice(rest[1 : 1+size])
		to := &v.Endpoints
		if rest[0]&overTCP != 0 {
			to = &v.Streams
		}
		*to = append(*to, netip.AddrPortFrom(addr, binary.BigEndian.Uint16(rest[1+size:])))
		rest = rest[1+size+2:]
	}
	if len(rest) != 0 {
		return nil, fmt.Errorf("%w: %d bytes too many", ErrInviteDamaged, len(rest))
	}
	return v, nil
}
