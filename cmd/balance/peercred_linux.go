package main

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

func socketUID(fd int) (int, error) {
	cred, err := unix.GetsockoptUcred(fd, unix.SOL_SOCKET, unix.SO_PEERCRED)
	if err != nil {
		return 0, err
	}
	return int(cred.Uid), nil
}

// tcpUID returns the user who holds the socket of a TCP connection between two
// addresses of this host. A socket that has been closed at that end is nobody's,
// though the kernel shows it as root's.
func tcpUID(local, remote netip.AddrPort) (int, error) {
	for _, table := range []string{"/proc/self/net/tcp", "/proc/self/net/tcp6"} {
		text, err := os.ReadFile(table)
		if errors.Is(err, fs.ErrNotExist) {
			continue // no IPv6
		}
		if err != nil {
			return 0, err
		}
		if uid, ok := findUID(text, local, remote); ok {
			return uid, nil
		}
	}
	return 0, fmt.Errorf("nobody holds the connection from %v to %v", local, remote)
}

// findUID finds a connection in one of the kernel's tables (proc_net_tcp in its
// documentation): a heading, then a connection a line with the fields number,
// local address, remote address, state, queues, timer, retransmissions, user,
// timeout, inode. A socket that no process holds has no inode.
func findUID(table []byte, local, remote netip.AddrPort) (uid int, ok bool) {
	for line := range bytes.Lines(table) {
		f := bytes.Fields(line)
		if len(f) < 10 || string(f[9]) == "0" {
			continue
		}
		from, ok1 := parseProcAddr(f[1])
		to, ok2 := parseProcAddr(f[2])
		if ok1 && ok2 && from == local && to == remote {
			uid, err := strconv.Atoi(string(f[7]))
			return uid, err == nil
		}
	}
	return 0, false
}

// parseProcAddr reads an address of these tables: words of 32 bits in hex as
// the host's memory has them, then the port. IPv4 in IPv6 comes out as IPv4.
func parseProcAddr(b []byte) (netip.AddrPort, bool) {
	words, portText, _ := bytes.Cut(b, []byte(":"))
	port, err := strconv.ParseUint(string(portText), 16, 16)
	raw := make([]byte, hex.DecodedLen(len(words)))
	if _, err2 := hex.Decode(raw, words); err != nil || err2 != nil || len(raw)%4 != 0 {
		return netip.AddrPort{}, false
	}
	for i := 0; i < len(raw); i += 4 {
		binary.NativeEndian.PutUint32(raw[i:], binary.BigEndian.Uint32(raw[i:]))
	}
	addr, ok := netip.AddrFromSlice(raw)
	return netip.AddrPortFrom(addr.Unmap(), uint16(port)), ok
}
