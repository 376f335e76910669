package mesh

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// networkEvents returns a channel that has something in it after each change of
// the host's links, addresses and routes, as the kernel tells it, until done is
// closed. It may tell of a change that is none.
func networkEvents(done <-chan struct{}) (<-chan struct{}, error) {
	s, err := nl.Subscribe(unix.NETLINK_ROUTE,
		unix.RTNLGRP_LINK, unix.RTNLGRP_IPV4_IFADDR, unix.RTNLGRP_IPV6_IFADDR, unix.RTNLGRP_IPV4_ROUTE, unix.RTNLGRP_IPV6_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("watch the network: %w", err)
	}
	go func() {
		<-done
		s.Close() // which ends Receive
	}()
	events := make(chan struct{}, 1)
	go func() {
		defer close(events)
		for {
			_, _, err := s.Receive()
			if err != nil && !errors.Is(err, unix.ENOBUFS) { // that one says that events were lost
				return
			}
			select {
			case events <- struct{}{}:
			default:
			}
		}
	}()
	return events, nil
}

// networkState returns what of the host's network matters to paths, as text to
// compare: addresses that can be used on links that are up, and default routes.
func networkState() string {
	links, err := netlink.LinkList()
	if err != nil {
		return ""
	}
	names := map[int]string{}
	for _, l := range links {
		if a := l.Attrs(); a.OperState != netlink.OperDown && a.RawFlags&unix.IFF_UP != 0 && !inner(a.Name) {
			names[a.Index] = a.Name
		}
	}
	var state []string
	addrs, err := netlink.AddrList(nil, netlink.FAMILY_ALL)
	if err != nil {
		return ""
	}
	for _, a := range addrs {
		if name := names[a.LinkIndex]; name != "" && a.Flags&unix.IFA_F_TENTATIVE == 0 {
			state = append(state, name+" "+a.IPNet.String())
		}
	}
	routes, err := netlink.RouteList(nil, netlink.FAMILY_ALL)
	if err != nil {
		return ""
	}
	for _, r := range routes {
		if ones := 0; r.Dst != nil {
			if ones, _ = r.Dst.Mask.Size(); ones != 0 {
				continue
			}
		}
		if name := names[r.LinkIndex]; name != "" {
			state = append(state, name+" default "+r.Gw.String())
		}
	}
	slices.Sort(state)
	return strings.Join(state, "\n")
}
