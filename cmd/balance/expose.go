package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/balanceai/balance/discovery"
	"github.com/balanceai/balance/exec/fleet"
	"github.com/balanceai/balance/exec/policy"
	"github.com/balanceai/balance/mesh"
	"github.com/balanceai/balance/mesh/identity"
	"github.com/balanceai/balance/proxy"
	"github.com/balanceai/balance/store"
)

// exposure is a service of this machine that its owner has opened to the mesh.
type exposure struct {
	fleet.Service

	Target string `json:"target"`        // host:port, as this machine reaches it
	Run    string `json:"run,omitempty"` // an agent that serves: its run, with which it ends

	card string // of such an agent: the path of its card
}

// ownPort reports whether a port of every overlay address belongs to the mesh
// itself: nothing else is served there, and no program is let through to it.
func ownPort(port uint16) bool {
	return slices.Contains([]uint16{0, mesh.DoorPort, dnsPort, apiPort, gossipPort}, port)
}

// instance is what a service of a machine is called in DNS-SD. It is unique in
// the mesh where the service is unique on its machine: names of machines are,
// and have no spaces.
func instance(node string, s fleet.Service) string {
	if s.Name == "" {
		return node
	}
	return s.Name + " on " + node
}

// checkService refuses a service that is not to be published.
func checkService(node string, s fleet.Service) error {
	switch {
	case ownPort(s.Port):
		return fmt.Errorf("port %d belongs to the mesh itself", s.Port)
	case s.Port == modelsPort:
		return fmt.Errorf("port %d is that of the models: what an engine answers is granted in policy.yaml", s.Port)
	case s.Type == balanceService:
		return fmt.Errorf("%s is what the nodes themselves publish", s.Type)
	case s.Type == "" && (s.Name != "" || len(s.Text) > 0):
		return errors.New("a name or a text is published with a type alone, such as _http._tcp")
	case s.Type == "":
		return nil
	case !strings.HasSuffix(s.Type, "._tcp"):
		return fmt.Errorf("service type %q: want _name._tcp", s.Type)
	}
	return discovery.Service{Instance: instance(node, s), Type: s.Type, Host: node, Port: s.Port, Text: s.Text}.Check()
}

// Limits of what one machine exposes, which others store.
const (
	maxServiceText = 512  // bytes, of one service
	maxOwners      = 64   // of one service
	maxStreams     = 1024 // connections to one service at one time
)

// check refuses what cannot be exposed beside the rest.
func (e *exposure) check(node string, rest []exposure) error {
	if err := checkService(node, e.Service); err != nil {
		return err
	}
	host, port, err := net.SplitHostPort(e.Target)
	if n, err2 := strconv.ParseUint(port, 10, 16); err != nil || err2 != nil || n == 0 || host == "" {
		return fmt.Errorf("%q is no HOST:PORT", e.Target)
	}
	for _, owner := range e.To {
		if owner == policy.AnyOwner {
			continue
		}
		if err := identity.ValidName(owner); err != nil {
			return err
		}
	}
	if len(strings.Join(e.Text, " ")) > maxServiceText {
		return fmt.Errorf("the text is longer than %d bytes", maxServiceText)
	}
	if len(e.To) > maxOwners || len(rest) >= fleet.MaxServices {
		return fmt.Errorf("a machine exposes up to %d services, each to up to %d owners", fleet.MaxServices, maxOwners)
	}
	for _, other := range rest {
		if e.Type != "" && other.Type == e.Type && other.Name == e.Name {
			return fmt.Errorf("port %d is published as %s with that name: give this one another --name", other.Port, e.Type)
		}
	}
	return nil
}

// offered is what others are told of a list.
func offered(list []exposure) []fleet.Service {
	var out []fleet.Service
	for _, e := range list {
		out = append(out, e.Service)
	}
	return out
}

// settingExposed is where the ledger file keeps the exposures, as JSON.
const settingExposed = "exposed"

// exposer opens this machine's services to the mesh, and keeps them open over
// restarts of the node.
type exposer struct {
	node  *mesh.Node
	db    *store.Store
	who   *roster
	facts *facts
	log   *slog.Logger

	mu   sync.Mutex
	open map[uint16]*openPort // by port of the overlay
}

// openExposer opens what was exposed when the node went down.
func openExposer(ctx context.Context, node *mesh.Node, db *store.Store, who *roster, f *facts, log *slog.Logger) (*exposer, error) {
	x := &exposer{node: node, db: db, who: who, facts: f, log: log, open: map[uint16]*openPort{}}
	kept, err := db.Setting(ctx, settingExposed)
	if err != nil || kept == "" {
		return x, err
	}
	var list []exposure
	if err := json.Unmarshal([]byte(kept), &list); err != nil {
		return nil, fmt.Errorf("read what is exposed: %w", err)
	}
	for _, e := range list {
		if err := x.start(e); err != nil { // no reason for the node not to start
			log.Error("a service is not opened", "port", e.Port, "error", err)
		}
	}
	f.serve(offered(x.listLocked()))
	return x, nil
}

// close ends every listener and connection, and waits for that.
func (x *exposer) close() {
	x.mu.Lock()
	defer x.mu.Unlock()
	for _, p := range x.open {
		p.close()
	}
}

// list returns what is exposed, by port.
func (x *exposer) list() []exposure {
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.listLocked()
}

func (x *exposer) listLocked() []exposure {
	list := []exposure{}
	for _, p := range x.open {
		list = append(list, p.exposure)
	}
	slices.SortFunc(list, func(a, b exposure) int { return cmp.Compare(a.Port, b.Port) })
	return list
}

// expose opens a service, or changes the one at its port, whose connections end
// if it does.
func (x *exposer) expose(ctx context.Context, e exposure) error {
	x.mu.Lock()
	defer x.mu.Unlock()
	old := x.open[e.Port]
	if old != nil && old.Run != "" {
		return fail("usage", "end it with: balance cancel "+old.Run, "at port %d an agent serves", e.Port)
	}
	if old != nil && reflect.DeepEqual(old.exposure, e) {
		return nil
	}
	rest := slices.DeleteFunc(x.listLocked(), func(o exposure) bool { return o.Port == e.Port })
	if err := e.check(x.who.me().Name, rest); err != nil {
		return fail("usage", "", "%v", err)
	}
	if old != nil {
		old.close()
		delete(x.open, e.Port)
	}
	return errors.Join(x.start(e), x.saveLocked(ctx))
}

// hide closes the service at a port.
func (x *exposer) hide(ctx context.Context, port uint16) error {
	x.mu.Lock()
	defer x.mu.Unlock()
	p := x.open[port]
	if p == nil {
		return fail("not_found", "see what is with: balance expose", "nothing is exposed at port %d", port)
	}
	if p.Run != "" {
		return fail("usage", "end it with: balance cancel "+p.Run, "at port %d an agent serves", port)
	}
	p.close()
	delete(x.open, port)
	return x.saveLocked(ctx)
}

// host opens an agent that serves, until unhost: it is not kept over restarts of
// the node, which finds the run again.
func (x *exposer) host(e exposure) error {
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.open[e.Port] != nil {
		return fmt.Errorf("port %d of this machine is taken in the mesh", e.Port)
	}
	if err := e.check(x.who.me().Name, x.listLocked()); err != nil {
		return err
	}
	if err := x.start(e); err != nil {
		return err
	}
	x.facts.serve(offered(x.listLocked()))
	return nil
}

// unhost closes what a run serves, if it does.
func (x *exposer) unhost(run string) {
	x.mu.Lock()
	defer x.mu.Unlock()
	for port, p := range x.open {
		if p.Run == run {
			p.close()
			delete(x.open, port)
			x.facts.serve(offered(x.listLocked()))
		}
	}
}

// saveLocked keeps what is open now, and tells the others.
func (x *exposer) saveLocked(ctx context.Context) error {
	list := x.listLocked()
	x.facts.serve(offered(list))
	own := slices.DeleteFunc(list, func(e exposure) bool { return e.Run != "" })
	b, err := json.Marshal(own)
	if err != nil {
		return err
	}
	return x.db.SetSetting(ctx, settingExposed, string(b))
}

// start listens for a service. The caller holds the lock, or is alone.
func (x *exposer) start(e exposure) error {
	ln, err := x.node.Listen(e.Port)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(context.Background())
	p := &openPort{exposure: e, ln: ln, cancel: cancel, who: x.caller, log: x.log.With("port", e.Port)}
	if e.Run != "" {
		base := fmt.Sprintf("http://%s.%s.internal:%d", x.who.me().Name, x.who.now().Genesis.Mesh, e.Port)
		p.front = newFront(e.Target, e.card, base, ln.Addr(), p.log)
		p.streams.Go(func() {
			if err := p.front.run(); err != nil && !errors.Is(err, net.ErrClosed) {
				p.log.Error("an agent is closed to the mesh", "error", err)
			}
		})
	}
	p.streams.Go(func() { p.accept(ctx) })
	x.open[e.Port] = p
	return nil
}

// caller returns the name of the machine at the other end of a connection, if
// its owner is one whom a service is for. A guest counts as a machine of the
// owner of the one that carries it.
func (x *exposer) caller(c net.Conn, s fleet.Service) (name string, ok bool) {
	addr, err := netip.ParseAddrPort(c.RemoteAddr().String())
	if err != nil {
		return "", false
	}
	id, ok := x.node.Who(addr.Addr())
	name = x.who.name(id)
	if !ok {
		if id, ok = x.node.Carrier(addr.Addr()); !ok {
			return addr.Addr().String(), false
		}
		name = "a guest of " + x.who.name(id)
	}
	from, ok := x.who.now().Members[id]
	return name, ok && s.May(from.Owner, x.who.me().Owner)
}

// openPort is one service that is open.
type openPort struct {
	exposure

	ln      net.Listener
	front   *front // of an agent; nil for what speaks anything
	who     func(net.Conn, fleet.Service) (string, bool)
	log     *slog.Logger
	cancel  context.CancelFunc
	streams sync.WaitGroup // the one that accepts, and one for each connection
}

func (p *openPort) close() {
	p.cancel()
	p.ln.Close()
	if p.front != nil {
		_ = p.front.server.Close() // whose connections end with it
		_ = p.front.Close()
	}
	p.streams.Wait()
}

// accept takes connections until the listener is closed, and turns away at once
// whoever the service is not for.
func (p *openPort) accept(ctx context.Context) {
	places := make(chan struct{}, maxStreams)
	for {
		c, err := p.ln.Accept()
		if err != nil {
			if ctx.Err() == nil {
				p.log.Error("a service is closed to the mesh", "error", err)
			}
			return
		}
		from, ok := p.who(c, p.Service)
		if !ok {
			p.log.Warn("turned away: the service is not for its owner", "node", from)
			c.Close()
			continue
		}
		select {
		case places <- struct{}{}:
			p.streams.Go(func() {
				defer func() { <-places }()
				p.serve(ctx, c, from)
			})
		default:
			p.log.Warn("turned away: too many connections", "node", from)
			c.Close()
		}
	}
}

// serve carries one connection to the service.
func (p *openPort) serve(ctx context.Context, c net.Conn, from string) {
	defer c.Close()
	if p.front != nil {
		p.front.serve(ctx, c)
		return
	}
	to, err := (&net.Dialer{Timeout: 10 * time.Second}).DialContext(ctx, "tcp", p.Target)
	if err != nil {
		p.log.Warn("reach the service", "node", from, "error", err)
		return
	}
	proxy.Carry(ctx, c, to)
}

// exposed answers with what this machine exposes.
func (l *localAPI) exposed(w http.ResponseWriter, _ *http.Request) error {
	reply(w, l.exposer.list())
	return nil
}

func (l *localAPI) expose(w http.ResponseWriter, r *http.Request) error {
	var e exposure
	if err := readJSON(r, &e); err != nil {
		return err
	}
	if err := l.exposer.expose(r.Context(), e); err != nil {
		return err
	}
	reply(w, e)
	return nil
}

func (l *localAPI) hide(w http.ResponseWriter, r *http.Request) error {
	port, err := parsePort(r.PathValue("port"))
	if err != nil {
		return err
	}
	if err := l.exposer.hide(r.Context(), port); err != nil {
		return err
	}
	reply(w, struct{}{})
	return nil
}

func parsePort(s string) (uint16, error) {
	port, err := strconv.ParseUint(s, 10, 16)
	if err != nil || port == 0 {
		return 0, fail("usage", "", "%q is no port: want a number from 1 to 65535", s)
	}
	return uint16(port), nil
}
