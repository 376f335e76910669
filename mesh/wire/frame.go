package wire

import (
	"crypto/sha256"

	"github.com/balanceai/balance/mesh/identity"
)

// A frame is a message of WireGuard or a probe on its way through a relay: a
// member that both ends reach. It shares WireGuard's UDP socket. A header of
// FrameHeader bytes stands before the message:
//
//	0  mark 0xB6
//	1  direction: 1 to the relay, 2 from the relay
//	2  0, ignored (2)
//	4  name of the other end, XOR the mask of relay and neighbour (8)
//
// The name is the first 8 bytes of SHA-256 of "balance/relay/1" and a WireGuard
// public key: to the relay that of the receiver, from the relay that of the
// sender. The mask comes from the secret of the two ends of the leg, one for
// each direction (see [Probe]), so that who listens cannot tell members by it,
// and who has never seen a frame of a leg cannot make one that means anything.
//
// What is inside is authenticated from end to end; a relay can only drop it.
type FrameDirection byte

// Directions of frames.
const (
	ToRelay   FrameDirection = 1
	FromRelay FrameDirection = 2
)

// FrameHeader is the length of the header.
const FrameHeader = 12

const frameMark = 0xB6

// FrameName names an end of a relayed path.
type FrameName [8]byte

// NameOf returns the name of the node with a WireGuard key.
func NameOf(key identity.WGPublic) FrameName {
	sum := sha256.Sum256(append([]byte("balance/relay/1"), key[:]...))
	return FrameName(sum[:8])
}

// SealFrame writes the header of a frame that goes over the leg of k.
func (k *ProbeKey) SealFrame(b []byte, d FrameDirection, other FrameName) {
	b[0], b[1], b[2], b[3] = frameMark, byte(d), 0, 0
	for i := range other {
		b[4+i] = other[i] ^ k.mask[i]
	}
}

// IsFrame reports whether b has the form of a frame.
func IsFrame(b []byte) bool {
	return len(b) > FrameHeader && b[0] == frameMark && (b[1] == byte(ToRelay) || b[1] == byte(FromRelay))
}

// OpenFrame reads the header of a frame that came over the leg of k. Only for
// what [IsFrame] accepts; the name may be nobody's.
func (k *ProbeKey) OpenFrame(b []byte) (d FrameDirection, other FrameName) {
	for i := range other {
		other[i] = b[4+i] ^ k.mask[i]
	}
	return FrameDirection(b[1]), other
}
