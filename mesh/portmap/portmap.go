// Package portmap asks the router of the local network to forward a UDP port to
// this host, so that who is outside reaches it without having been called: by
// PCP (RFC 6887), NAT-PMP (RFC 6886) or UPnP (the Internet Gateway Device),
// whichever the router speaks.
//
// Only the default router is asked, and only it is believed. What is given is
// renewed at half its life, and given back at the end. Nothing here fails: a
// router that forwards nothing is the usual case.
package portmap

import (
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"sync"
	"time"
)

// Protocols by which routers are asked.
const (
	PCP    = "pcp"
	NATPMP = "nat-pmp"
	UPnP   = "upnp"
)

const (
	lifetime = 2 * time.Hour          // asked for
	shortest = 2 * time.Minute        // between renewals
	tryAgain = 15 * time.Minute       // after nobody forwarded the port
	farewell = 500 * time.Millisecond // for giving the port back
)

// Mapping is a forwarded port. The zero Mapping is none.
type Mapping struct {
	Protocol string
	External netip.AddrPort // where others reach the port
}

// Config is what [Start] needs.
type Config struct {
	Port uint16 // UDP, of this host
	Log  *slog.Logger
	// Wanted says whether the host needs a mapping in the network that it is
	// in now.
	Wanted func() bool
}

// Mapper keeps a port forwarded.
type Mapper struct {
	cfg    Config
	router func() (Router, error)
	kick   chan struct{}
	stop   context.CancelFunc
	done   chan struct{}

	mu  sync.Mutex
	now Mapping
}

// Router is the default router of an IPv4 network.
type Router struct {
	Addr  netip.Addr
	Local netip.Addr // this host's address that it knows
}

// lease is what a router has given.
type lease struct {
	Mapping
	life    time.Duration
	nonce   [12]byte              // of PCP
	release func(context.Context) // gives it back
}

// errNone means that a router speaks no protocol of ours, or refuses.
var errNone = errors.New("the router forwards no port")

// Start begins to ask, until [Mapper.Close]. It does not wait.
func Start(cfg Config) *Mapper { return start(cfg, defaultRouter, ask) }

func start(cfg Config, router func() (Router, error), ask asker) *Mapper {
	ctx, stop := context.WithCancel(context.Background())
	m := &Mapper{cfg: cfg, router: router, kick: make(chan struct{}, 1), stop: stop, done: make(chan struct{})}
	go m.run(ctx, ask)
	return m
}

// Close gives the port back and waits until that is done, for half a second at
// most.
func (m *Mapper) Close() {
	m.stop()
	<-m.done
}

// Again asks anew: the host may be in another network.
func (m *Mapper) Again() {
	select {
	case m.kick <- struct{}{}:
	default: // it will be
	}
}

// Current returns the mapping that there is.
func (m *Mapper) Current() Mapping {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.now
}

// asker asks a router for a port; before is what it has given last, or nil.
type asker func(ctx context.Context, r Router, port uint16, before *lease) (*lease, error)

func (m *Mapper) run(ctx context.Context, ask asker) {
	defer close(m.done)
	var have *lease
	var of Router
	defer func() {
		if have != nil {
			ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), farewell)
			defer cancel()
			have.release(ctx)
		}
	}()
	for {
		wait := tryAgain
		router, err := m.router()
		if err == nil && m.cfg.Wanted() {
			if router != of {
				have, of = nil, router // the old one is out of reach
			}
			have, err = ask(ctx, router, m.cfg.Port, have)
			if have != nil {
				wait = max(have.life/2, shortest)
			}
		} else {
			have = nil
		}
		if err != nil && ctx.Err() == nil {
			m.cfg.Log.Debug("no port mapping", "router", router.Addr, "error", err)
		}
		m.set(have)
		select {
		case <-ctx.Done():
			return
		case <-m.kick:
		case <-time.After(wait):
		}
	}
}

// set makes a lease the mapping, none where it is nil.
func (m *Mapper) set(l *lease) {
	var now Mapping
	if l != nil {
		now = l.Mapping
	}
	m.mu.Lock()
	changed := m.now != now
	m.now = now
	m.mu.Unlock()
	if changed {
		m.cfg.Log.Info("port mapping", "protocol", now.Protocol, "external", now.External)
	}
}

// ask asks by one protocol after the other.
func ask(ctx context.Context, r Router, port uint16, before *lease) (*lease, error) {
	l, err := askPCP(ctx, netip.AddrPortFrom(r.Addr, pcpPort), port, before)
	if err == nil || ctx.Err() != nil {
		return l, err
	}
	return askUPnP(ctx, r, port)
}
