package main

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"slices"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/balanceai/balance/exec/fleet"
	"github.com/balanceai/balance/exec/gateway"
	"github.com/balanceai/balance/exec/policy"
	"github.com/balanceai/balance/exec/run"
	"github.com/balanceai/balance/exec/task"
	"github.com/balanceai/balance/mesh"
)

// modelsPort is where a machine's gateway answers programs of the mesh, on its
// overlay address.
const modelsPort = 7421

// modelsService is what it is in DNS-SD.
const modelsService = "_openai._tcp"

// models joins the gateway with the node: the engines that are found, the offer,
// the runs, and those who may ask over the mesh.
type models struct {
	*gateway.Gateway

	finder *gateway.Finder
	hosted *hosted // engines that this machine runs
	served *served // what this machine has served, here or elsewhere
	facts  *facts
	node   *mesh.Node
	who    *roster
	log    *slog.Logger
}

// newModels returns the gateway of this machine.
func newModels(node *mesh.Node, who *roster, f *facts, view *fleet.View, peers *http.Client, h *hosted, s *served, log *slog.Logger) *models {
	m := &models{facts: f, node: node, who: who, hosted: h, served: s, log: log}
	h.models = m
	m.finder = gateway.NewFinder(m.places)
	m.Gateway = gateway.New(gateway.Config{
		Self: who.self, Owner: who.me().Owner, Peers: peers, Engines: m.engines, Wake: s.load, Spent: s.spent, Log: log,
		View:  func() []fleet.Node { nodes, _ := view.Snapshot(); return nodes },
		Terms: func() policy.Terms { offer, _ := f.current(); return offer.Terms },
	})
	f.mu.Lock()
	defer f.mu.Unlock()
	f.engines = m.doing
	return m
}

// engines are those that were found, and the one that stands for what is loaded
// when it is asked for.
func (m *models) engines() []gateway.Engine {
	return append(slices.Clone(m.finder.Engines()), m.served.engine())
}

// doing returns what the engines have in memory, and how much they are asked.
func (m *models) doing() (loaded []string, asked int) {
	for _, e := range m.finder.Engines() {
		loaded = append(loaded, e.Loaded...)
	}
	return loaded, m.Asked()
}

// places are where engines of this machine run for the mesh, and where the
// owner's rules say that others may be.
func (m *models) places() []gateway.Place {
	m.facts.mu.Lock()
	rules := m.facts.rules
	m.facts.mu.Unlock()
	out := m.hosted.places()
	for _, e := range rules.Models.Engines {
		p := gateway.Place{URL: e.URL}
		if e.KeyFile != "" {
			key, err := os.ReadFile(e.KeyFile)
			if err != nil {
				m.log.Warn("read the key of an engine", "engine", e.URL, "error", err)
				continue
			}
			p.Key = strings.TrimSpace(string(key))
		}
		out = append(out, p)
	}
	if rules.Models.Find {
		out = append(out, gateway.Usual...)
	}
	return out
}

// changed tells the others which models there are.
func (m *models) changed() {
	var list []fleet.Model
	for _, e := range m.engines() {
		for _, o := range e.Models {
			if len(list) < fleet.MaxModels && !slices.ContainsFunc(list, func(l fleet.Model) bool { return l.Name == o.Name }) {
				list = append(list, o)
			}
		}
	}
	m.facts.serveModels(list)
}

// serve finds engines and answers programs of the mesh until ctx ends.
func (m *models) serve(ctx context.Context, group *errgroup.Group) error {
	ln, err := m.node.Listen(modelsPort)
	if err != nil {
		return err
	}
	serveHTTP(ctx, group, ln, http.HandlerFunc(m.client), m.log)
	m.changed()
	group.Go(func() error { m.finder.Run(ctx, m.changed); return nil })
	group.Go(func() error { m.Run(ctx); return nil })
	group.Go(func() error { m.served.keepSpent(ctx); return nil })
	return nil
}

// settingSpent is where the ledger file keeps what engines have given to owners.
const settingSpent = "model-tokens"

func (s *served) loadSpent(ctx context.Context) error {
	s.spent = new(gateway.Spent)
	kept, err := s.db.Setting(ctx, settingSpent)
	if err == nil && kept != "" {
		err = json.Unmarshal([]byte(kept), s.spent)
	}
	return err
}

// keepSpent writes it down once a minute, and at the end.
func (s *served) keepSpent(ctx context.Context) {
	tick := time.NewTicker(time.Minute)
	defer tick.Stop()
	last := ""
	for end := false; !end; {
		select {
		case <-ctx.Done():
			end = true
		case <-tick.C:
		}
		b, err := json.Marshal(s.spent)
		if err == nil && string(b) != last {
			err = s.db.SetSetting(context.WithoutCancel(ctx), settingSpent, string(b))
			last = string(b)
		}
		if err != nil {
			s.log.Warn("what engines have given is not kept", "error", err)
		}
	}
}

// client answers a program of a member or of a guest: the address that it comes
// from says whose it is.
func (m *models) client(w http.ResponseWriter, r *http.Request) {
	owner, ok := m.owner(r)
	if !ok || !meshHost(r.Host) {
		w.WriteHeader(http.StatusNotFound)
		return
	}
	m.Client(owner, w, r)
}

// owner returns whose the program at the other end is. A guest counts as a
// machine of the owner of the one that carries it.
func (m *models) owner(r *http.Request) (string, bool) {
	from, err := netip.ParseAddrPort(r.RemoteAddr)
	if err != nil {
		return "", false
	}
	id, ok := m.node.Who(from.Addr())
	if !ok {
		if id, ok = m.node.Carrier(from.Addr()); !ok {
			return "", false
		}
	}
	member, ok := m.who.now().Members[id]
	return member.Owner, ok
}

// meshHost reports whether a Host header names a machine as the mesh does, or by
// an address: not by a name of the web that was pointed here.
func meshHost(host string) bool {
	name, _, err := net.SplitHostPort(host)
	if err != nil {
		name = host
	}
	_, err = netip.ParseAddr(strings.Trim(name, "[]"))
	return err == nil || name == "localhost" || strings.HasSuffix(strings.TrimSuffix(name, "."), ".internal") || !strings.Contains(name, ".")
}

// peer answers the gateway of another member.
func (p *peerAPI) models(w http.ResponseWriter, r *http.Request) {
	id, _ := p.caller(r) // membersOnly has asked
	p.gateway.Peer(p.who.now().Members[id].Owner, w, r)
}

// runEndpoint is where a run asks for models.
type runEndpoint struct {
	*gateway.Endpoint

	key  string
	asks []task.Model
}

// ofRun makes what a run asks of this machine; see [run.Config.Local].
func (m *models) ofRun(a run.Ask, key string) (run.Local, error) {
	if len(a.Spec.Models) == 0 {
		return nil, nil //nolint:nilnil // it asks nothing
	}
	from, ok := m.who.now().Members[a.From]
	if !ok {
		return nil, errors.New("its submitter is no member any more")
	}
	if key == "" {
		key = gateway.NewKey()
	}
	budget := gateway.Budget{Tokens: a.Spec.Limits.Tokens, Used: a.Used.Tokens()}
	return &runEndpoint{m.Open(from.Owner, a.Run, key, budget), key, a.Spec.Models}, nil
}

func (e *runEndpoint) Key() string { return e.key }

func (e *runEndpoint) Env(base string) map[string]string { return modelEnv(base+"/v1", e.key, e.asks) }

// modelEnv is what a program reads to find its models: the variables of OpenAI's
// clients, those of agents that have names of their own, and Compose's.
func modelEnv(base, key string, list []task.Model) map[string]string {
	env := map[string]string{
		"OPENAI_BASE_URL": base, "OPENAI_API_BASE": base, "OPENAI_API_KEY": key, "OPENAI_MODEL": list[0].Model,
		// A proxy of the host's is not for loopback.
		"NO_PROXY": "127.0.0.1,localhost", "no_proxy": "127.0.0.1,localhost",
	}
	for _, m := range list {
		endpoint, model := m.Variables()
		env[endpoint], env[model] = base, m.Model
	}
	return env
}

// modelsRow is what a machine with models publishes in DNS-SD.
func modelsRow(n fleet.Node) serviceRow {
	names := []string{}
	for _, m := range n.Offer.Models[:min(len(n.Offer.Models), fleet.MaxModels)] {
		if text := strings.Join(append(names, m.Name), ","); fleet.ValidModel(m.Name) && len(text) < 200 {
			names = append(names, m.Name)
		}
	}
	row := serviceRow{
		Instance: n.Name, Type: modelsService, Node: n.Name, Address: n.Address, Port: modelsPort,
		Text: []string{"path=/v1", "models=" + strings.Join(names, ",")}, For: []string{n.Owner},
	}
	for _, g := range n.Offer.Terms.Models {
		row.For = append(row.For, g.Owner)
	}
	if slices.Contains(row.For, policy.AnyOwner) {
		row.For = []string{policy.AnyOwner}
	}
	return row
}
