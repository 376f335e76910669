package mesh

import (
	"net/netip"

	"golang.org/x/sys/unix"
)

// sendWhole sends a datagram that no router, and not this host either, may cut
// into fragments. The socket is set for that and back again: what others send
// meanwhile is not larger than its path carries, and so not harmed.
func (s *socket) sendWhole(msg []byte, to netip.AddrPort) {
	raw, err := s.SyscallConn()
	if err != nil {
		return
	}
	level, option, value := unix.IPPROTO_IP, unix.IP_MTU_DISCOVER, unix.IP_PMTUDISC_PROBE
	if to.Addr().Is6() {
		level, option, value = unix.IPPROTO_IPV6, unix.IPV6_MTU_DISCOVER, unix.IPV6_PMTUDISC_PROBE
	}
	set := func(value int) (before int, err error) {
		failed := raw.Control(func(fd uintptr) {
			if before, err = unix.GetsockoptInt(int(fd), level, option); err == nil {
				err = unix.SetsockoptInt(int(fd), level, option, value)
			}
		})
		if failed != nil {
			err = failed
		}
		return before, err
	}
	s.whole.Lock()
	defer s.whole.Unlock()
	before, err := set(value)
	if err != nil {
		return
	}
	_, _ = s.WriteToUDPAddrPort(msg, to) // larger than the interface carries, for example
	_, _ = set(before)
}
