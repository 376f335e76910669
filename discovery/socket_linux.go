package discovery

import "golang.org/x/sys/unix"

// ownGroupsOnly keeps packets away that came by another interface, to a group
// that another socket joined there.
func ownGroupsOnly(fd, family int) error {
	if family == unix.AF_INET6 {
		return unix.SetsockoptInt(fd, unix.SOL_IPV6, unix.IPV6_MULTICAST_ALL, 0)
	}
	return unix.SetsockoptInt(fd, unix.SOL_IP, unix.IP_MULTICAST_ALL, 0)
}
