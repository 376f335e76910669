// Package proxy lets programs that know nothing of a private network reach it.
//
// [Proxy] speaks two protocols on one listener, told apart by the first byte:
// SOCKS5 (RFC 1928), and HTTP's own, which is CONNECT for whatever is encrypted
// or not HTTP, and a request with an absolute URI otherwise (RFC 9110 section
// 9.3.6, RFC 9112 section 3.2). It knows no address itself: where a name leads,
// and whether it may lead there, is for the function that it is given, and what
// that refuses ends with the protocol's own error.
//
// [Carry] joins two connections. Their directions end one by one, as those of
// SSH and of simple protocols do.
package proxy

import (
	"bufio"
	"context"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"net/http/httputil"
	"sync"
	"time"
)

// Kinds of failure that programs are told apart. Any other error of a [Dial]
// means that the connection was refused.
var (
	ErrForbidden = errors.New("not allowed")  // not in the network, or not for this user
	ErrNoHost    = errors.New("no such host") // in the network
	ErrNoAnswer  = errors.New("no answer")
)

// Dial connects to a TCP port. The host is a name or an IP address, as the
// program gave it.
type Dial func(ctx context.Context, host string, port uint16) (net.Conn, error)

// handshakeTime is how long a program may take to say what it wants.
const handshakeTime = 10 * time.Second

// Proxy serves programs until its context ends.
type Proxy struct {
	dial  Dial
	log   *slog.Logger
	plain *httputil.ReverseProxy
	conns sync.WaitGroup // connections and requests that are served
}

// New makes a proxy.
func New(dial Dial, log *slog.Logger) *Proxy {
	p := &Proxy{dial: dial, log: log}
	p.plain = p.newPlain()
	return p
}

// Serve answers on a listener, which it closes, until ctx ends. It returns when
// nothing of it runs any more.
func (p *Proxy) Serve(ctx context.Context, ln net.Listener) error {
	ctx, cancel := context.WithCancel(ctx)
	web := &queue{addr: ln.Addr(), conns: make(chan net.Conn), over: ctx.Done()}
	srv := &http.Server{
		Handler: p, ReadHeaderTimeout: handshakeTime, IdleTimeout: 5 * time.Minute,
		BaseContext: func(net.Listener) context.Context { return ctx },
		ErrorLog:    slog.NewLogLogger(p.log.Handler(), slog.LevelDebug),
		ConnState:   p.count,
	}
	p.conns.Go(func() { _ = srv.Serve(web) }) // ends with the queue
	context.AfterFunc(ctx, func() { ln.Close() })
	err := p.accept(ctx, ln, web)
	cancel()
	_ = srv.Close() // of its connections: it has no listener of the system's
	p.conns.Wait()
	p.plain.Transport.(*http.Transport).CloseIdleConnections()
	return err
}

// acceptAgain is how long the proxy waits after a failure that may pass, such as
// too many open files.
const acceptAgain = 100 * time.Millisecond

// accept takes connections until ctx ends or the listener is closed.
func (p *Proxy) accept(ctx context.Context, ln net.Listener, web *queue) error {
	for {
		c, err := ln.Accept()
		switch {
		case err == nil:
			p.conns.Go(func() { p.tell(ctx, c, web) })
		case ctx.Err() != nil:
			return nil
		case errors.Is(err, net.ErrClosed):
			return err
		default:
			p.log.Error("accept a connection to the proxy", "error", err)
			select {
			case <-ctx.Done():
				return nil
			case <-time.After(acceptAgain):
			}
		}
	}
}

// count lets Serve wait for the server's connections too. A hijacked one is
// waited for in the request that has it.
func (p *Proxy) count(_ net.Conn, state http.ConnState) {
	switch state {
	case http.StateNew:
		p.conns.Add(1)
	case http.StateHijacked, http.StateClosed:
		p.conns.Done()
	}
}

// tell looks which protocol a program speaks, and serves it.
func (p *Proxy) tell(ctx context.Context, conn net.Conn, web *queue) {
	c := &begun{Conn: conn, in: bufio.NewReader(conn)}
	c.stop = context.AfterFunc(ctx, func() { conn.Close() })
	handedOn := false
	defer func() {
		if !handedOn {
			_ = c.Close()
		}
	}()
	if c.SetDeadline(time.Now().Add(handshakeTime)) != nil {
		return
	}
	first, err := c.in.Peek(1)
	switch {
	case err != nil: // it has gone, or says nothing
	case first[0] == socksVersion:
		if err := p.socks(ctx, c); err != nil {
			p.log.Debug("a connection through the proxy", "error", err)
		}
	default:
		handedOn = c.SetDeadline(time.Time{}) == nil && web.put(c)
	}
}

// begun is a connection of which some bytes have been read ahead.
type begun struct {
	net.Conn
	in   *bufio.Reader // counts until it is empty
	stop func() bool   // what would close the connection; may be nil
}

func (b *begun) Read(p []byte) (int, error) {
	if b.in.Buffered() > 0 {
		return b.in.Read(p)
	}
	return b.Conn.Read(p)
}

func (b *begun) CloseWrite() error { return closeWrite(b.Conn) }

func (b *begun) Close() error {
	if b.stop != nil {
		b.stop()
	}
	return b.Conn.Close()
}

// queue is a listener of connections that another one has accepted.
type queue struct {
	addr  net.Addr
	conns chan net.Conn
	over  <-chan struct{}
}

func (q *queue) put(c net.Conn) bool {
	select {
	case q.conns <- c:
		return true
	case <-q.over:
		return false
	}
}

func (q *queue) Accept() (net.Conn, error) {
	select {
	case c := <-q.conns:
		return c, nil
	case <-q.over:
		return nil, net.ErrClosed
	}
}

func (q *queue) Addr() net.Addr { return q.addr }
func (q *queue) Close() error   { return nil }
