package main

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"math"
	"net"
	"net/netip"
	"os/signal"
	"runtime"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"github.com/balanceai/balance/discovery"
	"github.com/balanceai/balance/exec/blob"
	"github.com/balanceai/balance/exec/dispatch"
	"github.com/balanceai/balance/exec/fleet"
	"github.com/balanceai/balance/exec/remote"
	"github.com/balanceai/balance/exec/run"
	"github.com/balanceai/balance/exec/task"
	"github.com/balanceai/balance/mesh"
	"github.com/balanceai/balance/mesh/identity"
	"github.com/balanceai/balance/mesh/member"
	"github.com/balanceai/balance/mesh/trust"
	"github.com/balanceai/balance/mesh/wire"
	"github.com/balanceai/balance/store"
)

var quietLog = slog.New(slog.DiscardHandler)

func goVersion() string { return runtime.Version() }

// upConfig is what the flags of up say.
type upConfig struct {
	listen    netip.AddrPort // the one UDP socket; port 0: the one used last, or any
	dns       netip.AddrPort // zero: no DNS on the host
	proxy     netip.AddrPort // zero: no proxy on a port of the host
	multicast bool
	relayTCP  netip.AddrPort   // zero: members reach this node by UDP alone
	advertise []netip.AddrPort // told to others instead of what is found; nil: nothing
	tun       bool             // programs of the host use the mesh
	open      []uint16         // the host's ports that members reach
	stun      []string         // servers, host:port, that are asked where the node is seen from
	mapPort   bool             // the router is asked to forward the UDP port
	alwaysOn  bool             // it sees detached runs of its owner's other nodes through
}

// upFlags are the flags of up as they were written.
type upFlags struct {
	listen, dns, proxy, relayTCP string
	advertise, stun              []string
	noMulticast, noMapping, tun  bool
	alwaysOn                     bool
	open                         []uint
}

func (a *app) upCommand() *cobra.Command {
	var flags upFlags
	var format, level string
	cmd := &cobra.Command{
		Use:   "up",
		Short: "Run the node in the foreground until a signal",
		Long: "Run the node in the foreground until a signal. It logs to standard error, and is made to run under a\n" +
			"service manager: see docs/systemd.md.",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, err := flags.parse()
			if err != nil {
				return err
			}
			log, err := newLog(a.print.err, format, level)
			if err != nil {
				return err
			}
			ctx, cancel := signal.NotifyContext(cmd.Context(), syscall.SIGINT, syscall.SIGTERM)
			defer cancel()
			return up(ctx, a.home, cfg, log)
		},
	}
	f := cmd.Flags()
	f.StringVar(&flags.listen, "listen", "", "address and port of the one UDP socket (default: all addresses, any free port, which is then kept)")
	f.StringVar(&flags.dns, "dns", "", "answer DNS for the mesh on this loopback address and port, like 127.0.0.1:5354")
	f.StringVar(&flags.relayTCP, "relay-tcp", "", "also accept members whose network blocks UDP, by TLS on this address and port, like :443")
	f.StringSliceVar(&flags.advertise, "advertise", nil, "UDP address and port to tell others instead of those found, where a router forwards a port; repeatable")
	f.StringSliceVar(&flags.stun, "stun", nil, "server to ask where this node is seen from, as HOST:PORT, beside the members; repeatable")
	f.BoolVar(&flags.noMapping, "no-port-mapping", false, "do not ask the router to forward the UDP port (PCP, NAT-PMP, UPnP)")
	f.StringVar(&flags.proxy, "proxy", "", "serve the SOCKS5 and HTTP proxy on this loopback address and port too, like 127.0.0.1:1080")
	f.BoolVar(&flags.tun, "tun", false, "let every program of this host use the mesh, through a network interface (needs root or CAP_NET_ADMIN)")
	f.UintSliceVar(&flags.open, "tun-open", nil, "ports of this host that members reach through that interface, like 22,8080")
	f.BoolVar(&flags.alwaysOn, "always-on", false, "this machine does not sleep: it sees detached runs of its owner's other nodes through, as their custodian")
	f.BoolVar(&flags.noMulticast, "no-multicast", false, "do not announce the node on the local network")
	f.StringVar(&format, "log-format", "text", "text or json")
	f.StringVar(&level, "log-level", "info", "debug, info, warn or error")
	return cmd
}

func (u *upFlags) parse() (cfg upConfig, err error) {
	cfg.multicast, cfg.mapPort, cfg.tun, cfg.alwaysOn = !u.noMulticast, !u.noMapping, u.tun, u.alwaysOn
	for _, s := range u.stun {
		if host, port, err := net.SplitHostPort(s); err != nil || host == "" || port == "" {
			return cfg, fail("usage", "for example: --stun stun.example.org:3478", "--stun: %q is no host and port", s)
		}
		cfg.stun = append(cfg.stun, s)
	}
	if len(u.open) > 0 && !u.tun {
		return cfg, fail("usage", "for example: --tun --tun-open 22", "--tun-open: there is no interface without --tun")
	}
	for _, port := range u.open {
		if port == 0 || port > math.MaxUint16 {
			return cfg, fail("usage", "for example: --tun-open 22,8080", "--tun-open: %d is no port", port)
		}
		cfg.open = append(cfg.open, uint16(port))
	}
	if u.tun && u.dns == "" {
		u.dns = anyLoopback // which the host's resolver is told
	}
	if cfg.listen, err = parseAddr("--listen", u.listen, "--listen 0.0.0.0:41841"); err != nil {
		return cfg, err
	}
	if strings.HasPrefix(u.relayTCP, ":") {
		u.relayTCP = "[::]" + u.relayTCP // all addresses, of IPv4 too
	}
	if cfg.relayTCP, err = parseAddr("--relay-tcp", u.relayTCP, "--relay-tcp :443"); err != nil {
		return cfg, err
	}
	for _, s := range u.advertise {
		at, err := parseAddr("--advertise", s, "--advertise 203.0.113.7:41841")
		if err != nil {
			return cfg, err
		}
		cfg.advertise = append(cfg.advertise, at)
	}
	if cfg.dns, err = parseLoopback("--dns", u.dns, "--dns 127.0.0.1:5354"); err != nil {
		return cfg, err
	}
	cfg.proxy, err = parseLoopback("--proxy", u.proxy, "--proxy 127.0.0.1:1080")
	return cfg, err
}

// parseAddr reads an argument that is an address and a port. Empty is none.
func parseAddr(name, value, example string) (at netip.AddrPort, err error) {
	if value == "" {
		return at, nil
	}
	if at, err = netip.ParseAddrPort(value); err != nil {
		return at, fail("usage", "for example: "+example, "%s: %v", name, err)
	}
	return at, nil
}

// parseLoopback reads an argument that is an address of this host alone. Empty
// is none.
func parseLoopback(name, value, example string) (at netip.AddrPort, err error) {
	if at, err = parseAddr(name, value, example); err != nil || !at.IsValid() {
		return at, err
	}
	if !at.Addr().IsLoopback() {
		return at, fail("usage", "for example: "+example, "%s: %v is not a loopback address: the mesh is for its members alone", name, at)
	}
	return at, nil
}

func newLog(w io.Writer, format, level string) (*slog.Logger, error) {
	var l slog.Level
	if err := l.UnmarshalText([]byte(level)); err != nil {
		return nil, fail("usage", "", "--log-level: %v", err)
	}
	switch opts := (&slog.HandlerOptions{Level: l}); format {
	case "text":
		return slog.New(slog.NewTextHandler(w, opts)), nil
	case "json":
		return slog.New(slog.NewJSONHandler(w, opts)), nil
	}
	return nil, fail("usage", "", "--log-format: %q is neither text nor json", format)
}

// anyLoopback is any free port that no other machine reaches.
const anyLoopback = "127.0.0.1:0"

// Ports of the overlay address. Nothing listens on an address of the host but
// the one UDP socket and, where asked for, relaying by TCP, and DNS and the proxy
// on loopback.
const (
	apiPort    = 7420 // what nodes say to each other
	gossipPort = 7946 // who is alive
	dnsPort    = 53
)

// privatePorts are those at which a node takes a caller for the member whose
// address it has: no other program of that member's host may call there.
var privatePorts = []uint16{apiPort, gossipPort, mesh.DoorPort}

// up opens every part, gives each what it needs of the others, runs them until
// ctx ends or one fails, and closes them in reverse.
func up(ctx context.Context, h home, cfg upConfig, log *slog.Logger) (err error) {
	if !h.joined() {
		return notJoined(h)
	}
	if err := h.make(); err != nil {
		return err
	}
	lock, err := h.lock()
	if err != nil {
		return err
	}
	defer lock.Close()
	keys, err := identity.LoadKeys(string(h))
	if err != nil {
		return err
	}
	self := keys.Identity.ID()
	db, err := store.Open(ctx, h.path(ledgerFile), keys.Identity)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, db.Close()) }()
	who, err := openRoster(ctx, h, db, keys)
	if err != nil {
		return err
	}
	meshID := who.now().Mesh

	if cfg.listen, err = keptPort(ctx, db, cfg.listen); err != nil {
		return err
	}
	guestPort, err := keptGuestPort(ctx, db)
	if err != nil {
		return err
	}
	facts, err := newFacts(ctx, h, self, db, who, log)
	if err != nil {
		return err
	}
	defer facts.probe.Close()
	facts.alwaysOn = cfg.alwaysOn
	var streams net.Listener
	var sampler atomic.Pointer[fleet.Sampler] // there is none yet when the mesh is up
	busy := func() int {
		if s := sampler.Load(); s != nil {
			return s.Live(fleet.Held{}).CPUPercent
		}
		return fleet.Unknown
	}
	heard := newNews()
	node, err := mesh.Open(mesh.Config{
		Keys: keys, Mesh: meshID, Listen: cfg.listen, Advertise: cfg.advertise, Log: log, OnPath: heard.path, Relay: facts.relays, Busy: busy,
		STUN: cfg.stun, MapPort: cfg.mapPort, TUN: cfg.tun, Private: privatePorts, Open: cfg.open, GuestPort: guestPort,
	})
	if err != nil {
		return openHint(err)
	}
	defer func() { err = errors.Join(err, node.Close()) }()
	defer heard.stop()
	if cfg.relayTCP.IsValid() {
		ln, err := net.Listen("tcp", cfg.relayTCP.String())
		if err != nil {
			return hint(err, "choose another address with --relay-tcp")
		}
		defer ln.Close()
		port := ln.Addr().(*net.TCPAddr).AddrPort().Port()
		facts.reachable = func() []netip.AddrPort { return node.StreamAddrs(port) }
		facts.setStreams(facts.reachable())
		streams = ln
	}
	exposed, err := openExposer(ctx, node, db, who, facts, log)
	if err != nil {
		return err
	}
	defer exposed.close()
	// Members are met as early as can be, beside all that follows: who calls
	// before a port is served waits in its queue, rather than being refused.
	ports, err := openPorts(node)
	if err != nil {
		return err
	}
	defer ports.close()
	view := fleet.NewView(time.Now)
	if err := follow(ctx, who, db, node, view); err != nil {
		return err
	}
	if err := db.SetSetting(ctx, settingPort, strconv.Itoa(int(node.Port()))); err != nil {
		return err
	}
	facts.look(ctx, h)
	peers := newPeerClient(node)
	defer peers.CloseIdleConnections()
	client := func(id identity.ID) *remote.Client { return remote.NewClient(peers, id) }

	blobs, err := blob.Open(h.path(blobsDir))
	if err != nil {
		return err
	}
	nodes := func() []fleet.Node { list, _ := view.Snapshot(); return list }
	agents := &installed{home: h, db: db, blobs: blobs, facts: facts, who: who, client: client, nodes: nodes, log: log}
	facts.allows = agents.check
	if err := agents.look(ctx); err != nil {
		return err
	}
	kept := &files{blobs: blobs, db: db, peers: peers, client: client, nodes: nodes, log: log}
	host := &hosted{files: kept, exposer: exposed, log: log, runs: map[string]*hostedRun{}}
	kept.uses = host.uses
	wanted, err := openServed(ctx, &served{db: db, files: kept, nodes: nodes, log: log})
	if err != nil {
		return err
	}
	serving := newModels(node, who, facts, view, peers, host, wanted, log)
	runner, err := run.Open(ctx, run.Config{
		Dir: h.path(runsDir), Self: self, Name: who.me().Name, Ledger: db, Blobs: blobs, Log: log, Admit: facts.admit, Machine: facts.machine, Containers: facts.engine,
		Local: serving.ofRun, Serve: host.ready, VRAM: facts.probe.Processes,
		Weigh: facts.weigh, Quota: facts.quota, Facts: facts.free, Changed: func() {
			if s := sampler.Load(); s != nil {
				s.Hurry()
			}
		},
		Fetch: func(ctx context.Context, from identity.ID, b wire.Hash, offset int64) (io.ReadCloser, error) {
			if from == self {
				return blobs.Open(b)
			}
			return client(from).Blob(ctx, b, offset)
		},
		Join: func(ctx context.Context, node identity.ID, run string, c net.Conn) error {
			return joinRank(ctx, peers, node, run, c)
		},
	})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, runner.Close()) }()
	host.runner.Store(runner)
	submitted, err := dispatch.New(dispatch.Config{
		Self: self, From: asker(who.me()), Dir: h.path(followDir), Ledger: db, Blobs: blobs, Outputs: outputLimits, Log: log,
		Runs: func(ctx context.Context) ([]task.Status, error) { return unsettled(ctx, db) },
		View: nodes,
		Executor: func(id identity.ID) dispatch.Executor {
			if id == self {
				return runner
			}
			return client(id)
		},
		Custodian: func(id identity.ID) dispatch.Custodian { return client(id) },
		Source:    func(id identity.ID) blob.Source { return client(id).Blob },
	})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, submitted.Close()) }()

	held := func() fleet.Held {
		h := facts.held(runner.Held())
		h.Taken, h.Queue = runner.Taken(), runner.Queue()
		return h
	}
	var alive *member.List
	facts.sampler = fleet.NewSampler(facts.probe, held, func(l fleet.Live) {
		view.SetLive(self, l)
		alive.UpdateMeta()
	})
	sampler.Store(facts.sampler)
	guests := openHosting(node, db, who, log)
	alive, err = openMembers(node, ports, self, who, facts, held, heard, log)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, alive.Close()) }()
	api := &peerAPI{self: self, node: node, view: view, db: db, who: who, blobs: blobs, runner: runner, sampler: facts.sampler, gateway: serving, installed: agents, submitted: submitted, log: log}
	api.replica = newReplica(api, peers, view)
	api.custody, err = openCustody(ctx, &custody{self: self, db: db, who: who, nodes: nodes, blobs: blobs, client: client, peers: peers, replica: api.replica, log: log})
	if err != nil {
		return err
	}
	changed := make(chan []*wire.Entry, 1024)
	db.OnCommit(onCommit(changed, api.replica, api.custody))
	porch := &door{mesh: meshID, self: self, node: node, db: db, roster: who, share: api.replica.Push, streams: facts.reachable, log: log, nonces: map[nonce32]netip.Addr{}}
	if err := porch.reopen(ctx); err != nil {
		return err
	}

	ctx, stop := context.WithCancel(ctx)
	defer stop()
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { facts.sampler.Run(ctx); return nil })
	group.Go(func() error { return facts.run(ctx) })
	group.Go(func() error { return facts.enforce(ctx, runner) })
	group.Go(func() error { return agents.run(ctx) })
	group.Go(func() error { return api.replica.Run(ctx) })
	group.Go(func() error { return keepUp(ctx, changed, who, node, view, log) })
	met := &meeting{news: heard, node: node, db: db, who: who, view: view, alive: alive, replica: api.replica, custody: api.custody, submitted: submitted, log: log, states: map[identity.ID]string{}}
	group.Go(func() error { return met.run(ctx) })
	group.Go(func() error { return api.custody.run(ctx) })
	group.Go(func() error { return guests.run(ctx) })
	group.Go(func() error { return prune(ctx, runner, submitted, blobs, log) })
	var lan *discovery.LAN
	if cfg.multicast {
		lan = discovery.Start(discovery.Config{
			Key: who.now().DiscoveryKey(), Self: self, Port: node.Port(), Members: who.others, Log: log,
			Found: func(id identity.ID, addrs []netip.AddrPort) { node.AddAddrs(id, addrs...) },
		})
		defer lan.Close()
		who.each(func(*trust.State) { lan.Kick() }) // a new member may have called before it was known
	}
	if streams != nil {
		group.Go(func() error { return node.ServeStreams(streams) })
	}
	local := &localAPI{
		home: h, cfg: cfg, since: time.Now(), stop: stop, self: self, node: node, db: db, who: who, view: view, facts: facts,
		runner: runner, submitted: submitted, door: porch, exposer: exposed, hosting: guests, lan: lan,
		peers: peers, log: log,
		files: kept, installed: agents, served: wanted, custody: api.custody,
		watch: &watch{self: self, view: view, own: facts.sampler, peers: peers, log: log},
	}
	api.serve(ctx, group, ports.api, local.routes())
	for _, serve := range []func(context.Context, *errgroup.Group) error{porch.open, serving.serve} {
		if err := serve(ctx, group); err != nil {
			return err
		}
	}
	if cfg.dns, err = serveDNS(ctx, group, node, cfg.dns, &names{view: view, who: who, log: log}, log); err != nil {
		return err
	}
	ways := &reach{node: node, who: who, view: view}
	if cfg.proxy, err = serveProxy(ctx, group, h, cfg.proxy, ways, log); err != nil {
		return err
	}
	split := startSplitDNS(ctx, group, node, who.now(), cfg.dns, log)
	if err := submitted.Resume(ctx); err != nil {
		return err
	}
	wanted.submitted = submitted
	group.Go(func() error { return wanted.run(ctx) })
	local.cfg, local.reach, local.split = cfg, ways, split
	local.gateway = &userGateway{models: serving, home: h}
	if err := local.gateway.resume(ctx, local); err != nil {
		return err
	}
	defer local.gateway.close()
	defer local.streams.Wait()
	if err := local.serve(ctx, group); err != nil {
		return err
	}
	log.Info("up", "mesh", who.now().Genesis.Mesh, "node", who.me().Name, "address", node.Address(), "udp_port", node.Port())
	<-ctx.Done()
	log.Info("going down")
	return group.Wait()
}
