package identity

import (
	"crypto/ecdh"
	"crypto/rand"
	"encoding/hex"
	"fmt"
)

// WGPublic is the public half of a node's WireGuard key (X25519).
type WGPublic [32]byte

// Hex returns the form that WireGuard's configuration protocol uses.
func (p WGPublic) Hex() string { return hex.EncodeToString(p[:]) }

// String returns the hexadecimal form.
func (p WGPublic) String() string { return p.Hex() }

// WGKey is the private half of a node's WireGuard key. The zero WGKey is not
// usable.
type WGKey struct{ secret *ecdh.PrivateKey }

// NewWGKey makes a random WireGuard key.
func NewWGKey() (WGKey, error) {
	k, err := ecdh.X25519().GenerateKey(rand.Reader)
	if err != nil {
		return WGKey{}, fmt.Errorf("make WireGuard key: %w", err)
	}
	return WGKey{k}, nil
}

// WGKeyFromBytes makes a key of 32 secret bytes.
func WGKeyFromBytes(secret [32]byte) WGKey {
	k, err := ecdh.X25519().NewPrivateKey(secret[:])
	if err != nil {
		panic(err) // X25519 takes any 32 bytes
	}
	return WGKey{k}
}

// Public returns the public half.
func (k WGKey) Public() WGPublic { return WGPublic(k.secret.PublicKey().Bytes()) }

// SecretHex returns the private key for WireGuard's configuration protocol.
func (k WGKey) SecretHex() string { return hex.EncodeToString(k.secret.Bytes()) }

// Secret returns the private key for a key file.
func (k WGKey) Secret() [32]byte { return [32]byte(k.secret.Bytes()) }

// Shared returns the Diffie-Hellman secret of the two keys. It fails for a
// public key of small order.
func (k WGKey) Shared(peer WGPublic) ([32]byte, error) {
	pub, err := ecdh.X25519().NewPublicKey(peer[:])
	if err != nil {
		return [32]byte{}, fmt.Errorf("WireGuard public key: %w", err)
	}
	s, err := k.secret.ECDH(pub)
	if err != nil {
		return [32]byte{}, fmt.Errorf("WireGuard key exchange: %w", err)
	}
	return [32]byte(s), nil
}

// CheckWG refuses public keys of small order, for which every key exchange
// gives the same result.
func CheckWG(p WGPublic) error {
	_, err := WGKeyFromBytes([32]byte{1}).Shared(p)
	return err
}
