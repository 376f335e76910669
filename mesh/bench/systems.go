package main

import (
	"context"
	"encoding/hex"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os/exec"
	"strings"

	"golang.zx2c4.com/wireguard/conn"
	"golang.zx2c4.com/wireguard/device"
	"golang.zx2c4.com/wireguard/tun"
	"golang.zx2c4.com/wireguard/tun/netstack"

	"github.com/balanceai/balance/mesh"
	"github.com/balanceai/balance/mesh/identity"
)

// system is a kind of network.
type system struct {
	name  string
	goals string // cells of the table
	open  func(server bool) (network, error)
}

var systems = []system{
	{name: "veth", open: func(server bool) (network, error) { return host{underlay, side(server)}, nil }},
	{name: "wireguard-go-tun", open: openStockTUN},
	{name: "wireguard-go-netstack", open: openStockNetstack},
	{name: "balance-userspace", goals: "≥ 2400\t≤ 6.5\t\t\t≤ 0.360\t≤ 45\t≤ 80", open: openBalance},
}

// overlay are the addresses inside the stock networks, server first.
var overlay = [2]netip.Addr{netip.MustParseAddr("fd78::1"), netip.MustParseAddr("fd78::2")}

// side is the index of an end in a list with the server first.
func side(server bool) int {
	if server {
		return 0
	}
	return 1
}

// host is the network of the kernel.
type host struct {
	addrs [2]netip.Addr
	self  int
}

func (h host) name() string              { return "-" }
func (h host) connect(peer string) error { return nil }

func (h host) listen() (net.Listener, error) {
	return net.ListenTCP("tcp", net.TCPAddrFromAddrPort(netip.AddrPortFrom(h.addrs[h.self], port)))
}

func (h host) dial(ctx context.Context) (net.Conn, error) {
	var d net.Dialer
	return d.DialContext(ctx, "tcp", netip.AddrPortFrom(h.addrs[1-h.self], port).String())
}

// stock is wireguard-go with its own socket, above a device.
type stock struct {
	host
	dev *device.Device
	key identity.WGKey
	udp uint16 // port
}

// stockMTU is what wg-quick chooses over Ethernet, in bytes.
const stockMTU = 1420

func newStock(d tun.Device, self int, listen uint16) (*stock, error) {
	key, err := identity.NewWGKey()
	if err != nil {
		return nil, err
	}
	dev := device.NewDevice(d, conn.NewDefaultBind(), device.NewLogger(device.LogLevelSilent, ""))
	err = dev.IpcSet(fmt.Sprintf("private_key=%s\nlisten_port=%d\n", key.SecretHex(), listen))
	return &stock{host{overlay, self}, dev, key, listen}, err
}

func (s *stock) name() string { return s.key.Public().Hex() }

func (s *stock) connect(peer string) error {
	err := s.dev.IpcSet(fmt.Sprintf("public_key=%s\nendpoint=%s\nallowed_ip=%s/128\n", peer, netip.AddrPortFrom(underlay[1-s.self], s.udp), overlay[1-s.self]))
	if err != nil {
		return err
	}
	return s.dev.Up()
}

func openStockTUN(server bool) (network, error) {
	const name = "wg0"
	d, err := tun.CreateTUN(name, stockMTU)
	if err != nil {
		return nil, err
	}
	for _, command := range []string{"ip link set " + name + " up", fmt.Sprintf("ip addr add %s/64 dev %s nodad", overlay[side(server)], name)} {
		words := strings.Fields(command)
		if out, err := exec.Command(words[0], words[1:]...).CombinedOutput(); err != nil {
			return nil, fmt.Errorf("%s: %w: %s", command, err, out)
		}
	}
	s, err := newStock(d, side(server), 51820)
	return s, err
}

// stockNetstack is stock wireguard-go with the network stack that comes with it.
type stockNetstack struct {
	*stock
	net *netstack.Net
}

func openStockNetstack(server bool) (network, error) {
	d, n, err := netstack.CreateNetTUN([]netip.Addr{overlay[side(server)]}, nil, stockMTU)
	if err != nil {
		return nil, err
	}
	s, err := newStock(d, side(server), 51821)
	return stockNetstack{s, n}, err
}

func (s stockNetstack) listen() (net.Listener, error) {
	return s.net.ListenTCPAddrPort(netip.AddrPortFrom(overlay[s.self], port))
}

func (s stockNetstack) dial(ctx context.Context) (net.Conn, error) {
	return s.net.DialContextTCPAddrPort(ctx, netip.AddrPortFrom(overlay[1-s.self], port))
}

// balance is the mesh of this project.
type balance struct {
	node *mesh.Node
	keys identity.Keys
	self int
	peer identity.ID
}

const balancePort = 41641 // UDP

func openBalance(server bool) (network, error) {
	b := &balance{self: side(server)}
	var err error
	if b.keys.Identity, err = identity.NewKey(); err != nil {
		return nil, err
	}
	if b.keys.WG, err = identity.NewWGKey(); err != nil {
		return nil, err
	}
	b.node, err = mesh.Open(mesh.Config{
		Keys: b.keys, Mesh: identity.MeshID{1}, Log: slog.New(slog.DiscardHandler),
		Listen: netip.AddrPortFrom(netip.IPv4Unspecified(), balancePort),
	})
	return b, err
}

func (b *balance) name() string {
	return b.keys.Identity.ID().String() + "/" + b.keys.WG.Public().Hex()
}

func (b *balance) connect(peer string) error {
	id, key, _ := strings.Cut(peer, "/")
	var err error
	if b.peer, err = identity.ParseID(id); err != nil {
		return err
	}
	var wg identity.WGPublic
	if _, err := hex.Decode(wg[:], []byte(key)); err != nil {
		return err
	}
	b.node.SetPeers([]mesh.Peer{{ID: b.peer, WG: wg, Addrs: []netip.AddrPort{netip.AddrPortFrom(underlay[1-b.self], balancePort)}}})
	return nil
}

func (b *balance) listen() (net.Listener, error) { return b.node.Listen(port) }

func (b *balance) dial(ctx context.Context) (net.Conn, error) { return b.node.Dial(ctx, b.peer, port) }
