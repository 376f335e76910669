package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"strconv"
	"sync"
	"time"

	"github.com/balanceai/balance/exec/fleet"
	"github.com/balanceai/balance/exec/task"
)

// An agent that serves is asked over HTTP, at a port of its machine's name in the
// mesh, as services are that their owner exposes. What it says of itself in its
// A2A card is passed on with its address there, at the path where clients look.

const (
	agentService = "_agent._tcp" // in DNS-SD
	cardPath     = "/.well-known/agent-card.json"
	maxCard      = 1 << 20
)

// agentExposure is how a run that serves is published.
func agentExposure(r *hostedRun) exposure {
	s := r.spec.Serve
	port := s.Port
	if port == 0 {
		port = r.port
	}
	text := []string{"path=/", "run=" + r.id}
	if s.Card != "" {
		text = append(text, "card="+cardPath)
	}
	return exposure{
		Service: fleet.Service{Port: uint16(port), Type: agentService, Name: s.Name, Text: text, To: s.To},
		Target:  r.target(), Run: r.id, card: s.Card,
	}
}

// front answers for an agent in the mesh.
type front struct {
	server *http.Server
	conns  chan net.Conn
	done   chan struct{}
	stop   sync.Once
	addr   net.Addr
}

// newFront returns what stands before an agent that is at a host and port of this
// machine, and has its card at a path there; empty for none. Others reach it as
// base.
func newFront(target, card, base string, addr net.Addr, log *slog.Logger) *front {
	to := &url.URL{Scheme: "http", Host: target}
	proxy := &httputil.ReverseProxy{
		Rewrite: func(r *httputil.ProxyRequest) {
			r.SetURL(to)
			r.SetXForwarded()
			if card != "" && r.In.URL.Path == cardPath {
				r.Out.URL.Path = card
				r.Out.Header.Set("Accept-Encoding", "identity")
			}
		},
		ModifyResponse: func(resp *http.Response) error {
			if card == "" || resp.Request.URL.Path != card || resp.StatusCode != http.StatusOK {
				return nil
			}
			return rewriteCard(resp, base)
		},
		FlushInterval: -1, // what an agent says comes word by word
		ErrorLog:      slog.NewLogLogger(log.Handler(), slog.LevelDebug),
	}
	f := &front{conns: make(chan net.Conn), done: make(chan struct{}), addr: addr}
	f.server = &http.Server{Handler: proxy, ReadHeaderTimeout: 10 * time.Second, IdleTimeout: 5 * time.Minute, MaxHeaderBytes: 64 << 10, ErrorLog: proxy.ErrorLog}
	return f
}

// rewriteCard puts the agent's address in the mesh into the place of its own.
func rewriteCard(resp *http.Response, base string) error {
	b, err := io.ReadAll(io.LimitReader(resp.Body, maxCard+1))
	resp.Body.Close()
	if err == nil && len(b) > maxCard {
		err = fmt.Errorf("the agent's card has more than %d bytes", maxCard)
	}
	if err != nil {
		return err
	}
	if b, err = addressed(b, base); err != nil {
		return err
	}
	resp.Body = io.NopCloser(bytes.NewReader(b))
	resp.ContentLength = int64(len(b))
	resp.Header.Set("Content-Length", strconv.Itoa(len(b)))
	resp.Header.Del("ETag")
	return nil
}

// addressed returns a card in which the addresses of the agent are below base.
// Those that are not on loopback are left as they are.
func addressed(card []byte, base string) ([]byte, error) {
	var c map[string]any
	if err := json.Unmarshal(card, &c); err != nil {
		return nil, fmt.Errorf("the agent's card: %w", err)
	}
	move := func(in map[string]any) {
		text, _ := in["url"].(string)
		u, err := url.Parse(text)
		if err != nil || u.Host == "" || !loopbackName(u.Hostname()) {
			return
		}
		in["url"] = base + u.RequestURI()
	}
	move(c)
	for _, key := range []string{"additionalInterfaces", "supportedInterfaces"} {
		list, _ := c[key].([]any)
		for _, item := range list {
			if in, ok := item.(map[string]any); ok {
				move(in)
			}
		}
	}
	return json.Marshal(c)
}

// loopbackName reports whether a host is this machine, as an agent that knows no
// other name for it says.
func loopbackName(host string) bool {
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && (ip.IsLoopback() || ip.IsUnspecified())
}

// serve answers one connection until it is closed, or ctx ends.
func (f *front) serve(ctx context.Context, c net.Conn) {
	over := make(chan struct{})
	select {
	case f.conns <- &watchedConn{Conn: c, over: over}:
	case <-f.done:
		return
	}
	select {
	case <-over:
	case <-ctx.Done():
	}
}

// watchedConn tells when it is closed.
type watchedConn struct {
	net.Conn

	over  chan struct{}
	close sync.Once
}

func (c *watchedConn) Close() error {
	c.close.Do(func() { close(c.over) })
	return c.Conn.Close()
}

// run serves until Close.
func (f *front) run() error {
	if err := f.server.Serve(f); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

// Accept, Close and Addr make it the listener of its server.
func (f *front) Accept() (net.Conn, error) {
	select {
	case c := <-f.conns:
		return c, nil
	case <-f.done:
		return nil, net.ErrClosed
	}
}

func (f *front) Close() error {
	f.stop.Do(func() { close(f.done) })
	return nil
}

func (f *front) Addr() net.Addr { return f.addr }

// publish opens an agent that is well to the mesh.
func (h *hosted) publish(r *hostedRun) {
	if r.spec.Serve.Kind != task.ServeAgent {
		return
	}
	if err := h.exposer.host(agentExposure(r)); err != nil {
		h.end(r, fmt.Sprintf("it cannot be published: %v", err))
	}
}
