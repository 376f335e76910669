package wire

import (
	"fmt"
	"net/netip"
	"reflect"
	"testing"

	"github.com/balanceai/balance/mesh/identity"
)

// testProbeKeys returns the keys of a pair as each of the two derives them.
// (X25519 ignores the lowest three bits of a private key.)
func testProbeKeys(t testing.TB) (aSend, aReceive, bSend, bReceive ProbeKey) {
	t.Helper()
	a, b := identity.WGKeyFromBytes([32]byte{0x10}), identity.WGKeyFromBytes([32]byte{0x20})
	aSend, aReceive, errA := ProbeKeys(a, b.Public())
	bSend, bReceive, errB := ProbeKeys(b, a.Public())
	if errA != nil || errB != nil {
		t.Fatal(errA, errB)
	}
	return aSend, aReceive, bSend, bReceive
}

func testPong(seen string) Probe {
	return Probe{Kind: Pong, Tx: 0x0102030405060708, Instance: 0x1112131415161718, Seen: netip.MustParseAddrPort(seen)}
}

func TestProbeOnTheWire(t *testing.T) {
	send, _, _, receive := testProbeKeys(t)
	ping := Probe{Kind: Ping, Tx: 0x0102030405060708, Instance: 0x1112131415161718}
	padded, call := ping, ping
	padded.Place, padded.Size = 7, 80
	call.Kind, call.Place = Call, 7
	loaded := testPong("192.0.2.1:7000")
	loaded.Load = 0xC0
	call.Addrs = []netip.AddrPort{netip.MustParseAddrPort("192.0.2.1:7000"), netip.MustParseAddrPort("[2001:db8::1]:7000")}
	for name, c := range map[string]struct {
		p    Probe
		size int
	}{
		"ping": {ping, ProbeSize}, "padded": {padded, 80}, "call": {call, ProbeSize + 2*18},
		"loaded": {loaded, ProbeSize}, "pong4": {testPong("192.0.2.1:7000"), ProbeSize}, "pong6": {testPong("[2001:db8::1]:7000"), ProbeSize},
	} {
		p, b := c.p, send.Seal(c.p)
		golden(t, name, b)
		if len(b) != c.size {
			t.Errorf("%s has %d bytes, want %d", name, len(b), c.size)
		}
		if got, ok := receive.Open(b); !ok || !reflect.DeepEqual(got, p) {
			t.Errorf("%s opens as %+v, %v; want %+v", name, got, ok, p)
		}
	}
}

// The two kinds of messages on the socket differ in the first byte.
func TestProbeIsNoWireGuardMessage(t *testing.T) {
	for kind := byte(1); kind <= 4; kind++ {
		b := make([]byte, ProbeSize)
		b[0] = kind
		if _, ok := ParseProbeTag(b); ok {
			t.Errorf("a WireGuard message of type %d is read as a probe", kind)
		}
	}
	send, _, _, _ := testProbeKeys(t)
	if b := send.Seal(Probe{Kind: Ping}); b[0] >= 1 && b[0] <= 4 {
		t.Errorf("a probe begins with %d, as WireGuard's messages do", b[0])
	}
}

func TestProbeOfOthersIsRefused(t *testing.T) {
	aSend, aReceive, bSend, bReceive := testProbeKeys(t)
	if aSend != bReceive || aReceive != bSend {
		t.Fatal("the two ends derive different keys")
	}
	good := aSend.Seal(Probe{Kind: Ping, Tx: 1})
	if _, ok := aReceive.Open(good); ok {
		t.Error("a probe sent back to its sender opens")
	}
	stranger, _, err := ProbeKeys(identity.WGKeyFromBytes([32]byte{0x30}), identity.WGKeyFromBytes([32]byte{0x20}).Public())
	if err != nil {
		t.Fatal(err)
	}
	stranger.Tag = bReceive.Tag // a stranger can copy a tag that it saw
	if _, ok := bReceive.Open(stranger.Seal(Probe{Kind: Ping, Tx: 1})); ok {
		t.Error("a stranger's probe opens")
	}
	for i := range good {
		bad := append([]byte(nil), good...)
		bad[i] ^= 1
		if _, ok := bReceive.Open(bad); ok {
			t.Errorf("a probe with byte %d changed opens", i)
		}
	}
	for n := range len(good) {
		if _, ok := bReceive.Open(good[:n]); ok {
			t.Errorf("the first %d bytes of a probe open", n)
		}
	}
	if _, ok := bReceive.Open(append(good, 0)); ok {
		t.Error("a probe with a byte more opens")
	}
	if _, ok := bReceive.Open(aSend.Seal(Probe{Kind: 5})); ok {
		t.Error("a probe of an unknown kind opens")
	}
	if _, _, err := ProbeKeys(identity.WGKeyFromBytes([32]byte{0x10}), identity.WGPublic{}); err == nil {
		t.Error("a public key of small order makes keys")
	}
}

func TestProbeKeyIsNotPrinted(t *testing.T) {
	k, _, _, _ := testProbeKeys(t)
	if s := fmt.Sprintf("%v %+v %#v %s", k, &k, k, k); s != "(secret) (secret) (secret) (secret)" {
		t.Errorf("a key prints as %s", s)
	}
}

func FuzzProbe(f *testing.F) {
	for _, name := range []string{"ping", "padded", "call", "pong4", "pong6"} {
		f.Add(readGolden(f, name))
	}
	f.Add([]byte{probeMark})
	f.Add(make([]byte, ProbeSize))
	_, _, _, receive := testProbeKeys(f)
	f.Fuzz(func(t *testing.T, b []byte) {
		p, ok := receive.Open(b)
		if !ok {
			return
		}
		again, ok := receive.Open(receive.Seal(p))
		if !ok || !reflect.DeepEqual(again, p) {
			t.Errorf("%+v is read again as %+v", p, again)
		}
	})
}
