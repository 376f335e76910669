package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/balanceai/balance/discovery"
	"github.com/balanceai/balance/mesh"
	"github.com/balanceai/balance/mesh/trust"
)

// openHint says what to do where the mesh could not be opened.
func openHint(err error) error {
	if errors.Is(err, mesh.ErrNoTUN) {
		return hint(err, "or leave --tun out: the node, its runs and the balance command need no right and no interface")
	}
	return hint(err, "another program may use the port: choose one with --listen")
}

const (
	splitTimeout = 10 * time.Second // for the resolver to know a new interface, and to answer
	splitAgain   = time.Minute      // until it is asked again: it may start later than the node
)

// splitDNS has the host's resolver ask the node about the names of the mesh, and
// about nothing else.
type splitDNS struct {
	domains []string // the first is for people
	server  netip.AddrPort

	mu   sync.Mutex
	done bool
	err  error
}

// startSplitDNS asks the host's resolver, until it has agreed or ctx ends.
// Without an interface for programs of the host it returns nil.
func startSplitDNS(ctx context.Context, group *errgroup.Group, node *mesh.Node, state *trust.State, server netip.AddrPort, log *slog.Logger) *splitDNS {
	name, index := node.Interface()
	if name == "" {
		return nil
	}
	s := &splitDNS{domains: discovery.Domains(state.Genesis.Mesh, state.Mesh.Prefix()), server: server}
	group.Go(func() error {
		for told := false; !s.ask(ctx, index); told = true {
			if _, problem := s.state(); !told && ctx.Err() == nil {
				log.Warn("names of the mesh", "problem", problem)
			}
			select {
			case <-ctx.Done():
				return nil
			case <-time.After(splitAgain):
			}
		}
		log.Info("the host's resolver knows the names of the mesh", "domain", s.domains[0], "interface", name)
		return nil
	})
	return s
}

func (s *splitDNS) ask(ctx context.Context, ifindex int) bool {
	ctx, cancel := context.WithTimeout(ctx, splitTimeout)
	defer cancel()
	err := discovery.SplitDNS(ctx, ifindex, s.server, s.domains)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.done, s.err = err == nil, err
	return s.done
}

// state returns the domain that the host's resolver asks the node about, or says
// why it does not and what to do instead. Both are empty while it is not known.
func (s *splitDNS) state() (domain, problem string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.done:
		return s.domains[0], ""
	case s.err != nil:
		return "", fmt.Sprintf("this host's resolver does not know *.%s (%s); have it ask %s, or choose the port with --dns: see docs/dns.md",
			s.domains[0], strings.TrimSpace(s.err.Error()), s.server)
	}
	return "", ""
}
