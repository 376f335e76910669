package wire

import (
	"bytes"
	"crypto/hkdf"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"net/netip"

	"golang.org/x/crypto/chacha20"

	"github.com/balanceai/balance/mesh/identity"
)

// Probe is a message about paths: it shares WireGuard's UDP socket. A ping and
// its pong tell whether a UDP address, or a relay, reaches a peer, how fast, and
// what the sender looks like from there. A call says where the caller may be,
// and asks the peer to ping it there and to say the same of itself in an
// answer: both ends have then sent a datagram through their NATs.
//
// A probe has at least ProbeSize bytes. Numbers are big endian:
//
//	 0  mark 0xB5; each message of WireGuard begins with 1 to 4
//	 1  kind: 1 ping, 2 pong, 3 call, 4 answer to a call
//	 2  place: another one when the sender's network has changed (2)
//	 4  tag: names the two keys and the direction to the receiver (8)
//	12  transaction: random in a ping, repeated in its pong (8)
//	20  instance: random, another one when the sender has lost its sessions with
//	    the receiver (8)
//	28  pong: IP address that the ping came from, IPv4 mapped into IPv6 (16)
//	44  pong: its UDP port (2)
//	46  pong: load of the sender as a relay for the receiver, in 255ths; older
//	    nodes send 0, which is also none, and ignore it (1)
//	47  0, ignored (1)
//	48  call and answer: addresses, each as at 28 (18), encrypted; ping: padding,
//	    to learn whether a datagram of that size passes
//	-16 first half of HMAC-SHA-256 of the bytes before it (16)
//
// A pong is never longer than its ping, so nobody gains by provoking one.
//
// Tag, MAC key, relay mask and cipher key are 8, 32, 8 and 32 bytes of
// HKDF-SHA-256 of the X25519 secret of the two WireGuard keys, with info
// "balance/probe/1", the public key of the sender and the public key of the
// receiver. So each direction has its own, a ping cannot be turned round into a
// pong, and nobody else can make either. The cipher is ChaCha20 (RFC 8439) with
// kind and transaction for a nonce; the MAC is of the encrypted bytes. It keeps
// a node's addresses at home from who listens on the way.
type Probe struct {
	Kind     ProbeKind
	Place    uint16
	Tx       uint64
	Instance uint64
	Seen     netip.AddrPort   // of a pong; never an IPv4 address mapped into IPv6
	Load     byte             // of a pong: 255 is a relay that can carry no more; 0 is also unknown
	Addrs    []netip.AddrPort // of a call and its answer; eight at most
	Size     int              // of a ping: bytes in all; 0 is ProbeSize
}

// ProbeKind tells a ping from a pong.
type ProbeKind byte

// Kinds of probes.
const (
	Ping   ProbeKind = 1
	Pong   ProbeKind = 2
	Call   ProbeKind = 3
	Answer ProbeKind = 4
)

// ProbeSize is the length of the shortest probe.
const ProbeSize = 64

const (
	probeMark = 0xB5
	probeBody = 48 // bytes before addresses, padding and MAC
	probeMAC  = 16
	addrSize  = 18
	maxAddrs  = 8 // in a call
)

// ProbeTag names a pair of keys and a direction.
type ProbeTag [8]byte

// ProbeKey makes and checks the probes of one direction between two peers.
type ProbeKey struct {
	Tag  ProbeTag
	mac  [32]byte
	mask [8]byte // of relay frames
	hide [32]byte
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
	b := must(hkdf.Key(sha256.New, shared[:], nil, info, 8+32+8+32))
	return ProbeKey{Tag: ProbeTag(b[:8]), mac: [32]byte(b[8:40]), mask: [8]byte(b[40:48]), hide: [32]byte(b[48:])}
}

// Seal returns the bytes of p.
func (k *ProbeKey) Seal(p Probe) []byte {
	addrs := p.Addrs[:min(len(p.Addrs), maxAddrs)]
	size := max(p.Size, ProbeSize+len(addrs)*addrSize)
	b := make([]byte, size-probeMAC, size)
	b[0], b[1] = probeMark, byte(p.Kind)
	binary.BigEndian.PutUint16(b[2:], p.Place)
	copy(b[4:], k.Tag[:])
	binary.BigEndian.PutUint64(b[12:], p.Tx)
	binary.BigEndian.PutUint64(b[20:], p.Instance)
	if p.Seen.IsValid() {
		putAddr(b[28:], p.Seen)
	}
	b[46] = p.Load
	for i, a := range addrs {
		putAddr(b[probeBody+i*addrSize:], a)
	}
	if len(addrs) > 0 {
		k.crypt(b, b[probeBody:])
	}
	return append(b, k.sum(b)...)
}

func putAddr(b []byte, a netip.AddrPort) {
	ip := a.Addr().As16()
	copy(b, ip[:])
	binary.BigEndian.PutUint16(b[16:], a.Port())
}

func getAddr(b []byte) netip.AddrPort {
	return netip.AddrPortFrom(netip.AddrFrom16([16]byte(b[:16])).Unmap(), binary.BigEndian.Uint16(b[16:]))
}

// ParseProbeTag reports whether b has the form of a probe, and its tag: by it
// the receiver finds the key to open it with.
func ParseProbeTag(b []byte) (ProbeTag, bool) {
	if len(b) < ProbeSize || b[0] != probeMark {
		return ProbeTag{}, false
	}
	return ProbeTag(b[4:12]), true
}

// Open reads a probe. It is false for bytes that the peer did not make, or
// did not make for this direction, and for kinds that are not known.
func (k *ProbeKey) Open(b []byte) (Probe, bool) {
	tag, ok := ParseProbeTag(b)
	if !ok || tag != k.Tag {
		return Probe{}, false
	}
	end := len(b) - probeMAC
	if !hmac.Equal(b[end:], k.sum(b[:end])) {
		return Probe{}, false
	}
	p := Probe{
		Kind:     ProbeKind(b[1]),
		Place:    binary.BigEndian.Uint16(b[2:]),
		Tx:       binary.BigEndian.Uint64(b[12:]),
		Instance: binary.BigEndian.Uint64(b[20:]),
	}
	switch p.Kind {
	case Ping:
		if len(b) > ProbeSize {
			p.Size = len(b)
		}
	case Pong:
		p.Seen, p.Load = getAddr(b[28:]), b[46]
	case Call, Answer:
		plain := bytes.Clone(b[probeBody:end])
		k.crypt(b, plain)
		for body := plain; len(body) >= addrSize && len(p.Addrs) < maxAddrs; body = body[addrSize:] {
			p.Addrs = append(p.Addrs, getAddr(body))
		}
	default:
		return Probe{}, false
	}
	return p, true
}

// crypt encrypts or decrypts what stands behind the header of a probe.
func (k *ProbeKey) crypt(header, body []byte) {
	var nonce [chacha20.NonceSize]byte
	nonce[0] = header[1]
	copy(nonce[4:], header[12:20])
	must(chacha20.NewUnauthenticatedCipher(k.hide[:], nonce[:])).XORKeyStream(body, body)
}

func (k *ProbeKey) sum(body []byte) []byte {
	h := hmac.New(sha256.New, k.mac[:])
	h.Write(body)
	return h.Sum(nil)[:probeMAC]
}
