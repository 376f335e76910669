package main

import (
	"context"
	"encoding/hex"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os/exec"
	"slices"
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
	name    string
	goals   []string // cells of the table, from the second on
	against []string // others, with which it is compared round by round
	relayed bool     // it has an end at the relay too
	open    func(place int) (network, error)
}

// Names of networks that others are compared with.
const (
	stockTUN     = "wireguard-go-tun"
	userspace    = "balance-userspace"
	nebulaChaCha = "nebula-chacha"
)

// systemsWith returns what is measured, in turn.
func systemsWith(t tools) []system {
	list := slices.Clone(systems)
	if t.nebula == "" {
		return list
	}
	open := func(cipher string, net byte, udp uint16) func(int) (network, error) {
		return func(place int) (network, error) { return openNebula(place, t, cipher, net, udp) }
	}
	return append(list,
		system{name: "nebula-aes", against: []string{stockTUN}, open: open("aes", 1, 4241)},
		system{name: nebulaChaCha, against: []string{stockTUN}, open: open("chachapoly", 2, 4242)})
}

var systems = []system{
	{name: "veth", open: func(place int) (network, error) { return host{underlay, place}, nil }},
	{name: stockTUN, open: openStockTUN},
	{name: "balance-tun", goals: []string{"≥ 1 of " + stockTUN}, against: []string{stockTUN, nebulaChaCha}, open: openBalanceTUN},
	{name: "wireguard-go-netstack", open: openStockNetstack},
	{name: userspace, goals: []string{"≥ 2400", "≤ 6.5", "", "", "≤ 0.360", "≤ 45", "≤ 80"}, open: openBalance},
	{name: "balance-relayed", goals: []string{"≥ 0.9 of " + userspace}, against: []string{userspace}, relayed: true, open: openRelayed},
	{name: "balance-relayed-tcp", goals: []string{"≥ 300"}, relayed: true, open: openRelayedTCP},
}

// overlay are the addresses inside the stock networks, server first.
var overlay = [2]netip.Addr{netip.MustParseAddr("fd78::1"), netip.MustParseAddr("fd78::2")}

// host is the network of the kernel.
type host struct {
	addrs [2]netip.Addr
	self  int
}

func (h host) name() string                 { return "-" }
func (h host) connect(names []string) error { return nil }
func (h host) process() int                 { return 0 }
func (h host) close()                       {}

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

func (s *stock) connect(names []string) error {
	err := s.dev.IpcSet(fmt.Sprintf("public_key=%s\nendpoint=%s\nallowed_ip=%s/128\n", names[1-s.self], netip.AddrPortFrom(underlay[1-s.self], s.udp), overlay[1-s.self]))
	if err != nil {
		return err
	}
	return s.dev.Up()
}

func openStockTUN(place int) (network, error) {
	const name = "wg0"
	d, err := tun.CreateTUN(name, stockMTU)
	if err != nil {
		return nil, err
	}
	for _, command := range []string{"ip link set " + name + " up", fmt.Sprintf("ip addr add %s/64 dev %s nodad", overlay[place], name)} {
		words := strings.Fields(command)
		if out, err := exec.Command(words[0], words[1:]...).CombinedOutput(); err != nil {
			return nil, fmt.Errorf("%s: %w: %s", command, err, out)
		}
	}
	s, err := newStock(d, place, 51820)
	return s, err
}

// stockNetstack is stock wireguard-go with the network stack that comes with it.
type stockNetstack struct {
	*stock
	net *netstack.Net
}

func openStockNetstack(place int) (network, error) {
	d, n, err := netstack.CreateNetTUN([]netip.Addr{overlay[place]}, nil, stockMTU)
	if err != nil {
		return nil, err
	}
	s, err := newStock(d, place, 51821)
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
	node  *mesh.Node
	keys  identity.Keys
	place int
	peer  identity.ID
}

// Ports of the mesh's nodes.
const (
	balancePort = 41641 // UDP
	streamPort  = 41642 // TCP, of the relay
)

var balanceMesh = identity.MeshID{1}

func openBalanceAt(place int, cfg mesh.Config) (*balance, error) {
	b := &balance{place: place}
	var err error
	if b.keys.Identity, err = identity.NewKey(); err != nil {
		return nil, err
	}
	if b.keys.WG, err = identity.NewWGKey(); err != nil {
		return nil, err
	}
	cfg.Keys, cfg.Mesh, cfg.Log = b.keys, balanceMesh, slog.New(slog.DiscardHandler)
	b.node, err = mesh.Open(cfg)
	return b, err
}

func openBalance(place int) (network, error) {
	return openBalanceAt(place, mesh.Config{Listen: netip.AddrPortFrom(underlay[place], balancePort)})
}

func (b *balance) name() string {
	return b.keys.Identity.ID().String() + "/" + b.keys.WG.Public().Hex()
}

// peerNamed returns what a name tells of a member.
func peerNamed(name string) (mesh.Peer, error) {
	id, key, _ := strings.Cut(name, "/")
	var p mesh.Peer
	var err error
	if p.ID, err = identity.ParseID(id); err != nil {
		return p, err
	}
	_, err = hex.Decode(p.WG[:], []byte(key))
	return p, err
}

func (b *balance) connect(names []string) error {
	peer, err := peerNamed(names[1-b.place])
	if err != nil {
		return err
	}
	b.peer = peer.ID
	peer.Addrs = []netip.AddrPort{netip.AddrPortFrom(underlay[1-b.place], b.node.Port())}
	b.node.SetPeers([]mesh.Peer{peer})
	return nil
}

func (b *balance) process() int { return 0 }
func (b *balance) close()       { _ = b.node.Close() }

func (b *balance) listen() (net.Listener, error) { return b.node.Listen(port) }

func (b *balance) dial(ctx context.Context) (net.Conn, error) { return b.node.Dial(ctx, b.peer, port) }

// balanceTUN is the mesh as other programs of the host use it.
type balanceTUN struct{ *balance }

func openBalanceTUN(place int) (network, error) {
	b, err := openBalanceAt(place, mesh.Config{
		Listen: netip.AddrPortFrom(underlay[place], balancePort+2), TUN: true, Open: []uint16{port},
	})
	return balanceTUN{b}, err
}

func (b balanceTUN) listen() (net.Listener, error) {
	return net.ListenTCP("tcp", net.TCPAddrFromAddrPort(netip.AddrPortFrom(b.node.Address(), port)))
}

func (b balanceTUN) dial(ctx context.Context) (net.Conn, error) {
	var d net.Dialer
	return d.DialContext(ctx, "tcp", netip.AddrPortFrom(balanceMesh.Address(b.peer), port).String())
}

// relayed is the mesh between ends that reach nothing but a relay.
type relayed struct {
	*balance
	tcp bool // the client's UDP does not pass
}

func openRelayed(place int) (network, error) {
	cfg := mesh.Config{Listen: netip.AddrPortFrom(netip.IPv4Unspecified(), balancePort+3)}
	if place == relay {
		cfg.Relay = func(_, _ identity.ID) (int, bool) { return 0, true }
	} else {
		cfg.Listen = netip.AddrPortFrom(toRelay[place], balancePort+3)
	}
	b, err := openBalanceAt(place, cfg)
	return relayed{b, false}, err
}

func openRelayedTCP(place int) (network, error) {
	cfg := mesh.Config{Listen: netip.AddrPortFrom(netip.IPv4Unspecified(), balancePort+4)}
	switch place {
	case relay:
		cfg.Relay = func(_, _ identity.ID) (int, bool) { return 0, true }
	case server:
		cfg.Listen = netip.AddrPortFrom(toRelay[place], balancePort+4)
	case client:
		cfg.Listen = netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), balancePort+4) // from which no UDP gets out
	}
	b, err := openBalanceAt(place, cfg)
	return relayed{b, true}, err
}

func (r relayed) connect(names []string) error {
	var peers []mesh.Peer
	for _, name := range names {
		p, err := peerNamed(name)
		if err != nil {
			return err
		}
		peers = append(peers, p)
	}
	if r.place == relay {
		r.node.SetPeers(peers)
		if !r.tcp {
			return nil
		}
		l, err := net.ListenTCP("tcp", net.TCPAddrFromAddrPort(netip.AddrPortFrom(relayAddr[client], streamPort)))
		if err != nil {
			return err
		}
		go func() { _ = r.node.ServeStreams(l) }()
		return nil
	}
	r.peer = peers[1-r.place].ID
	peers[relay].Addrs = []netip.AddrPort{netip.AddrPortFrom(relayAddr[r.place], r.node.Port())}
	via := mesh.Relay{ID: peers[relay].ID}
	if r.tcp {
		via.Streams = []netip.AddrPort{netip.AddrPortFrom(relayAddr[client], streamPort)}
	}
	r.node.SetPeers(peers)
	r.node.SetRelays([]mesh.Relay{via})
	return nil
}
