package wire

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/balanceai/balance/mesh/identity"
)

// Hash is the SHA-256 of an entry's body, or of a blob.
type Hash [sha256.Size]byte

// String returns the hash in hexadecimal.
func (h Hash) String() string { return hex.EncodeToString(h[:]) }

// IsZero reports whether h is the zero value, which stands for "none".
func (h Hash) IsZero() bool { return h == Hash{} }

// MarshalText makes a Hash a JSON string.
func (h Hash) MarshalText() ([]byte, error) { return []byte(h.String()), nil }

// UnmarshalText is the inverse of [Hash.MarshalText].
func (h *Hash) UnmarshalText(text []byte) error {
	got, err := ParseHash(string(text))
	if err != nil {
		return err
	}
	*h = got
	return nil
}

// ParseHash reads 64 lower-case hexadecimal digits.
func ParseHash(s string) (Hash, error) {
	b, err := hex.DecodeString(s)
	if err != nil || len(b) != len(Hash{}) || strings.ToLower(s) != s {
		return Hash{}, fmt.Errorf("%q is no SHA-256: want 64 hexadecimal digits", s)
	}
	return Hash(b), nil
}

// TopicMesh is the topic that every member holds; every other topic is the id
// of a run.
const TopicMesh = "mesh"

// Body is what an author signs: one entry of the ledger.
//
// The entries of one author in one topic form a chain for each segment: Seq
// counts from 0 and Prev is the hash of the entry before it in the segment
// (zero for the first). A daemon opens a new segment whenever it starts, so a
// node restored from a backup never gives one number to two entries.
type Body struct {
	Topic   string      `cbor:"1,keyasint"`
	Author  identity.ID `cbor:"2,keyasint"`
	Segment uint64      `cbor:"3,keyasint"`
	Seq     uint64      `cbor:"4,keyasint"`
	Prev    Hash        `cbor:"5,keyasint"`
	Kind    string      `cbor:"6,keyasint"`
	Millis  int64       `cbor:"7,keyasint"` // author's clock, Unix milliseconds: for people, never for order
	Payload []byte      `cbor:"8,keyasint"` // the kind's record, in the encoding of Marshal
}

// Time returns the author's clock when the entry was written.
func (b *Body) Time() time.Time { return time.UnixMilli(b.Millis) }

// Entry is a signed entry as it is stored and sent: the exact bytes.
type Entry struct {
	Raw []byte             `cbor:"1,keyasint"` // encoding of a Body
	Sig identity.Signature `cbor:"2,keyasint"`

	Body `cbor:"-"` // Raw, decoded
}

// Errors of entries, for errors.Is.
var (
	ErrSignature = errors.New("signature does not verify")
	ErrTooLong   = errors.New("payload too long")
)

// maxEntryOverhead bounds what an entry adds to its payload, so that a payload
// of MaxPayload always makes a record.
const (
	maxEntryOverhead = 512
	MaxPayload       = MaxRecord - maxEntryOverhead
)

// NewEntry signs body. The mesh id is zero for the genesis record alone, which
// the id is computed from.
func NewEntry(key identity.Key, mesh identity.MeshID, body Body) (*Entry, error) {
	if len(body.Payload) > MaxPayload {
		return nil, fmt.Errorf("entry %s: %w: %d bytes, the limit is %d", body.Kind, ErrTooLong, len(body.Payload), MaxPayload)
	}
	body.Author = key.ID()
	if err := body.check(); err != nil {
		return nil, err
	}
	raw, err := Marshal(&body)
	if err != nil {
		return nil, fmt.Errorf("entry %s: %w", body.Kind, err)
	}
	return &Entry{Raw: raw, Sig: key.Sign(body.Kind, mesh, raw), Body: body}, nil
}

// OpenEntry decodes the stored form of an entry without verifying its
// signature: call [Entry.Verify] before believing it.
func OpenEntry(raw []byte, sig identity.Signature) (*Entry, error) {
	e := &Entry{Raw: raw, Sig: sig}
	if err := Unmarshal(raw, &e.Body); err != nil {
		return nil, fmt.Errorf("entry: %w", err)
	}
	if err := e.check(); err != nil {
		return nil, err
	}
	return e, nil
}

// ParseEntry decodes the bytes of [Entry.Encode], without verifying.
func ParseEntry(data []byte) (*Entry, error) {
	var e Entry
	if err := Unmarshal(data, &e); err != nil {
		return nil, fmt.Errorf("entry: %w", err)
	}
	return OpenEntry(bytes.Clone(e.Raw), e.Sig)
}

// Encode returns the form in which entries travel: body bytes and signature.
func (e *Entry) Encode() []byte {
	b, err := encMode.Marshal(e)
	if err != nil {
		panic(err) // two byte strings
	}
	return b
}

// Hash names the entry: the SHA-256 of the signed bytes.
func (e *Entry) Hash() Hash { return sha256.Sum256(e.Raw) }

// Verify checks the signature against the author that the body names.
func (e *Entry) Verify(mesh identity.MeshID) error {
	if !identity.Verify(e.Author, e.Kind, mesh, e.Raw, e.Sig) {
		return fmt.Errorf("entry %s %d/%d of %s in %s: %w", e.Kind, e.Segment, e.Seq, e.Author.Short(), e.Topic, ErrSignature)
	}
	return nil
}

// check refuses what no honest author writes, before anything is stored.
func (b *Body) check() error {
	switch {
	case !validTopic(b.Topic):
		return fmt.Errorf("entry: topic %.64q: %w", b.Topic, ErrForm)
	case !validKind(b.Kind):
		return fmt.Errorf("entry: kind %.64q: %w", b.Kind, ErrForm)
	case (b.Seq == 0) != b.Prev.IsZero():
		return fmt.Errorf("entry: seq %d with prev %s: %w", b.Seq, b.Prev, ErrForm)
	case b.Segment > 1<<62 || b.Seq > 1<<62 || b.Millis < 0:
		return fmt.Errorf("entry: number out of range: %w", ErrForm) // SQLite integers are signed
	}
	return nil
}

func validTopic(s string) bool {
	if s == "" || len(s) > 40 {
		return false
	}
	for _, r := range s {
		if r != '-' && (r < 'a' || r > 'z') && (r < '0' || r > '9') {
			return false
		}
	}
	return true
}

func validKind(s string) bool {
	if s == "" || len(s) > 24 {
		return false
	}
	for _, r := range s {
		if r != '-' && (r < 'a' || r > 'z') {
			return false
		}
	}
	return true
}
