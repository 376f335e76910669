package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/balanceai/balance/exec/fleet"
	"github.com/balanceai/balance/exec/place"
	"github.com/balanceai/balance/mesh"
	"github.com/balanceai/balance/mesh/identity"
	"github.com/balanceai/balance/proxy"
)

// reach connects this host's programs with services of the mesh.
type reach struct {
	node *mesh.Node
	who  *roster
	view *fleet.View
}

// may refuses the ports that no program is let through to, and predicts what
// the other machine will say: a connection that it turns away ends without a
// reason.
func (r *reach) may(id identity.ID, port uint16) error {
	if ownPort(port) {
		return fail("forbidden", "", "port %d belongs to the mesh itself", port)
	}
	n, _ := r.view.Node(id)
	if n.Offer == nil {
		return nil
	}
	for _, s := range n.Offer.Services {
		if s.Port == port && !s.May(r.who.me().Owner, n.Owner) {
			return fail("forbidden", fmt.Sprintf("%s allows it with: balance expose … --to %s", n.Owner, r.who.me().Owner),
				"%s:%d is not open to %s", n.Name, port, r.who.me().Owner)
		}
	}
	return nil
}

// dialTime is how long a machine may take to answer.
const dialTime = 10 * time.Second

// dial connects to a port of a machine.
func (r *reach) dial(ctx context.Context, id identity.ID, port uint16) (net.Conn, error) {
	if err := r.may(id, port); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, dialTime)
	defer cancel()
	c, err := r.node.Dial(ctx, id, port)
	name := r.who.name(id)
	switch {
	case err == nil:
		return c, nil
	case errors.Is(err, mesh.ErrUnknownPeer):
		return nil, fail("not_found", "", "%s is not in the mesh any more", name)
	case errors.Is(err, context.DeadlineExceeded):
		return nil, fail("timeout", "", "%s has not answered within %v", name, dialTime)
	case ctx.Err() != nil:
		return nil, err
	}
	return nil, fail("refused", fmt.Sprintf("what %s offers is in: balance services", name), "nothing is exposed at %s:%d", name, port)
}

// host finds the machine that a name or an address of the mesh stands for.
func (r *reach) host(host string) (identity.ID, error) {
	state := r.who.now()
	if addr, err := netip.ParseAddr(host); err == nil {
		id, ok := r.node.Who(addr)
		switch {
		case ok:
			return id, nil
		case state.Mesh.Prefix().Contains(addr):
			return id, fail("not_found", "", "no machine has the address %s", host)
		}
		return id, outside(host)
	}
	name, ok := strings.CutSuffix(strings.TrimSuffix(strings.ToLower(host), "."), "."+state.Genesis.Mesh+".internal")
	if !ok {
		return identity.ID{}, outside(host)
	}
	for id, m := range state.Members {
		if m.Name == name {
			return id, nil
		}
	}
	return identity.ID{}, fail("not_found", "see the machines with: balance nodes", "no machine is called %s", name)
}

func outside(host string) error {
	return fail("forbidden", "", "%q is not in the mesh: the proxy leads nowhere else", host)
}

// proxyDial is dial for programs that speak to the proxy.
func (r *reach) proxyDial(ctx context.Context, host string, port uint16) (net.Conn, error) {
	id, err := r.host(host)
	if err != nil {
		return nil, proxyError(err)
	}
	c, err := r.dial(ctx, id, port)
	if err != nil {
		return nil, proxyError(err)
	}
	return c, nil
}

// proxyError gives an error the kind that programs are told.
func proxyError(err error) error {
	switch describe(err).Code {
	case "forbidden":
		return fmt.Errorf("%w: %w", proxy.ErrForbidden, err)
	case "not_found":
		return fmt.Errorf("%w: %w", proxy.ErrNoHost, err)
	case "timeout":
		return fmt.Errorf("%w: %w", proxy.ErrNoAnswer, err)
	}
	return err
}

// serveProxy serves programs on the socket in the home and, where the user has
// chosen one, on a loopback address, which it returns as it came to be.
func serveProxy(ctx context.Context, group *errgroup.Group, h home, host netip.AddrPort, r *reach, log *slog.Logger) (netip.AddrPort, error) {
	listeners := make([]net.Listener, 0, 2)
	if host.IsValid() {
		ln, err := net.Listen("tcp", host.String())
		if err != nil {
			return host, hint(err, "choose another address with --proxy")
		}
		host = addrPort(ln.Addr())
		listeners = append(listeners, ln)
	}
	ln, err := h.listen(proxyFile)
	if err != nil {
		for _, ln := range listeners {
			ln.Close()
		}
		return host, err
	}
	for _, ln := range append(listeners, ln) {
		group.Go(func() error { return proxy.New(r.proxyDial, log).Serve(ctx, ownUser{ln, log}) })
	}
	group.Go(func() error {
		<-ctx.Done()
		return os.Remove(h.path(proxyFile))
	})
	return host, nil
}

// portOf reads which port of which machine a request is about.
func (l *localAPI) portOf(r *http.Request) (p portReply, err error) {
	nodes, _ := l.view.Snapshot()
	if p.ID, err = place.Pin(nodes, r.PathValue("node")); err != nil {
		return p, hint(err, "see the machines with: balance nodes")
	}
	p.Node = l.who.name(p.ID)
	if p.Port, err = parsePort(r.PathValue("port")); err != nil {
		return p, err
	}
	return p, l.reach.may(p.ID, p.Port)
}

// port tells whether there may be a connection to a port of a machine.
func (l *localAPI) port(w http.ResponseWriter, r *http.Request) error {
	p, err := l.portOf(r)
	if err != nil {
		return err
	}
	reply(w, p)
	return nil
}

// streamProtocol is what a connection to the local socket becomes when it is
// carried to a port of another machine.
const streamProtocol = "balance-stream"

// connect makes the connection of the request one to a port of a machine.
func (l *localAPI) connect(w http.ResponseWriter, r *http.Request) error {
	if r.Header.Get("Upgrade") != streamProtocol {
		return fail("usage", "", "the connection is to be upgraded to %s", streamProtocol)
	}
	p, err := l.portOf(r)
	if err != nil {
		return err
	}
	l.streams.Add(1) // nobody else waits for a connection that has left the server
	defer l.streams.Done()
	to, err := l.reach.dial(r.Context(), p.ID, p.Port)
	if err != nil {
		return err
	}
	defer to.Close()
	c, _, err := http.NewResponseController(w).Hijack() // the client waits for the answer before it sends
	if err != nil {
		return err
	}
	defer c.Close()
	if _, err := fmt.Fprintf(c, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: %s\r\n\r\n", streamProtocol); err != nil {
		return nil // who asked has gone
	}
	proxy.Carry(r.Context(), c, to)
	return nil
}
