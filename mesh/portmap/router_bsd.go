//go:build darwin || freebsd || netbsd || openbsd

package portmap

import (
	"net/netip"
	"syscall"

	"golang.org/x/net/route"
)

// defaultRouter returns the router of the first default route, as the kernel
// knows it.
func defaultRouter() (Router, error) {
	rib, err := route.FetchRIB(syscall.AF_INET, route.RIBTypeRoute, 0)
	if err != nil {
		return Router{}, err
	}
	msgs, err := route.ParseRIB(route.RIBTypeRoute, rib)
	if err != nil {
		return Router{}, err
	}
	for _, m := range msgs {
		r, ok := m.(*route.RouteMessage)
		if !ok || len(r.Addrs) <= syscall.RTAX_GATEWAY || r.Flags&syscall.RTF_GATEWAY == 0 {
			continue
		}
		dst, ok := r.Addrs[syscall.RTAX_DST].(*route.Inet4Addr)
		gw, isAddr := r.Addrs[syscall.RTAX_GATEWAY].(*route.Inet4Addr)
		if ok && isAddr && dst.IP == [4]byte{} {
			return routerAt(netip.AddrFrom4(gw.IP))
		}
	}
	return Router{}, errNone
}
