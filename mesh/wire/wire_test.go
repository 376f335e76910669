package wire

import (
	"bytes"
	"encoding/hex"
	"errors"
	"flag"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/balanceai/balance/mesh/identity"
)

var update = flag.Bool("update", false, "rewrite testdata")

// golden compares got with testdata/<name>.hex, so that a change of the wire
// format cannot pass unseen.
func golden(t *testing.T, name string, got []byte) {
	t.Helper()
	path := filepath.Join("testdata", name+".hex")
	var text strings.Builder
	for i := 0; i < len(got); i += 32 {
		fmt.Fprintf(&text, "%x\n", got[i:min(i+32, len(got))])
	}
	if *update {
		if err := os.WriteFile(path, []byte(text.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if text.String() != string(want) {
		t.Errorf("%s changed:\n%swant\n%s", path, text.String(), want)
	}
}

func readGolden(t testing.TB, name string) []byte {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("testdata", name+".hex"))
	if err != nil {
		t.Fatal(err)
	}
	b, err := hex.DecodeString(strings.Join(strings.Fields(string(text)), ""))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

var testMesh = identity.MeshID{1, 2, 3, 4, 5}

func testEntry(t testing.TB) *Entry {
	t.Helper()
	e, err := NewEntry(identity.KeyFromSeed([32]byte{1}), testMesh, Body{
		Topic: TopicMesh, Segment: 7, Seq: 1, Prev: Hash{9}, Kind: "admit", Millis: 1_700_000_000_000, Payload: []byte{0xa1, 0x01, 0x02},
	})
	if err != nil {
		t.Fatal(err)
	}
	return e
}

func TestEntryOnTheWire(t *testing.T) {
	e := testEntry(t)
	golden(t, "entry", e.Encode())
	got, err := ParseEntry(e.Encode())
	if err != nil {
		t.Fatal(err)
	}
	if err := got.Verify(testMesh); err != nil {
		t.Error(err)
	}
	if got.Hash() != e.Hash() || got.Kind != "admit" || got.Seq != 1 {
		t.Errorf("entry came back as %+v", got.Body)
	}
	if err := got.Verify(identity.MeshID{2}); !errors.Is(err, ErrSignature) {
		t.Errorf("entry of another mesh: %v", err)
	}
}

// Each signed record presented as every other kind is refused, because the
// kind is in the signed domain and in the body.
func TestEntryOfAnotherKind(t *testing.T) {
	e := testEntry(t)
	for _, kind := range []string{"genesis", "invite", "offer", "submit"} {
		body := e.Body
		body.Kind = kind
		raw, err := Marshal(&body)
		if err != nil {
			t.Fatal(err)
		}
		forged, err := OpenEntry(raw, e.Sig)
		if err != nil {
			t.Fatal(err)
		}
		if forged.Verify(testMesh) == nil {
			t.Errorf("an admit is accepted as %s", kind)
		}
	}
}

// The alternative encodings of one message that CBOR libraries are known to
// take (TRUST, T68).
func TestOneByteForm(t *testing.T) {
	type record struct {
		A uint64 `cbor:"1,keyasint"`
		B string `cbor:"2,keyasint"`
		C []byte `cbor:"3,keyasint"`
	}
	good, err := Marshal(record{1, "x", []byte{2}})
	if err != nil {
		t.Fatal(err)
	}
	if got := hex.EncodeToString(good); got != "a30101026178034102" {
		t.Fatalf("encoding changed: %s", got)
	}
	var r record
	if err := Unmarshal(good, &r); err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{
		"keys in another order":  "a30261780101034102",
		"key in a longer form":   "a318010102617803 4102",
		"int in a longer form":   "a3011801026178034102",
		"string in longer form":  "a30101027801 78034102",
		"bytes in a longer form": "a3010102617803580102",
		"indefinite map":         "bf0101026178034102ff",
		"indefinite string":      "a30101027f6178ff034102",
		"indefinite bytes":       "a3010102617803 5f4102ff",
		"duplicate key":          "a401010101026178034102",
		"unknown key":            "a401010261780341020400",
		"text for bytes":         "a3010102617803 6102",
		"bytes for text":         "a30101024178034102",
		"array for bytes":        "a301010261780381 02",
		"tag":                    "a301c101026178034102",
		"float for int":          "a301f93c00026178034102",
		"null":                   "a301f6026178034102",
		"undefined":              "a301f7026178034102",
		"null bytes":             "a301010261 7803f6",
		"missing key":            "a20101026178",
		"bool for int":           "a301f5026178034102",
		"invalid UTF-8":          "a3010102 61ff034102",
		"trailing byte":          "a3010102617803410200",
		"cut":                    "a30101026178",
		"empty":                  "",
	} {
		b, err := hex.DecodeString(strings.ReplaceAll(text, " ", ""))
		if err != nil {
			t.Fatal(name, err)
		}
		var r record
		if err := Unmarshal(b, &r); !errors.Is(err, ErrForm) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestEntryRefusesNonsense(t *testing.T) {
	for name, change := range map[string]func(*Body){
		"topic empty":         func(b *Body) { b.Topic = "" },
		"topic with slash":    func(b *Body) { b.Topic = "../x" },
		"kind empty":          func(b *Body) { b.Kind = "" },
		"kind with NUL":       func(b *Body) { b.Kind = "admit/1\x00" },
		"first with prev":     func(b *Body) { b.Seq = 0 },
		"second without prev": func(b *Body) { b.Prev = Hash{} },
		"huge seq":            func(b *Body) { b.Seq = 1 << 63 },
		"before 1970":         func(b *Body) { b.Millis = -1 },
	} {
		body := testEntry(t).Body
		change(&body)
		raw, err := Marshal(&body)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := OpenEntry(raw, identity.Signature{}); !errors.Is(err, ErrForm) {
			t.Errorf("%s: %v", name, err)
		}
	}
	body := testEntry(t).Body
	body.Payload = make([]byte, MaxPayload+1)
	if _, err := NewEntry(identity.KeyFromSeed([32]byte{1}), testMesh, body); !errors.Is(err, ErrTooLong) {
		t.Errorf("a payload over the limit: %v", err)
	}
	body.Payload = body.Payload[:MaxPayload]
	e, err := NewEntry(identity.KeyFromSeed([32]byte{1}), testMesh, body)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := ParseEntry(e.Encode()); err != nil {
		t.Errorf("the largest entry does not come back: %v", err)
	}
}

func testInvite() *Invite {
	return &Invite{
		Mesh: testMesh, Door: identity.WGPublic{8}, Secret: InviteSecret{7}, Expires: time.Unix(1_800_000_000, 0),
		Endpoints: []netip.AddrPort{netip.MustParseAddrPort("192.0.2.7:4242"), netip.MustParseAddrPort("[2001:db8::1]:7")},
		Streams:   []netip.AddrPort{netip.MustParseAddrPort("192.0.2.7:443")},
	}
}

func TestInviteOnTheWire(t *testing.T) {
	v := testInvite()
	golden(t, "invite", v.encode())
	text := v.String()
	for _, form := range []string{text, strings.ToLower(text), " " + text[:10] + "-\r\n " + text[10:] + "\n"} {
		got, err := ParseInvite(form)
		if err != nil {
			t.Fatal(err)
		}
		if got.Mesh != v.Mesh || got.Door != v.Door || got.Secret != v.Secret || !got.Expires.Equal(v.Expires) ||
			!slices.Equal(got.Endpoints, v.Endpoints) || !slices.Equal(got.Streams, v.Streams) {
			t.Errorf("invite came back as %+v", got)
		}
	}
	if s := fmt.Sprintf("%v %+v %#v %x", v.Secret, *v, v, v.Secret); strings.Contains(s, "0x7,") || strings.Contains(s, "[7 ") {
		t.Errorf("the secret is printed: %s", s)
	}
}

func TestInviteDamage(t *testing.T) {
	text := testInvite().String()
	alphabet := "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
	for i := len(invitePrefix); i < len(text); i++ {
		b := []byte(text)
		b[i] = alphabet[(strings.IndexByte(alphabet, b[i])+7)%32]
		if _, err := ParseInvite(string(b)); !errors.Is(err, ErrInviteDamaged) {
			t.Fatalf("character %d changed: %v", i, err)
		}
	}
	for n := range len(text) {
		if _, err := ParseInvite(text[:n]); err == nil {
			t.Fatalf("accepted when cut to %d characters", n)
		}
	}
	for _, s := range []string{"", "hello", "BAL2ABC", "https://example.com"} {
		if _, err := ParseInvite(s); !errors.Is(err, ErrNoInvite) {
			t.Errorf("ParseInvite(%q) = %v", s, err)
		}
	}
}

func TestJoinKeysArePinned(t *testing.T) {
	k := InviteSecret{7}.Keys(testMesh)
	id, wg := k.Sign.ID(), k.WG.Public()
	golden(t, "joinkeys", bytes.Join([][]byte{id[:], wg[:], k.PSK[:]}, nil))
	if other := (InviteSecret{7}).Keys(identity.MeshID{}); other.Sign.ID() == id {
		t.Error("another mesh gives the same join key")
	}
}

func FuzzParseEntry(f *testing.F) {
	f.Add(testEntry(f).Encode())
	f.Add(readGolden(f, "entry")[:40])
	f.Fuzz(func(t *testing.T, data []byte) {
		if e, err := ParseEntry(data); err == nil && !bytes.Equal(e.Encode(), data) {
			t.Errorf("two byte forms of one entry: %x", data)
		}
	})
}

func FuzzParseInvite(f *testing.F) {
	f.Add(testInvite().String())
	f.Add("BAL1")
	f.Fuzz(func(t *testing.T, text string) {
		if v, err := ParseInvite(text); err == nil {
			if _, err := ParseInvite(v.String()); err != nil {
				t.Errorf("%q parses but its own text does not: %v", text, err)
			}
		}
	})
}
