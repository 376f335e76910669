package mesh

import (
	"bytes"
	"time"
)

// Types of WireGuard's messages: the first byte. The three bytes after it are
// zero. See the protocol's description, https://www.wireguard.com/protocol/.
const (
	initiation = 1 // sender's index at 4
	response   = 2 // receiver's index at 8
	cookie     = 3
	transport  = 4
)

// handshakeLife is how long WireGuard waits for the answer to an initiation
// before it makes a new one.
const handshakeLife = 5 * time.Second

// precedence is how long an initiation of the peer is refused in favour of our
// own, counted from when WireGuard made ours and from when it was last sent: the
// peer may be about to answer it.
const precedence = 3 * retry

// handshakes makes WireGuard's handshake with one peer survive the loss of a
// datagram, and both ends starting at once. In either case WireGuard itself
// begins again after five seconds.
//
// A lost datagram: the other end ignores an initiation that it has seen, so a
// repeated one does not bring a lost response back. The last initiation is kept
// and sent again until it is answered, and the last response is kept and sent
// again when its initiation comes again.
//
// Both at once: an end that answers the other's initiation forgets its own, and
// if both do, no session comes about. So one of the two insists on its own for a
// while, and neither sends one that WireGuard has forgotten or is about to
// forget.
//
// All these copies stay here: WireGuard handles messages on several cores, and
// two copies of one at a time can both get past its check for replays and leave
// the ends with different keys.
type handshakes struct {
	first   bool    // of two initiations that cross, ours counts
	ours    []byte  // initiation without an answer; nil: none
	made    instant // when WireGuard made it
	sent    instant // when it was last sent
	next    instant // when it is due again; 0: never
	wait    time.Duration
	their   []byte  // last initiation of the peer that WireGuard saw
	arrived instant // when it saw it first
	passed  instant // when it saw it last
	reply   []byte  // WireGuard's response to it; nil: none yet
	replied instant // when
}

// initiated takes an initiation that WireGuard has made and reports whether to
// send it now. Within five seconds of a response WireGuard makes none: one that
// comes here was made before.
func (h *handshakes) initiated(now instant, msg []byte) bool {
	if h.replied.within(precedence, now) {
		return false
	}
	h.ours = bytes.Clone(msg)
	h.made, h.sent, h.wait = now, now, retry
	if !h.first { // in other steps than the end that would refuse it
		h.wait = retry * 3 / 4
	}
	h.next = now.add(h.wait)
	return !h.busy(now)
}

// renewed returns what remains when WireGuard's peer has been made anew: that the
// new one may be about to answer an initiation which the old one was given.
func (h *handshakes) renewed(now instant) handshakes {
	fresh := handshakes{first: h.first}
	if h.busy(now) {
		fresh.their, fresh.arrived, fresh.passed = h.their, h.arrived, h.passed
	}
	return fresh
}

// busy reports whether WireGuard is about to answer an initiation of the peer.
func (h *handshakes) busy(now instant) bool {
	return h.their != nil && h.reply == nil && h.arrived.within(retry, now)
}

// again returns the initiation, to be sent once more, if it is still of use and
// not about to be forgotten.
func (h *handshakes) again(now instant) []byte {
	if h.ours == nil {
		return nil
	}
	if !h.made.within(handshakeLife, now) {
		h.ours, h.next = nil, 0
		return nil
	}
	if now >= h.next {
		h.wait *= 2
		h.next = now.add(h.wait)
	}
	h.sent = now
	if h.busy(now) {
		return nil
	}
	return h.ours
}

// answered takes a response of the peer and reports whether WireGuard is to see
// it: the first to the initiation that waits for one.
func (h *handshakes) answered(msg []byte) bool {
	if len(h.ours) < 8 || len(msg) < 12 || !bytes.Equal(msg[8:12], h.ours[4:8]) {
		return false
	}
	h.ours, h.next = nil, 0
	return true
}

// arrives takes an initiation of the peer and reports whether WireGuard is to
// see it. If not, there may be a message to send: the response that WireGuard
// has made already, or our own initiation, which the peer seems to have missed.
func (h *handshakes) arrives(now instant, msg []byte) (pass bool, send []byte) {
	switch seen := bytes.Equal(msg, h.their); {
	case seen && h.reply != nil:
		return false, h.reply
	case seen && h.passed.within(precedence, now):
		return false, nil
	case h.first && h.ours != nil && h.made.within(precedence, now):
		return false, h.again(now)
	case h.first && h.ours != nil && h.sent.within(precedence, now):
		return false, nil
	case !seen:
		h.their, h.arrived, h.reply = bytes.Clone(msg), now, nil
	}
	h.passed = now
	return true, nil
}

// responded takes a response that WireGuard sends, which has forgotten its own
// initiation by that.
func (h *handshakes) responded(now instant, msg []byte) {
	h.ours, h.next, h.replied = nil, 0, now
	if len(h.their) >= 8 && len(msg) >= 12 && bytes.Equal(msg[8:12], h.their[4:8]) {
		h.reply = bytes.Clone(msg)
	}
}
