package main

import (
	"log/slog"
	"net"
	"net/netip"
	"os"
	"runtime"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// The kernel tells whose a connection of loopback is, of either family, while
// the other end has it open, if only to read.
func TestTCPUID(t *testing.T) {
	for _, at := range []string{"127.0.0.1:0", "[::1]:0"} {
		l, err := net.Listen("tcp", at)
		if err != nil {
			t.Logf("%s: %v", at, err)
			continue
		}
		defer l.Close()
		c, err := net.Dial("tcp", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		in, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		defer in.Close()
		if uid, err := userOf(in); err != nil || uid != os.Getuid() {
			t.Errorf("%s: user %d, %v, want %d", at, uid, err, os.Getuid())
		}
		if err := c.(*net.TCPConn).CloseWrite(); err != nil {
			t.Fatal(err)
		}
		if uid, err := userOf(in); err != nil || uid != os.Getuid() {
			t.Errorf("%s: after a half close: user %d, %v, want %d", at, uid, err, os.Getuid())
		}
		c.Close()
		if uid, err := userOf(in); err == nil {
			t.Errorf("%s: user %d has a connection that was closed", at, uid)
		}
	}
}

// A port of loopback is for its own user, as a socket in the home is.
func TestOtherUserOfHost(t *testing.T) {
	need(t, os.Getuid() == 0, "root, to be another user")
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	others := make(chan net.Conn, 1)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread ends with what it is
		defer close(others)
		if err := unix.Setfsuid(65534); err != nil {
			t.Error(err)
			return
		}
		c, err := net.Dial("tcp", l.Addr().String())
		if err != nil {
			t.Error(err)
			return
		}
		others <- c
	}()
	other, ok := <-others
	if !ok {
		t.FailNow()
	}
	defer other.Close()
	own, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer own.Close()
	in, err := ownUser{l, slog.New(slog.DiscardHandler)}.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	if in.RemoteAddr().String() != own.LocalAddr().String() {
		t.Error("another user came in")
	}
	_ = other.SetDeadline(time.Now().Add(30 * time.Second))
	if _, err := other.Read(make([]byte, 1)); err == nil || isTimeout(err) {
		t.Errorf("another user was not turned away: %v", err)
	}
}

// Lines as the kernel of a little-endian machine writes them.
const procTCP = `  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode                                                     
   0: 0100007F:0438 00000000:0000 0A 00000000:00000000 00:00000000 00000000  1000        0 1000 1 0000000000000000 100 0 0 10 0
   1: 0100007F:C350 0100007F:0438 01 00000000:00000000 00:00000000 00000000  1001        0 1001 1 0000000000000000 20 4 30 10 -1
   2: 0100007F:C351 0100007F:0438 06 00000000:00000000 03:00001770 00000000     0        0 0 3 0000000000000000
   3: 0000000000000000FFFF00000100007F:C352 0000000000000000FFFF00000100007F:0438 01 00000000:00000000 00:00000000 00000000  1002        0 1002 1 0000000000000000 20 4 30 10 -1
`

func TestFindUID(t *testing.T) {
	at := netip.MustParseAddrPort("127.0.0.1:1080")
	for _, test := range []struct {
		from string
		uid  int
		ok   bool
	}{
		{"127.0.0.1:50000", 1001, true},
		{"127.0.0.1:50001", 0, false}, // TIME_WAIT
		{"127.0.0.1:50002", 1002, true},
		{"127.0.0.1:50003", 0, false},
	} {
		uid, ok := findUID([]byte(procTCP), netip.MustParseAddrPort(test.from), at)
		if uid != test.uid || ok != test.ok {
			t.Errorf("%s: %d, %v", test.from, uid, ok)
		}
	}
}

func FuzzFindUID(f *testing.F) {
	f.Add([]byte(procTCP))
	f.Fuzz(func(t *testing.T, table []byte) {
		findUID(table, netip.MustParseAddrPort("127.0.0.1:50000"), netip.MustParseAddrPort("127.0.0.1:1080"))
	})
}
