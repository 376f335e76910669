package mesh

import (
	"bytes"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"syscall"
	"testing"
	"time"

	"golang.org/x/net/ipv6"
	"pgregory.net/rapid"
)

// datagrams are bufs as they arrive behind a head.
func datagrams(head []byte, bufs [][]byte) (all []string) {
	for _, b := range bufs {
		all = append(all, string(head)+string(b))
	}
	return all
}

// cut does what the kernel does with messages.
func cut(t interface{ Fatalf(string, ...any) }, msgs []ipv6.Message) (all []string) {
	for _, m := range msgs {
		whole := bytes.Join(m.Buffers, nil)
		size := segmentSizeOf(m.OOB)
		if size == 0 {
			all = append(all, string(whole))
			continue
		}
		if len(whole) > maxDatagram || len(whole) > size*maxSegments {
			t.Fatalf("a message of %d bytes in segments of %d", len(whole), size)
		}
		for p := range slices.Chunk(whole, size) {
			all = append(all, string(p))
		}
	}
	return all
}

// Datagrams of any sizes come out of messages as they went in.
func TestPack(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		head := make([]byte, rapid.SampledFrom([]int{0, 12}).Draw(t, "head"))
		bufs := make([][]byte, rapid.IntRange(1, 128).Draw(t, "datagrams"))
		for i := range bufs {
			size := rapid.SampledFrom([]int{1, 32, 80, 1312, 1312, 1312, 1312, 9000, 60000}).Draw(t, "size")
			bufs[i] = bytes.Repeat([]byte{byte(i)}, size)
		}
		var w writer
		for _, segments := range []bool{false, canSegment} {
			w.pack(head, bufs, nil, segments)
			if got, want := cut(t, w.msgs), datagrams(head, bufs); !slices.Equal(got, want) {
				t.Fatalf("%d datagrams have become %d or others", len(want), len(got))
			}
			if !segments && len(w.msgs) != len(bufs) {
				t.Fatalf("%d messages of %d datagrams", len(w.msgs), len(bufs))
			}
		}
	})
}

// A full batch needs three messages.
func TestPackFew(t *testing.T) {
	if !canSegment {
		t.Skip("this system sends each datagram on its own")
	}
	var w writer
	w.pack(nil, slices.Repeat([][]byte{make([]byte, mtu+32)}, 128), nil, true)
	if len(w.msgs) != 3 {
		t.Errorf("%d messages", len(w.msgs))
	}
}

// What is sent arrives, by way of the kernel, of both kinds of socket.
func TestSocket(t *testing.T) {
	for _, addr := range []string{"127.0.0.1", "::1"} {
		for _, segments := range []bool{true, false} {
			t.Run(fmt.Sprintf("%s/%v", addr, segments), func(t *testing.T) {
				from, to := loopback(t, addr), loopback(t, addr)
				if !segments {
					from.segments.Store(false)
				}
				r := to.reader()
				_ = to.SetReadDeadline(time.Now().Add(30 * time.Second))
				for _, head := range [][]byte{nil, []byte("twelve bytes")} {
					for _, sizes := range [][]int{{5}, {1312, 1312, 1312, 80}, {100, 1312, 1312, 32, 32}, slices.Repeat([]int{1312}, 128)} {
						var bufs [][]byte
						for i, n := range sizes {
							bufs = append(bufs, bytes.Repeat([]byte{byte(i)}, n))
						}
						if err := from.send(head, bufs, netip.AddrPortFrom(netip.MustParseAddr(addr), to.port())); err != nil {
							t.Fatal(err)
						}
						receive(t, r, from.port(), datagrams(head, bufs))
					}
				}
			})
		}
	}
}

func loopback(t *testing.T, addr string) *socket {
	t.Helper()
	v4, v6, err := openSockets(netip.AddrPortFrom(netip.MustParseAddr(addr), 0))
	s := v4
	if s == nil {
		s = v6
	}
	if err != nil {
		if errors.Is(err, syscall.EADDRNOTAVAIL) || errors.Is(err, syscall.EAFNOSUPPORT) {
			t.Skip("this host has no address ", addr)
		}
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s
}

func receive(t *testing.T, r *reader, port uint16, want []string) {
	t.Helper()
	for i := 0; i < len(want); {
		msg, from, ok := r.next()
		if !ok {
			if err := r.read(); err != nil {
				t.Fatalf("after %d of %d datagrams: %v", i, len(want), err)
			}
			continue
		}
		if string(msg) != want[i] || from.Port() != port {
			t.Fatalf("datagram %d is %d bytes from %v, want %d from port %d", i, len(msg), from, len(want[i]), port)
		}
		i++
	}
}

// fussy is a socket's way out that refuses messages of several datagrams, and
// takes few messages at a time.
type fussy struct {
	refuse error
	sent   []string
}

func (f *fussy) ReadBatch([]ipv6.Message, int) (int, error) { return 0, errors.ErrUnsupported }

func (f *fussy) WriteBatch(msgs []ipv6.Message, _ int) (int, error) {
	for i, m := range msgs[:min(len(msgs), 3)] {
		if m.OOB != nil {
			if i > 0 {
				return i, nil
			}
			return 0, f.refuse
		}
		f.sent = append(f.sent, string(bytes.Join(m.Buffers, nil)))
	}
	return min(len(msgs), 3), nil
}

// An interface that cannot do it is not asked again; a path too narrow is.
func TestSegmentsRefused(t *testing.T) {
	if !canSegment {
		t.Skip("this system sends each datagram on its own")
	}
	bufs := slices.Repeat([][]byte{[]byte("some"), []byte("more")}, 5)
	for _, c := range []struct {
		err  error
		want bool // tried again
		fail bool
	}{{syscall.EIO, false, false}, {syscall.EMSGSIZE, true, false}, {syscall.EINVAL, true, false}, {syscall.EPERM, true, true}} {
		s := loopback(t, "127.0.0.1")
		s.segments.Store(true)
		f := &fussy{refuse: c.err}
		s.batch = f
		err := s.send(nil, bufs, netip.MustParseAddrPort("127.0.0.1:9"))
		if c.fail != (err != nil) {
			t.Errorf("%v: send fails with %v", c.err, err)
		}
		if !c.fail && !slices.Equal(f.sent, datagrams(nil, bufs)) {
			t.Errorf("%v: sent %q", c.err, f.sent)
		}
		if s.segments.Load() != c.want {
			t.Errorf("%v: tried again: %v", c.err, !c.want)
		}
	}
}
