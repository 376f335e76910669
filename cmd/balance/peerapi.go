package main

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/balanceai/balance/exec/blob"
	"github.com/balanceai/balance/exec/dispatch"
	"github.com/balanceai/balance/exec/fleet"
	"github.com/balanceai/balance/exec/gateway"
	"github.com/balanceai/balance/exec/remote"
	"github.com/balanceai/balance/exec/run"
	"github.com/balanceai/balance/exec/task"
	"github.com/balanceai/balance/mesh"
	"github.com/balanceai/balance/mesh/identity"
	"github.com/balanceai/balance/mesh/wire"
	"github.com/balanceai/balance/store"
	"github.com/balanceai/balance/store/replica"
)

// newPeerClient returns the client for other nodes: the host of a URL is a
// node's id, and the mesh is what authenticates it.
func newPeerClient(node *mesh.Node) *http.Client {
	return &http.Client{Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, addr string) (net.Conn, error) {
			host, _, err := net.SplitHostPort(addr)
			if err != nil {
				return nil, err
			}
			id, err := identity.ParseID(host)
			if err != nil {
				return nil, err
			}
			ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
			defer cancel()
			return node.Dial(ctx, id, apiPort)
		},
		MaxIdleConnsPerHost: 64,
		IdleConnTimeout:     5 * time.Minute,
		DisableCompression:  true,
	}}
}

// peerAPI is what this node answers other members, on its overlay address
// alone.
type peerAPI struct {
	view      *fleet.View
	self      identity.ID
	node      *mesh.Node
	db        *store.Store
	who       *roster
	blobs     *blob.Store
	runner    *run.Runner
	sampler   *fleet.Sampler
	replica   *replica.Replica
	installed *installed
	gateway   *models
	submitted *dispatch.Dispatcher
	custody   *custody
	log       *slog.Logger

	grants blobGrants
}

// caller is the member at the other end of the tunnel.
func (p *peerAPI) caller(r *http.Request) (identity.ID, bool) {
	ap, err := netip.ParseAddrPort(r.RemoteAddr)
	if err != nil {
		return identity.ID{}, false
	}
	return p.node.Who(ap.Addr())
}

// serve answers who calls at a listener until ctx ends. Some may ask what the local
// API answers.
func (p *peerAPI) serve(ctx context.Context, group *errgroup.Group, ln net.Listener, local http.Handler) {
	tasks := &remote.Server{
		Self: p.self, Runner: p.runner, Caller: p.caller, Allowed: p.allowed,
		Submitted: func(ctx context.Context, run string, by identity.ID) bool {
			from, err := p.runner.Submitter(ctx, run)
			return err == nil && from == by
		},
		Custody: p.submitted, Gave: p.custody.gave,
		MayGive: func(id identity.ID) bool { return p.who.now().Members[id].Owner == p.who.me().Owner },
		Blob:    func(h wire.Hash) (io.ReadSeekCloser, error) { return p.blobs.Open(h) },
		Carried: func(peer identity.ID, n int64, in time.Duration) {
			p.view.Carried(peer, task.Bytes(n), in)
		},
	}
	mux := http.NewServeMux()
	mux.Handle("/v1/runs/", tasks.Handler())
	mux.HandleFunc("POST /v1/runs/{id}/rank", p.rank)
	mux.Handle("/v1/blobs/", tasks.Handler())
	mux.Handle(remote.CustodyPath, tasks.Handler())
	mux.HandleFunc(remote.CustodyPath+"{run}/{part}", p.custody.of(p.caller, local))
	mux.Handle("/v1/ledger/", p.replica.Handler())
	mux.HandleFunc("GET /v1/samples", p.samples)
	mux.HandleFunc("GET /v1/files", p.files)
	mux.HandleFunc("GET /v1/network", p.network)
	mux.HandleFunc("POST "+gateway.PeerPath, p.models)
	serveHTTP(ctx, group, ln, p.membersOnly(mux), p.log)
}

// membersOnly lets nobody in who is not a member, and no browser: identity
// comes before routing.
func (p *peerAPI) membersOnly(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if _, ok := p.caller(r); !ok || r.Header.Get("Origin") != "" || r.Host != p.self.String() {
			w.WriteHeader(http.StatusNotFound)
			return
		}
		next.ServeHTTP(w, r)
	})
}

// serveHTTP serves a listener until ctx ends. Streams end with it.
func serveHTTP(ctx context.Context, group *errgroup.Group, ln net.Listener, h http.Handler, log *slog.Logger) {
	srv := &http.Server{
		Handler: h, ReadHeaderTimeout: 10 * time.Second, IdleTimeout: 5 * time.Minute, MaxHeaderBytes: 16 << 10,
		BaseContext: func(net.Listener) context.Context { return ctx },
		ErrorLog:    slog.NewLogLogger(log.Handler(), slog.LevelDebug),
	}
	group.Go(func() error {
		err := srv.Serve(ln)
		if ctx.Err() != nil || errors.Is(err, http.ErrServerClosed) {
			return nil
		}
		return err
	})
	group.Go(func() error {
		<-ctx.Done()
		// Answers in flight get a moment; what streams has ended with ctx.
		grace, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*time.Second)
		defer cancel()
		if err := srv.Shutdown(grace); err != nil {
			return srv.Close()
		}
		return nil
	})
}

// samples streams this machine's measurements, one a second, to a member that
// watches.
func (p *peerAPI) samples(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Type", "application/x-ndjson")
	out := http.NewResponseController(w)
	enc := json.NewEncoder(w)
	_ = p.sampler.Watch(r.Context(), func(s fleet.Sample) error { // ends with the watcher
		if err := out.SetWriteDeadline(time.Now().Add(10 * time.Second)); err != nil {
			return err
		}
		return errors.Join(enc.Encode(s), out.Flush())
	})
}

// newReplica returns what keeps the ledger in agreement with the others.
func newReplica(p *peerAPI, peers *http.Client, view *fleet.View) *replica.Replica {
	return replica.New(replica.Config{
		Self: p.self, Ledger: p.db, Client: peers, Log: p.log, Caller: p.caller, Gate: p.gate, Admit: p.admit,
		Live: func() (ids []identity.ID) {
			nodes, _ := view.Snapshot()
			for _, n := range nodes {
				if !n.Self && n.State == fleet.Up {
					ids = append(ids, n.ID)
				}
			}
			return ids
		},
		Alarm: func(peer identity.ID, err error) {
			p.log.Warn("a member sent what cannot be believed", "node", p.who.name(peer), "error", err)
		},
	})
}

// gate says who may read and write a topic: every member that of the mesh. The
// entries of a run travel with its events, between its two parties, and here between
// its custodian and who gave it to that one.
func (p *peerAPI) gate(peer identity.ID, topic string) bool {
	_, ok := p.who.now().Members[peer]
	return ok && (topic == wire.TopicMesh || task.ValidID(topic) && p.custody.shares(peer, topic))
}

func (p *peerAPI) admit(ctx context.Context, _ identity.ID, _ string, entries []*wire.Entry) ([]*wire.Entry, error) {
	return p.who.admit(ctx, entries)
}

// outputLimits bound what comes back from a run.
var outputLimits = blob.Limits{Size: 64 * task.GiB, Files: 1_000_000}

// blobGrants remembers which files each peer may fetch: the inputs of the runs
// that it executes for this node, and the outputs of those that it submitted.
type blobGrants struct {
	mu    sync.Mutex
	files map[identity.ID]map[wire.Hash]bool
	done  map[string]bool // runs whose files are there, by id and what of them
}

// grantRuns bounds how many of the newest runs are looked at.
const grantRuns = 1000

// allowed reports whether a peer may have a blob.
func (p *peerAPI) allowed(peer identity.ID, h wire.Hash) bool {
	if p.shared(peer, h) || p.installed.gives(peer, h) {
		return true
	}
	g := &p.grants
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.files[peer][h] {
		return true
	}
	if err := p.learn(context.Background()); err != nil {
		p.log.Warn("look up who may have a file", "error", err)
	}
	return g.files[peer][h]
}

// learn goes through the runs that were not there last time. The caller holds
// the lock.
func (p *peerAPI) learn(ctx context.Context) error {
	g := &p.grants
	if g.files == nil {
		g.files, g.done = map[identity.ID]map[wire.Hash]bool{}, map[string]bool{}
	}
	runs, err := p.db.Runs(ctx, store.RunFilter{Limit: grantRuns})
	if err != nil {
		return err
	}
	for i := range runs {
		if err := p.learnRun(ctx, &runs[i]); err != nil {
			return err
		}
	}
	return nil
}

// learnRun looks at what a run lets others have: its inputs its machine, or the
// node that takes it into custody, and its outputs who submitted it, and who gave it
// into custody.
func (p *peerAPI) learnRun(ctx context.Context, r *task.Status) error {
	once := func(to identity.ID, what string, trees func() ([]wire.Hash, error)) error {
		key := r.ID + to.String() + what
		if p.grants.done[key] {
			return nil
		}
		list, err := trees()
		for _, tree := range list {
			err = errors.Join(err, p.grant(to, tree))
		}
		p.grants.done[key] = err == nil
		return err
	}
	inputs := func() (out []wire.Hash, err error) {
		spec, err := p.spec(ctx, r.ID)
		if err != nil {
			return nil, err
		}
		for _, in := range spec.Inputs {
			out = append(out, in.Tree)
		}
		return out, nil
	}
	outputs := func() ([]wire.Hash, error) { return []wire.Hash{r.Outputs}, nil }
	var err error
	switch {
	case r.Submitter != p.self:
	case r.OnItsWay():
		err = once(r.Custodian, "in", inputs)
	case !r.NodeID.IsZero():
		err = once(r.NodeID, "in", inputs)
	}
	if r.NodeID == p.self && !r.Outputs.IsZero() {
		err = errors.Join(err, once(r.Submitter, "out", outputs))
	}
	if r.Submitter == p.self && r.InCustody() && r.Receipt && !r.Outputs.IsZero() { // before that they are not here
		err = errors.Join(err, once(r.For, "out", outputs))
	}
	return err
}

// grant lets a peer have a tree and all that is in it. One that was pruned is
// nobody's.
func (p *peerAPI) grant(peer identity.ID, tree wire.Hash) error {
	files, err := p.blobs.Tree(tree)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	own := p.grants.files[peer]
	if own == nil {
		own = map[wire.Hash]bool{}
		p.grants.files[peer] = own
	}
	own[tree] = true
	for _, f := range files {
		own[f.Hash] = true
	}
	return nil
}

// spec returns what a run was submitted with.
func (p *peerAPI) spec(ctx context.Context, run string) (*task.Spec, error) {
	entries, err := p.db.Entries(ctx, run)
	if err != nil {
		return nil, err
	}
	return specOf(entries)
}

func specOf(entries []*wire.Entry) (*task.Spec, error) {
	for _, e := range entries {
		if e.Kind == task.KindSubmit {
			var s task.Submit
			err := wire.Unmarshal(e.Payload, &s)
			return &s.Spec, err
		}
	}
	for _, e := range entries {
		if e.Kind == task.KindHand { // it is on its way
			var h task.Hand
			err := wire.Unmarshal(e.Payload, &h)
			return &h.Spec, err
		}
	}
	return nil, store.ErrNotFound
}
