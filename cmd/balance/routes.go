package main

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"os"
	"strconv"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/balanceai/balance/cmd/balance/quick"
	"github.com/balanceai/balance/discovery"
	"github.com/balanceai/balance/exec/dispatch"
	"github.com/balanceai/balance/exec/fleet"
	"github.com/balanceai/balance/exec/place"
	"github.com/balanceai/balance/exec/run"
	"github.com/balanceai/balance/exec/task"
	"github.com/balanceai/balance/mesh"
	"github.com/balanceai/balance/mesh/identity"
	"github.com/balanceai/balance/mesh/wire"
	"github.com/balanceai/balance/store"
)

// localAPI is what the CLI and the terminal UI ask, on the Unix socket of the
// home: JSON over HTTP, one object a line for streams.
type localAPI struct {
	home      home
	cfg       upConfig
	since     time.Time
	stop      context.CancelFunc
	self      identity.ID
	node      *mesh.Node
	db        *store.Store
	who       *roster
	view      *fleet.View
	facts     *facts
	runner    *run.Runner
	submitted *dispatch.Dispatcher
	door      *door
	watch     *watch
	exposer   *exposer
	hosting   *hosting
	reach     *reach
	split     *splitDNS
	lan       *discovery.LAN // nil: the node is not announced
	peers     *http.Client
	files     *files
	installed *installed
	served    *served
	custody   *custody
	gateway   *userGateway
	log       *slog.Logger

	streams sync.WaitGroup // connections that have become something else than HTTP
}

// routes is the whole local API.
func (l *localAPI) routes() http.Handler {
	mux := http.NewServeMux()
	for pattern, handle := range map[string]func(http.ResponseWriter, *http.Request) error{
		"GET /v1/status":                     l.status,
		"POST /v1/down":                      l.down,
		"GET /v1/nodes":                      l.nodes,
		"POST /v1/nodes/{node}/ping":         l.ping,
		"GET /v1/netcheck":                   l.netcheck,
		"GET /v1/doctor":                     l.doctor,
		"GET /v1/nodes/{node}/ports/{port}":  l.port,
		"POST /v1/nodes/{node}/ports/{port}": l.connect,
		"GET /v1/fleet":                      l.fleet,
		"GET /v1/offer":                      l.offer,
		"GET /v1/policy":                     l.policy,
		"POST /v1/duty/{duty}":               l.duty,
		"GET /v1/usage":                      l.usage,
		"GET /v1/services":                   l.services,
		"GET /v1/exposed":                    l.exposed,
		"POST /v1/exposed":                   l.expose,
		"DELETE /v1/exposed/{port}":          l.hide,
		"POST /v1/invites":                   l.invite,
		"GET /v1/guests":                     l.guests,
		"POST /v1/guests":                    l.beginGuest,
		"DELETE /v1/guests/{guest}":          l.endGuest,
		"POST /v1/plan":                      l.plan,
		"POST /v1/runs":                      l.submit,
		"POST " + quick.Path:                 l.quick,
		"GET /v1/runs":                       l.runs,
		"GET /v1/runs/{run}":                 l.ofRun(l.inspect),
		"GET /v1/runs/{run}/events":          l.ofRun(l.atCustodian(l.events)),
		"POST /v1/runs/{run}/stdin":          l.ofRun(l.atCustodian(l.stdin)),
		"POST /v1/runs/{run}/attach":         l.ofRun(l.atCustodian(l.attach)),
		"POST /v1/runs/{run}/size":           l.ofRun(l.atCustodian(l.size)),
		"GET /v1/runs/{run}/files":           l.ofRun(l.atCustodian(l.runFiles)),
		"POST /v1/runs/{run}/cancel":         l.ofRun(l.atCustodian(l.cancel)),
		"GET /v1/runs/{run}/why":             l.ofRun(l.atCustodian(l.why)),
		"GET /v1/files":                      l.filesList,
		"POST /v1/files/get":                 l.filesGet,
		"PUT /v1/files/budget":               l.filesBudget,
		"GET /v1/agents":                     l.agents,
		"POST /v1/agents":                    l.offerAgent,
		"POST /v1/agents/get":                l.getAgent,
		"DELETE /v1/agents/{agent}":          l.removeAgent,
		"GET /v1/models":                     l.models,
		"GET /v1/served":                     l.servedModels,
		"POST /v1/served":                    l.serveModel,
		"DELETE /v1/served/{model}":          l.unserveModel,
		"POST /v1/gateway":                   l.openGateway,
		"DELETE /v1/gateway":                 l.closeGateway,
		"GET /v1/ledger":                     l.ledger,
		"GET /v1/ledger/verify":              l.verify,
	} {
		mux.HandleFunc(pattern, func(w http.ResponseWriter, r *http.Request) {
			if err := handle(w, r); err != nil && r.Context().Err() == nil {
				replyError(w, describe(err))
			}
		})
	}
	return mux
}

// serve answers on the socket until ctx ends.
func (l *localAPI) serve(ctx context.Context, group *errgroup.Group) error {
	ln, err := l.home.listen(socketFile)
	if err != nil {
		return err
	}
	serveHTTP(ctx, group, ownUser{ln, l.log}, l.routes(), l.log)
	group.Go(func() error {
		<-ctx.Done()
		return os.Remove(l.home.path(socketFile))
	})
	return nil
}

func reply(w http.ResponseWriter, v any) {
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(v) // who asked has gone
}

func replyError(w http.ResponseWriter, p *problem) {
	status, ok := map[string]int{"usage": http.StatusBadRequest, "not_found": http.StatusNotFound, "ambiguous": http.StatusConflict, "forbidden": http.StatusForbidden}[p.Code]
	if !ok {
		status = http.StatusUnprocessableEntity
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(map[string]*problem{"error": p}) // who asked has gone
}

// maxRequest bounds the body of a request that is not standard input.
const maxRequest = 1 << 20

func readJSON(r *http.Request, v any) error {
	dec := json.NewDecoder(io.LimitReader(r.Body, maxRequest))
	dec.DisallowUnknownFields()
	if err := dec.Decode(v); err != nil {
		return fail("usage", "", "the request is not understood: %v", err)
	}
	return nil
}

// lines prepares a response of one JSON object a line.
func lines(w http.ResponseWriter) func(v any) error {
	w.Header().Set("Content-Type", "application/x-ndjson")
	out := http.NewResponseController(w)
	enc := json.NewEncoder(w)
	enc.SetEscapeHTML(false)
	return func(v any) error { return errors.Join(enc.Encode(v), out.Flush()) }
}

func (l *localAPI) status(w http.ResponseWriter, _ *http.Request) error {
	reply(w, l.describeSelf())
	return nil
}

func (l *localAPI) describeSelf() statusReply {
	nodes, _ := l.view.Snapshot()
	me := l.who.me()
	offer, rulesErr := l.facts.current()
	state := l.who.now()
	s := statusReply{
		Running: true, PID: os.Getpid(), Version: version, Home: string(l.home),
		Mesh: state.Genesis.Mesh, MeshID: state.Mesh.String(), Name: me.Name, ID: me.ID, Owner: me.Owner, Role: me.Role.String(),
		Address: l.node.Address().String(), Port: int(l.node.Port()), Since: l.since, Members: len(nodes), Offers: offer.Terms.Offers, Duty: offer.Terms.Duty,
		ProxyFile: l.home.path(proxyFile),
	}
	for _, n := range nodes {
		if n.State == fleet.Up {
			s.Up++
		}
	}
	if l.cfg.dns.IsValid() {
		s.DNS = l.cfg.dns.String()
	}
	if l.cfg.proxy.IsValid() {
		s.Proxy = l.cfg.proxy.String()
	}
	s.Mode = "userspace"
	if s.Interface, _ = l.node.Interface(); s.Interface != "" {
		s.Mode = "tun"
		s.Names, s.NamesError = l.split.state()
	}
	s.NoSandbox = l.facts.machine.Why
	if rulesErr != nil {
		s.RulesError = rulesErr.Error()
	}
	return s
}

func (l *localAPI) down(w http.ResponseWriter, _ *http.Request) error {
	reply(w, struct{}{})
	l.stop()
	return nil
}

// picture is the view with paths as they are now: a smoothed round trip changes
// all the time, and is news to nobody.
func (l *localAPI) picture() []fleet.Node {
	nodes, _ := l.view.Snapshot()
	for i := range nodes {
		if n := &nodes[i]; !n.Self && n.State != fleet.Down {
			n.Path = l.who.path(l.node.Path(n.ID))
		}
	}
	return nodes
}

func (l *localAPI) nodes(w http.ResponseWriter, _ *http.Request) error {
	reply(w, nodeRows(l.picture()))
	return nil
}

func (l *localAPI) ping(w http.ResponseWriter, r *http.Request) error {
	nodes, _ := l.view.Snapshot()
	id, err := place.Pin(nodes, r.PathValue("node"))
	if err != nil {
		return hint(err, "see the machines with: balance nodes")
	}
	count, err := strconv.Atoi(r.FormValue("count"))
	if err != nil || count < 1 || count > 1000 {
		return fail("usage", "", "a number of probes from 1 to 1000, not %q", r.FormValue("count"))
	}
	send := lines(w)
	for i := range count {
		if i > 0 {
			select {
			case <-r.Context().Done():
				return nil
			case <-time.After(time.Second):
			}
		}
		if err := send(l.pingOnce(r.Context(), id)); err != nil {
			return nil // who asked has gone
		}
	}
	return nil
}

func (l *localAPI) pingOnce(ctx context.Context, id identity.ID) pingReply {
	ctx, cancel := context.WithTimeout(ctx, 3*time.Second)
	defer cancel()
	p := pingReply{Node: l.who.name(id), Path: fleet.PathSelf}
	if id == l.self {
		return p
	}
	path, err := l.node.Ping(ctx, id)
	if err != nil {
		p.Path, p.Error = fleet.PathNone, err.Error()
		return p
	}
	as := l.who.path(path)
	p.Path, p.Addr, p.Via, p.RTTMS, p.MTU = as.Kind, as.Addr, as.Via, millis(path.RTT), path.MTU
	return p
}

// fleet streams the whole picture each second. The newest measurement of each
// machine goes along; the first line has those of the last minute.
func (l *localAPI) fleet(w http.ResponseWriter, r *http.Request) error {
	defer l.watch.begin()()
	send := lines(w)
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for first := true; ; first = false {
		nodes := l.picture()
		for i := range nodes {
			if n := &nodes[i]; !first && len(n.History) > 1 {
				n.History = n.History[len(n.History)-1:]
			}
		}
		if err := send(fleetReply{l.who.now().Genesis.Mesh, l.self, nodes}); err != nil {
			return nil // who watched has gone
		}
		select {
		case <-r.Context().Done():
			return nil
		case <-tick.C:
		}
	}
}

func (l *localAPI) offer(w http.ResponseWriter, _ *http.Request) error {
	offer, rulesErr := l.facts.current()
	live := l.facts.sampler.Live(l.facts.held(l.runner.Held()))
	o := offerReply{Node: l.who.me().Name, Rules: l.home.path(rulesFile), Offer: &offer, Live: &live}
	if rulesErr != nil {
		o.Error = rulesErr.Error()
	}
	reply(w, o)
	return nil
}

func (l *localAPI) services(w http.ResponseWriter, _ *http.Request) error {
	nodes, _ := l.view.Snapshot()
	reply(w, services(nodes))
	return nil
}

func (l *localAPI) invite(w http.ResponseWriter, r *http.Request) error {
	var req inviteRequest
	if err := readJSON(r, &req); err != nil {
		return err
	}
	v, err := l.door.invite(r.Context(), req)
	if err != nil {
		return err
	}
	reply(w, v)
	return nil
}

func readSpec(r *http.Request) (spec task.Spec, err error) {
	if err := readJSON(r, &spec); err != nil {
		return spec, err
	}
	if err := spec.Check(); err != nil {
		return spec, fail("usage", "", "%v", err)
	}
	return spec, nil
}

func (l *localAPI) plan(w http.ResponseWriter, r *http.Request) error {
	spec, err := readSpec(r)
	if err != nil {
		return err
	}
	ranking, err := l.submitted.Plan(r.Context(), spec)
	if err != nil {
		return err
	}
	reply(w, ranking)
	return nil
}

func (l *localAPI) ledger(w http.ResponseWriter, r *http.Request) error {
	limit, err := strconv.Atoi(r.FormValue("limit"))
	if err != nil || limit < 1 || limit > 100_000 {
		return fail("usage", "", "a number of entries from 1 to 100000, not %q", r.FormValue("limit"))
	}
	topic := r.FormValue("topic")
	if topic != "" && topic != wire.TopicMesh {
		if topic, err = l.db.FindRun(r.Context(), topic); err != nil {
			return err
		}
	}
	entries, err := l.db.List(r.Context(), topic, limit)
	if err != nil {
		return err
	}
	reply(w, l.describeEntries(entries))
	return nil
}

func (l *localAPI) describeEntries(entries []*wire.Entry) []ledgerEntry {
	out := []ledgerEntry{}
	for _, e := range entries {
		out = append(out, ledgerEntry{
			Topic: e.Topic, Author: l.who.name(e.Author), ID: e.Author, Segment: e.Segment, Seq: e.Seq,
			Kind: e.Kind, Time: e.Time(), Hash: e.Hash(), Summary: summary(e, l.who.name),
		})
	}
	return out
}

func (l *localAPI) verify(w http.ResponseWriter, r *http.Request) error {
	report, err := l.db.Verify(r.Context())
	if err != nil {
		return err
	}
	out := verifyReply{OK: report.OK, Entries: report.Entries, Topics: report.Topics}
	if b := report.Bad; b != nil {
		out.Bad = &badEntry{Topic: b.Topic, Author: l.who.name(b.Author), Segment: b.Segment, Seq: b.Seq, Why: b.Why}
	}
	reply(w, out)
	return nil
}
