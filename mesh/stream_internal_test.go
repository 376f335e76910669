package mesh

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"testing"
	"testing/iotest"
)

func FuzzDatagram(f *testing.F) {
	f.Add([]byte{0, 0})
	f.Add([]byte{0, 3, 'a', 'b', 'c', 0, 1, 'd'})
	f.Add([]byte{0xff, 0xff, 'a'})
	f.Fuzz(func(t *testing.T, b []byte) {
		r := bufio.NewReaderSize(iotest.HalfReader(bytes.NewReader(b)), 2+1<<16)
		var read []byte
		for {
			var err error
			if read, err = readDatagrams(read, r); err != nil {
				break
			}
		}
		var again []byte
		rest := b
		for {
			msg, after, ok := cutDatagram(rest)
			if !ok {
				break
			}
			rest = after
			again = binary.BigEndian.AppendUint16(again, uint16(len(msg)))
			again = append(again, msg...)
		}
		if !bytes.HasPrefix(b, again) || !bytes.Equal(read, again) {
			t.Errorf("%x was read as %x and cut as %x", b, read, again)
		}
	})
}
