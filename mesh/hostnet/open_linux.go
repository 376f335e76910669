package hostnet

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
	"golang.zx2c4.com/wireguard/tun"
)

// pattern is the interface's name: the kernel takes the first number that is
// free.
const pattern = "balance%d"

const (
	tunFile = "/dev/net/tun"
	noIPv6  = "/proc/sys/net/ipv6/conf/%s/disable_ipv6"
)

// Open makes the interface, which is up when it returns.
func Open(cfg Config) (*Device, error) {
	host, err := tun.CreateTUN(pattern, cfg.MTU)
	if err != nil {
		return nil, explain(err)
	}
	d := newDevice(cfg, host)
	if err := d.configure(cfg); err != nil {
		go drain(host) // it closes when its events are taken
		_ = host.Close()
		return nil, err
	}
	d.start()
	return d, nil
}

func drain(host tun.Device) {
	for range host.Events() {
	}
}

// explain says what to do about an interface that could not be made.
func explain(err error) error {
	_, missing := os.Stat(tunFile)
	switch {
	case errors.Is(missing, fs.ErrNotExist), errors.Is(err, unix.ENODEV), errors.Is(err, unix.ENXIO):
		return fmt.Errorf("%w: %s is not there (on a host: modprobe tun; in a container: give it the device)", ErrUnavailable, tunFile)
	case errors.Is(err, fs.ErrPermission): // EPERM and EACCES
		return fmt.Errorf("%w: making an interface needs the capability CAP_NET_ADMIN (run as root, or once: sudo setcap cap_net_admin+ep %s)", ErrUnavailable, program())
	}
	return fmt.Errorf("%w: make the interface: %w", ErrUnavailable, err)
}

func program() string {
	path, err := os.Executable()
	if err != nil {
		return "balance"
	}
	return path
}

func (d *Device) configure(cfg Config) error {
	var err error
	if d.name, err = d.host.Name(); err != nil {
		return err
	}
	off, err := os.ReadFile(fmt.Sprintf(noIPv6, d.name))
	if err != nil || strings.TrimSpace(string(off)) != "0" {
		return fmt.Errorf("%w: IPv6 is switched off on this host (to switch it on for new interfaces: sysctl -w net.ipv6.conf.default.disable_ipv6=0)", ErrUnavailable)
	}
	link, err := netlink.LinkByName(d.name)
	if err != nil {
		return fmt.Errorf("find the interface %s: %w", d.name, err)
	}
	d.index = link.Attrs().Index
	if err := netlink.LinkSetUp(link); err != nil {
		return fmt.Errorf("set the interface %s up: %w", d.name, err)
	}
	if err := setAddress(link, cfg.Addr); err != nil {
		return err
	}
	err = setRoute(link, cfg.Prefix, cfg.Addr)
	if errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("%w: another interface leads to %s already (one node of a mesh can serve a host's programs)", ErrUnavailable, cfg.Prefix)
	}
	d.restore = func() error {
		err := setAddress(link, cfg.Addr)
		if routeErr := setRoute(link, cfg.Prefix, cfg.Addr); !errors.Is(routeErr, fs.ErrExist) {
			err = errors.Join(err, routeErr)
		}
		return err
	}
	return err
}

// setAddress gives the interface the address if it has not got it. Nobody else
// can have it, so there is nothing to detect.
func setAddress(link netlink.Link, a netip.Addr) error {
	addr := &netlink.Addr{IPNet: ipNet(netip.PrefixFrom(a, a.BitLen())), Flags: unix.IFA_F_NODAD}
	if err := netlink.AddrReplace(link, addr); err != nil {
		return fmt.Errorf("give the interface %s its address: %w", link.Attrs().Name, err)
	}
	return nil
}

// setRoute fails with fs.ErrExist if there is such a route, by whatever
// interface.
func setRoute(link netlink.Link, to netip.Prefix, from netip.Addr) error {
	route := &netlink.Route{LinkIndex: link.Attrs().Index, Dst: ipNet(to), Src: from.AsSlice(), Protocol: unix.RTPROT_STATIC}
	if err := netlink.RouteAdd(route); err != nil {
		return fmt.Errorf("route %s to the interface %s: %w", to, link.Attrs().Name, err)
	}
	return nil
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}
