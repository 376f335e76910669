package mesh

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"sync"
	"time"

	"golang.zx2c4.com/wireguard/device"
	"golang.zx2c4.com/wireguard/tun"

	"github.com/balanceai/balance/mesh/hostnet"
	"github.com/balanceai/balance/mesh/identity"
	"github.com/balanceai/balance/mesh/netstack"
	"github.com/balanceai/balance/mesh/portmap"
)

// tunnel is what a node and a visitor have in common: WireGuard between a UDP
// port and a network stack.
type tunnel struct {
	addr   netip.Addr // in the overlay
	listen netip.AddrPort
	told   []netip.AddrPort // what is offered instead of what is found; nil: nothing
	log    *slog.Logger
	net    *netstack.Net
	host   *hostnet.Device // nil: other programs of the host cannot use the mesh
	bind   *bind
	dev    *device.Device
	local  *localNet
	onPath func(*peer, Path)
	beat   func()                 // called each keepHome; nil: nothing to do
	behind func(netip.Addr) *peer // who carries the guest with an address; nil: nobody
	sights sights
	stun   *stun           // nil: no servers
	mapper *portmap.Mapper // nil: the router is not asked for a port

	configure sync.Mutex // held while the set of peers changes
	engaging  sync.Mutex // held, for short, while that of WireGuard changes; see halt
	deriving  sync.Mutex // held by the one that derives keys in the background

	newsMu sync.Mutex
	news   map[*peer]bool // those with something to report
	ready  chan struct{}  // there is some
	done   chan struct{}
	once   sync.Once // closes done, with engaging held
	watch  sync.WaitGroup
}

type tunnelConfig struct {
	key    identity.WGKey
	listen netip.AddrPort
	told   []netip.AddrPort
	addrs  []netip.Addr // in the overlay; the first is the tunnel's own
	accept func(netstack.Packet) bool
	host   *hostnet.Config                            // nil: none; openTunnel completes it
	fork   func(tun.Device, *netstack.Net) tun.Device // what WireGuard reads and writes instead of the stack; nil: the stack
	log    *slog.Logger
	onPath func(*peer, Path)
	relay  func(from, to *peer, frames [][]byte) int // see bindConfig; nil: nothing is relayed
	load   func(*peer) byte                          // see bindConfig; nil: nothing is relayed
	beat   func()
	fits   func(netip.Addr) int   // largest packet to an address; nil: what fits everywhere
	stun   []string               // servers, host:port
	ports  bool                   // the router is asked for the port
	roused func(*peer)            // nil: nothing to do; see bindConfig
	behind func(netip.Addr) *peer // nil: nobody carries guests
}

func openTunnel(cfg tunnelConfig) (*tunnel, error) {
	t := &tunnel{
		addr: cfg.addrs[0], listen: cfg.listen, told: cfg.told, log: cfg.log, local: readLocalNet(), onPath: cfg.onPath, beat: cfg.beat,
		behind: cfg.behind,
		news:   map[*peer]bool{}, ready: make(chan struct{}, 1), done: make(chan struct{}),
	}
	bound := bindConfig{
		key: cfg.key, engage: t.engage, roused: cfg.roused,
		log: cfg.log, small: cfg.host != nil, kind: t.local.kind, news: t.report, addrs: t.candidates, saw: t.saw, relay: cfg.relay, load: cfg.load,
	}
	if len(cfg.stun) > 0 {
		t.stun, bound.stray = newSTUN(cfg.stun), t.stray
	}
	var err error
	t.bind, err = newBind(cfg.listen, bound)
	if err != nil {
		return nil, err
	}
	if cfg.host != nil { // the interface's MTU is one for all peers
		cfg.fits = nil
	}
	if t.net, err = netstack.New(netstack.Config{Addrs: cfg.addrs, MTU: mtu, Fits: cfg.fits, Accept: cfg.accept}); err != nil {
		t.bind.shut()
		return nil, err
	}
	var link tun.Device = t.net.Device()
	if cfg.host != nil {
		if t.host, err = t.openHost(*cfg.host); err != nil {
			_ = t.net.Close()
			t.bind.shut()
			return nil, err
		}
		link = t.host
	}
	if cfg.fork != nil {
		link = cfg.fork(link, t.net)
	}
	t.dev = device.NewDevice(&demand{Device: link, t: t}, t.bind, wireguardLog(cfg.log))
	// With this, the endpoint that a peer is configured with stays.
	t.dev.DisableSomeRoamingForBrokenMobileSemantics()
	if err = t.dev.IpcSet("private_key=" + cfg.key.SecretHex() + "\n"); err == nil {
		err = t.dev.Up()
	}
	if err != nil {
		t.dev.Close()
		t.bind.shut()
		return nil, fmt.Errorf("start WireGuard: %w", err)
	}
	t.watch.Go(t.follow)
	t.watch.Go(t.watchNetwork)
	if t.stun != nil {
		t.watch.Go(t.askSTUN)
	}
	if cfg.ports && len(cfg.told) == 0 {
		t.startMapping()
	}
	return t, nil
}

// openHost joins the kernel's network stack to ours.
func (t *tunnel) openHost(cfg hostnet.Config) (*hostnet.Device, error) {
	cfg.Addr, cfg.MTU, cfg.Log = t.addr, mtu, t.log
	cfg.Node, cfg.Owns = t.net.Device(), t.net.Owns
	return hostnet.Open(cfg)
}

// wireguardLog returns the log for WireGuard: what it calls errors are lost
// datagrams and the like, of use to who debugs.
func wireguardLog(log *slog.Logger) *device.Logger {
	l := &device.Logger{Verbosef: device.DiscardLogf, Errorf: device.DiscardLogf}
	if log.Enabled(context.Background(), slog.LevelDebug) {
		l.Errorf = func(format string, args ...any) {
			log.Debug("wireguard", "message", fmt.Sprintf(format, args...))
		}
	}
	return l
}

func (t *tunnel) close() {
	t.end()
	if t.mapper != nil {
		t.mapper.Close()
	}
	t.watch.Wait()
	t.bind.remove(t.bind.peers(func(*peer) bool { return true }))
	t.dev.Close()
}

// end says that the tunnel closes. WireGuard is not configured any more from
// then on: to be configured and to close are things that it does in turn, and
// closing waits for those who would have it configured.
func (t *tunnel) end() {
	t.engaging.Lock()
	defer t.engaging.Unlock()
	t.once.Do(func() { close(t.done) })
}

// isClosing reports whether the tunnel closes.
func (t *tunnel) isClosing() bool {
	select {
	case <-t.done:
		return true
	default:
		return false
	}
}

// report enters a peer that has something to report.
func (t *tunnel) report(p *peer) {
	t.newsMu.Lock()
	t.news[p] = true
	t.newsMu.Unlock()
	select {
	case t.ready <- struct{}{}:
	default:
	}
}

// follow renews peers that restarted, lets those rest that are idle, and passes
// reports on, until the tunnel closes.
func (t *tunnel) follow() {
	beat := time.NewTicker(keepHome)
	defer beat.Stop()
	for {
		select {
		case <-t.done:
			return
		case <-beat.C:
			t.rest(t.bind.now())
			if t.beat != nil {
				t.beat()
			}
			continue
		case <-t.ready:
		}
		t.newsMu.Lock()
		news := t.news
		t.news = map[*peer]bool{}
		t.newsMu.Unlock()
		for p := range news {
			path, changed, restarted := p.report()
			if restarted {
				t.renew(p)
			}
			if changed {
				t.onPath(p, path)
			}
		}
	}
}

// networkChanged tells every peer that was heard of lately where this node is
// now, and looks for the best paths from there.
func (t *tunnel) networkChanged() {
	t.local.refresh()
	t.sights.forget()
	if t.stun != nil {
		t.stun.again()
	}
	if t.mapper != nil {
		t.mapper.Again()
	}
	t.bind.moves.Add(1)
	now := t.bind.now()
	t.bind.streams.hangUp(func(*peer) bool { return true })
	for _, p := range t.bind.peers((*peer).isAwake) {
		p.moved(now)
	}
	if t.beat != nil {
		t.beat()
	}
}

// addPeers makes peers known. The caller holds configure.
func (t *tunnel) addPeers(list []*peer) {
	t.bind.add(list)
	t.derive(list)
}

// removePeers makes them strangers. The caller holds configure.
func (t *tunnel) removePeers(list []*peer) {
	if len(list) == 0 {
		return
	}
	t.bind.remove(list)
	for _, p := range list {
		t.halt(p)
		t.engaging.Lock()
		t.dismiss(p)
		t.engaging.Unlock()
	}
}

// renew makes WireGuard's peer anew, without the sessions and the last time
// stamp, and opens a session. What was connected with the peer before it
// restarted fails at once, which silence would tell much later.
func (t *tunnel) renew(p *peer) {
	t.configure.Lock()
	defer t.configure.Unlock()
	if !t.bind.has(p) {
		return
	}
	t.halt(p)
	t.net.Abort(p.addr)
	t.engaging.Lock()
	t.dismiss(p)
	p.renewed()
	p.engaged.Store(t.set(describe(p)))
	t.engaging.Unlock()
	if wg := t.dev.LookupPeer(device.NoisePublicKey(p.key)); wg != nil {
		_ = wg.SendHandshakeInitiation(false)
	}
}
