package main

import (
	"net/netip"

	"golang.org/x/sys/unix"
)

func socketUID(fd int) (int, error) {
	cred, err := unix.GetsockoptXucred(fd, unix.SOL_LOCAL, unix.LOCAL_PEERCRED)
	if err != nil {
		return 0, err
	}
	return int(cred.Uid), nil
}

// tcpUID cannot tell: macOS has no table of connections with their users.
func tcpUID(_, _ netip.AddrPort) (int, error) { return 0, errUntold }
