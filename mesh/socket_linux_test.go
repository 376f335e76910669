package mesh

import (
	"encoding/binary"
	"slices"
	"testing"

	"golang.org/x/sys/unix"
)

const canSegment = true

// segmentSizeOf reads what segmentSize makes. 0: there is none.
func segmentSizeOf(control []byte) int {
	if control == nil {
		return 0
	}
	h, data, _, err := unix.ParseOneSocketControlMessage(control)
	if err != nil || h.Level != unix.IPPROTO_UDP || h.Type != unix.UDP_SEGMENT || len(data) < 2 {
		return -1
	}
	return int(binary.NativeEndian.Uint16(data))
}

func FuzzSegmentsOf(f *testing.F) {
	sent := segmentSize(1312)
	received := slices.Clone(sent)
	binary.NativeEndian.PutUint32(received[unix.CmsgLen(0)-4:], unix.UDP_GRO) // the type, after the level
	if segmentsOf(received) != 1312 || segmentsOf(sent) != 0 {
		f.Fatal("a control message is read wrong")
	}
	f.Add(sent)
	f.Add(received)
	f.Add(append(slices.Clone(sent), received...))
	f.Fuzz(func(t *testing.T, b []byte) {
		if n := segmentsOf(b); n < 0 || n >= 1<<16 {
			t.Errorf("segments of %d bytes", n)
		}
	})
}
