// Package gguf reads as much of the header of a GGUF file, the format of
// llama.cpp for models, as tells how much memory the model takes.
//
// A file begins with the bytes "GGUF", a version (uint32, 2 or 3), the number of
// tensors and the number of pairs (uint64 each). The pairs follow: a key, the
// type of its value (uint32), the value. Texts are a length (uint64) and so many
// bytes; a list is the type of its items (uint32), their number (uint64) and the
// items. All numbers are little-endian. What comes after the pairs is not read.
package gguf

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"math/bits"
	"strings"
)

// Header is what the header of a model says. A number that it does not give is 0.
type Header struct {
	Architecture string
	Name         string
	Context      uint64 // tokens that it was trained for
	Layers       uint64
	Embedding    uint64 // length of a vector
	Heads        uint64 // of attention, in each layer
	KeyHeads     uint64 // of keys and values, in all layers together
	KeyLength    uint64 // of one head
	ValueLength  uint64 // likewise
	Vocabulary   uint64 // tokens
}

// Limits of a header. A vocabulary of a quarter of a million words takes some
// megabytes.
const (
	maxHeader = 64 << 20
	maxPairs  = 1 << 16
	maxKey    = 1 << 10
	maxText   = 1 << 10 // of a text that is kept
	maxNested = 4
)

// Types of values.
const (
	typeUint8 = iota
	typeInt8
	typeUint16
	typeInt16
	typeUint32
	typeInt32
	typeFloat32
	typeBool
	typeText
	typeList
	typeUint64
	typeInt64
	typeFloat64
)

var sizes = map[uint32]int{
	typeUint8: 1, typeInt8: 1, typeUint16: 2, typeInt16: 2, typeUint32: 4, typeInt32: 4, typeFloat32: 4, typeBool: 1,
	typeUint64: 8, typeInt64: 8, typeFloat64: 8,
}

// ErrNone says that a file is no GGUF file.
var ErrNone = errors.New("it is no GGUF file")

// Read reads the header of a file from its beginning.
func Read(from io.Reader) (Header, error) {
	r := &reader{in: bufio.NewReaderSize(io.LimitReader(from, maxHeader), 64<<10), numbers: map[string]uint64{}, texts: map[string]string{}}
	if err := r.pairs(); err != nil {
		return Header{}, fmt.Errorf("read GGUF header: %w", err)
	}
	return r.header()
}

// reader keeps the pairs that have one value, and of a list how many items it
// has, and their sum where they are numbers.
type reader struct {
	in      *bufio.Reader
	numbers map[string]uint64
	texts   map[string]string
}

func (r *reader) pairs() error {
	var start struct {
		Magic          [4]byte
		Version        uint32
		Tensors, Pairs uint64
	}
	if err := binary.Read(r.in, binary.LittleEndian, &start); err != nil || string(start.Magic[:]) != "GGUF" {
		return ErrNone
	}
	if start.Version != 2 && start.Version != 3 {
		return fmt.Errorf("version %d: 2 and 3 are known", start.Version)
	}
	if start.Pairs > maxPairs {
		return fmt.Errorf("%d pairs: the limit is %d", start.Pairs, maxPairs)
	}
	for range start.Pairs {
		key, err := r.text(maxKey)
		if err != nil {
			return err
		}
		kind, err := r.number(typeUint32)
		if err != nil {
			return err
		}
		if err := r.value(key, uint32(kind), 0); err != nil {
			return fmt.Errorf("%.40q: %w", key, err)
		}
	}
	return nil
}

// value takes the value of a key.
func (r *reader) value(key string, kind uint32, nested int) error {
	switch kind {
	case typeText:
		text, err := r.text(maxHeader)
		if nested == 0 && len(text) <= maxText {
			r.texts[key] = text
		}
		return err
	case typeList:
		return r.list(key, nested)
	}
	n, err := r.number(kind)
	if err == nil {
		sum, over := bits.Add64(r.numbers[key], n, 0)
		if r.numbers[key] = sum; over > 0 {
			r.numbers[key] = math.MaxUint64
		}
	}
	return err
}

// list takes the items of a list: their sum is under the key, their number under
// the key with a mark.
func (r *reader) list(key string, nested int) error {
	if nested == maxNested {
		return errors.New("too many lists in each other")
	}
	kind, err := r.number(typeUint32)
	if err != nil {
		return err
	}
	count, err := r.number(typeUint64)
	if err != nil {
		return err
	}
	if count > maxHeader {
		return fmt.Errorf("%d items", count)
	}
	if nested == 0 {
		r.numbers[key+"#"] = count
	}
	for range count {
		if err := r.value(key, uint32(kind), nested+1); err != nil {
			return err
		}
	}
	return nil
}

// number reads one number. One that is no whole number, or negative, counts as 0.
func (r *reader) number(kind uint32) (uint64, error) {
	size, ok := sizes[kind]
	if !ok {
		return 0, fmt.Errorf("type %d is not known", kind)
	}
	var b [8]byte
	if _, err := io.ReadFull(r.in, b[:size]); err != nil {
		return 0, ends(err)
	}
	n := binary.LittleEndian.Uint64(b[:])
	switch kind {
	case typeFloat32, typeFloat64, typeBool:
		return 0, nil
	case typeInt8, typeInt16, typeInt32, typeInt64:
		if b[size-1]&0x80 != 0 {
			return 0, nil
		}
	}
	return n, nil
}

// text reads a text of at most so many bytes. One that is too long to be kept is
// passed over.
func (r *reader) text(most uint64) (string, error) {
	n, err := r.number(typeUint64)
	if err != nil {
		return "", err
	}
	if n > most {
		return "", fmt.Errorf("a text of %d bytes", n)
	}
	if n > maxText {
		_, err := r.in.Discard(int(n))
		return strings.Repeat("?", maxText+1), ends(err)
	}
	b := make([]byte, n)
	_, err = io.ReadFull(r.in, b)
	return string(b), ends(err)
}

// ends says of a file that ends early that it does.
func ends(err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return errors.New("the header ends early, or is too long")
	}
	return err
}

// header makes the header of the pairs.
func (r *reader) header() (Header, error) {
	h := Header{Architecture: r.texts["general.architecture"], Name: r.texts["general.name"]}
	if h.Architecture == "" {
		return h, errors.New("read GGUF header: it does not say which architecture the model has")
	}
	of := func(key string) uint64 { return r.numbers[h.Architecture+"."+key] }
	h.Context, h.Layers, h.Embedding = of("context_length"), of("block_count"), of("embedding_length")
	h.Heads = of("attention.head_count")
	if n := of("attention.head_count#"); n > 0 {
		h.Heads /= n // of a layer, on average
	}
	h.KeyHeads = of("attention.head_count_kv")
	switch {
	case of("attention.head_count_kv#") > 0: // a number for each layer: this is the sum
	case h.KeyHeads > 0:
		h.KeyHeads = times(h.KeyHeads, h.Layers)
	default:
		h.KeyHeads = times(h.Heads, h.Layers)
	}
	h.KeyLength, h.ValueLength = of("attention.key_length"), of("attention.value_length")
	if h.KeyLength == 0 && h.Heads > 0 {
		h.KeyLength = h.Embedding / h.Heads
	}
	if h.ValueLength == 0 {
		h.ValueLength = h.KeyLength
	}
	h.Vocabulary = max(of("vocab_size"), r.numbers["tokenizer.ggml.tokens#"])
	return h, nil
}

// Memory estimates what the model takes with a context of so many tokens, in
// bytes: its weights, which are the file, the keys and values of the context in
// 16 bits each, and what an engine computes with.
func (h Header) Memory(file, context uint64) uint64 {
	cache := times(times(context, h.KeyHeads), times(2, plus(h.KeyLength, h.ValueLength)))
	return plus(plus(file, cache), plus(fixed, times(batch, times(4, plus(h.Vocabulary, times(h.Embedding, 8))))))
}

// What llama.cpp computes with: for so many tokens at one time the probability of
// each word and some vectors, and what a device takes for itself.
const (
	batch = 512
	fixed = 64 << 20
)

// times and plus do not go past the largest number: a header may say anything.
func times(a, b uint64) uint64 {
	if high, low := bits.Mul64(a, b); high == 0 {
		return low
	}
	return math.MaxUint64
}

func plus(a, b uint64) uint64 {
	if sum, over := bits.Add64(a, b, 0); over == 0 {
		return sum
	}
	return math.MaxUint64
}
