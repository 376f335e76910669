package gguf

import (
	"bytes"
	"encoding/binary"
	"errors"
	"math"
	"strings"
	"testing"
)

// file writes a header. Pairs are keys and values in turn.
func file(version uint32, pairs ...any) []byte {
	var b bytes.Buffer
	put := func(v any) { _ = binary.Write(&b, binary.LittleEndian, v) } // into memory
	text := func(s string) { put(uint64(len(s))); b.WriteString(s) }
	b.WriteString("GGUF")
	put(version)
	put(uint64(0))
	put(uint64(len(pairs) / 2))
	for i := 0; i < len(pairs); i += 2 {
		text(pairs[i].(string))
		switch v := pairs[i+1].(type) {
		case string:
			put(uint32(typeText))
			text(v)
		case uint32:
			put(uint32(typeUint32))
			put(v)
		case uint64:
			put(uint32(typeUint64))
			put(v)
		case int32:
			put(uint32(typeInt32))
			put(v)
		case float32:
			put(uint32(typeFloat32))
			put(v)
		case []string:
			put(uint32(typeList))
			put(uint32(typeText))
			put(uint64(len(v)))
			for _, s := range v {
				text(s)
			}
		case []int32:
			put(uint32(typeList))
			put(uint32(typeInt32))
			put(uint64(len(v)))
			put(v)
		}
	}
	return b.Bytes()
}

// llama is the header of a model of eight billion parameters.
func llama() []byte {
	return file(3, "general.architecture", "llama", "general.name", "Llama 3.1 8B", "general.license", strings.Repeat("x", 5000),
		"llama.context_length", uint32(131072), "llama.block_count", uint32(32), "llama.embedding_length", uint32(4096),
		"llama.attention.head_count", uint32(32), "llama.attention.head_count_kv", uint32(8), "llama.rope.freq_base", float32(500000),
		"tokenizer.ggml.tokens", []string{"a", "b", "c"}, "tokenizer.ggml.token_type", []int32{1, 1, 1})
}

func TestRead(t *testing.T) {
	h, err := Read(bytes.NewReader(llama()))
	want := Header{"llama", "Llama 3.1 8B", 131072, 32, 4096, 32, 8 * 32, 128, 128, 3}
	if err != nil || h != want {
		t.Errorf("%+v, %v; want %+v", h, err, want)
	}
	// A context of 8192 tokens takes 1 GiB of such a model.
	if with, without := h.Memory(1000, 8192), h.Memory(1000, 0); with-without != 1<<30 {
		t.Errorf("8192 tokens take %d bytes", with-without)
	}
	h, err = Read(bytes.NewReader(file(2, "general.architecture", "x", "x.block_count", uint64(2), "x.attention.head_count_kv", []int32{4, 0}, "x.attention.head_count", []int32{8, 8}, "x.attention.key_length", uint32(64), "x.attention.value_length", uint32(32))))
	if err != nil || h.KeyHeads != 4 || h.Heads != 8 || h.KeyLength != 64 || h.ValueLength != 32 {
		t.Errorf("layers that differ: %+v, %v", h, err)
	}
}

func TestReadWhatIsNone(t *testing.T) {
	for _, b := range [][]byte{nil, []byte("GGUF"), []byte(strings.Repeat("x", 100))} {
		if _, err := Read(bytes.NewReader(b)); !errors.Is(err, ErrNone) {
			t.Errorf("%q: %v", b, err)
		}
	}
	for what, b := range map[string][]byte{
		"version 1":   file(1, "general.architecture", "x"),
		"cut off":     llama()[:200],
		"nameless":    file(3, "general.name", "x"),
		"long key":    file(3, strings.Repeat("k", maxKey+1), "x"),
		"many pairs":  append([]byte("GGUF\x03\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"), 255, 255, 255, 255, 0, 0, 0, 0),
		"nested":      append(file(3)[:16], append([]byte{1, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 'k', 9, 0, 0, 0}, bytes.Repeat([]byte{9, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0}, 9)...)...),
		"odd type":    append(file(3)[:16], 1, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 'k', 99, 0, 0, 0),
		"long string": append(file(3)[:16], 1, 0, 0, 0, 0, 0, 0, 0, 255, 255, 255, 255, 255, 255, 255, 255),
	} {
		if h, err := Read(bytes.NewReader(b)); err == nil {
			t.Errorf("%s: %+v", what, h)
		}
	}
	huge := Header{KeyHeads: math.MaxUint64, KeyLength: math.MaxUint64, Vocabulary: math.MaxUint64}
	if huge.Memory(1, math.MaxUint64) != math.MaxUint64 {
		t.Error("a vast model takes little")
	}
}

func FuzzRead(f *testing.F) {
	f.Add(llama())
	f.Add(file(2, "general.architecture", "x", "x.block_count", int32(-1)))
	f.Fuzz(func(t *testing.T, b []byte) {
		if h, err := Read(bytes.NewReader(b)); err == nil && h.Memory(uint64(len(b)), 4096) < uint64(len(b)) {
			t.Errorf("%+v takes less than its file", h)
		}
	})
}
