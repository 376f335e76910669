package mesh

import (
	"encoding/binary"
	"net/netip"
	"unsafe"

	"golang.org/x/sys/unix"
)

// nearHops is how many routers a datagram passes that is to open this node's
// NAT and not to reach the NAT of the peer: the home's own router.
const nearHops = 2

// sendNear sends a datagram that is dropped behind the first router.
func (s *socket) sendNear(msg []byte, to netip.AddrPort) {
	if !to.Addr().Is4() {
		return // IPv6 has no NAT to be careful with
	}
	oob := make([]byte, unix.CmsgSpace(4))
	h := (*unix.Cmsghdr)(unsafe.Pointer(&oob[0])) // as the kernel lays it out
	h.Level, h.Type = unix.IPPROTO_IP, unix.IP_TTL
	h.SetLen(unix.CmsgLen(4))
	binary.NativeEndian.PutUint32(oob[unix.CmsgLen(0):], nearHops)
	_, _, _ = s.WriteMsgUDPAddrPort(msg, oob, to) // an address may be wrong
}
