package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/http"
	"net/http/httputil"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/balanceai/balance/exec/blob"
	"github.com/balanceai/balance/exec/fleet"
	"github.com/balanceai/balance/exec/remote"
	"github.com/balanceai/balance/exec/task"
	"github.com/balanceai/balance/mesh/identity"
	"github.com/balanceai/balance/mesh/wire"
	"github.com/balanceai/balance/store"
	"github.com/balanceai/balance/store/replica"
)

// custody is about runs that one node of an owner has given to another to see
// through: those of others that are here, of which it tells them what happens, and
// those of this node, with whose ledger and outputs it catches up.
type custody struct {
	self    identity.ID
	db      *store.Store
	who     *roster
	nodes   func() []fleet.Node
	blobs   *blob.Store
	client  func(identity.ID) *remote.Client
	peers   *http.Client
	replica *replica.Replica
	log     *slog.Logger

	mu     sync.Mutex
	givers map[string]identity.ID // of runs that are here and not over
	handed map[string]bool        // runs of this node's that another one has, and that are not over

	ended chan string      // runs of this node's that are over
	up    chan identity.ID // nodes that came up
}

func openCustody(ctx context.Context, c *custody) (*custody, error) {
	c.givers, c.handed = map[string]identity.ID{}, map[string]bool{}
	c.ended, c.up = make(chan string, 64), make(chan identity.ID, 64)
	runs, err := c.db.Runs(ctx, store.RunFilter{Active: true})
	for _, r := range runs {
		if r.InCustody() && r.Submitter == c.self {
			c.givers[r.ID] = r.For
		}
		if r.InCustody() && r.For == c.self {
			c.handed[r.ID] = true
		}
	}
	return c, err
}

// noCustodian is how people write that a run is not to be given away.
const noCustodian = "none"

// choose returns the node that is to have a run in custody; zero for this one.
// Without a name it is the nearest one of those that are always on.
func (c *custody) choose(name string) (identity.ID, error) {
	if name == noCustodian {
		return identity.ID{}, nil
	}
	nodes := c.nodes()
	me := c.who.me()
	if name != "" {
		i := slices.IndexFunc(nodes, func(n fleet.Node) bool { return n.Name == name || n.ID.String() == name })
		switch {
		case i < 0:
			return identity.ID{}, fail("not_found", "see the nodes with: balance nodes", "--custodian: the mesh has no node %q", name)
		case nodes[i].Self:
			return identity.ID{}, nil
		case nodes[i].Owner != me.Owner:
			return identity.ID{}, fail("usage", "name a node of your own", "--custodian: %s belongs to %s, and dispatches for nobody else", name, nodes[i].Owner)
		}
		return nodes[i].ID, nil
	}
	nodes = slices.DeleteFunc(slices.Clone(nodes), func(n fleet.Node) bool {
		return n.Owner != me.Owner || n.Offer == nil || !n.Offer.AlwaysOn || n.State != fleet.Up
	})
	if len(nodes) == 0 || slices.ContainsFunc(nodes, func(n fleet.Node) bool { return n.Self }) {
		return identity.ID{}, nil
	}
	return slices.MinFunc(nodes, func(a, b fleet.Node) int {
		return cmp.Or(cmp.Compare(a.Path.RTT, b.Path.RTT), strings.Compare(a.Name, b.Name))
	}).ID, nil
}

// committed is told what the ledger has stored. It must not wait.
func (c *custody) committed(fresh []*wire.Entry) {
	for _, e := range fresh {
		if !task.ValidID(e.Topic) {
			continue
		}
		if e.Kind == task.KindSubmit && e.Author == c.self {
			c.took(e)
		}
		over := e.Kind == task.KindReceipt
		c.mu.Lock()
		if e.Kind == task.KindHand && e.Author == c.self {
			c.handed[e.Topic] = true
		}
		giver, here := c.givers[e.Topic]
		handed := c.handed[e.Topic]
		if over {
			delete(c.givers, e.Topic)
			delete(c.handed, e.Topic)
		}
		c.mu.Unlock()
		switch {
		case here && e.Author != giver:
			c.replica.Give(giver, e)
		case handed && over && e.Author != c.self:
			select {
			case c.ended <- e.Topic:
			default: // it is looked at when its custodian comes up the next time
			}
		}
	}
}

func (c *custody) took(e *wire.Entry) {
	var s task.Submit
	if wire.Unmarshal(e.Payload, &s) == nil && !s.For.IsZero() {
		c.mu.Lock()
		defer c.mu.Unlock()
		c.givers[e.Topic] = s.For
	}
}

// gave reports whether a node has given a run that is here.
func (c *custody) gave(ctx context.Context, run string, by identity.ID) bool {
	st, err := c.db.Run(ctx, run)
	return err == nil && st.Submitter == c.self && st.For == by
}

// shares reports whether a node may read and write the topic of a run: its
// custodian, or who has given it.
func (c *custody) shares(peer identity.ID, run string) bool {
	st, err := c.db.Run(context.Background(), run)
	return err == nil && st.InCustody() && (st.For == c.self && st.Custodian == peer || st.Custodian == c.self && st.For == peer)
}

// met tells that a node came up.
func (c *custody) met(id identity.ID) {
	select {
	case c.up <- id:
	default: // so many at a time: the ledger says the rest when they are asked for
	}
}

// run catches up with the custodians of this node's runs until ctx ends.
func (c *custody) run(ctx context.Context) error {
	tick := time.NewTicker(catchUpEvery)
	defer tick.Stop()
	for {
		var runs []task.Status
		var err error
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C: // what it was not told, because it was taken for gone
			runs, err = c.open(ctx)
		case id := <-c.up:
			runs, err = c.given(ctx, id)
		case id := <-c.ended:
			var st task.Status
			st, err = c.db.Run(ctx, id)
			runs = []task.Status{st}
		}
		if err != nil {
			c.log.Warn("look up runs in custody", "error", err)
			continue
		}
		for i := range runs {
			if err := c.catchUp(ctx, &runs[i]); err != nil {
				c.log.Warn("a run in custody has left outputs that did not come", "run", runs[i].ID, "error", err)
			}
		}
	}
}

// A node catches up with as many of the newest runs, and so often with those that
// are not over. Mostly it is told at once.
const (
	catchUpRuns  = 256
	catchUpEvery = 15 * time.Second
)

// open returns the runs of this node's that others have and that are not over.
func (c *custody) open(ctx context.Context) ([]task.Status, error) {
	runs, err := c.db.Runs(ctx, store.RunFilter{Own: true, Active: true})
	return slices.DeleteFunc(runs, func(r task.Status) bool { return r.For != c.self }), err
}

// given returns the runs of this node's that another one has.
func (c *custody) given(ctx context.Context, custodian identity.ID) ([]task.Status, error) {
	runs, err := c.db.Runs(ctx, store.RunFilter{Own: true, Limit: catchUpRuns})
	if err != nil {
		return nil, err
	}
	active, err := c.open(ctx)
	runs = slices.DeleteFunc(append(runs, active...), func(r task.Status) bool { return r.For != c.self || r.Custodian != custodian })
	slices.SortFunc(runs, func(a, b task.Status) int { return strings.Compare(a.ID, b.ID) })
	return slices.CompactFunc(runs, func(a, b task.Status) bool { return a.ID == b.ID }), err
}

// catchUp gets what this node lacks of a run that another one has.
func (c *custody) catchUp(ctx context.Context, r *task.Status) error {
	if r.For != c.self {
		return nil
	}
	if !r.Receipt {
		c.replica.Want(r.Custodian, r.ID)
		return nil
	}
	return c.bringOutputs(ctx, r)
}

// bringOutputs has the output files of a run on this node.
func (c *custody) bringOutputs(ctx context.Context, r *task.Status) error {
	if r.Outputs.IsZero() || !r.InCustody() || r.For != c.self {
		return nil
	}
	if _, err := c.blobs.Tree(r.Outputs); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	_, err := c.blobs.Fetch(ctx, r.Outputs, outputLimits, c.client(r.Custodian).Blob)
	return err
}

// custodyParts are what the giver of a run may ask of it here: what its own people
// can at the machine where they submitted it.
var custodyParts = []string{"events", "stdin", "attach", "size", "files", "cancel", "why"}

// of answers a node that has given this one a run, as the local API would.
func (c *custody) of(caller func(*http.Request) (identity.ID, bool), local http.Handler) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		run, part := r.PathValue("run"), r.PathValue("part")
		peer, ok := caller(r)
		if !ok || !slices.Contains(custodyParts, part) || !task.ValidID(run) || !c.gave(r.Context(), run, peer) {
			replyError(w, fail("not_found", "", "the run %s is not in the custody of %s", run, c.who.me().Name))
			return
		}
		r = r.Clone(r.Context())
		r.URL.Path = runPath(run, "/"+part)
		local.ServeHTTP(w, r)
	}
}

// ask passes a request about a run on to its custodian.
func (c *custody) ask(w http.ResponseWriter, r *http.Request, st *task.Status) {
	name := c.who.name(st.Custodian)
	_, part, _ := strings.Cut(strings.TrimPrefix(r.URL.Path, "/v1/runs/"), "/")
	p := &httputil.ReverseProxy{
		Transport: c.peers.Transport, FlushInterval: -1,
		Rewrite: func(p *httputil.ProxyRequest) {
			p.Out.URL.Scheme, p.Out.URL.Host, p.Out.Host = "http", st.Custodian.String(), st.Custodian.String()
			p.Out.URL.Path, p.Out.URL.RawPath = remote.CustodyPath+st.ID+"/"+part, ""
		},
		ErrorHandler: func(w http.ResponseWriter, r *http.Request, err error) {
			if r.Context().Err() == nil {
				replyError(w, fail("unreachable", "try again when it is back: the run goes on", "the run %s is in the custody of %s, which is out of reach: %v", st.ID, name, err))
			}
		},
		ErrorLog: slog.NewLogLogger(c.log.Handler(), slog.LevelDebug),
	}
	p.ServeHTTP(w, r)
}

// atCustodian has a request about a run of this node's answered where the run is
// dispatched.
func (l *localAPI) atCustodian(handle func(w http.ResponseWriter, r *http.Request, id string) error) func(http.ResponseWriter, *http.Request, string) error {
	return func(w http.ResponseWriter, r *http.Request, id string) error {
		st, err := l.db.Run(r.Context(), id)
		switch {
		case err != nil:
			return err
		case !st.InCustody() || st.For != l.self:
			return handle(w, r, id)
		case !st.OnItsWay():
			l.custody.ask(w, r, &st)
			return nil
		case strings.HasSuffix(r.URL.Path, "/cancel"):
			return handle(w, r, id)
		}
		return fail("unreachable", "try again in a moment", "the run %s is on its way into the custody of %s", id, l.who.name(st.Custodian))
	}
}

// hand submits a run by giving it to a custodian, and says who has it.
func (l *localAPI) hand(ctx context.Context, s *submission, to identity.ID) (runReply, error) {
	id, back, err := l.submitted.Hand(ctx, s.Spec, s.Values, to)
	if err != nil {
		return runReply{}, err
	}
	name := l.who.name(to)
	if back != nil {
		return runReply{Run: id, Note: fmt.Sprintf("%s does not see it through, so this node has to stay up: %v", name, back)}, nil
	}
	if err := l.custody.replica.Pull(ctx, to, id); err != nil { // it tells anyway
		l.log.Debug("a run in custody", "run", id, "error", err)
	}
	return runReply{Run: id, Custodian: name}, nil
}
