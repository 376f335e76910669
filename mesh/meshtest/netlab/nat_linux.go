package netlab

import (
	"encoding/binary"
	"fmt"
	"strings"

	"golang.org/x/sys/unix"
)

// NAT is what a router does to UDP. Mapping and filtering are the terms of
// RFC 4787: which outside port a host's socket gets, and who may answer to it.
type NAT string

// Kinds of NAT. TCP and pings go out through all of them.
const (
	// Easy maps independently of the endpoint, and lets only those answer, by
	// address and port, to whom something was sent: what Linux does as a router.
	Easy NAT = "easy"
	// EasyRej is an Easy that answers strays (ICMP port unreachable) instead of
	// dropping them. It then remembers the stray, and gives what a host inside
	// sends to where it came from another port: two of them are not punched
	// through from ports that both sides have tried.
	EasyRej NAT = "easyrej"
	// Cone maps independently of the endpoint, and lets anyone in to a port that
	// is mapped.
	Cone NAT = "cone"
	// Hard gives each flow a random port, and filters like Easy.
	Hard NAT = "hard"
	// NoUDP drops UDP.
	NoUDP NAT = "noudp"
)

// natRules returns the tables of a router between the interfaces lan and wan.
// They replace those of another kind.
func natRules(kind NAT) string {
	// What each kind adds to what all of them do.
	var remember, forward, flags string
	input := "drop"
	switch kind {
	case Easy:
	case EasyRej:
		input = "accept"
	case Cone:
		// Masquerading keeps the port, so it is enough to know whose it is. In
		// the other kinds the map has what Network.MapPorts was asked for.
		remember = `oifname "wan" meta l4proto udp update @inside { udp sport : ip saddr }`
	case Hard:
		flags = "fully-random"
	case NoUDP:
		forward = "meta l4proto udp drop"
	default:
		panic("netlab: no such NAT: " + string(kind))
	}
	return strings.NewReplacer("REMEMBER", remember, "FORWARD", forward, "FLAGS", flags, "INPUT", input).Replace(`
table ip nat
delete table ip nat
table ip nat {
	map inside { type inet_service : ipv4_addr; flags dynamic,timeout; timeout 5m; size 65535; }
	chain prerouting {
		type nat hook prerouting priority dstnat
		iifname "wan" meta l4proto udp dnat to udp dport map @inside
	}
	chain postrouting {
		type nat hook postrouting priority srcnat
		REMEMBER
		oifname "wan" masquerade FLAGS
	}
	chain forward {
		type filter hook forward priority filter; policy drop
		FORWARD
		ct status dnat accept
		ct state established,related accept
		iifname "lan" accept
	}
	chain input {
		type filter hook input priority filter; policy INPUT
		ct state established,related accept
		iifname { "lo", "lan" } accept
		meta l4proto icmp accept
	}
}
`)
}

// forget empties the connection tracking table: a router that was switched off
// and on. The message is IPCTNL_MSG_CT_DELETE of linux/nfnetlink_conntrack.h
// with no attribute.
func (ns *namespace) forget() error {
	const del = unix.NFNL_SUBSYS_CTNETLINK<<8 | 2
	return ns.do(func() error {
		s, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_NETFILTER)
		if err != nil {
			return err
		}
		defer func() { _ = unix.Close(s) }()
		msg := binary.NativeEndian.AppendUint32(nil, unix.SizeofNlMsghdr+4)
		msg = binary.NativeEndian.AppendUint16(msg, del)
		msg = binary.NativeEndian.AppendUint16(msg, unix.NLM_F_REQUEST|unix.NLM_F_ACK)
		msg = append(msg, make([]byte, 8+4)...) // number and sender; struct nfgenmsg: all families
		if err := unix.Sendto(s, msg, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
			return err
		}
		reply := make([]byte, 4096)
		n, _, err := unix.Recvfrom(s, reply, 0)
		if err != nil {
			return err
		}
		if n < unix.SizeofNlMsghdr+4 {
			return fmt.Errorf("forget connections: an answer of %d bytes", n)
		}
		if errno := -int32(binary.NativeEndian.Uint32(reply[unix.SizeofNlMsghdr:])); errno != 0 {
			return fmt.Errorf("forget connections: %w", unix.Errno(errno))
		}
		return nil
	})
}
