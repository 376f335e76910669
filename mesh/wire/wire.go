// Package wire is every byte that nodes exchange or sign: the deterministic
// CBOR that signed records use, the entry of the ledger, the text of an
// invite, and the probes that share WireGuard's UDP socket.
//
// Nothing here does I/O. Each format is described where it is parsed and
// pinned in testdata/*.hex; every decoder takes hostile input.
package wire

import (
	"bytes"
	"errors"
	"fmt"

	"github.com/fxamacker/cbor/v2"
)

// Limits of a signed record. A decoder refuses what exceeds them before it
// allocates.
const (
	MaxRecord = 64 << 10 // bytes
	maxDepth  = 4
	maxItems  = 4096
)

// ErrForm is wrapped by every error of [Unmarshal] about the form of the
// bytes, as opposed to what they say.
var ErrForm = errors.New("not a canonical record")

// The encoding is RFC 8949 §4.2.1 (core deterministic) narrowed further:
// structs are maps with integer keys, and there are no floats, tags, nulls or
// indefinite lengths.
var (
	encMode = must(cbor.EncOptions{
		Sort:          cbor.SortCoreDeterministic,
		IndefLength:   cbor.IndefLengthForbidden,
		NilContainers: cbor.NilContainerAsEmpty,
		TagsMd:        cbor.TagsForbidden,
		ByteArray:     cbor.ByteArrayToByteSlice,
	}.EncMode())
	decMode = must(cbor.DecOptions{
		DupMapKey:         cbor.DupMapKeyEnforcedAPF,
		IndefLength:       cbor.IndefLengthForbidden,
		TagsMd:            cbor.TagsForbidden,
		ExtraReturnErrors: cbor.ExtraDecErrorUnknownField,
		MaxNestedLevels:   maxDepth,
		MaxArrayElements:  maxItems,
		MaxMapPairs:       maxItems,
		SimpleValues:      must(cbor.NewSimpleValueRegistryFromDefaults(cbor.WithRejectedSimpleValue(null), cbor.WithRejectedSimpleValue(undefined))),
		NaN:               cbor.NaNDecodeForbidden,
		Inf:               cbor.InfDecodeForbidden,
		BignumTag:         cbor.BignumTagForbidden,
	}.DecMode())
)

// CBOR's simple values null and undefined.
const (
	null      cbor.SimpleValue = 22
	undefined cbor.SimpleValue = 23
)

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

// Marshal encodes a record.
func Marshal(v any) ([]byte, error) {
	b, err := encMode.Marshal(v)
	if err != nil {
		return nil, err
	}
	if len(b) > MaxRecord {
		return nil, fmt.Errorf("record of %d bytes: the limit is %d", len(b), MaxRecord)
	}
	return b, nil
}

// Unmarshal decodes a record into v and refuses every byte form but the one
// that [Marshal] gives for the same value: unknown or repeated keys, other
// orders and lengths, trailing bytes.
func Unmarshal(data []byte, v any) error {
	if len(data) > MaxRecord {
		return fmt.Errorf("%w: %d bytes, the limit is %d", ErrForm, len(data), MaxRecord)
	}
	if err := decMode.Unmarshal(data, v); err != nil {
		return fmt.Errorf("%w: %w", ErrForm, err)
	}
	again, err := encMode.Marshal(v)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrForm, err)
	}
	if !bytes.Equal(again, data) {
		return fmt.Errorf("%w: not the deterministic encoding", ErrForm)
	}
	return nil
}
