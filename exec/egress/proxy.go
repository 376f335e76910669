package egress

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httputil"
	"net/netip"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

// Proxy is the way out of one run. It is an [http.Handler].
type Proxy struct {
	Allow  Allow                                                        // what the run was granted
	Narrow Allow                                                        // what the owner of the machine grants at most; nil for all
	Inside func(netip.AddrPort) bool                                    // addresses that may be dialled although they are not public; nil for none
	Lookup func(ctx context.Context, host string) ([]netip.Addr, error) // nil: as the machine looks names up
	Inject []Injection                                                  // secrets, which only their hosts get
	Roots  *x509.CertPool                                               // that hosts which get a secret are known by; nil for those of the machine
	Local  http.Handler                                                 // what the run asks of this machine, at the proxy's own address; nil for nothing
	Log    *slog.Logger

	once  sync.Once
	plain *httputil.ReverseProxy

	mu     sync.Mutex
	closed bool
	joined map[net.Conn]bool // with a host each, by CONNECT
}

// keep takes a connection that ends when the run does, and reports whether the
// run still goes on.
func (p *Proxy) keep(c net.Conn) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return false
	}
	if p.joined == nil {
		p.joined = map[net.Conn]bool{}
	}
	p.joined[c] = true
	return true
}

func (p *Proxy) forget(c net.Conn) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.joined, c)
}

func (p *Proxy) close() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.closed = true
	for c := range p.joined {
		c.Close()
	}
}

// How long a host may take to answer to a connection.
const dialTime = 20 * time.Second

// errRefused says that a run may not reach a host.
var errRefused = errors.New("this run may not reach")

// ServeHTTP passes on one request, or one connection.
func (p *Proxy) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	p.once.Do(p.open)
	switch {
	case r.Method == http.MethodConnect:
		p.connect(w, r)
	case r.Method == http.MethodTrace && len(p.Inject) > 0:
		http.Error(w, "TRACE is answered with the request, in which there is a secret", http.StatusMethodNotAllowed)
	case r.URL.Scheme == "http" && r.URL.Host != "":
		p.plain.ServeHTTP(w, r)
	case r.URL.Host == "" && p.Local != nil:
		p.Local.ServeHTTP(w, r)
	default:
		http.Error(w, "this is the proxy of a run: ask it for http://HOST/ or to CONNECT", http.StatusBadRequest)
	}
}

func (p *Proxy) open() {
	transport := &http.Transport{DialContext: p.dial, TLSClientConfig: &tls.Config{RootCAs: p.Roots, MinVersion: tls.VersionTLS12}, DisableCompression: true, MaxIdleConns: 16, IdleConnTimeout: 30 * time.Second}
	p.plain = &httputil.ReverseProxy{
		Transport: transport,
		Rewrite:   p.rewrite, ModifyResponse: p.hide,
		FlushInterval: -1, // answers of models come word by word
		ErrorHandler:  func(w http.ResponseWriter, r *http.Request, err error) { p.fail(w, r.URL.Host, err) },
		ErrorLog:      slog.NewLogLogger(slog.DiscardHandler, slog.LevelError),
	}
}

// connect joins the run with a host, and knows nothing of what they say.
func (p *Proxy) connect(w http.ResponseWriter, r *http.Request) {
	out, err := p.dial(r.Context(), "tcp", r.Host)
	if err != nil {
		p.fail(w, r.Host, err)
		return
	}
	defer out.Close()
	if !p.keep(out) {
		return
	}
	defer p.forget(out)
	in, buffered, err := http.NewResponseController(w).Hijack()
	if err != nil {
		p.fail(w, r.Host, err)
		return
	}
	defer in.Close()
	if _, err := io.WriteString(in, "HTTP/1.1 200 Connection established\r\n\r\n"); err != nil {
		return
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		_, _ = io.Copy(out, buffered) // each end tells the other by closing
		closeWrite(out)
	}()
	_, _ = io.Copy(in, out)
	closeWrite(in)
	<-done
}

func closeWrite(c net.Conn) {
	if half, ok := c.(interface{ CloseWrite() error }); ok {
		_ = half.CloseWrite()
	} else {
		c.Close()
	}
}

func (p *Proxy) fail(w http.ResponseWriter, host string, err error) {
	code := http.StatusBadGateway
	if errors.Is(err, errRefused) {
		code = http.StatusForbidden
	}
	p.Log.Debug("a run's request does not get out", "host", host, "err", err)
	http.Error(w, err.Error(), code)
}

// dial connects to a host that was granted, at an address that may be dialled.
func (p *Proxy) dial(ctx context.Context, _, address string) (net.Conn, error) {
	name, text, err := net.SplitHostPort(address)
	if err != nil {
		return nil, fmt.Errorf("%w %.80q: it is no host and port", errRefused, address)
	}
	port, err := strconv.ParseUint(text, 10, 16)
	if err != nil {
		return nil, fmt.Errorf("%w %.80q: it has no port", errRefused, address)
	}
	host, err := canonical(name)
	if err != nil {
		return nil, fmt.Errorf("%w it: %w", errRefused, err)
	}
	if !p.Allow.grants(host, uint16(port)) {
		return nil, fmt.Errorf("%w %s:%d: add it to the manifest, as network: {allow: [\"%[2]s:%d\"]}, or with --network", errRefused, host, port)
	}
	if p.Narrow != nil && !p.Narrow.grants(host, uint16(port)) {
		return nil, fmt.Errorf("%w %s:%d: the owner of this machine does not grant it", errRefused, host, port)
	}
	addrs, err := p.lookup(ctx, host)
	if err != nil {
		return nil, err
	}
	dialer := net.Dialer{Timeout: dialTime, Control: p.control}
	var errs []error
	for _, addr := range addrs {
		c, err := dialer.DialContext(ctx, "tcp", netip.AddrPortFrom(addr, uint16(port)).String())
		if err == nil {
			return c, nil
		}
		errs = append(errs, err)
	}
	if len(errs) == 0 {
		return nil, fmt.Errorf("%s has no address", host)
	}
	return nil, errs[0]
}

func (p *Proxy) lookup(ctx context.Context, host string) ([]netip.Addr, error) {
	if addr, err := netip.ParseAddr(host); err == nil {
		return []netip.Addr{addr}, nil
	}
	if p.Lookup != nil {
		return p.Lookup(ctx, host)
	}
	return net.DefaultResolver.LookupNetIP(ctx, "ip", host+".") // with the dot it is not looked for in the machine's own domain
}

// control is asked for each address just before it is dialled: nothing can come
// between the question and the connection.
func (p *Proxy) control(_, address string, _ syscall.RawConn) error {
	at, err := netip.ParseAddrPort(address)
	if err != nil {
		return fmt.Errorf("%w %s", errRefused, address)
	}
	at = netip.AddrPortFrom(at.Addr().Unmap(), at.Port())
	if Public(at.Addr()) || p.Inside != nil && p.Inside(at) {
		return nil
	}
	return fmt.Errorf("%w %s: it is not on the public internet", errRefused, at.Addr())
}

// Environ are the variables that tell programs of the proxy at an address.
func Environ(proxy string) map[string]string {
	u := (&url.URL{Scheme: "http", Host: proxy}).String()
	out := map[string]string{}
	for _, name := range []string{"HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"} {
		out[name], out[strings.ToLower(name)] = u, u
	}
	out["NO_PROXY"], out["no_proxy"] = "localhost,127.0.0.1,::1", "localhost,127.0.0.1,::1"
	return out
}

// Serve serves the run's proxy on a listener until that is closed.
func (p *Proxy) Serve(ln net.Listener) error {
	s := &http.Server{
		Handler: p, ReadHeaderTimeout: 30 * time.Second, IdleTimeout: 2 * time.Minute, MaxHeaderBytes: 64 << 10,
		ErrorLog: slog.NewLogLogger(slog.DiscardHandler, slog.LevelError),
	}
	defer func() { // what is still going ends with the run
		_ = s.Close()
		p.close()
	}()
	err := s.Serve(ln)
	if errors.Is(err, net.ErrClosed) || errors.Is(err, http.ErrServerClosed) {
		return nil
	}
	return err
}
