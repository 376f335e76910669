package proxy

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httputil"
	"strconv"
	"time"
)

// ServeHTTP serves one request of a program that takes this for an HTTP proxy.
func (p *Proxy) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	p.conns.Add(1) // it may outlive its connection's place in the server
	defer p.conns.Done()
	switch {
	case r.Method == http.MethodConnect:
		if err := p.connect(w, r); err != nil {
			p.httpError(w, r, err)
		}
	case r.URL.Scheme == "http" && r.URL.Host != "":
		p.plain.ServeHTTP(w, r)
	default:
		http.Error(w, "this is a proxy: it takes CONNECT and absolute http:// addresses", http.StatusBadRequest)
	}
}

// connect carries the bytes of a connection that the program asked for.
func (p *Proxy) connect(w http.ResponseWriter, r *http.Request) error {
	to, err := p.dialAddr(r.Context(), r.Host)
	if err != nil {
		return err
	}
	defer to.Close()
	c, rw, err := http.NewResponseController(w).Hijack()
	if err != nil {
		return err
	}
	defer c.Close()
	if _, err := c.Write([]byte("HTTP/1.1 200 Connection established\r\n\r\n")); err != nil {
		return nil // the program has gone
	}
	Carry(r.Context(), &begun{Conn: c, in: rw.Reader}, to)
	return nil
}

// newPlain makes what forwards requests with absolute addresses.
func (p *Proxy) newPlain() *httputil.ReverseProxy {
	return &httputil.ReverseProxy{
		Rewrite: func(r *httputil.ProxyRequest) {
			// The far side gets what the program said, and nothing about it.
			for _, name := range []string{"Forwarded", "X-Forwarded-For", "X-Forwarded-Host", "X-Forwarded-Proto"} {
				if v, ok := r.In.Header[name]; ok {
					r.Out.Header[name] = v
				}
			}
		},
		Transport: &http.Transport{
			DialContext:         func(ctx context.Context, _, addr string) (net.Conn, error) { return p.dialAddr(ctx, addr) },
			DisableCompression:  true,
			MaxIdleConnsPerHost: 16,
			IdleConnTimeout:     time.Minute,
		},
		ErrorHandler: p.httpError,
	}
}

func (p *Proxy) dialAddr(ctx context.Context, addr string) (net.Conn, error) {
	host, portText, err := net.SplitHostPort(addr)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrForbidden, err)
	}
	port, err := strconv.ParseUint(portText, 10, 16)
	if err != nil || port == 0 {
		return nil, fmt.Errorf("%w: no port %q", ErrForbidden, portText)
	}
	return p.dial(ctx, host, uint16(port))
}

func (p *Proxy) httpError(w http.ResponseWriter, r *http.Request, err error) {
	p.log.Debug("a request through the proxy", "error", err)
	code := http.StatusBadGateway
	switch {
	case errors.Is(err, ErrForbidden):
		code = http.StatusForbidden
	case errors.Is(err, ErrNoAnswer):
		code = http.StatusGatewayTimeout
	}
	http.Error(w, err.Error(), code)
}
