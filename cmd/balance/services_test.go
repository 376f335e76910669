package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/url"
	"os"
	"testing"

	"github.com/balanceai/balance/exec/fleet"
)

// Programs of the scripts that know nothing of Balance.

// service is a TCP service on loopback that writes its port to a file: serve
// http|files|upper FILE. files serves the folder that it runs in; upper answers,
// when it has read to the end, in upper case.
func service() {
	log.SetFlags(0)
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		log.Fatal(err)
	}
	port := fmt.Sprintln(ln.Addr().(*net.TCPAddr).Port)
	if err := os.WriteFile(os.Args[2], []byte(port), 0o600); err != nil {
		log.Fatal(err)
	}
	if os.Args[1] == "files" {
		log.Fatal(http.Serve(ln, http.FileServer(http.Dir("."))))
	}
	if os.Args[1] == "http" {
		log.Fatal(http.Serve(ln, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			fmt.Fprintf(w, "%s asked for %s\n", r.Host, r.URL.Path)
		})))
	}
	for {
		c, err := ln.Accept()
		if err != nil {
			log.Fatal(err)
		}
		go func() {
			defer c.Close()
			b, err := io.ReadAll(c)
			if err == nil {
				_, _ = c.Write(bytes.ToUpper(b))
			}
		}()
	}
}

// visit prints a page: visit URL [UNIX-SOCKET-OF-A-PROXY]. Otherwise the proxy
// is that of http_proxy.
func visit() {
	log.SetFlags(0)
	t := &http.Transport{Proxy: http.ProxyFromEnvironment}
	if len(os.Args) > 2 {
		t.Proxy = http.ProxyURL(&url.URL{Scheme: os.Getenv("SCHEME"), Host: "proxy"})
		t.DialContext = func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", os.Args[2])
		}
	}
	resp, err := (&http.Client{Transport: t}).Get(os.Args[1])
	if err != nil {
		log.Fatal(err)
	}
	defer resp.Body.Close()
	_, _ = io.Copy(os.Stdout, resp.Body)
	if resp.StatusCode != http.StatusOK {
		log.Fatal(resp.Status)
	}
}

// send sends a text and the end, and prints what comes back: send ADDRESS TEXT.
func send() {
	log.SetFlags(0)
	c, err := net.Dial("tcp", os.Args[1])
	if err != nil {
		log.Fatal(err)
	}
	if _, err := io.WriteString(c, os.Args[2]); err != nil {
		log.Fatal(err)
	}
	if err := c.(*net.TCPConn).CloseWrite(); err != nil {
		log.Fatal(err)
	}
	if _, err := io.Copy(os.Stdout, c); err != nil {
		log.Fatal(err)
	}
}

func TestExposureCheck(t *testing.T) {
	fine := exposure{Service: fleet.Service{Port: 8000, Type: "_http._tcp", Name: "wiki", To: []string{"ben", "*"}}, Target: "127.0.0.1:8000"}
	for name, change := range map[string]func(*exposure){
		"port of the mesh":      func(e *exposure) { e.Port = apiPort },
		"port of the door":      func(e *exposure) { e.Port = 1 },
		"no port":               func(e *exposure) { e.Port = 0 },
		"no target":             func(e *exposure) { e.Target = "8000" },
		"UDP":                   func(e *exposure) { e.Type = "_dns._udp" },
		"no type":               func(e *exposure) { e.Type = "" },
		"the nodes' own type":   func(e *exposure) { e.Type = balanceService },
		"no owner's name":       func(e *exposure) { e.To = []string{"Ben B."} },
		"long name":             func(e *exposure) { e.Name = string(make([]byte, 60)) },
		"name that is taken":    func(e *exposure) { e.Name = "taken" },
		"text that is too long": func(e *exposure) { e.Text = []string{string(make([]byte, 256))} },
	} {
		e := fine
		change(&e)
		taken := exposure{Service: fleet.Service{Port: 8001, Type: "_http._tcp", Name: "taken"}, Target: "127.0.0.1:8001"}
		if err := e.check("hydra", []exposure{taken}); err == nil {
			t.Errorf("%s: allowed", name)
		}
	}
	if err := fine.check("hydra", nil); err != nil {
		t.Error(err)
	}
	if err := fine.check("hydra", make([]exposure, fleet.MaxServices)); err == nil {
		t.Error("no limit to the number of services")
	}
}

// What a member claims to expose is looked at before it is shown.
func TestClaimedServices(t *testing.T) {
	n := fleet.Node{Name: "evil", Owner: "eve", Address: "fd00::1", Offer: &fleet.Offer{}}
	for range 2 * fleet.MaxServices {
		n.Offer.Services = append(n.Offer.Services, fleet.Service{Port: 8000, Type: "_http._tcp"})
	}
	n.Offer.Services[0] = fleet.Service{Port: apiPort}
	n.Offer.Services[1] = fleet.Service{Port: 8000, Type: balanceService}
	n.Offer.Services[2] = fleet.Service{Port: 8000, Type: "_http._tcp", Name: "a\x1b[2J"}
	rows := exposedRows(n)
	if len(rows) != fleet.MaxServices-3 {
		t.Errorf("%d services are shown", len(rows))
	}
}
