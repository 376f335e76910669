package mesh

import (
	"crypto/hkdf"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync/atomic"

	"golang.zx2c4.com/wireguard/conn"
	"golang.zx2c4.com/wireguard/device"
	"golang.zx2c4.com/wireguard/tun"

	"github.com/balanceai/balance/mesh/identity"
	"github.com/balanceai/balance/mesh/netstack"
)

// guests are the plain WireGuard devices that a node carries: a stock WireGuard
// device behind a UDP port of its own.
type guests struct {
	dev  *device.Device
	link *guestLink
	keys []identity.WGPublic
}

// guestConfig is a file for wg-quick(8) and for WireGuard's apps. The keepalive
// holds a mapping of the guest's NAT, so that the mesh reaches it.
const guestConfig = `[Interface]
PrivateKey = %s
Address = %s/128
%sMTU = %d

[Peer]
PublicKey = %s
PresharedKey = %s
AllowedIPs = %s
Endpoint = %s
PersistentKeepalive = 25
`

// GuestConfig writes the configuration of a guest with this key: all that a
// device with plain WireGuard needs, and a secret. The endpoint is host:port; dns
// are servers and domains to search, none to leave the device's own alone.
func (n *Node) GuestConfig(guest identity.WGKey, endpoint string, dns ...string) string {
	text := func(key [32]byte) string { return base64.StdEncoding.EncodeToString(key[:]) }
	key, names := guest.Public(), ""
	if len(dns) > 0 {
		names = "DNS = " + strings.Join(dns, ", ") + "\n"
	}
	return fmt.Sprintf(guestConfig,
		text(guest.Secret()), n.cfg.Mesh.GuestAddress(n.self, key), names, mtu,
		text(guestKey(n.cfg.Keys.WG).Public()), text(n.guestPSK(key)), n.cfg.Mesh.Prefix(), endpoint)
}

// guestPSK returns the key that this node shares with a guest. It is computed
// from the node's own, so that nothing needs to be kept.
func (n *Node) guestPSK(guest identity.WGPublic) [32]byte {
	return derive(n.cfg.Keys.WG, guest[:], "balance/guest-psk/1")
}

// guestKey returns the key by which guests know a node, which tells nobody what
// the node's own is.
func guestKey(k identity.WGKey) identity.WGKey {
	return identity.WGKeyFromBytes(derive(k, nil, "balance/guest/1"))
}

func derive(k identity.WGKey, salt []byte, purpose string) [32]byte {
	secret := k.Secret()
	b, err := hkdf.Key(sha256.New, secret[:], salt, purpose, 32)
	if err != nil {
		panic(err) // the length is a constant
	}
	return [32]byte(b)
}

// SetGuests makes keys the guests that this node carries. Who is not among them
// any more is a stranger at once. The UDP port for guests is open while there
// are any.
func (n *Node) SetGuests(keys []identity.WGPublic) error {
	n.configure.Lock()
	defer n.configure.Unlock()
	select {
	case <-n.done:
		return nil
	default:
	}
	var had []identity.WGPublic
	if n.guests != nil {
		had = n.guests.keys
	}
	switch {
	case slices.Equal(had, keys):
		return nil
	case len(keys) == 0:
		n.closeGuests()
	default:
		if n.guests == nil {
			if err := n.openGuests(); err != nil {
				return err
			}
		}
		n.guests.set(n, slices.Clone(keys))
	}
	n.moveGuests(n.self, had, keys)
	return nil
}

// openGuests opens the port for guests. The caller holds configure.
func (n *Node) openGuests() error {
	link := newGuestLink(n.junction)
	bind := &guestBind{at: n.cfg.Listen.Addr()}
	dev := device.NewDevice(link, bind, wireguardLog(n.log))
	err := dev.IpcSet(fmt.Sprintf("private_key=%s\nlisten_port=%d\n", guestKey(n.cfg.Keys.WG).SecretHex(), n.guestPort.Load()))
	if err == nil {
		err = dev.Up()
	}
	if err != nil {
		dev.Close()
		return fmt.Errorf("open the port for guests: %w", err)
	}
	n.guestPort.Store(uint32(bind.port()))
	n.guests = &guests{dev: dev, link: link}
	n.junction.guests.Store(link)
	return nil
}

// closeGuests closes the port for guests. The caller holds configure.
func (n *Node) closeGuests() {
	if n.guests == nil {
		return
	}
	n.junction.guests.Store(nil)
	n.guests.dev.Close()
	n.guests = nil
}

// set makes keys the peers of the device.
func (g *guests) set(n *Node, keys []identity.WGPublic) {
	var conf strings.Builder
	addrs := map[netip.Addr]bool{}
	for _, k := range g.keys {
		if !slices.Contains(keys, k) {
			fmt.Fprintf(&conf, "public_key=%s\nremove=true\n", k.Hex())
		}
	}
	for _, k := range keys {
		addr := n.cfg.Mesh.GuestAddress(n.self, k)
		addrs[addr] = true
		if !slices.Contains(g.keys, k) {
			fmt.Fprintf(&conf, "public_key=%s\npreshared_key=%x\nallowed_ip=%s/128\n", k.Hex(), n.guestPSK(k), addr)
		}
	}
	if err := g.dev.IpcSet(conf.String()); err != nil { // its lines were made here
		n.log.Error("configure WireGuard for guests", "error", err)
	}
	g.keys = keys
	g.link.addrs.Store(&addrs)
}

// GuestPort returns the UDP port for guests; 0 where none was opened yet.
func (n *Node) GuestPort() uint16 { return uint16(n.guestPort.Load()) }

// GuestEndpoint returns the UDP address at which guests best reach this node,
// and whether it is one that the whole internet can send to. It is not valid
// where there is none.
func (n *Node) GuestEndpoint() (at netip.AddrPort, public bool) {
	addrs := n.told
	if len(addrs) == 0 {
		n.local.refresh()
		addrs = n.localAddrs()
	}
	if len(addrs) == 0 {
		return at, false
	}
	i := slices.IndexFunc(addrs, func(a netip.AddrPort) bool { return isPublic(a.Addr()) })
	return netip.AddrPortFrom(addrs[max(i, 0)].Addr(), n.GuestPort()), i >= 0
}

// Carrier returns the member, or the node itself, that carries the guest with an
// overlay address. [Node.Who] knows no guests: they do not speak for anybody.
func (n *Node) Carrier(guest netip.Addr) (identity.ID, bool) {
	n.mu.RLock()
	defer n.mu.RUnlock()
	id, ok := n.carriedBy[guest]
	return id, ok
}

// moveGuests notes that a member had some guests and has others now. The
// connections with those who are gone fail at once.
func (n *Node) moveGuests(by identity.ID, had, has []identity.WGPublic) {
	var gone []netip.Addr
	n.mu.Lock()
	for _, k := range had {
		if !slices.Contains(has, k) {
			gone = append(gone, n.cfg.Mesh.GuestAddress(by, k))
			delete(n.carriedBy, gone[len(gone)-1])
		}
	}
	for _, k := range has {
		n.carriedBy[n.cfg.Mesh.GuestAddress(by, k)] = by
	}
	n.mu.Unlock()
	for _, addr := range gone {
		n.net.Abort(addr)
	}
}

// setMemberGuests gives a peer the guests that the roster says it carries. The
// caller holds configure.
func (n *Node) setMemberGuests(p *peer, keys []identity.WGPublic) {
	if slices.Equal(p.carries, keys) {
		return
	}
	n.moveGuests(p.id, p.carries, keys)
	p.carries = slices.Clone(keys)
	var addrs []netip.Addr
	for _, k := range keys {
		addrs = append(addrs, n.cfg.Mesh.GuestAddress(p.id, k))
	}
	n.allow(p, addrs)
}

// behind returns the member that carries the guest with an address, or nil.
func (n *Node) behind(guest netip.Addr) *peer {
	n.mu.RLock()
	defer n.mu.RUnlock()
	return n.members[n.carriedBy[guest]]
}

// guestsMay reports whether a packet of a guest's may reach a node: not the
// ports at which nodes take whoever calls for a member, nothing whose port is not
// in sight, and of ICMPv6 no errors, which could be about somebody else's
// connections.
func (n *Node) guestsMay(p netstack.Packet) bool {
	switch p.Proto {
	case netstack.TCP, netstack.UDP:
		return !slices.Contains(n.cfg.Private, p.DstPort)
	case netstack.ICMPv6:
		return p.Type == netstack.EchoRequest || p.Type == netstack.EchoReply
	}
	return false
}

// leadsOn reports whether packets of a guest to an address go on into the mesh:
// to another member, or to a guest of another's.
func (n *Node) leadsOn(to netip.Addr) bool {
	p := n.toward(to)
	return p != nil && !p.id.IsZero()
}

// fork puts the junction between WireGuard and a network stack.
func (n *Node) fork(link tun.Device, stack *netstack.Net) tun.Device {
	n.junction = &junction{
		Device: link, self: n.cfg.Mesh.Address(n.self), out: stack.Device().Inject, joiner: n.cfg.Mesh.IsJoiner, leads: n.leadsOn,
	}
	return n.junction
}

// junction stands between WireGuard and the network stack of a node, where
// packets from and to guests turn off. Without guests it does nothing.
type junction struct {
	tun.Device // the node's stack, with TUN the host's too

	self   netip.Addr
	out    func([]byte) // takes what goes on to others
	joiner func(netip.Addr) bool
	leads  func(netip.Addr) bool

	guests atomic.Pointer[guestLink] // nil: none
}

// Read gives WireGuard what the stack sends, but for what goes to guests.
func (j *junction) Read(bufs [][]byte, sizes []int, offset int) (int, error) {
	n, err := j.Device.Read(bufs, sizes, offset)
	if g := j.guests.Load(); g != nil {
		for i := range n {
			if b := bufs[i][offset : offset+sizes[i]]; g.has(b) {
				g.take(b)
				sizes[i] = 0 // WireGuard passes over it
			}
		}
	}
	return n, err
}

// Write takes what WireGuard received to the guests or to the stack.
func (j *junction) Write(bufs [][]byte, offset int) (int, error) {
	g := j.guests.Load()
	if g == nil {
		return j.Device.Write(bufs, offset)
	}
	return j.sort(bufs, offset, func(b []byte) bool {
		if !g.has(b) {
			return true
		}
		if src, _ := ends(b); !j.joiner(src) {
			g.take(b)
		}
		return false
	})
}

// sort writes those packets to the stack of which stays says that they are for
// it. Those that follow each other stay together.
func (j *junction) sort(bufs [][]byte, offset int, stays func([]byte) bool) (int, error) {
	var errs error
	first := 0
	flush := func(end int) {
		if first < end {
			_, err := j.Device.Write(bufs[first:end], offset)
			errs = errors.Join(errs, err)
		}
		first = end + 1
	}
	for i, b := range bufs {
		if !stays(b[offset:]) {
			flush(i)
		}
	}
	flush(len(bufs))
	return len(bufs), errs
}

// ends returns the addresses of an IPv6 packet; of none, no valid ones.
func ends(b []byte) (src, dst netip.Addr) {
	if len(b) < 40 || b[0]>>4 != 6 {
		return src, dst
	}
	return netip.AddrFrom16([16]byte(b[8:24])), netip.AddrFrom16([16]byte(b[24:40]))
}

const guestQueue = 256 // packets that wait for the guests' WireGuard; more are dropped

// guestLink is the guests' WireGuard device's end: a tun.Device.
type guestLink struct {
	junction *junction
	addrs    atomic.Pointer[map[netip.Addr]bool] // the guests'
	queue    chan []byte
	done     chan struct{}
	closed   atomic.Bool
	events   chan tun.Event // WireGuard waits for its end
}

func newGuestLink(j *junction) *guestLink {
	g := &guestLink{junction: j, queue: make(chan []byte, guestQueue), done: make(chan struct{}), events: make(chan tun.Event)}
	g.addrs.Store(&map[netip.Addr]bool{})
	return g
}

// has reports whether a packet is for a guest.
func (g *guestLink) has(b []byte) bool {
	_, dst := ends(b)
	return (*g.addrs.Load())[dst]
}

// take queues a packet for a guest, unless the guests' WireGuard is behind:
// nobody else waits for a slow guest.
func (g *guestLink) take(b []byte) {
	if len(g.queue) == cap(g.queue) {
		return
	}
	select {
	case g.queue <- slices.Clone(b):
	default:
	}
}

// Read gives WireGuard packets for guests: at least one, and those that wait
// behind it.
func (g *guestLink) Read(bufs [][]byte, sizes []int, offset int) (int, error) {
	select {
	case b := <-g.queue:
		sizes[0] = copy(bufs[0][offset:], b)
	case <-g.done:
		return 0, os.ErrClosed
	}
	for n := 1; n < len(bufs); n++ {
		select {
		case b := <-g.queue:
			sizes[n] = copy(bufs[n][offset:], b)
		default:
			return n, nil
		}
	}
	return len(bufs), nil
}

// Write takes packets of guests, whose sources WireGuard has authenticated, to
// the node, to guests or into the mesh, and nowhere else.
func (g *guestLink) Write(bufs [][]byte, offset int) (int, error) {
	j := g.junction
	return j.sort(bufs, offset, func(b []byte) bool {
		_, dst := ends(b)
		switch {
		case dst == j.self:
			return true
		case g.has(b):
			g.take(b)
		case j.leads(dst):
			j.out(b)
		}
		return false
	})
}

// MTU returns the largest packet in bytes.
func (g *guestLink) MTU() (int, error) { return mtu, nil }

// BatchSize returns how many packets Read gives at most.
func (g *guestLink) BatchSize() int { return conn.IdealBatchSize }

// Events returns a channel that says nothing and is closed with the device.
func (g *guestLink) Events() <-chan tun.Event { return g.events }

// Name returns a name for logs.
func (g *guestLink) Name() (string, error) { return "guests", nil }

// File returns nil: there is no file behind the device.
func (g *guestLink) File() *os.File { return nil }

// Close ends whoever waits in Read.
func (g *guestLink) Close() error {
	if !g.closed.Swap(true) {
		close(g.done)
		close(g.events)
	}
	return nil
}
