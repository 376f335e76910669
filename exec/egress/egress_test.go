package egress

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"strings"
	"testing"
)

func TestPatterns(t *testing.T) {
	for _, test := range []struct {
		pattern, host string
		port          uint16
		want          bool
	}{
		{"example.org", "example.org", 443, true},
		{"example.org", "example.org", 80, true},
		{"example.org", "example.org", 22, false},
		{"Example.ORG.", "example.org", 443, true},
		{"example.org", "www.example.org", 443, false},
		{"example.org", "badexample.org", 443, false},
		{"example.org", "example.org.evil.net", 443, false},
		{"example.org:8443", "example.org", 8443, true},
		{"example.org:8443", "example.org", 443, false},
		{"*.example.org", "a.b.example.org", 443, true},
		{"*.example.org", "example.org", 443, false},
		{"*.example.org", "badexample.org", 443, false},
		{"*", "anything.net", 443, true},
		{"*", "anything.net", 25, false},
		{"bücher.example", "xn--bcher-kva.example", 443, true},
		{"192.0.2.7", "192.0.2.7", 80, true},
		{"[2001:db8::1]:443", "2001:db8::1", 443, true},
		{"2001:db8::1", "2001:db8::1", 443, true},
	} {
		p, err := ParsePattern(test.pattern)
		if err != nil {
			t.Errorf("%s: %v", test.pattern, err)
		} else if got := p.matches(test.host, test.port); got != test.want {
			t.Errorf("%s and %s:%d: %v", test.pattern, test.host, test.port, got)
		}
	}
	for _, s := range []string{"", "*.org", "*.*.example.org", "a*.example.org", "example.org:", "example.org:0", "example.org:99999", "http://example.org", "user@example.org", "127.1", "0x7f000001", "2130706433", "fe80::1%eth0", "exa mple.org", "*.192.0.2.1"} {
		if p, err := ParsePattern(s); err == nil {
			t.Errorf("%q is %+v", s, p)
		}
	}
}

func FuzzPattern(f *testing.F) {
	for _, s := range []string{"example.org", "*.example.org:8443", "*", "[::1]:80", "127.1", "bücher.example"} {
		f.Add(s, "example.org", uint16(443))
	}
	f.Fuzz(func(t *testing.T, pattern, host string, port uint16) {
		p, err := ParsePattern(pattern)
		if err != nil || p.host == "" {
			return
		}
		name, err := canonical(host)
		if err != nil || !p.matches(name, port) {
			return
		}
		if below := p.below && strings.HasSuffix(name, "."+p.host); name != p.host && !below {
			t.Errorf("%q matches %q", pattern, host)
		}
	})
}

func TestPublic(t *testing.T) {
	for s, want := range map[string]bool{
		"1.1.1.1": true, "93.184.216.34": true, "2606:4700::1111": true,
		"127.0.0.1": false, "10.1.2.3": false, "172.16.0.1": false, "192.168.65.7": false, "169.254.169.254": false, "100.64.0.1": false,
		"0.0.0.0": false, "255.255.255.255": false, "224.0.0.1": false, "192.0.2.1": false, "198.18.0.1": false,
		"::1": false, "::": false, "fe80::1": false, "fd12:3456::1": false, "ff02::1": false, "2001:db8::1": false,
		"::ffff:127.0.0.1": false, "::ffff:10.0.0.1": false, "64:ff9b::7f00:1": false, "2002:7f00:1::": false, "::127.0.0.1": false, "2001:0:1::": false,
	} {
		if got := Public(netip.MustParseAddr(s)); got != want {
			t.Errorf("%s: %v", s, got)
		}
	}
}

// way is a proxy, and a client that knows it.
func way(t *testing.T, p *Proxy) *http.Client {
	t.Helper()
	p.Log = slog.New(slog.DiscardHandler)
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- p.Serve(ln) }()
	t.Cleanup(func() {
		ln.Close()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	u := &url.URL{Scheme: "http", Host: ln.Addr().String()}
	return &http.Client{Transport: &http.Transport{Proxy: http.ProxyURL(u), TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, DisableKeepAlives: true}} //nolint:gosec // a test's own server
}

func get(t *testing.T, c *http.Client, url string) (code int, text string, err error) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := c.Do(req)
	if err != nil {
		return 0, "", err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	return resp.StatusCode, string(b), err
}

func allow(t *testing.T, list ...string) Allow {
	t.Helper()
	a, err := ParseAllow(list)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func TestProxy(t *testing.T) {
	hello := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, "hello from ", r.Host) })
	plain, secure := httptest.NewServer(hello), httptest.NewTLSServer(hello)
	defer plain.Close()
	defer secure.Close()
	at := func(s *httptest.Server) netip.AddrPort {
		return netip.MustParseAddrPort(s.Listener.Addr().String())
	}
	var asked []string
	p := &Proxy{
		Inside: func(a netip.AddrPort) bool { return a == at(plain) || a == at(secure) },
		Lookup: func(_ context.Context, host string) ([]netip.Addr, error) {
			asked = append(asked, host)
			return []netip.Addr{netip.MustParseAddr("127.0.0.1")}, nil
		},
	}
	port := func(s *httptest.Server) string { return fmt.Sprint(at(s).Port()) }
	p.Allow = allow(t, "plain.example:"+port(plain), "secure.example:"+port(secure), "other.example:1", "narrow.example:"+port(plain))
	p.Narrow = allow(t, "plain.example:"+port(plain), "secure.example:"+port(secure), "other.example:1")
	c := way(t, p)
	if code, text, err := get(t, c, "http://plain.example:"+port(plain)); err != nil || code != 200 || !strings.HasPrefix(text, "hello from plain.example") {
		t.Errorf("%d %q %v", code, text, err)
	}
	if code, text, err := get(t, c, "https://secure.example:"+port(secure)); err != nil || code != 200 || !strings.HasPrefix(text, "hello from secure.example") {
		t.Errorf("%d %q %v", code, text, err)
	}
	asked = nil
	for url, want := range map[string]string{
		"http://plain.example:" + port(secure): "may not reach plain.example", // another port
		"http://evil.example/":                 "network: {allow:",            // not granted
		"http://narrow.example:" + port(plain): "the owner of this machine",   // not by the owner
		"http://other.example:1":               "not on the public internet",  // granted, but this machine
	} {
		if code, text, err := get(t, c, url); err != nil || code != http.StatusForbidden || !strings.Contains(text, want) {
			t.Errorf("%s: %d %q %v", url, code, text, err)
		}
	}
	if len(asked) != 1 { // a name that is not granted is not asked for: it could carry something out
		t.Errorf("asked for %v", asked)
	}
	if _, _, err := get(t, c, "https://evil.example/"); err == nil {
		t.Error("CONNECT to a host that was not granted")
	}
}

// A name that answers otherwise the second time gets nowhere: the address that is
// dialled is the one that is judged.
func TestRebinding(t *testing.T) {
	secret := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "secret") }))
	defer secret.Close()
	at := netip.MustParseAddrPort(secret.Listener.Addr().String())
	for _, addr := range []string{"127.0.0.1", "::ffff:127.0.0.1"} {
		p := &Proxy{
			Allow: allow(t, "*:"+fmt.Sprint(at.Port())),
			Lookup: func(context.Context, string) ([]netip.Addr, error) {
				return []netip.Addr{netip.MustParseAddr(addr)}, nil
			},
		}
		if code, text, err := get(t, way(t, p), "http://rebound.example:"+fmt.Sprint(at.Port())); err != nil || code != http.StatusForbidden || strings.Contains(text, "secret") {
			t.Errorf("%s: %d %q %v", addr, code, text, err)
		}
	}
}

// What is no request of a proxy's client gets an answer, and nothing else.
func TestOddRequests(t *testing.T) {
	p := &Proxy{Allow: allow(t, "*")}
	c := way(t, p)
	u, err := c.Transport.(*http.Transport).Proxy(&http.Request{URL: &url.URL{}})
	if err != nil {
		t.Fatal(err)
	}
	for _, line := range []string{"GET / HTTP/1.1", "GET ftp://example.org/ HTTP/1.1", "CONNECT example.org HTTP/1.1", "CONNECT 127.0.0.1:443 HTTP/1.1", "CONNECT [::1%25lo]:443 HTTP/1.1"} {
		conn, err := net.Dial("tcp", u.Host)
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(conn, "%s\r\nHost: x\r\n\r\n", line)
		resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
		if err != nil && !errors.Is(err, io.EOF) {
			t.Errorf("%s: %v", line, err)
		} else if err == nil {
			if resp.StatusCode < 400 {
				t.Errorf("%s: %s", line, resp.Status)
			}
			resp.Body.Close()
		}
		conn.Close()
	}
}
