package egress

import (
	"bufio"
	"context"
	"crypto/x509"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"sync"
	"testing"
)

const canary = "s3cr3t-canary"

// vault is a proxy with a secret for api.example, and two servers with TLS that
// note what they get: the one it is for, and another.
type vault struct {
	*http.Client
	proxy      *Proxy
	api, other *httptest.Server
	plain      *httptest.Server
	mu         sync.Mutex
	seen       map[string][]string // headers with the secret, by server
	redirect   string
}

func newVault(t *testing.T) *vault {
	t.Helper()
	v := &vault{seen: map[string][]string{}}
	note := func(name string) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			v.mu.Lock()
			defer v.mu.Unlock()
			v.seen[name] = append(v.seen[name], r.Host+" "+strings.Join(r.Header.Values("X-Key"), "|"))
			if v.redirect != "" {
				http.Redirect(w, r, v.redirect, http.StatusFound)
				return
			}
			w.Header().Set("X-Echo", r.Header.Get("X-Key")) // a careless server
			fmt.Fprint(w, "hello from ", name)
		})
	}
	v.api, v.other = httptest.NewUnstartedServer(note("api")), httptest.NewUnstartedServer(note("other"))
	v.plain = httptest.NewServer(note("plain"))
	roots := x509.NewCertPool()
	for _, s := range []*httptest.Server{v.api, v.other} {
		s.StartTLS()
		roots.AddCert(s.Certificate())
	}
	t.Cleanup(func() { v.api.Close(); v.other.Close(); v.plain.Close() })
	// The servers are known as example.com, for that is what their certificate
	// says, and other.example.com.
	i, err := NewInjection("example.com:"+v.port(v.api), "x-key", "Key ", canary)
	if err != nil {
		t.Fatal(err)
	}
	v.proxy = &Proxy{
		Inject: []Injection{i}, Roots: roots,
		Inside: func(netip.AddrPort) bool { return true },
		Lookup: func(context.Context, string) ([]netip.Addr, error) {
			return []netip.Addr{netip.MustParseAddr("127.0.0.1")}, nil
		},
		Allow: allow(t, "example.com:"+v.port(v.api), "example.com:"+v.port(v.other), "example.com:"+v.port(v.plain),
			"other.example.com:"+v.port(v.plain), "other.example.com:"+v.port(v.api)),
	}
	v.Client = way(t, v.proxy)
	v.CheckRedirect = func(*http.Request, []*http.Request) error { return nil } // follow
	return v
}

func (v *vault) port(s *httptest.Server) string {
	return fmt.Sprint(netip.MustParseAddrPort(s.Listener.Addr().String()).Port())
}

// got returns what a server got, and forgets it.
func (v *vault) got(name string) string {
	v.mu.Lock()
	defer v.mu.Unlock()
	defer delete(v.seen, name)
	return strings.Join(v.seen[name], "; ")
}

// A secret is added to requests for its host, over TLS, in place of what the run
// says there, and an answer does not bring it back in a header.
func TestInject(t *testing.T) {
	v := newVault(t)
	base := v.proxy.Inject[0].Base()
	if base != "http://example.com:"+v.port(v.api) {
		t.Errorf("base %s", base)
	}
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, base+"/x", nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header["X-Key"] = []string{"mine", "too"}
	req.Header.Set("Connection", "X-Key") // which would strip it
	resp, err := v.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil || string(b) != "hello from api" {
		t.Errorf("%s: %q %v", resp.Status, b, err)
	}
	if got, want := v.got("api"), "example.com:"+v.port(v.api)+" Key "+canary; got != want {
		t.Errorf("the host got %q", got)
	}
	if resp.Header.Get("X-Echo") != "" {
		t.Errorf("it comes back: %v", resp.Header)
	}
	if code, _, err := get(t, v.Client, base); err != nil || code != 200 {
		t.Errorf("%d %v", code, err)
	}
}

// Nobody else gets it: another port of the host, another name for it, a place
// that it redirects to, or one that the host is only named to.
func TestInjectNowhereElse(t *testing.T) {
	v := newVault(t)
	for _, url := range []string{
		"http://example.com:" + v.port(v.plain),
		"http://other.example.com:" + v.port(v.plain),
		"http://example.com@other.example.com:" + v.port(v.plain),
		"http://other.example.com:" + v.port(v.plain) + "/http://example.com:" + v.port(v.api),
	} {
		code, text, err := get(t, v.Client, url)
		if got := v.got("plain"); err != nil || code != 200 || strings.Contains(got, canary) || !strings.Contains(got, v.port(v.plain)) {
			t.Errorf("%s: %d %q %v, it got %q", url, code, text, err, got)
		}
	}
	v.mu.Lock()
	v.redirect = "http://other.example.com:" + v.port(v.plain) + "/"
	v.mu.Unlock()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, v.proxy.Inject[0].Base(), nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := v.Transport.RoundTrip(req)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != http.StatusFound || !strings.Contains(v.got("api"), canary) {
		t.Errorf("%s", resp.Status)
	}
	v.mu.Lock()
	v.redirect = ""
	v.mu.Unlock()
	if code, _, err := get(t, v.Client, resp.Header.Get("Location")); err != nil || code != 200 {
		t.Errorf("%d %v", code, err)
	}
	if got := v.got("plain"); strings.Contains(got, canary) || got == "" {
		t.Errorf("by a redirect it got %q", got)
	}
	// With TLS of its own the run speaks to the host itself, and has no secret.
	if code, _, err := get(t, v.Client, "https://example.com:"+v.port(v.api)); err != nil || code != 200 || strings.Contains(v.got("api"), canary) {
		t.Errorf("%d %v", code, err)
	}
	// A host that nobody vouches for gets nothing.
	v.proxy = &Proxy{Inject: v.proxy.Inject, Roots: x509.NewCertPool(), Inside: v.proxy.Inside, Lookup: v.proxy.Lookup, Allow: v.proxy.Allow}
	if code, text, err := get(t, way(t, v.proxy), v.proxy.Inject[0].Base()); err != nil || code != http.StatusBadGateway || strings.Contains(text, canary) || v.got("api") != "" {
		t.Errorf("%d %q %v", code, text, err)
	}
}

// Odd ways to ask for the host, byte for byte.
func TestInjectTricks(t *testing.T) {
	v := newVault(t)
	u, err := v.Transport.(*http.Transport).Proxy(&http.Request{})
	if err != nil {
		t.Fatal(err)
	}
	api, plain := "example.com:"+v.port(v.api), "other.example.com:"+v.port(v.plain)
	for _, request := range []string{
		"TRACE http://" + api + "/ HTTP/1.1\r\nHost: " + api + "\r\n\r\n",
		"GET http://" + plain + "/ HTTP/1.1\r\nHost: " + api + "\r\n\r\n",
		"GET http://" + plain + "/ HTTP/1.1\r\nHost: " + api + "\r\nHost: " + api + "\r\n\r\n",
		"GET http://" + plain + "/ HTTP/1.1\r\nHost: " + plain + "\r\nX-Forwarded-Host: " + api + "\r\nForwarded: host=" + api + "\r\n\r\n",
		"GET http://" + api + "#@" + plain + "/ HTTP/1.1\r\nHost: " + plain + "\r\n\r\n",
		"GET http://" + plain + "\\@" + api + "/ HTTP/1.1\r\nHost: " + plain + "\r\n\r\n",
		"GET //" + api + "/ HTTP/1.1\r\nHost: " + api + "\r\n\r\n",
	} {
		conn, err := net.Dial("tcp", u.Host)
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprint(conn, request)
		resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
		if err != nil {
			t.Errorf("%q: %v", request, err)
			continue
		}
		b, _ := io.ReadAll(io.LimitReader(resp.Body, 1<<16))
		resp.Body.Close()
		conn.Close()
		if strings.Contains(string(b)+fmt.Sprint(resp.Header), canary) || strings.Contains(v.got("plain"), canary) || strings.Contains(v.got("other"), canary) {
			t.Errorf("%q brings it out", request)
		}
	}
}

func TestNewInjection(t *testing.T) {
	for host, base := range map[string]string{"API.example.org": "http://api.example.org", "example.org:8443": "http://example.org:8443", "[2001:db8::1]:443": "http://[2001:db8::1]:443"} {
		if i, err := NewInjection(host, "authorization", "Bearer ", "x"); err != nil || i.Base() != base || i.header != "Authorization" {
			t.Errorf("%s: %+v, %v", host, i, err)
		}
	}
	for _, host := range []string{"*", "*.example.org", "*:443", "", "a b", "127.1"} {
		if i, err := NewInjection(host, "authorization", "", "x"); err == nil {
			t.Errorf("%q is %+v", host, i)
		}
	}
}

// A secret goes to its host and port alone, however an address is written.
func FuzzInjection(f *testing.F) {
	for _, s := range []string{"example.org", "EXAMPLE.org.:80", "example.org:443", "example.org@evil.net", "[::1]:80", "example.org:080"} {
		f.Add(s)
	}
	i, err := NewInjection("example.org", "authorization", "", "x")
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, address string) {
		if !i.serves(address) {
			return
		}
		name, port, ok := cutPort(address)
		if !ok {
			name, port = address, "80"
		}
		if host, err := canonical(strings.Trim(name, "[]")); err != nil || host != "example.org" || port != "80" {
			t.Errorf("%q gets it", address)
		}
	})
}
