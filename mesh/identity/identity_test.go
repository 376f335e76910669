package identity

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

func testKey(n byte) Key { return KeyFromSeed([32]byte{n}) }

func TestIDTextRoundTrip(t *testing.T) {
	id := testKey(1).ID()
	got, err := ParseID(id.String())
	if err != nil || got != id {
		t.Fatalf("ParseID(%q) = %v, %v", id.String(), got, err)
	}
	// 52 characters of base32 carry 260 bits: the last one has aliases.
	last := "abcdefghijklmnopqrstuvwxyz234567"
	s := id.String()
	accepted := 0
	for _, c := range last {
		if _, err := ParseID(s[:51] + string(c)); err == nil {
			accepted++
		}
	}
	if accepted != 2 { // 256 = 51*5 + 1: two values of the last character are canonical
		t.Errorf("%d of 32 last characters are accepted, want 2", accepted)
	}
	for _, bad := range []string{"", "abc", strings.ToUpper(s), s + "a", s[:51] + "!"} {
		if _, err := ParseID(bad); err == nil {
			t.Errorf("ParseID(%q) accepted", bad)
		}
	}
}

func TestSignatureIsBoundToKindAndMesh(t *testing.T) {
	k := testKey(1)
	body := []byte("body")
	m1, m2 := MeshID{1}, MeshID{2}
	sig := k.Sign("admit", m1, body)
	if !Verify(k.ID(), "admit", m1, body, sig) {
		t.Fatal("own signature does not verify")
	}
	if Verify(k.ID(), "invite", m1, body, sig) || Verify(k.ID(), "admit", m2, body, sig) ||
		Verify(k.ID(), "admit", m1, []byte("b0dy"), sig) || Verify(testKey(2).ID(), "admit", m1, body, sig) {
		t.Error("a signature verifies for another kind, mesh, body or author")
	}
}

func TestAddressesAreComputed(t *testing.T) {
	m := MeshID{0xab, 0xcd, 0xef, 0x01, 0x23, 0x45}
	a := m.Address(testKey(1).ID())
	if want := "fdab:cdef:123:0:"; !strings.HasPrefix(a.String(), want) {
		t.Errorf("address %v, want prefix %s", a, want)
	}
	if a == m.Address(testKey(2).ID()) {
		t.Error("two identities share an address")
	}
	j := m.JoinAddress(testKey(1).ID())
	if !m.IsJoiner(j) || m.IsJoiner(a) || m.IsJoiner(m.DoorAddress()) {
		t.Error("IsJoiner tells joiners, members and doors wrongly apart")
	}
	for _, x := range []fmt.Stringer{a, j, m.DoorAddress()} {
		if !m.Prefix().Contains(m.Address(testKey(1).ID())) {
			t.Errorf("%v is not in %v", x, m.Prefix())
		}
	}
}

func TestGuestAddress(t *testing.T) {
	m := MeshID{1, 2, 3, 4, 5}
	a := m.GuestAddress(ID{1}, WGPublic{2})
	if want := "fd01:203:405:3:"; !strings.HasPrefix(a.String(), want) || !m.Prefix().Contains(a) {
		t.Errorf("address %v, want %s…", a, want)
	}
	if a == m.GuestAddress(ID{2}, WGPublic{2}) || a == m.GuestAddress(ID{1}, WGPublic{3}) {
		t.Error("carrier and key do not both count")
	}
	for addr, guest := range map[netip.Addr]bool{a: true, m.Address(ID{1}): false, m.JoinAddress(ID{1}): false, m.DoorAddress(): false, MeshID{}.GuestAddress(ID{1}, WGPublic{2}): false} {
		if m.IsGuest(addr) != guest {
			t.Errorf("%v: guest %v, want %v", addr, !guest, guest)
		}
	}
	if m.IsJoiner(a) {
		t.Error("a guest passes for a joiner")
	}
}

func TestSecretsCannotBePrinted(t *testing.T) {
	k := testKey(7)
	wg := WGKeyFromBytes([32]byte{7})
	seed := fmt.Sprintf("%x", k.Seed())
	for _, v := range []any{k, wg, &k, &wg, Keys{k, wg}, struct{ K Key }{k}} {
		for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%x", "%d"} {
			if out := fmt.Sprintf(verb, v); strings.Contains(out, seed[:8]) || strings.Contains(out, "0x7") || strings.Contains(out, "7 0 0") {
				t.Errorf("Sprintf(%q, %T) = %s", verb, v, out)
			}
		}
		if out, err := json.Marshal(v); err == nil {
			t.Errorf("json.Marshal(%T) = %s", v, out)
		}
	}
}

func TestCheckID(t *testing.T) {
	if err := CheckID(testKey(1).ID()); err != nil {
		t.Errorf("a good key is refused: %v", err)
	}
	small := []ID{
		{1}, // the identity point
		{},  // order 4
		{0xec, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f}, // order 2
		{0xee, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f}, // p+1: identity, not canonical
	}
	for _, id := range small {
		if err := CheckID(id); !errors.Is(err, ErrWeakID) {
			t.Errorf("CheckID(%x) = %v", id, err)
		}
	}
}

func TestWordsRoundTrip(t *testing.T) {
	// A test vector of BIP-39 (trezor/python-mnemonic, vectors.json).
	zero := strings.Repeat("abandon ", 23) + "art"
	if got := Words([32]byte{}); got != zero {
		t.Errorf("Words(0) = %q", got)
	}
	rapid.Check(t, func(t *rapid.T) {
		secret := [32]byte(rapid.SliceOfN(rapid.Byte(), 32, 32).Draw(t, "secret"))
		got, err := ParseWords(Words(secret))
		if err != nil || got != secret {
			t.Fatalf("ParseWords(Words(%x)) = %x, %v", secret, got, err)
		}
	})
	for text, want := range map[string]string{
		"abandon":                         "want 24 words",
		strings.Repeat("abandon ", 24):    "checksum",
		strings.Repeat("abandom ", 24):    "word 1",
		zero[:len(zero)-3] + "absolutely": "word 24",
	} {
		if _, err := ParseWords(text); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("ParseWords(%q) = %v, want %q in it", text, err, want)
		}
	}
}

func TestKeyFiles(t *testing.T) {
	home := t.TempDir()
	if _, err := LoadKeys(home); !errors.Is(err, fs.ErrNotExist) {
		t.Fatalf("LoadKeys of an empty folder = %v", err)
	}
	first, err := MakeKeys(home)
	if err != nil {
		t.Fatal(err)
	}
	again, err := MakeKeys(home)
	if err != nil {
		t.Fatal(err)
	}
	if first.Identity.ID() != again.Identity.ID() || first.WG.Public() != again.WG.Public() {
		t.Error("a second MakeKeys made other keys")
	}
	path := filepath.Join(home, keyFile)
	if info, _ := os.Stat(path); info.Mode().Perm() != 0o600 {
		t.Errorf("key file has mode %v", info.Mode())
	}
	if err := os.Chmod(path, 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := LoadKeys(home); err == nil || !strings.Contains(err.Error(), "chmod 600") {
		t.Errorf("a key file that others can read: %v", err)
	}
	if err := os.WriteFile(path, []byte("zz"), 0o600); err != nil {
		t.Fatal(err)
	}
	_ = os.Chmod(path, 0o600)
	if _, err := MakeKeys(home); err == nil || !strings.Contains(err.Error(), "damaged") {
		t.Errorf("a damaged key file: %v", err)
	}
}

func TestValidName(t *testing.T) {
	for _, ok := range []string{"a", "gpu-1", "studio", "0"} {
		if err := ValidName(ok); err != nil {
			t.Errorf("ValidName(%q) = %v", ok, err)
		}
	}
	for _, bad := range []string{"", "-a", "a-", "A", "a.b", "a b", "ä", "a\x1b[31m", strings.Repeat("a", 41)} {
		if ValidName(bad) == nil {
			t.Errorf("ValidName(%q) accepted", bad)
		}
	}
}

func FuzzParseID(f *testing.F) {
	f.Add(testKey(1).ID().String())
	f.Add("")
	f.Fuzz(func(t *testing.T, s string) {
		if id, err := ParseID(s); err == nil && id.String() != s {
			t.Errorf("ParseID(%q) is not canonical", s)
		}
	})
}

func FuzzParseWords(f *testing.F) {
	f.Add(Words([32]byte{1, 2, 3}))
	f.Add("abandon abandon")
	f.Fuzz(func(t *testing.T, s string) {
		if secret, err := ParseWords(s); err == nil && Words(secret) != strings.Join(strings.Fields(strings.ToLower(s)), " ") {
			t.Errorf("ParseWords(%q) is not the inverse of Words", s)
		}
	})
}
