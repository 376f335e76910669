package portmap

import (
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
)

// defaultRouter returns the router of the best default route, as the kernel
// knows it.
func defaultRouter() (Router, error) {
	routes, err := netlink.RouteList(nil, netlink.FAMILY_V4)
	if err != nil {
		return Router{}, err
	}
	var best *netlink.Route
	for i, r := range routes {
		if r.Gw == nil || r.Dst != nil && !isDefault(r.Dst) {
			continue
		}
		if best == nil || r.Priority < best.Priority {
			best = &routes[i]
		}
	}
	if best == nil {
		return Router{}, errNone
	}
	gw, _ := netip.AddrFromSlice(best.Gw)
	return routerAt(gw.Unmap())
}

func isDefault(n *net.IPNet) bool {
	ones, _ := n.Mask.Size()
	return ones == 0
}
