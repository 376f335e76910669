package netstack

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const mtu = 1280

var (
	addrA    = netip.MustParseAddr("fd00::a")
	addrB    = netip.MustParseAddr("fd00::b")
	addrDoor = netip.MustParseAddr("fd00::d")
)

// pair returns two interfaces joined by a cable.
func pair(t testing.TB, acceptB func(Packet) bool) (a, b *Net) {
	t.Helper()
	a, errA := New(Config{Addrs: []netip.Addr{addrA}, MTU: mtu})
	b, errB := New(Config{Addrs: []netip.Addr{addrB, addrDoor}, MTU: mtu, Accept: acceptB})
	if err := errors.Join(errA, errB); err != nil {
		t.Fatal(err)
	}
	var cable sync.WaitGroup
	cable.Go(func() { pump(a.Device(), b.Device()) })
	cable.Go(func() { pump(b.Device(), a.Device()) })
	t.Cleanup(func() {
		_ = a.Close()
		_ = b.Close()
		cable.Wait()
	})
	return a, b
}

// pump carries packets as WireGuard does: at an offset in a larger buffer.
func pump(from, to *Device) {
	const offset = 16
	bufs, sizes := make([][]byte, from.BatchSize()), make([]int, from.BatchSize())
	for i := range bufs {
		bufs[i] = make([]byte, offset+mtu)
	}
	for {
		n, err := from.Read(bufs, sizes, offset)
		if err != nil {
			return
		}
		packets := make([][]byte, n)
		for i := range packets {
			packets[i] = bufs[i][:offset+sizes[i]]
		}
		if _, err := to.Write(packets, offset); err != nil {
			return
		}
	}
}

func listen(t testing.TB, n *Net, at netip.AddrPort) net.Listener {
	t.Helper()
	l, err := n.ListenTCP(at)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l
}

func within(t testing.TB) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	t.Cleanup(cancel)
	return ctx
}

func TestTCP(t *testing.T) {
	a, b := pair(t, nil)
	l := listen(t, b, netip.AddrPortFrom(addrB, 80))
	go func() {
		c, err := l.Accept()
		if err != nil {
			return
		}
		defer c.Close()
		if from, ok := c.RemoteAddr().(*net.TCPAddr); !ok || from.AddrPort().Addr() != addrA {
			t.Errorf("connection from %T %v, want TCP from %v", c.RemoteAddr(), c.RemoteAddr(), addrA)
		}
		_, _ = io.Copy(c, c)
	}()
	c, err := a.DialTCP(within(t), addrA, netip.AddrPortFrom(addrB, 80))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	sent := make([]byte, 1<<20)
	for i := range sent {
		sent[i] = byte(i * 7)
	}
	go func() {
		_, _ = c.Write(sent)
		_ = c.(interface{ CloseWrite() error }).CloseWrite()
	}()
	got, err := io.ReadAll(c)
	if err != nil || string(got) != string(sent) {
		t.Errorf("%d of %d bytes came back, error %v", len(got), len(sent), err)
	}
}

func TestTCPErrors(t *testing.T) {
	a, _ := pair(t, nil)
	start := time.Now()
	if _, err := a.DialTCP(within(t), addrA, netip.AddrPortFrom(addrB, 81)); err == nil {
		t.Error("connected to a port that nobody listens on")
	} else if time.Since(start) > 10*time.Second {
		t.Errorf("a refused connection took %v", time.Since(start))
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := a.DialTCP(ctx, addrA, netip.MustParseAddrPort("[fd00::99]:80")); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("dialling nobody: %v, want a timeout", err)
	}
	if _, err := a.ListenTCP(netip.AddrPortFrom(addrB, 80)); err == nil {
		t.Error("listens on an address of another interface")
	}
	listen(t, a, netip.AddrPortFrom(addrA, 80))
	if _, err := a.ListenTCP(netip.AddrPortFrom(addrA, 80)); err == nil {
		t.Error("listens twice on one port")
	}
}

// A port is free for another listener as soon as the one before it is closed,
// though connections that it accepted are there; not before.
func TestListenAgain(t *testing.T) {
	a, b := pair(t, nil)
	at := netip.AddrPortFrom(addrB, 8000)
	for range 3 {
		l := listen(t, b, at)
		if other, err := b.ListenTCP(at); err == nil {
			other.Close()
			t.Fatal("two listeners at one port")
		}
		open, err := a.DialTCP(within(t), addrA, at)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { open.Close() })
		ended, err := a.DialTCP(within(t), addrA, at)
		if err != nil {
			t.Fatal(err)
		}
		for range 2 {
			c, err := l.Accept()
			if err != nil {
				t.Fatal(err)
			}
			if c.RemoteAddr().String() == ended.LocalAddr().String() {
				c.Close() // first: it has to remember the connection for a while
				ended.Close()
			} else {
				t.Cleanup(func() { c.Close() })
			}
		}
		l.Close()
	}
}

func TestDeadline(t *testing.T) {
	a, b := pair(t, nil)
	listen(t, b, netip.AddrPortFrom(addrB, 80))
	c, err := a.DialTCP(within(t), addrA, netip.AddrPortFrom(addrB, 80))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_ = c.SetReadDeadline(time.Now().Add(20 * time.Millisecond))
	_, err = c.Read(make([]byte, 1))
	var timeout net.Error
	if !errors.As(err, &timeout) || !timeout.Timeout() {
		t.Errorf("read past the deadline: %v", err)
	}
}

func TestUDP(t *testing.T) {
	a, b := pair(t, nil)
	pa, errA := a.ListenUDP(netip.AddrPortFrom(addrA, 7000))
	pb, errB := b.ListenUDP(netip.AddrPortFrom(addrB, 7000))
	if err := errors.Join(errA, errB); err != nil {
		t.Fatal(err)
	}
	defer pa.Close()
	defer pb.Close()
	if _, err := pa.WriteTo([]byte("hello"), pb.LocalAddr()); err != nil {
		t.Fatal(err)
	}
	_ = pb.SetReadDeadline(time.Now().Add(20 * time.Second))
	buf := make([]byte, 16)
	n, from, err := pb.ReadFrom(buf)
	if err != nil || string(buf[:n]) != "hello" || from.(*net.UDPAddr).AddrPort() != netip.AddrPortFrom(addrA, 7000) {
		t.Errorf("got %q from %v, error %v", buf[:n], from, err)
	}
}

// echoRequest is an ICMPv6 echo request (RFC 4443) in an IPv6 packet.
func echoRequest(src, dst netip.Addr) []byte {
	b := make([]byte, header.IPv6MinimumSize+header.ICMPv6MinimumSize+8)
	header.IPv6(b).Encode(&header.IPv6Fields{
		PayloadLength: header.ICMPv6MinimumSize + 8, TransportProtocol: header.ICMPv6ProtocolNumber, HopLimit: 64,
		SrcAddr: tcpip.AddrFrom16(src.As16()), DstAddr: tcpip.AddrFrom16(dst.As16()),
	})
	icmp := header.ICMPv6(b[header.IPv6MinimumSize:])
	icmp.SetType(header.ICMPv6EchoRequest)
	icmp.SetIdent(77)
	icmp.SetChecksum(header.ICMPv6Checksum(header.ICMPv6ChecksumParams{
		Header: icmp, Src: tcpip.AddrFrom16(src.As16()), Dst: tcpip.AddrFrom16(dst.As16()),
	}))
	return b
}

func TestEcho(t *testing.T) {
	b, err := New(Config{Addrs: []netip.Addr{addrB}, MTU: mtu})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = b.Close() }()
	if _, err := b.Device().Write([][]byte{echoRequest(addrA, addrB)}, 0); err != nil {
		t.Fatal(err)
	}
	buf, sizes := make([]byte, mtu), make([]int, 1)
	if _, err := b.Device().Read([][]byte{buf}, sizes, 0); err != nil {
		t.Fatal(err)
	}
	reply, ok := parse(buf[:sizes[0]])
	if !ok || reply.Src != addrB || reply.Dst != addrA || buf[header.IPv6MinimumSize] != byte(header.ICMPv6EchoReply) {
		t.Errorf("answer %+v, type %d; want an echo reply", reply, buf[header.IPv6MinimumSize])
	}
}

// What the filter refuses gets no answer at all, not even a refusal.
func TestFilter(t *testing.T) {
	a, b := pair(t, func(p Packet) bool { return p.Proto == TCP && p.Dst == addrDoor && p.DstPort == 1 })
	listen(t, b, netip.AddrPortFrom(addrDoor, 1))
	listen(t, b, netip.AddrPortFrom(addrB, 1))
	c, err := a.DialTCP(within(t), addrA, netip.AddrPortFrom(addrDoor, 1))
	if err != nil {
		t.Fatal(err)
	}
	c.Close()
	for _, to := range []netip.AddrPort{netip.AddrPortFrom(addrB, 1), netip.AddrPortFrom(addrDoor, 2)} {
		ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
		if _, err := a.DialTCP(ctx, addrA, to); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("dialling %v through the filter: %v, want silence", to, err)
		}
		cancel()
	}
}

func TestDamagedPackets(t *testing.T) {
	b, err := New(Config{Addrs: []netip.Addr{addrB}, MTU: mtu})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = b.Close() }()
	good := echoRequest(addrA, addrB)
	for n := range good { // every way to cut it short
		if _, err := b.Device().Write([][]byte{good[:n]}, 0); err != nil {
			t.Fatal(err)
		}
	}
	other := append([]byte{0x45}, good[1:]...)
	if _, err := b.Device().Write([][]byte{other, make([]byte, mtu)}, 0); err != nil {
		t.Fatal(err)
	}
	if n := len(b.dev.link.out); n != 0 {
		t.Errorf("%d answers to damaged packets", n)
	}
}

// Close ends whoever waits, wherever it waits.
func TestClose(t *testing.T) {
	n, err := New(Config{Addrs: []netip.Addr{addrA}, MTU: mtu})
	if err != nil {
		t.Fatal(err)
	}
	l := listen(t, n, netip.AddrPortFrom(addrA, 80))
	p, err := n.ListenUDP(netip.AddrPortFrom(addrA, 80))
	if err != nil {
		t.Fatal(err)
	}
	client, err := n.DialTCP(within(t), addrA, netip.AddrPortFrom(addrA, 80))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := l.Accept(); err != nil {
		t.Fatal(err)
	}
	var waiting sync.WaitGroup
	want := func(what string, target error, wait func() error) {
		waiting.Go(func() {
			if err := wait(); err == nil || (target != nil && !errors.Is(err, target)) {
				t.Errorf("%s at the end: %v, want %v", what, err, target)
			}
		})
	}
	want("Accept", net.ErrClosed, func() error { _, err := l.Accept(); return err })
	want("ReadFrom", nil, func() error { _, _, err := p.ReadFrom(make([]byte, 1)); return err })
	want("Read", nil, func() error { _, err := client.Read(make([]byte, 1)); return err })
	want("DialTCP", nil, func() error {
		_, err := n.DialTCP(within(t), addrA, netip.MustParseAddrPort("[fd00::99]:80"))
		return err
	})
	want("the device", os.ErrClosed, func() error {
		for {
			if _, err := n.Device().Read([][]byte{make([]byte, mtu)}, make([]int, 1), 0); err != nil {
				return err
			}
		}
	})
	time.Sleep(20 * time.Millisecond) // let them wait
	_ = n.Close()
	waiting.Wait()
	if _, open := <-n.Device().Events(); open {
		t.Error("the device's events go on")
	}
}

func FuzzParse(f *testing.F) {
	f.Add(echoRequest(addrA, addrB))
	f.Add(echoRequest(addrA, addrB)[:41])
	tcp := echoRequest(addrA, addrB)
	tcp[6] = TCP
	f.Add(tcp)
	f.Fuzz(func(t *testing.T, b []byte) {
		p, ok := parse(b)
		if ok && (p.Proto == TCP) && p.DstPort != binary.BigEndian.Uint16(b[42:44]) {
			t.Errorf("port %d of %x", p.DstPort, b)
		}
		if ok && p.Proto == ICMPv6 && p.Type != b[40] {
			t.Errorf("type %d of %x", p.Type, b)
		}
	})
}
