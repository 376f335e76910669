package wire

import (
	"crypto/hkdf"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"net/netip"

	"github.com/balanceai/balance/mesh/identity"
)

// Probe is a ping or a pong: it shares WireGuard's UDP socket and tells
// whether a UDP address reaches a peer, how fast, and what the sender looks
// like from there.
//
// A probe has ProbeSize bytes, a pong as many as the ping that it answers, so
// that nobody gains by provoking one. Numbers are big endian:
//
//	 0  mark 0xB5; each message of WireGuard begins with 1 to 4
//	 1  kind: 1 ping, 2 pong
//	 2  0, ignored (2)
//	 4  tag: names the two keys and the direction to the receiver (8)
//	12  transaction: random in a ping, repeated in its pong (8)
//	20  instance: random, another one when the sender has lost its sessions with
//	    the receiver (8)
//	28  pong: IP address that the ping came from, IPv4 mapped into IPv6 (16)
//	44  pong: its UDP port (2)
//	46  0, ignored (2)
//	48  first half of HMAC-SHA-256 of the bytes before it (16)
//
// Tag and MAC key are 8 and 32 bytes of HKDF-SHA-256 of the X25519 secret of
// the two WireGuard keys, with info "balance/probe/1", the public key of the
// sender and the public key of the receiver. So each direction has its own, a
// ping cannot be turned round into a pong, and nobody else can make either.
type Probe struct {
	Kind     ProbeKind
	Tx       uint64
	Instance uint64
	Seen     netip.AddrPort // of a pong; never an IPv4 address mapped into IPv6
}

// ProbeKind tells a ping from a pong.
type ProbeKind byte

// Kinds of probes.
const (
	Ping ProbeKind = 1
	Pong ProbeKind = 2
)

// ProbeSize is the length of every probe.
const ProbeSize = 64

const (
	probeMark = 0xB5
	probeBody = 48 // bytes before the MAC
)

// ProbeTag names a pair of keys and a direction.
type ProbeTag [8]byte

// ProbeKey makes and checks the probes of one direction between two peers.
type ProbeKey struct {
	Tag ProbeTag
	mac [32]byte
}

// Format keeps the key out of logs and errors.
func (ProbeKey) Format(f fmt.State, _ rune) { _, _ = f.Write([]byte("(secret)")) }

// ProbeKeys derives the keys for the probes that self sends to peer and for
// those that it receives. It fails for a public key of small order.
func ProbeKeys(self identity.WGKey, peer identity.WGPublic) (send, receive ProbeKey, err error) {
	shared, err := self.Shared(peer)
	if err != nil {
		return send, receive, err
	}
	return probeKey(shared, self.Public(), peer), probeKey(shared, peer, self.Public()), nil
}

func probeKey(shared [32]byte, from, to identity.WGPublic) ProbeKey {
	info := "balance/probe/1" + string(from[:]) + string(to[:])
	b := must(hkdf.Key(sha256.New, shared[:], nil, info, 8+32))
	return ProbeKey{Tag: ProbeTag(b[:8]), mac: [32]byte(b[8:])}
}

// Seal returns the bytes of p.
func (k *ProbeKey) Seal(p Probe) []byte {
	b := make([]byte, probeBody, ProbeSize)
	b[0], b[1] = probeMark, byte(p.Kind)
	copy(b[4:], k.Tag[:])
	binary.BigEndian.PutUint64(b[12:], p.Tx)
	binary.BigEndian.PutUint64(b[20:], p.Instance)
	if p.Seen.IsValid() {
		ip := p.Seen.Addr().As16()
		copy(b[28:], ip[:])
		binary.BigEndian.PutUint16(b[44:], p.Seen.Port())
	}
	return append(b, k.sum(b)...)
}

// ParseProbeTag reports whether b has the form of a probe, and its tag: by it
// the receiver finds the key to open it with.
func ParseProbeTag(b []byte) (ProbeTag, bool) {
	if len(b) != ProbeSize || b[0] != probeMark {
		return ProbeTag{}, false
	}
	return ProbeTag(b[4:12]), true
}

// Open reads a probe. It is false for bytes that the peer did not make, or
// did not make for this direction.
func (k *ProbeKey) Open(b []byte) (Probe, bool) {
	if tag, ok := ParseProbeTag(b); !ok || tag != k.Tag || !hmac.Equal(b[probeBody:], k.sum(b[:probeBody])) {
		return Probe{}, false
	}
	p := Probe{
		Kind:     ProbeKind(b[1]),
		Tx:       binary.BigEndian.Uint64(b[12:]),
		Instance: binary.BigEndian.Uint64(b[20:]),
	}
	if p.Kind == Pong {
		ip := netip.AddrFrom16([16]byte(b[28:44])).Unmap()
		p.Seen = netip.AddrPortFrom(ip, binary.BigEndian.Uint16(b[44:]))
	}
	return p, p.Kind == Ping || p.Kind == Pong
}

func (k *ProbeKey) sum(body []byte) []byte {
	h := hmac.New(sha256.New, k.mac[:])
	h.Write(body)
	return h.Sum(nil)[:ProbeSize-probeBody]
}
