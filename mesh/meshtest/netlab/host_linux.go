package netlab

import (
	"fmt"
	"net"
	"net/netip"
	"strings"
	"time"
)

// Host is a machine with one cable, which is plugged into a network. Its only
// interface but lo is eth0.
type Host struct {
	Name string

	lab   *Lab
	ns    *namespace
	env   []string // added to the environment of its processes
	in    *Network
	seat  seat
	port  string // the network's end of the cable, in the namespace of the network
	cable *cable // between the two; nil: they are one pair
}

// Host makes a host and plugs it in.
func (n *Network) Host(name string) *Host {
	l := n.lab
	l.t.Helper()
	h := &Host{Name: name, lab: l, ns: l.namespace(), port: fmt.Sprintf("p%d", len(l.hosts)), in: n}
	l.hosts = append(l.hosts, h)
	// The kernel reports a change of carrier at once where the two ends of a pair
	// have different indexes, and else when it has time, within a second.
	l.must(h.ns.ip(fmt.Sprintf("link add eth0 index 1000 type veth peer name %s netns %s", h.port, n.ns.path())))
	h.sit()
	return h
}

// sit gives the host the next place in its network.
func (h *Host) sit() {
	h.lab.t.Helper()
	h.seat = h.in.take()
	h.connect()
	commands := []string{
		"addr flush dev eth0 scope global",
		fmt.Sprintf("addr add %s dev eth0", h.seat.addr),
		"link set eth0 up",
	}
	if h.seat.gateway.IsValid() {
		commands = append(commands, fmt.Sprintf("route replace default via %s", h.seat.gateway))
	}
	h.lab.must(h.ns.ip(commands...))
}

// connect makes the far end of the cable part of the network.
func (h *Host) connect() {
	h.lab.t.Helper()
	var commands []string
	for _, c := range h.seat.connect {
		commands = append(commands, fmt.Sprintf(c, h.port))
	}
	h.lab.must(h.in.ns.ip(commands...))
}

// Roam plugs the host into another network, or anew into its own: eth0 loses its
// carrier and gets another address.
func (h *Host) Roam(to *Network) {
	h.lab.t.Helper()
	h.lab.must(h.in.ns.ip("link set " + h.port + " down"))
	if to.ns != h.in.ns {
		h.lab.must(h.in.ns.ip(fmt.Sprintf("link set %s netns %s", h.port, to.ns.path())))
	} else {
		h.lab.must(h.in.ns.ip("addr flush dev " + h.port))
	}
	h.in = to
	h.sit()
}

// Cut pulls the host's cable: eth0 loses its carrier.
func (h *Host) Cut() {
	h.lab.t.Helper()
	h.lab.must(h.in.ns.ip("link set " + h.port + " down"))
}

// Mend puts the cable back.
func (h *Host) Mend() {
	h.lab.t.Helper()
	h.lab.must(h.in.ns.ip("link set " + h.port + " up"))
}

// Shape makes every frame late and loses a share of them, 0 to 1, on the host's
// cable, each way. The first call pulls the cable for a moment.
func (h *Host) Shape(delay time.Duration, loss float64) {
	h.lab.t.Helper()
	if h.cable == nil {
		h.lab.must(h.lengthen())
	}
	h.cable.shape(delay, loss)
}

// lengthen puts a cable between the two ends of the pair that joins the host to
// its network, in a namespace of its own.
func (h *Host) lengthen() error {
	ns := h.lab.namespace()
	ns.sysctl("net/ipv6/conf/all/disable_ipv6", "1") // it has nothing to say itself
	ns.sysctl("net/ipv6/conf/default/disable_ipv6", "1")
	if err := h.in.ns.ip(fmt.Sprintf("link set %s netns %s name near", h.port, ns.path())); err != nil {
		return err
	}
	err := ns.ip(
		fmt.Sprintf("link add far type veth peer name %s netns %s", h.port, h.in.ns.path()),
		"link set near up",
		"link set far up",
	)
	if err != nil {
		return err
	}
	h.connect()
	h.cable, err = newCable(ns, "near", "far")
	return err
}

// Docker gives the host a bridge for containers, with the address that Docker
// gives it on every machine.
func (h *Host) Docker() {
	h.lab.t.Helper()
	h.lab.must(h.ns.ip(
		"link add docker0 type bridge",
		"addr add 172.17.0.1/16 dev docker0",
		"link add veth0 type veth peer name veth1",
		"link set veth0 master docker0 up",
		"link set veth1 up",
		"link set docker0 up",
	))
}

// Addr returns the host's own address.
func (h *Host) Addr() netip.Addr { return h.seat.addr.Addr() }

// Public returns the address at which the internet sees the host: its own, or
// that of its router. It is zero in a LAN without a router.
func (h *Host) Public() netip.Addr { return h.seat.public }

// Do calls f where the sockets that it opens are the host's.
func (h *Host) Do(f func() error) error { return h.ns.do(f) }

// ListenUDP opens a UDP socket of the host's. Port 0 is any.
func (h *Host) ListenUDP(port uint16) (c *net.UDPConn, err error) {
	err = h.Do(func() (err error) {
		c, err = net.ListenUDP("udp", &net.UDPAddr{Port: int(port)})
		return err
	})
	return c, err
}

// Setenv sets a variable for the programs that are started on the host.
func (h *Host) Setenv(name, value string) { h.env = append(h.env, name+"="+value) }

func (h *Host) String() string {
	return strings.TrimSpace(fmt.Sprintf("%s (%s, %s)", h.Name, h.Addr(), h.Public()))
}
