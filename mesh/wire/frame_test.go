package wire

import (
	"testing"

	"github.com/balanceai/balance/mesh/identity"
)

func TestFrameOnTheWire(t *testing.T) {
	send, other, _, receive := testProbeKeys(t)
	name := NameOf(identity.WGKeyFromBytes([32]byte{0x30}).Public())
	b := append(make([]byte, FrameHeader), "message"...)
	send.SealFrame(b, ToRelay, name)
	golden(t, "frame", b)
	if !IsFrame(b) {
		t.Error("a frame is none")
	}
	if d, got := receive.OpenFrame(b); d != ToRelay || got != name {
		t.Errorf("opens as %d to %x, want %x", d, got, name)
	}
	if _, got := other.OpenFrame(b); got == name {
		t.Error("without the mask of the leg the name can be read")
	}
	if IsFrame(b[:FrameHeader]) {
		t.Error("a header without a message is a frame")
	}
	if _, ok := ParseProbeTag(append(b, make([]byte, ProbeSize)...)); ok {
		t.Error("a frame is read as a probe")
	}
}

func FuzzFrame(f *testing.F) {
	f.Add(readGolden(f, "frame"))
	f.Add(readGolden(f, "ping"))
	f.Add([]byte{frameMark, 1, 0})
	_, _, _, receive := testProbeKeys(f)
	f.Fuzz(func(t *testing.T, b []byte) {
		if !IsFrame(b) {
			return
		}
		d, name := receive.OpenFrame(b)
		again := append([]byte(nil), b...)
		receive.SealFrame(again, d, name)
		if d2, name2 := receive.OpenFrame(again); d2 != d || name2 != name {
			t.Errorf("%x is read as %d %x and again as %d %x", b, d, name, d2, name2)
		}
	})
}
