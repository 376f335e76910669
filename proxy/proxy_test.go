package proxy

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/net/proxy"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const patience = 30 * time.Second

// network is one in which each name leads to a listener on loopback, or to an
// error.
type network map[string]any

func (n network) dial(ctx context.Context, host string, port uint16) (net.Conn, error) {
	switch to := n[fmt.Sprintf("%s:%d", host, port)].(type) {
	case net.Addr:
		return new(net.Dialer).DialContext(ctx, "tcp", to.String())
	case error:
		return nil, to
	}
	return nil, ErrForbidden
}

// start runs a proxy and returns where.
func start(t *testing.T, n network) string {
	t.Helper()
	ln := listen(t)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- New(n.dial, slog.New(slog.DiscardHandler)).Serve(ctx, ln) }()
	t.Cleanup(func() {
		cancel()
		select {
		case err := <-done:
			if err != nil {
				t.Errorf("serve: %v", err)
			}
		case <-time.After(patience):
			t.Error("the proxy does not end")
		}
	})
	return ln.Addr().String()
}

func listen(t *testing.T) net.Listener {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ln.Close() })
	return ln
}

// shouter answers each connection, at the end of what it is sent, with that in
// upper case.
func shouter(t *testing.T) net.Addr {
	t.Helper()
	ln := listen(t)
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				b, err := io.ReadAll(c)
				if err == nil {
					_, _ = c.Write(bytes.ToUpper(b))
				}
			}()
		}
	}()
	return ln.Addr()
}

// over returns the ways to a name through the proxy.
func over(at string) map[string]func(to string) (net.Conn, error) {
	return map[string]func(to string) (net.Conn, error){
		"socks": func(to string) (net.Conn, error) {
			d, err := proxy.SOCKS5("tcp", at, nil, nil)
			if err != nil {
				return nil, err
			}
			return d.Dial("tcp", to)
		},
		"connect": func(to string) (net.Conn, error) {
			c, err := net.Dial("tcp", at)
			if err != nil {
				return nil, err
			}
			fmt.Fprintf(c, "CONNECT %s HTTP/1.1\r\nHost: %s\r\n\r\n", to, to)
			in := bufio.NewReader(c)
			resp, err := http.ReadResponse(in, &http.Request{Method: http.MethodConnect})
			if err != nil {
				c.Close()
				return nil, err
			}
			resp.Body.Close() // empty: what follows is the connection
			if resp.StatusCode != http.StatusOK {
				c.Close()
				return nil, errors.New(resp.Status)
			}
			return &begun{Conn: c, in: in}, nil
		},
	}
}

func TestHalfClose(t *testing.T) {
	at := start(t, network{"hydra.lab.internal:22": shouter(t)})
	for name, dial := range over(at) {
		t.Run(name, func(t *testing.T) {
			c, err := dial("hydra.lab.internal:22")
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			_ = c.SetDeadline(time.Now().Add(patience))
			text := strings.Repeat("sent before the end ", 100_000)
			sent := make(chan error, 1)
			go func() {
				_, err := io.WriteString(c, text)
				sent <- errors.Join(err, closeWrite(c))
			}()
			got, err := io.ReadAll(c)
			if err := errors.Join(err, <-sent); err != nil || string(got) != strings.ToUpper(text) {
				t.Errorf("%d bytes of %d came back, %v", len(got), len(text), err)
			}
		})
	}
}

func TestRefused(t *testing.T) {
	closed := listen(t)
	closed.Close()
	at := start(t, network{
		"nosuch.lab.internal:1": fmt.Errorf("nosuch: %w", ErrNoHost),
		"asleep.lab.internal:1": fmt.Errorf("asleep: %w", ErrNoAnswer),
		"closed.lab.internal:1": closed.Addr(),
	})
	for _, test := range []struct{ to, socks, http string }{
		{"example.com:443", "not allowed by ruleset", "403"},
		{"127.0.0.1:22", "not allowed by ruleset", "403"},
		{"[::1]:22", "not allowed by ruleset", "403"},
		{"nosuch.lab.internal:1", "host unreachable", "502"},
		{"asleep.lab.internal:1", "host unreachable", "504"},
		{"closed.lab.internal:1", "connection refused", "502"},
	} {
		for name, dial := range over(at) {
			want := test.http
			if name == "socks" {
				want = test.socks
			}
			if _, err := dial(test.to); err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("%s to %s: %v, want %q", name, test.to, err, want)
			}
		}
		if status, _ := get(t, at, "http://"+test.to+"/"); !strings.HasPrefix(status, test.http) {
			t.Errorf("GET from %s: %s, want %s", test.to, status, test.http)
		}
	}
}

// get asks an HTTP proxy for a page.
func get(t *testing.T, at, page string) (status, body string) {
	t.Helper()
	client := &http.Client{Transport: &http.Transport{Proxy: http.ProxyURL(&url.URL{Scheme: "http", Host: at})}, Timeout: patience}
	t.Cleanup(client.CloseIdleConnections)
	resp, err := client.Get(page)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.Status, string(b)
}

// A plain request arrives as the program made it.
func TestPlain(t *testing.T) {
	web := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprint(w, r.Host, r.URL.Path, r.Header.Get("X-Forwarded-For"), r.Header.Get("Proxy-Connection"))
	}))
	defer web.Close()
	at := start(t, network{"hydra.lab.internal:8000": web.Listener.Addr()})
	if _, body := get(t, at, "http://hydra.lab.internal:8000/v1/models"); body != "hydra.lab.internal:8000/v1/models" {
		t.Errorf("the server saw %q", body)
	}
}

// What is said to the proxy itself is no request to the mesh.
func TestNoProxyRequest(t *testing.T) {
	at := start(t, nil)
	for _, request := range []string{"GET / HTTP/1.1\r\nHost: x\r\n\r\n", "GET https://x/ HTTP/1.1\r\nHost: x\r\n\r\n"} {
		c, err := net.Dial("tcp", at)
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprint(c, request)
		resp, err := http.ReadResponse(bufio.NewReader(c), nil)
		if err != nil || resp.StatusCode != http.StatusBadRequest {
			t.Errorf("%q: %v, %v", request, resp, err)
		} else {
			resp.Body.Close()
		}
		c.Close()
	}
}

// An answer that streams arrives piece by piece.
func TestStream(t *testing.T) {
	more := make(chan struct{})
	web := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprint(w, "data: 1\n\n")
		_ = http.NewResponseController(w).Flush()
		<-more
		fmt.Fprint(w, "data: 2\n\n")
	}))
	defer web.Close()
	at := start(t, network{"hydra.lab.internal:80": web.Listener.Addr()})
	client := &http.Client{Transport: &http.Transport{Proxy: http.ProxyURL(&url.URL{Scheme: "http", Host: at})}, Timeout: patience}
	defer client.CloseIdleConnections()
	resp, err := client.Get("http://hydra.lab.internal:80/")
	if err != nil {
		close(more)
		t.Fatal(err)
	}
	defer resp.Body.Close()
	first := make([]byte, len("data: 1\n\n"))
	_, err = io.ReadFull(resp.Body, first)
	close(more)
	if err != nil || string(first) != "data: 1\n\n" {
		t.Fatalf("%q, %v", first, err)
	}
}

// The end of the proxy ends what goes through it.
func TestEnd(t *testing.T) {
	hold := listen(t)
	var open []net.Conn
	t.Run("serve", func(t *testing.T) {
		at := start(t, network{"hydra.lab.internal:22": hold.Addr()})
		for _, dial := range over(at) {
			c, err := dial("hydra.lab.internal:22")
			if err != nil {
				t.Fatal(err)
			}
			open = append(open, c)
		}
		silent, err := net.Dial("tcp", at) // says nothing at all
		if err != nil {
			t.Fatal(err)
		}
		open = append(open, silent)
	})
	for _, c := range open {
		_ = c.SetDeadline(time.Now().Add(patience))
		if _, err := c.Read(make([]byte, 1)); err == nil || errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("a connection outlives the proxy: %v", err)
		}
		c.Close()
	}
}

// What a peer said before it hung up arrives, though the other one still sends.
func TestLastWords(t *testing.T) {
	ln := listen(t)
	go func() {
		c, err := ln.Accept()
		if err != nil {
			return
		}
		_, _ = io.WriteString(c, "too large")
		c.Close()
	}()
	at := start(t, network{"hydra.lab.internal:80": ln.Addr()})
	c, err := over(at)["connect"]("hydra.lab.internal:80")
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(patience))
	go func() {
		for {
			if _, err := c.Write(make([]byte, 64<<10)); err != nil {
				return
			}
		}
	}()
	words := make([]byte, len("too large"))
	if _, err := io.ReadFull(c, words); err != nil || string(words) != "too large" {
		t.Errorf("%q, %v", words, err)
	}
}

func TestSOCKSForm(t *testing.T) {
	for _, test := range []struct {
		in   string
		host string
		port uint16
		code socksError
	}{
		{"\x05\x01\x00\x03\x04gpu1\x1f\x40", "gpu1", 8000, 0},
		{"\x05\x01\x00\x01\x7f\x00\x00\x01\x00\x16", "127.0.0.1", 22, 0},
		{"\x05\x01\x00\x04\xfd\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x01\x00\x50", "fd00::1", 80, 0},
		{"\x05\x02\x00\x01\x7f\x00\x00\x01\x00\x16", "", 0, repNoCommand}, // BIND
		{"\x05\x03\x00\x01\x7f\x00\x00\x01\x00\x16", "", 0, repNoCommand}, // UDP
		{"\x05\x01\x00\x02\x7f\x00\x00\x01\x00\x16", "", 0, repNoAddrFormat},
	} {
		host, port, err := readRequest(strings.NewReader(test.in))
		code, _ := errors.AsType[socksError](err)
		if host != test.host || port != test.port || code != test.code {
			t.Errorf("%q: %q %d %v", test.in, host, port, err)
		}
	}
}

func FuzzSOCKS(f *testing.F) {
	for _, s := range []string{"\x05\x01\x00", "\x05\x01\x00\x05\x01\x00\x03\x04gpu1\x1f\x40", "\x05\x00", "\x05\x02\x01\x02", "\x05\x01\x00\x05\x01\x00\x04"} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		in := bytes.NewReader(b)
		var out bytes.Buffer
		err := greet(struct {
			io.Reader
			io.Writer
		}{in, &out})
		if n := out.Len(); err == nil && n != 2 || n > 2 {
			t.Fatalf("%d bytes in answer to a greeting, %v", n, err)
		}
		if err != nil {
			return
		}
		host, port, err := readRequest(in)
		if err != nil && (host != "" || port != 0) || len(host) > 255 {
			t.Fatalf("%q %d %v", host, port, err)
		}
	})
}
