package mesh

import (
	"encoding/hex"
	"net/netip"
	"strings"
	"testing"
)

// The responses of RFC 5769 sections 2.2 and 2.3.
const (
	stunSample4 = `0101003c2112a442b7e7a701bc34d686fa87dfae8022000b7465737420766563746f7220002000080001a147e112a643
		000800142b91f599fd9e90c38c7489f92af9ba53f06be7d780280004c07d4c96`
	stunSample6 = `010100482112a442b7e7a701bc34d686fa87dfae8022000b7465737420766563746f7220002000140002a1470113a9fa
		a5d3f179bc25f4b5bed2b9d900080014a382954e4be67bf11784c97c8292c275bfe3ed4180280004c8fb0b4c`
)

func stunBytes(t testing.TB, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(strings.Join(strings.Fields(s), ""))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestParseBinding(t *testing.T) {
	tx := stunTx(stunBytes(t, "b7e7a701bc34d686fa87dfae"))
	for sample, want := range map[string]string{
		stunSample4: "192.0.2.1:32853",
		stunSample6: "[2001:db8:1234:5678:11:2233:4455:6677]:32853",
		"0101000c2112a442b7e7a701bc34d686fa87dfae 00010008 00018055c0000201": "192.0.2.1:32853",
	} {
		msg := stunBytes(t, sample)
		if got, ok := parseBinding(msg, tx); !ok || got != netip.MustParseAddrPort(want) {
			t.Errorf("got %v, %v, want %s", got, ok, want)
		}
		if _, ok := parseBinding(msg, stunTx{}); ok {
			t.Error("the answer to another request is taken")
		}
	}
}

func FuzzParseBinding(f *testing.F) {
	tx := stunTx(stunBytes(f, "b7e7a701bc34d686fa87dfae"))
	for _, sample := range []string{stunSample4, stunSample6} {
		f.Add(stunBytes(f, sample))
	}
	f.Add(appendBinding(nil, tx))
	f.Fuzz(func(t *testing.T, b []byte) {
		if us, ok := parseBinding(b, tx); ok && !us.IsValid() {
			t.Errorf("%x gives no address", b)
		}
	})
}
