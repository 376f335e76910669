package gateway

import (
	"context"
	"crypto/rand"
	"crypto/subtle"
	"encoding/base64"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"mime"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/balanceai/balance/exec/fleet"
	"github.com/balanceai/balance/exec/task"
)

// requestsOfRun is how many requests of one endpoint are answered at one time.
const requestsOfRun = 256

// NewKey makes a key for an endpoint. It has the form that clients expect.
func NewKey() string {
	var b [24]byte
	_, _ = rand.Read(b[:]) // never fails: crypto/rand
	return "sk-balance-" + base64.RawURLEncoding.EncodeToString(b[:])
}

// Budget is how many tokens there are for an endpoint, read and written by models.
// What was begun before they were used up is finished.
type Budget struct {
	Tokens task.Tokens // 0 for any number
	Used   task.Tokens // before it was opened
}

// Endpoint is where one run, or one user, asks for models: listeners of its own
// and a key that opens nothing else.
type Endpoint struct {
	g      *Gateway
	caller Caller
	key    string
	budget Budget
	log    *slog.Logger
	cancel context.CancelFunc // of requests
	ctx    context.Context    // of requests: the endpoint's life is not that of who opened it
	wg     sync.WaitGroup     // of servers

	mu      sync.Mutex
	servers []*http.Server
	usage   task.ModelUsage
}

// Open returns an endpoint for requests of an owner, on behalf of a run if there
// is one. It has no listener yet; see [Endpoint.Serve].
func (g *Gateway) Open(owner, run, key string, b Budget) *Endpoint {
	e := &Endpoint{g: g, key: key, budget: b, log: g.cfg.Log}
	e.ctx, e.cancel = context.WithCancel(context.Background())
	e.caller = Caller{Owner: owner, Run: run, limit: make(chan struct{}, requestsOfRun), record: e.record}
	if owner != g.cfg.Owner {
		e.caller.Via = g.cfg.Owner
	}
	return e
}

func (e *Endpoint) record(u task.ModelUsage) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.usage.Add(u)
}

// Usage is what has been asked of the endpoint, and what came back.
func (e *Endpoint) Usage() task.ModelUsage {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.usage
}

// Serve answers on a listener, of loopback TCP or a Unix socket, until Close. It
// does not wait for that.
func (e *Endpoint) Serve(ln net.Listener) {
	srv := &http.Server{
		Handler: e, ReadHeaderTimeout: 10 * time.Second, IdleTimeout: 5 * time.Minute, MaxHeaderBytes: 16 << 10,
		BaseContext: func(net.Listener) context.Context { return e.ctx },
		ErrorLog:    slog.NewLogLogger(e.log.Handler(), slog.LevelDebug),
	}
	e.mu.Lock()
	e.servers = append(e.servers, srv)
	e.mu.Unlock()
	e.wg.Go(func() {
		if err := srv.Serve(ln); !errors.Is(err, http.ErrServerClosed) {
			e.log.Error("an endpoint for models is closed", "run", e.caller.Run, "error", err)
		}
	})
}

// Close ends every request and listener, and returns what was used.
func (e *Endpoint) Close() task.ModelUsage {
	e.cancel()
	e.mu.Lock()
	servers := e.servers
	e.mu.Unlock()
	for _, srv := range servers {
		grace, cancel := context.WithTimeout(context.Background(), time.Second)
		if srv.Shutdown(grace) != nil {
			_ = srv.Close() // requests that have not seen their end
		}
		cancel()
	}
	e.wg.Wait()
	return e.Usage()
}

// ServeHTTP turns away whoever is not meant, and routes the rest.
func (e *Endpoint) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if f := e.guard(r); f != nil {
		f.write(w)
		return
	}
	if u := e.Usage(); e.budget.Tokens > 0 && r.Method == http.MethodPost && e.budget.Used+u.Tokens() >= e.budget.Tokens {
		usedUp("This run may use %v tokens, and has used %v.", e.budget.Tokens, e.budget.Used+u.Tokens()).write(w)
		return
	}
	e.g.route(w, r, &e.caller, strings.TrimPrefix(r.URL.Path, "/v1/"), false)
}

// usedUp is the answer to who may have no more tokens, as OpenAI has it.
func usedUp(format string, args ...any) *fault {
	return faultf(http.StatusTooManyRequests, "insufficient_quota", "insufficient_quota", format, args...)
}

// guard refuses what no program with the key asks: pages of the web that reach
// loopback by a name of theirs or by a form, and other users of this machine.
func (e *Endpoint) guard(r *http.Request) *fault {
	if !localHost(r.Host) {
		return faultf(http.StatusForbidden, "invalid_request_error", "foreign_host", "This endpoint is for programs of this machine: ask it by its loopback address.")
	}
	if f := noBrowser(r); f != nil {
		return f
	}
	auth := r.Header.Get("Authorization")
	key, ok := strings.CutPrefix(auth, "Bearer ")
	if !ok || subtle.ConstantTimeCompare([]byte(key), []byte(e.key)) != 1 {
		return faultf(http.StatusUnauthorized, "invalid_request_error", "invalid_api_key", "Incorrect API key: it is the one in OPENAI_API_KEY, of this endpoint alone.")
	}
	return noForm(r)
}

// noBrowser refuses requests that a web page has made.
func noBrowser(r *http.Request) *fault {
	_, origin := r.Header["Origin"]
	site := r.Header.Get("Sec-Fetch-Site")
	if origin || site != "" && site != "none" || r.Header.Get("Upgrade") != "" || r.Method == http.MethodConnect {
		return faultf(http.StatusForbidden, "invalid_request_error", "foreign_origin", "This endpoint is not for web pages.")
	}
	return nil
}

// noForm refuses methods and bodies that are not of the API.
func noForm(r *http.Request) *fault {
	switch r.Method {
	case http.MethodGet:
		return nil
	case http.MethodPost:
		if kind, _, err := mime.ParseMediaType(r.Header.Get("Content-Type")); err == nil && kind == "application/json" {
			return nil
		}
		return faultf(http.StatusUnsupportedMediaType, "invalid_request_error", "not_json", "Send a body of Content-Type application/json.")
	}
	return faultf(http.StatusMethodNotAllowed, "invalid_request_error", "method", "Use GET or POST.")
}

// localHost reports whether a Host header names loopback itself: not a name that
// somebody else has pointed there.
func localHost(host string) bool {
	name, _, err := net.SplitHostPort(host)
	if err != nil {
		name = host
	}
	return slices.Contains([]string{"localhost", "127.0.0.1", "::1", "[::1]"}, strings.ToLower(name))
}

// route answers one request of a caller who is known.
func (g *Gateway) route(w http.ResponseWriter, r *http.Request, c *Caller, path string, here bool) {
	if one, ok := strings.CutPrefix(path, "models"); ok && r.Method == http.MethodGet && (one == "" || one[0] == '/') {
		g.list(w, c, strings.TrimPrefix(one, "/"), here)
		return
	}
	if r.Method != http.MethodPost || !slices.Contains(paths, path) {
		faultf(http.StatusNotFound, "invalid_request_error", "unknown_url", "Unknown request: %s /v1/%s. There are models, %s.", r.Method, path, strings.Join(paths, ", ")).write(w)
		return
	}
	if c.limit != nil {
		select {
		case c.limit <- struct{}{}:
			defer func() { <-c.limit }()
		default:
			faultf(http.StatusTooManyRequests, "rate_limit_error", "too_many_requests", "%d requests are being answered here already.", cap(c.limit)).write(w)
			return
		}
	}
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxBody))
	if err != nil {
		if tooLarge := (*http.MaxBytesError)(nil); errors.As(err, &tooLarge) {
			faultf(http.StatusRequestEntityTooLarge, "invalid_request_error", "too_large", "The body is longer than %d bytes.", maxBody).write(w)
		}
		return
	}
	a, err := parse(path, body)
	if err != nil {
		faultf(http.StatusBadRequest, "invalid_request_error", "invalid_body", "%v.", err).write(w)
		return
	}
	g.answer(w, r, c, a, here)
}

// listed is one model in the answer of /v1/models.
type listed struct {
	ID      string   `json:"id"`
	Object  string   `json:"object"`
	Created int64    `json:"created"`
	OwnedBy string   `json:"owned_by"`
	Context int      `json:"context_length,omitempty"`
	Nodes   []string `json:"nodes"`
	Loaded  []string `json:"loaded"` // of the nodes
}

// list answers which models the caller may use.
func (g *Gateway) list(w http.ResponseWriter, c *Caller, one string, here bool) {
	list := g.models(c, here)
	w.Header().Set("Content-Type", "application/json")
	if one == "" {
		_ = json.NewEncoder(w).Encode(map[string]any{"object": "list", "data": list}) // who asked has gone
		return
	}
	for _, m := range list {
		if m.ID == one {
			_ = json.NewEncoder(w).Encode(m) // likewise
			return
		}
	}
	unknownModel(one, names(list), "").write(w)
}

func names(list []listed) (out []string) {
	for _, m := range list {
		out = append(out, m.ID)
	}
	return out
}

// models lists the models that a caller may use, by name.
func (g *Gateway) models(c *Caller, here bool) []listed {
	known := map[string]*listed{}
	for _, n := range g.cfg.View() {
		if n.State == fleet.Down || n.Offer == nil || here && n.ID != g.cfg.Self {
			continue
		}
		for _, m := range n.Offer.Models[:min(len(n.Offer.Models), fleet.MaxModels)] {
			if !fleet.ValidModel(m.Name) || refuses(&n, c, m.Name) != "" {
				continue
			}
			l := known[m.Name]
			if l == nil {
				l = &listed{ID: m.Name, Object: "model", OwnedBy: n.Owner, Loaded: []string{}}
				known[m.Name] = l
			}
			l.Nodes, l.Context = append(l.Nodes, n.Name), max(l.Context, m.Context)
			if _, loaded, _ := n.Has(m.Name); loaded {
				l.Loaded = append(l.Loaded, n.Name)
			}
		}
	}
	out := []listed{}
	for _, l := range known {
		out = append(out, *l)
	}
	slices.SortFunc(out, func(a, b listed) int { return strings.Compare(a.ID, b.ID) })
	return out
}
