// Package netlab builds networks for tests out of Linux network namespaces:
// hosts on an internet of their own, behind routers with the kinds of NAT that
// people have at home, on LANs with and without multicast; and it pulls cables,
// makes holes, moves hosts, delays and loses frames. It needs Linux, root, and
// the programs ip (iproute2) and nft (nftables).
//
//	lab := netlab.New(t)
//	pub := lab.Internet.Host("pub")
//	home := lab.Router(netlab.Easy, "192.168.1")
//	a, b := home.Host("a"), home.Host("b")
//	out, err := a.Output("ping", "-c1", pub.Addr().String())
//	a.Roam(lab.Internet)
//
// Nothing outside of the lab sees it, and nothing of it outlives the test. A
// namespace has no name: it is there as long as a descriptor of the test's
// process or a process in it is, and the processes die with the one that started
// them, also when the test panics or is killed. So labs run side by side. The
// host's own interfaces, routes and tables are never touched.
//
// What each [NAT] does is held by the tests of this package.
package netlab
