package gateway

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/balanceai/balance/exec/fleet"
	"github.com/balanceai/balance/exec/gateway/enginetest"
	"github.com/balanceai/balance/exec/policy"
	"github.com/balanceai/balance/mesh/identity"
)

// lab is some machines with gateways and engines, in one process.
type lab struct {
	t    testing.TB
	list []*machine

	mu   sync.Mutex
	down map[identity.ID]bool
}

type machine struct {
	*Gateway

	lab    *lab
	id     identity.ID
	name   string
	owner  string
	engine *enginetest.Engine
	raw    *httptest.Server // the engine, as nobody else reaches it
	peer   *httptest.Server
	terms  policy.Terms
}

func newLab(t testing.TB) *lab { return &lab{t: t, down: map[identity.ID]bool{}} }

// add adds a machine with an engine that has some models.
func (l *lab) add(name, owner string, models ...string) *machine {
	m := &machine{lab: l, name: name, owner: owner, engine: &enginetest.Engine{Models: models, Key: "of the engine"}, terms: policy.Terms{Offers: true}}
	m.id[0] = byte(len(l.list) + 1)
	m.raw = httptest.NewServer(m.engine)
	m.peer = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		m.Peer(r.Header.Get("Test-Owner"), w, r)
	}))
	finder := NewFinder(func() []Place { return []Place{{URL: m.raw.URL, Key: m.engine.Key}} })
	finder.Look(context.Background())
	m.Gateway = New(Config{
		Self: m.id, Owner: owner, View: l.view, Engines: finder.Engines,
		Terms: func() policy.Terms { l.mu.Lock(); defer l.mu.Unlock(); return m.terms },
		Peers: &http.Client{Transport: &overlay{l, m}},
	})
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); m.Run(ctx) }()
	l.t.Cleanup(func() {
		cancel()
		<-done
		m.peer.CloseClientConnections()
		m.raw.CloseClientConnections()
		m.peer.Close()
		m.raw.Close()
	})
	l.mu.Lock()
	defer l.mu.Unlock()
	l.list = append(l.list, m)
	return m
}

func (l *lab) view() []fleet.Node {
	l.mu.Lock()
	defer l.mu.Unlock()
	var out []fleet.Node
	for _, m := range l.list {
		n := fleet.Node{ID: m.id, Name: m.name, Owner: m.owner, State: fleet.Up, Offer: &fleet.Offer{Terms: m.terms}, Live: &fleet.Live{}}
		for _, e := range m.cfg.Engines() {
			n.Offer.Models = append(n.Offer.Models, e.Models...)
			n.Live.SetLoaded(e.Loaded)
		}
		if l.down[m.id] {
			n.State = fleet.Down
		}
		out = append(out, n)
	}
	return out
}

func (l *lab) lose(m *machine) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.down[m.id] = true
}

func (l *lab) grant(m *machine, g ...policy.ModelGrant) {
	l.mu.Lock()
	defer l.mu.Unlock()
	m.terms.Models = g
}

// overlay carries requests between machines. What a header says here, the mesh
// proves by the address.
type overlay struct {
	l    *lab
	from *machine
}

func (o *overlay) RoundTrip(r *http.Request) (*http.Response, error) {
	for _, m := range o.l.list {
		if m.id.String() == r.URL.Host {
			r = r.Clone(r.Context())
			r.URL.Host = strings.TrimPrefix(m.peer.URL, "http://")
			r.Header.Set("Test-Owner", o.from.owner)
			return http.DefaultTransport.RoundTrip(r)
		}
	}
	return nil, fmt.Errorf("no machine %s", r.URL.Host)
}

// endpoint opens an endpoint on loopback, and returns its base URL.
func (m *machine) endpoint(owner, key string) (*Endpoint, string) {
	m.lab.t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		m.lab.t.Fatal(err)
	}
	e := m.Open(owner, "", key, Budget{})
	e.Serve(ln)
	m.lab.t.Cleanup(func() { e.Close() })
	return e, "http://" + ln.Addr().String() + "/v1/"
}

// answer is what comes back. Its body is closed when the test ends.
type answer struct {
	StatusCode int
	Status     string
	Header     http.Header
	Body       io.ReadCloser
}

// post asks, and returns the answer with its body still to read.
func post(t testing.TB, ctx context.Context, url, key, body string) answer {
	t.Helper()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, url, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("Authorization", "Bearer "+key)
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { resp.Body.Close() })
	return answer{resp.StatusCode, resp.Status, resp.Header, resp.Body}
}

func read(t testing.TB, resp answer) string {
	t.Helper()
	var b bytes.Buffer
	_, err := io.Copy(&b, resp.Body)
	if err != nil {
		t.Fatalf("%v after %q", err, b.String())
	}
	return b.String()
}

func eventually(t testing.TB, within time.Duration, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(within); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("not within %v: %s", within, what)
		}
	}
}
