package mesh

import (
	"encoding/binary"
	"errors"
	"net"

	"golang.org/x/sys/unix"
)

// controlSize is the space in bytes for the control message that tells the size
// of the datagrams in a message: an int.
var controlSize = unix.CmsgSpace(4)

// offload has the kernel put datagrams together that arrive, and reports
// whether it also takes several as one.
func offload(c *net.UDPConn) (segments bool) {
	raw, err := c.SyscallConn()
	if err != nil {
		return false
	}
	_ = raw.Control(func(fd uintptr) { // fails when c is closed
		// A kernel that cannot gives each datagram on its own.
		_ = unix.SetsockoptInt(int(fd), unix.IPPROTO_UDP, unix.UDP_GRO, 1)
		_, err := unix.GetsockoptInt(int(fd), unix.IPPROTO_UDP, unix.UDP_SEGMENT)
		segments = err == nil
	})
	return segments
}

// refusesSegments reports whether a message was not sent because it was of
// several datagrams, and whether that is so for all: the interface computes no
// checksums (EIO). A path may be too narrow for one of the datagrams, which can
// still go in fragments (EMSGSIZE, formerly EINVAL).
func refusesSegments(err error) (refuses, all bool) {
	all = errors.Is(err, unix.EIO)
	return all || errors.Is(err, unix.EMSGSIZE) || errors.Is(err, unix.EINVAL), all
}

// segmentHeader is the header of a control message that holds the size of
// datagrams, 16 bits.
var segmentHeader = func() []byte {
	h := unix.Cmsghdr{Level: unix.IPPROTO_UDP, Type: unix.UDP_SEGMENT}
	h.SetLen(unix.CmsgLen(2))
	b, err := binary.Append(nil, binary.NativeEndian, h)
	if err != nil {
		panic(err) // it has a fixed size
	}
	return b
}()

// segmentSize makes the control message by which the kernel cuts a message into
// datagrams of a size.
func segmentSize(size int) []byte {
	b := make([]byte, unix.CmsgSpace(2))
	copy(b, segmentHeader)
	binary.NativeEndian.PutUint16(b[unix.CmsgLen(0):], uint16(size))
	return b
}

// segmentsOf returns the size of the datagrams that the kernel has put together
// in a message, of its control messages. 0: it is one datagram.
func segmentsOf(control []byte) int {
	for len(control) >= unix.CmsgLen(0) {
		h, data, rest, err := unix.ParseOneSocketControlMessage(control)
		if err != nil {
			return 0
		}
		if h.Level == unix.IPPROTO_UDP && h.Type == unix.UDP_GRO && len(data) >= 2 {
			return int(binary.NativeEndian.Uint16(data))
		}
		control = rest
	}
	return 0
}
