package hostnet

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"
	"golang.zx2c4.com/wireguard/tun"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// fakeTUN is a kernel's interface: a socket on whose other end the test is the
// kernel.
type fakeTUN struct {
	file   *os.File
	kernel *os.File
	events chan tun.Event
}

func newFakeTUN(t *testing.T) *fakeTUN {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_DGRAM, 0)
	if err != nil {
		t.Fatal(err)
	}
	for _, fd := range fds {
		if err := unix.SetNonblock(fd, true); err != nil {
			t.Fatal(err)
		}
	}
	f := &fakeTUN{os.NewFile(uintptr(fds[0]), "tun"), os.NewFile(uintptr(fds[1]), "kernel"), make(chan tun.Event)}
	t.Cleanup(func() { f.kernel.Close() })
	return f
}

func (f *fakeTUN) Read(bufs [][]byte, sizes []int, offset int) (int, error) {
	n, err := f.file.Read(bufs[0][offset:])
	sizes[0] = n
	if err != nil {
		return 0, err
	}
	return 1, nil
}

func (f *fakeTUN) Write(bufs [][]byte, offset int) (int, error) {
	for _, b := range bufs {
		if _, err := f.file.Write(b[offset:]); err != nil {
			return 0, err
		}
	}
	return len(bufs), nil
}

func (f *fakeTUN) File() *os.File           { return f.file }
func (f *fakeTUN) MTU() (int, error)        { return 1280, nil }
func (f *fakeTUN) Name() (string, error)    { return "fake", nil }
func (f *fakeTUN) Events() <-chan tun.Event { return f.events }
func (f *fakeTUN) BatchSize() int           { return 128 }
func (f *fakeTUN) Close() error             { close(f.events); return f.file.Close() }

// fakeStack is the node's own stack: what it sends comes from a channel.
type fakeStack struct {
	sends  chan []byte
	gets   chan []byte
	closed chan struct{}
	events chan tun.Event
}

func newFakeStack() *fakeStack {
	return &fakeStack{make(chan []byte), make(chan []byte, 1024), make(chan struct{}), make(chan tun.Event)}
}

func (f *fakeStack) Read(bufs [][]byte, sizes []int, offset int) (int, error) {
	select {
	case b := <-f.sends:
		sizes[0] = copy(bufs[0][offset:], b)
		return 1, nil
	case <-f.closed:
		return 0, os.ErrClosed
	}
}

func (f *fakeStack) Write(bufs [][]byte, offset int) (int, error) {
	for _, b := range bufs {
		f.gets <- bytes.Clone(b[offset:])
	}
	return len(bufs), nil
}

func (f *fakeStack) File() *os.File           { return nil }
func (f *fakeStack) MTU() (int, error)        { return 1280, nil }
func (f *fakeStack) Name() (string, error)    { return "stack", nil }
func (f *fakeStack) Events() <-chan tun.Event { return f.events }
func (f *fakeStack) BatchSize() int           { return 32 }
func (f *fakeStack) Close() error             { close(f.closed); close(f.events); return nil }

// fixture is a device between a kernel and a stack, both of the test.
type fixture struct {
	*Device
	t      *testing.T
	kernel *fakeTUN
	stack  *fakeStack
}

func newFixture(t *testing.T) *fixture {
	f := &fixture{t: t, kernel: newFakeTUN(t), stack: newFakeStack()}
	like := newFilter()
	f.Device = newDevice(Config{
		Addr: self, Prefix: testMesh, MTU: 1280, Log: slog.New(slog.DiscardHandler), Node: f.stack,
		Owns: like.owns, Joiner: like.joiner, Private: like.private, Open: like.open,
	}, f.kernel)
	f.restore = func() error { return nil }
	f.start()
	t.Cleanup(func() {
		if err := f.Close(); err != nil {
			t.Error(err)
		}
	})
	return f
}

const testOffset = 16 // bytes that WireGuard leaves free before a packet

// read returns the packets of one Read that may go.
func (f *fixture) read() (list [][]byte, err error) {
	bufs, sizes := make([][]byte, f.BatchSize()), make([]int, f.BatchSize())
	for i := range bufs {
		bufs[i] = make([]byte, 2048)
	}
	n, err := f.Read(bufs, sizes, testOffset)
	for i, size := range sizes[:n] {
		if size > 0 {
			list = append(list, bufs[i][testOffset:testOffset+size])
		}
	}
	return list, err
}

func numbered(i int, b []byte) []byte { return append(b, fmt.Appendf(nil, "%d", i)...) }

// Two programs send as fast as they can, one over the kernel's stack and one
// over the node's: WireGuard reads everything, each in its order, and neither
// waits for the end of the other.
func TestDeviceReadsBoth(t *testing.T) {
	f := newFixture(t)
	const count = 2000
	host, node := tcp(self, member, 40000, 22, flagACK), tcp(self, member, 50000, 80, flagACK)
	var senders sync.WaitGroup
	defer senders.Wait()
	senders.Go(func() {
		for range count {
			if _, err := f.kernel.kernel.Write(append(bytes.Clone(host), 'h')); err != nil {
				t.Error(err)
				return
			}
		}
	})
	senders.Go(func() {
		for i := range count {
			f.stack.sends <- numbered(i, bytes.Clone(node))
		}
	})
	var fromHost, fromNode int
	firstHost, firstNode := count, count
	for fromHost < count || fromNode < count {
		list, err := f.read()
		if err != nil {
			t.Fatal(err)
		}
		for _, b := range list {
			if bytes.HasPrefix(b, node) {
				if want := numbered(fromNode, bytes.Clone(node)); !bytes.Equal(b, want) {
					t.Fatalf("packet %d of the node is %q", fromNode, b[len(node):])
				}
				firstNode = min(firstNode, fromHost)
				fromNode++
			} else {
				firstHost = min(firstHost, fromNode)
				fromHost++
			}
		}
	}
	if firstHost == count || firstNode == count {
		t.Errorf("one waited for the other: %d packets of the node before the first of the host, %d the other way", firstHost, firstNode)
	}
}

// What the filter refuses does not leave, and does not stop what does.
func TestDeviceReadFilters(t *testing.T) {
	f := newFixture(t)
	for _, b := range [][]byte{tcp(self, member, 40000, apiPort, syn), tcp(self, member, 40000, 22, syn)} {
		if _, err := f.kernel.kernel.Write(b); err != nil {
			t.Fatal(err)
		}
	}
	if list, err := f.read(); err != nil || len(list) != 0 {
		t.Errorf("a packet to a private port leaves: %x (%v)", list, err)
	}
	if list, err := f.read(); err != nil || len(list) != 1 {
		t.Errorf("%d packets (%v), want 1", len(list), err)
	}
}

// Packets from the mesh reach the one that they are for, in their order.
func TestDeviceWrites(t *testing.T) {
	f := newFixture(t)
	var bufs [][]byte
	for i, b := range [][]byte{
		tcp(member, self, 22, 40000, flagACK), tcp(member, self, 22, 40000, flagACK),
		tcp(member, self, 5000, apiPort, syn), tcp(member, self, 5000, 22, syn), tcp(member, self, 5000, apiPort, flagACK),
		tcp(member, self, 22, 40000, flagACK), tcp(joiner, doorAddr, 5000, 1, syn),
	} {
		bufs = append(bufs, append(make([]byte, testOffset), numbered(i, b)...))
	}
	if n, err := f.Write(bufs, testOffset); n != len(bufs) || err != nil {
		t.Fatal(n, err)
	}
	last := func(b []byte) string { return string(b[len(b)-1:]) }
	var host, node string
	b := make([]byte, 2048)
	for range 3 {
		n, err := f.kernel.kernel.Read(b)
		if err != nil {
			t.Fatal(err)
		}
		host += last(b[:n])
	}
	for range 3 {
		node += last(<-f.stack.gets)
	}
	if host != "015" || node != "246" {
		t.Errorf("the host has %s, the node's stack %s", host, node)
	}
}

// A reader that waits is woken by the node's stack, and by the end.
func TestDeviceWakes(t *testing.T) {
	f := newFixture(t)
	type result struct {
		list [][]byte
		err  error
	}
	results := make(chan result)
	go func() {
		defer close(results)
		for {
			list, err := f.read()
			results <- result{list, err}
			if err != nil {
				return
			}
		}
	}()
	for range 200 {
		f.stack.sends <- tcp(self, member, 50000, 80, flagACK)
		if r := <-results; r.err != nil || len(r.list) != 1 {
			t.Fatalf("%+v", r)
		}
	}
	if err := f.Close(); err != nil {
		t.Error(err)
	}
	if r := <-results; !errors.Is(r.err, os.ErrClosed) {
		t.Errorf("after the end: %+v", r)
	}
}

// The node goes on where somebody deletes the interface.
func TestDeviceGone(t *testing.T) {
	f := newFixture(t)
	f.kernel.file.Close()
	go func() {
		time.Sleep(time.Millisecond) // either order has to do
		f.stack.sends <- tcp(self, member, 50000, 80, flagACK)
	}()
	if list, err := f.read(); err != nil || len(list) != 1 {
		t.Errorf("%d packets (%v), want that of the node", len(list), err)
	}
}
