package identity

import (
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// Names of the key files in a node's home folder.
const (
	keyFile = "identity.key"
	wgFile  = "wireguard.key"
)

// Keys are the two private keys of a node.
type Keys struct {
	Identity Key
	WG       WGKey
}

// LoadKeys reads the key files in the folder home. It refuses files that
// anyone but their owner can read. The error is [fs.ErrNotExist] where there
// are none.
func LoadKeys(home string) (Keys, error) {
	seed, err := readSecret(filepath.Join(home, keyFile))
	if err != nil {
		return Keys{}, err
	}
	wg, err := readSecret(filepath.Join(home, wgFile))
	if err != nil {
		return Keys{}, err
	}
	return Keys{KeyFromSeed(seed), WGKeyFromBytes(wg)}, nil
}

// MakeKeys returns the keys in the folder home and makes those that are
// missing, so that a join that failed half-way is repeated with the same
// identity.
func MakeKeys(home string) (Keys, error) {
	keys, err := LoadKeys(home)
	if !errors.Is(err, fs.ErrNotExist) {
		return keys, err
	}
	id, err := NewKey()
	if err != nil {
		return Keys{}, err
	}
	wg, err := NewWGKey()
	if err != nil {
		return Keys{}, err
	}
	if err := writeSecret(filepath.Join(home, keyFile), id.Seed()); err != nil {
		return Keys{}, err
	}
	if err := writeSecret(filepath.Join(home, wgFile), wg.Secret()); err != nil {
		return Keys{}, err
	}
	return LoadKeys(home)
}

func readSecret(path string) (secret [32]byte, err error) {
	f, err := os.Open(path)
	if err != nil {
		return secret, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return secret, err
	}
	if info.Mode().Perm()&0o077 != 0 {
		return secret, fmt.Errorf("key file %s can be read by others (mode %04o): run chmod 600 on it", path, info.Mode().Perm())
	}
	b := make([]byte, 128)
	n, _ := f.Read(b)
	got, err := hex.DecodeString(strings.TrimSpace(string(b[:n])))
	if err != nil || len(got) != len(secret) {
		return secret, fmt.Errorf("key file %s is damaged: want 64 hexadecimal digits", path)
	}
	return [32]byte(got), nil
}

// writeSecret makes a key file whole or not at all, and never overwrites one.
func writeSecret(path string, secret [32]byte) error {
	f, err := os.CreateTemp(filepath.Dir(path), ".key-*") // mode 0600
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	_, err = f.WriteString(hex.EncodeToString(secret[:]) + "\n")
	if err := errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	if err := os.Link(f.Name(), path); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	return nil
}
