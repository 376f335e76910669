package main

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/balanceai/balance/mesh"
	"github.com/balanceai/balance/mesh/meshtest"
)

// pair is a mesh of two nodes on this host: alpha of ana, and beta of ben.
type pair struct{ *cluster }

func newPair(t *testing.T) *pair {
	return &pair{newCluster(t, host{name: "alpha", owner: "ana", client: true}, host{name: "beta", owner: "ben", client: true})}
}

// expose opens a page of a machine, that says a text, at a port of the mesh.
func (p *pair) expose(i int, port, text string, flags ...string) {
	p.t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		p.t.Fatal(err)
	}
	srv := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, text) })}
	p.t.Cleanup(func() { _ = srv.Close() })
	go func() { _ = srv.Serve(ln) }()
	p.balance(i, append([]string{"expose", ln.Addr().String(), "--port", port}, flags...)...)
}

func (p *pair) phone(config string) *meshtest.Phone {
	p.t.Helper()
	phone, err := meshtest.NewPhone(config, netip.Addr{})
	if err != nil {
		p.t.Fatal(err)
	}
	p.t.Cleanup(phone.Close)
	return phone
}

// pageFrom gets a text from where a phone is.
func pageFrom(phone *meshtest.Phone, addr string, within time.Duration) (string, error) {
	t := &http.Transport{DialContext: phone.DialContext, DisableKeepAlives: true}
	resp, err := (&http.Client{Transport: t, Timeout: within}).Get("http://" + addr)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	return string(b), err
}

func (p *pair) awaitPage(phone *meshtest.Phone, addr, want string) {
	p.t.Helper()
	var got string
	var err error
	for end := time.Now().Add(time.Minute); time.Now().Before(end); {
		if got, err = pageFrom(phone, addr, 3*time.Second); got == want {
			return
		}
	}
	p.t.Fatalf("a guest gets %q from %s, %v, want %q", got, addr, err, want)
}

// A phone with stock WireGuard uses the mesh by the configuration that is
// printed: what is for its owner, and no more.
func TestGuestPhone(t *testing.T) {
	if testing.Short() {
		t.Skip("takes half a minute: stock WireGuard notices a restart after 15 s")
	}
	p := newPair(t)
	p.expose(0, "8000", "of alpha")
	p.expose(1, "8000", "of beta, for ana", "--to", "ana")
	p.expose(1, "8001", "of beta, for ben")
	config := p.balance(0, "invite", "--wireguard", "phone", "--dns", "192.0.2.53")
	phone := p.phone(config)

	for i, name := range []string{"alpha", "beta"} {
		var s statusReply
		if err := newClient(p.homes[i]).get(t.Context(), "/v1/status", &s); err != nil {
			t.Fatal(err)
		}
		p.awaitPage(phone, net.JoinHostPort(s.Address, "8000"), map[int]string{0: "of alpha", 1: "of beta, for ana"}[i])
		if addrs, err := phone.LookupContextHost(t.Context(), name+".lab.internal"); err != nil || len(addrs) != 1 || addrs[0] != s.Address {
			t.Errorf("%s has the addresses %v, %v, want %s", name, addrs, err, s.Address)
		}
		for _, port := range []int{apiPort, gossipPort, mesh.DoorPort} {
			ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
			if c, err := phone.DialContext(ctx, "tcp", fmt.Sprintf("[%s]:%d", s.Address, port)); err == nil {
				c.Close()
				t.Errorf("a guest reaches port %d of %s", port, name)
			}
			cancel()
		}
	}
	p.awaitPage(phone, "beta.lab.internal:8000", "of beta, for ana")
	if got, err := pageFrom(phone, "beta.lab.internal:8001", 10*time.Second); err == nil {
		t.Errorf("a guest of ana's gets what is for ben: %q", got)
	}
	p.keepsNoKey(config)

	// The carrier restarts.
	p.balance(0, "down")
	p.up(0)
	p.awaitPage(phone, "alpha.lab.internal:8000", "of alpha")
	p.awaitPage(phone, "beta.lab.internal:8000", "of beta, for ana")

	// It is known everywhere, and taken back where it was let in.
	for i := range p.homes {
		if out := p.balance(i, "guests"); !strings.Contains(out, phone.Addr.String()) {
			t.Errorf("guests: %s", out)
		}
	}
	p.balance(0, "guests", "rm", "phone")
	for _, name := range []string{"alpha", "beta"} {
		if got, err := pageFrom(phone, name+".lab.internal:8000", 500*time.Millisecond); err == nil {
			t.Errorf("who was taken back gets %q from %s", got, name)
		}
	}
}

// keepsNoKey looks for the private key of a configuration in all that the nodes
// have written, and for the preshared key.
func (p *pair) keepsNoKey(config string) {
	p.t.Helper()
	for line := range strings.Lines(config) {
		name, text, _ := strings.Cut(strings.TrimSpace(line), " = ")
		if name != "PrivateKey" && name != "PresharedKey" {
			continue
		}
		key, err := base64.StdEncoding.DecodeString(text)
		if err != nil {
			p.t.Fatal(err)
		}
		err = filepath.WalkDir(filepath.Dir(string(p.homes[0])), func(path string, d fs.DirEntry, err error) error {
			if err != nil || !d.Type().IsRegular() {
				return err
			}
			b, err := os.ReadFile(path)
			for _, form := range [][]byte{key, []byte(text), []byte(hex.EncodeToString(key))} {
				if bytes.Contains(b, form) {
					p.t.Errorf("%s holds the %s of a guest", path, name)
				}
			}
			return err
		})
		if err != nil {
			p.t.Fatal(err)
		}
	}
}

// FuzzEndpoint holds that what passes for an endpoint cannot add anything to a
// configuration.
func FuzzEndpoint(f *testing.F) {
	for _, s := range []string{"203.0.113.7:1", "[2001:db8::1]:65535", "home.example.org:41842", "a:0", "a b:1", "a\n[Peer]:1", "[fe80::1%x\n]:1", "-:1", ""} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if checkEndpoint(s) != nil {
			return
		}
		if strings.ContainsFunc(s, func(r rune) bool { return r <= ' ' || r > '~' || strings.ContainsRune("#=,;\"'\\%", r) }) {
			t.Errorf("%q passes", s)
		}
		if _, port, err := net.SplitHostPort(s); err != nil || port == "" {
			t.Errorf("%q passes: %v", s, err)
		}
	})
}
