package identity

import (
	"crypto/sha256"
	_ "embed"
	"errors"
	"fmt"
	"slices"
	"strings"
)

// words.txt is the English list of BIP-39: 2048 words, sorted, no two with the
// same first four letters.
//
//go:embed words.txt
var wordList string

const (
	wordBits   = 11
	secretBits = 256
	checkBits  = secretBits / 32
)

// Words writes 32 secret bytes as 24 words that a person can copy to paper:
// the mnemonic sentence of BIP-39 (256 bits and an 8-bit checksum).
func Words(secret [32]byte) string {
	list := strings.Fields(wordList)
	sum := sha256.Sum256(secret[:])
	bits := append(secret[:], sum[0])
	out := make([]string, 0, (secretBits+checkBits)/wordBits)
	for at := 0; at < len(bits)*8; at += wordBits {
		n := 0
		for i := at; i < at+wordBits; i++ {
			n = n<<1 | int(bits[i/8]>>(7-i%8)&1)
		}
		out = append(out, list[n])
	}
	return strings.Join(out, " ")
}

// ParseWords is the inverse of [Words].
func ParseWords(text string) (secret [32]byte, err error) {
	list := strings.Fields(wordList)
	in := strings.Fields(strings.ToLower(text))
	if len(in) != (secretBits+checkBits)/wordBits {
		return secret, fmt.Errorf("recovery words: want 24 words, have %d", len(in))
	}
	var bits [(secretBits + checkBits) / 8]byte
	for i, w := range in {
		n, ok := slices.BinarySearch(list, w)
		if !ok {
			return secret, fmt.Errorf("recovery words: word %d, %q, is not on the list", i+1, w)
		}
		for b := range wordBits {
			at := i*wordBits + b
			bits[at/8] |= byte(n>>(wordBits-1-b)&1) << (7 - at%8)
		}
	}
	copy(secret[:], bits[:])
	if sum := sha256.Sum256(secret[:]); sum[0] != bits[len(secret)] {
		return [32]byte{}, errors.New("recovery words: the checksum does not match: one of the words is wrong or two are swapped")
	}
	return secret, nil
}
