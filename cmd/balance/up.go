package main

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"math"
	"net/netip"
	"os/signal"
	"runtime"
	"strconv"
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
	multicast bool
	tun       bool     // programs of the host use the mesh
	open      []uint16 // the host's ports that members reach
}

func (a *app) upCommand() *cobra.Command {
	var listen, dns, format, level string
	var noMulticast, tun bool
	var open []uint
	cmd := &cobra.Command{
		Use:   "up",
		Short: "Run the node in the foreground until a signal",
		Long: "Run the node in the foreground until a signal. It logs to standard error, and is made to run under a\n" +
			"service manager: see docs/systemd.md.",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, err := parseUp(listen, dns, tun, open)
			if err != nil {
				return err
			}
			cfg.multicast = !noMulticast
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
	f.StringVar(&listen, "listen", "", "address and port of the one UDP socket (default: all addresses, any free port, which is then kept)")
	f.StringVar(&dns, "dns", "", "answer DNS for the mesh on this loopback address and port, like 127.0.0.1:5354")
	f.BoolVar(&tun, "tun", false, "let every program of this host use the mesh, through a network interface (needs root or CAP_NET_ADMIN)")
	f.UintSliceVar(&open, "tun-open", nil, "ports of this host that members reach through that interface, like 22,8080")
	f.BoolVar(&noMulticast, "no-multicast", false, "do not announce the node on the local network")
	f.StringVar(&format, "log-format", "text", "text or json")
	f.StringVar(&level, "log-level", "info", "debug, info, warn or error")
	return cmd
}

func parseUp(listen, dns string, tun bool, open []uint) (cfg upConfig, err error) {
	if len(open) > 0 && !tun {
		return cfg, fail("usage", "for example: --tun --tun-open 22", "--tun-open: there is no interface without --tun")
	}
	for _, port := range open {
		if port == 0 || port > math.MaxUint16 {
			return cfg, fail("usage", "for example: --tun-open 22,8080", "--tun-open: %d is no port", port)
		}
		cfg.open = append(cfg.open, uint16(port))
	}
	if cfg.tun = tun; tun && dns == "" {
		dns = anyLoopback // which the host's resolver is told
	}
	if listen != "" {
		if cfg.listen, err = netip.ParseAddrPort(listen); err != nil {
			return cfg, fail("usage", "for example: --listen 0.0.0.0:41841", "--listen: %v", err)
		}
	}
	if dns != "" {
		if cfg.dns, err = netip.ParseAddrPort(dns); err != nil {
			return cfg, fail("usage", "for example: --dns 127.0.0.1:5354", "--dns: %v", err)
		}
		if !cfg.dns.Addr().IsLoopback() {
			return cfg, fail("usage", "for example: --dns 127.0.0.1:5354", "--dns: %v is not a loopback address: the names of the mesh are for its members alone", cfg.dns)
		}
	}
	return cfg, nil
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
// the one UDP socket and, where asked for, DNS on loopback.
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
	heard := newNews()
	node, err := mesh.Open(mesh.Config{
		Keys: keys, Mesh: meshID, Listen: cfg.listen, OnPath: heard.path, Log: log,
		TUN: cfg.tun, Private: privatePorts, Open: cfg.open,
	})
	if err != nil {
		return openHint(err)
	}
	defer func() { err = errors.Join(err, node.Close()) }()
	defer heard.stop()
	if err := db.SetSetting(ctx, settingPort, strconv.Itoa(int(node.Port()))); err != nil {
		return err
	}
	view := fleet.NewView(time.Now)
	peers := newPeerClient(node)
	defer peers.CloseIdleConnections()
	client := func(id identity.ID) *remote.Client { return remote.NewClient(peers, id) }

	facts, err := newFacts(ctx, h, self, db, who, log)
	if err != nil {
		return err
	}
	defer facts.probe.Close()
	blobs, err := blob.Open(h.path(blobsDir))
	if err != nil {
		return err
	}
	runner, err := run.Open(ctx, run.Config{
		Dir: h.path(runsDir), Self: self, Name: who.me().Name, Ledger: db, Blobs: blobs, Log: log, Admit: facts.admit,
		Fetch: func(ctx context.Context, from identity.ID, b wire.Hash, offset int64) (io.ReadCloser, error) {
			if from == self {
				return blobs.Open(b)
			}
			return client(from).Blob(ctx, b, offset)
		},
	})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, runner.Close()) }()
	submitted, err := dispatch.New(dispatch.Config{
		Self: self, Owner: who.me().Owner, Dir: h.path(followDir), Ledger: db, Blobs: blobs, Outputs: outputLimits, Log: log,
		Runs: func(ctx context.Context) ([]task.Status, error) { return unsettled(ctx, db) },
		View: func() []fleet.Node { nodes, _ := view.Snapshot(); return nodes },
		Executor: func(id identity.ID) dispatch.Executor {
			if id == self {
				return runner
			}
			return client(id)
		},
		Source: func(id identity.ID) blob.Source { return client(id).Blob },
	})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, submitted.Close()) }()

	held := func() fleet.Held { return facts.held(runner.Held()) }
	var alive *member.List
	facts.sampler = fleet.NewSampler(facts.probe, held, func(l fleet.Live) {
		view.SetLive(self, l)
		alive.UpdateMeta()
	})
	if err := follow(ctx, who, db, node, view); err != nil {
		return err
	}
	alive, err = openMembers(node, self, who, facts, held, heard, log)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, alive.Close()) }()
	api := &peerAPI{self: self, node: node, db: db, who: who, blobs: blobs, runner: runner, sampler: facts.sampler, log: log}
	api.replica = newReplica(api, peers, view)
	changed := make(chan []*wire.Entry, 1024)
	db.OnCommit(onCommit(changed, api.replica))
	porch := &door{mesh: meshID, self: self, node: node, db: db, roster: who, share: api.replica.Push, log: log, nonces: map[nonce32]netip.Addr{}}
	if err := porch.reopen(ctx); err != nil {
		return err
	}

	ctx, stop := context.WithCancel(ctx)
	defer stop()
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { facts.sampler.Run(ctx); return nil })
	group.Go(func() error { return facts.run(ctx) })
	group.Go(func() error { return api.replica.Run(ctx) })
	group.Go(func() error { return keepUp(ctx, changed, who, view, log) })
	met := &meeting{news: heard, node: node, db: db, view: view, alive: alive, replica: api.replica, submitted: submitted, log: log, states: map[identity.ID]string{}}
	group.Go(func() error { return met.run(ctx) })
	group.Go(func() error { return prune(ctx, runner, submitted, blobs, log) })
	if cfg.multicast {
		lan := discovery.Start(discovery.Config{
			Key: who.now().DiscoveryKey(), Self: self, Port: node.Port(), Members: who.others, Log: log,
			Found: func(id identity.ID, addrs []netip.AddrPort) { node.AddAddrs(id, addrs...) },
		})
		defer lan.Close()
		who.each(func(*trust.State) { lan.Kick() }) // a new member may have called before it was known
	}
	for _, serve := range []func(context.Context, *errgroup.Group) error{api.serve, porch.open} {
		if err := serve(ctx, group); err != nil {
			return err
		}
	}
	if cfg.dns, err = serveDNS(ctx, group, node, cfg.dns, &names{view: view, who: who, log: log}, log); err != nil {
		return err
	}
	split := startSplitDNS(ctx, group, node, who.now(), cfg.dns, log)
	if err := submitted.Resume(ctx); err != nil {
		return err
	}
	local := &localAPI{
		home: h, cfg: cfg, since: time.Now(), stop: stop, self: self, node: node, db: db, who: who, view: view, facts: facts,
		runner: runner, submitted: submitted, door: porch, split: split, log: log,
		watch: &watch{self: self, view: view, own: facts.sampler, peers: peers, log: log},
	}
	if err := local.serve(ctx, group); err != nil {
		return err
	}
	log.Info("up", "mesh", who.now().Genesis.Mesh, "node", who.me().Name, "address", node.Address(), "udp_port", node.Port())
	<-ctx.Done()
	log.Info("going down")
	return group.Wait()
}
