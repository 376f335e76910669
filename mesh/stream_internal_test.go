package mesh

import (
	"bytes"
	"encoding/binary"
	"testing"
)

func FuzzDatagram(f *testing.F) {
	f.Add([]byte{0, 0})
	f.Add([]byte{0, 3, 'a', 'b', 'c', 0, 1, 'd'})
	f.Add([]byte{0xff, 0xff, 'a'})
	f.Fuzz(func(t *testing.T, b []byte) {
		r := bytes.NewReader(b)
		var again []byte
		for {
			msg, err := readDatagram(r)
			if err != nil {
				break
			}
			again = binary.BigEndian.AppendUint16(again, uint16(len(msg)))
			again = append(again, msg...)
		}
		if !bytes.HasPrefix(b, again) {
			t.Errorf("%x was read as %x", b, again)
		}
	})
}
