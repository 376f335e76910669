package discovery

import (
	"bytes"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base32"
	"encoding/binary"
	"time"

	"github.com/balanceai/balance/mesh/identity"
)

// epoch numbers the quarters of an hour since 1970. A node changes its alias
// with each.
type epoch uint32

const epochLength = 15 * time.Minute

func epochAt(t time.Time) epoch { return epoch(t.Unix() / int64(epochLength/time.Second)) }

// untilNext returns how long the epoch of t still lasts.
func untilNext(t time.Time) time.Duration {
	return time.Unix((int64(epochAt(t))+1)*int64(epochLength/time.Second), 0).Sub(t)
}

// tag is the part of an alias by which members recognise a node.
type tag [16]byte

// alias is what a node is called on the local network during one epoch. All
// of it comes from HMAC-SHA-256(key, epoch ‖ node id), with the epoch as four
// bytes, most significant first: 16 bytes of tag, 8 of instance, 8 of host.
type alias struct {
	tag            tag
	instance, host string // DNS labels
}

func aliasOf(key [32]byte, id identity.ID, e epoch) alias {
	mac := hmac.New(sha256.New, key[:])
	mac.Write(binary.BigEndian.AppendUint32(nil, uint32(e)))
	mac.Write(id[:])
	sum := mac.Sum(nil)
	return alias{
		tag:      tag(sum[:16]),
		instance: base32Lower.EncodeToString(sum[16:24]),
		host:     base32Lower.EncodeToString(sum[24:]),
	}
}

var base32Lower = base32.NewEncoding("abcdefghijklmnopqrstuvwxyz234567").WithPadding(base32.NoPadding)

// The strings of the TXT record: the version of this scheme, and the tag with
// the epoch it was made for, so that clocks need not agree.
const (
	versionText = "v=1"
	tagPrefix   = "t="
	tagTextLen  = len(tagPrefix) + (4+len(tag{}))*8/5
)

func tagText(e epoch, t tag) string {
	b := binary.BigEndian.AppendUint32(nil, uint32(e))
	return tagPrefix + base32Lower.EncodeToString(append(b, t[:]...))
}

// findTagText returns the first string in a packet that has the form of a tag
// and what it says. It does not parse the packet: strings of TXT records are
// never compressed, so that the bytes of a tag are in it as they are.
func findTagText(packet []byte) (text string, e epoch, t tag, ok bool) {
	_, rest, found := bytes.Cut(packet, []byte{byte(tagTextLen), tagPrefix[0], tagPrefix[1]})
	if !found || len(rest) < tagTextLen-len(tagPrefix) {
		return "", 0, t, false
	}
	rest = rest[:tagTextLen-len(tagPrefix)]
	var b [4 + len(t)]byte
	if _, err := base32Lower.Decode(b[:], rest); err != nil {
		return "", 0, t, false
	}
	return tagPrefix + string(rest), epoch(binary.BigEndian.Uint32(b[:])), tag(b[4:]), true
}
