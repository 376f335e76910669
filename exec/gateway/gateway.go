// Package gateway answers requests for models, as the API of OpenAI has them,
// with whichever member of the mesh answers soonest.
//
// A program asks an [Endpoint]: a listener on loopback, or a Unix socket, with a
// key of its own. Whoever has no right key, or comes from a web page, is turned
// away before anything else is looked at. The gateway reads the name of the
// model, ranks the members that have it ([rank]: pure, with reasons), and sends
// the request on as it came: over the mesh to the gateway of another member, or
// to an engine of this one. Nobody but its own gateway ever reaches an engine.
//
// The gateway of the member that is asked asks its owner's terms again, for the
// member that calls and for whom that one asks; its answer is the law.
//
// Until the first byte of an answer has been passed on, a member that fails is
// replaced by the next. After it, a stream ends with an error event. When who
// asks goes away, so does the request, on every leg, and the engine sees its
// connection closed. A stream holds a few buffers of fixed size, however slow
// its reader: what is not read yet is not asked for.
package gateway

import (
	"cmp"
	"context"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"sync"
	"time"

	"github.com/balanceai/balance/exec/fleet"
	"github.com/balanceai/balance/exec/policy"
	"github.com/balanceai/balance/exec/task"
	"github.com/balanceai/balance/mesh/identity"
)

// Paths between the gateways of members, below the host that is a member's id.
const PeerPath = "/v1/models/"

// Config says what a Gateway works with.
type Config struct {
	Self  identity.ID
	Owner string              // of this machine
	View  func() []fleet.Node // the members as they are known now
	Peers *http.Client        // whose hosts are members' ids
	Terms func() policy.Terms // of this machine's owner
	// Engines are the engines of this machine, with their models.
	Engines func() []Engine

	// Wake has somebody load a model that an engine without a URL stands for, and
	// waits until it is loaded on a member. Nil: there are none.
	Wake func(ctx context.Context, model string) error

	// Spent is what the engines of this machine have given; nil to begin anew.
	Spent *Spent

	Log *slog.Logger
}

// Gateway routes requests. It is safe for concurrent use.
type Gateway struct {
	cfg    Config
	direct *http.Transport // to engines
	spent  *Spent

	mu       sync.Mutex
	busy     map[identity.ID]int       // requests that are at a member now, by way of this gateway
	owners   map[string]int            // requests of other owners that engines here are answering
	asked    int                       // of all owners
	uses     map[string]use            // of engines here, by model
	failed   map[identity.ID]time.Time // members that have failed a request lately
	homes    map[uint64]identity.ID    // where a conversation was answered last
	attempts map[*attempt]bool         // that wait for another member
}

// New returns a gateway. Call Run for it to notice members that are lost.
func New(cfg Config) *Gateway {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	return &Gateway{
		cfg: cfg, spent: cmp.Or(cfg.Spent, new(Spent)),
		direct: &http.Transport{
			MaxIdleConnsPerHost: 256, IdleConnTimeout: time.Minute, DisableCompression: true,
			ReadBufferSize: 8 << 10, WriteBufferSize: 8 << 10, MaxResponseHeaderBytes: 64 << 10,
		},
		busy: map[identity.ID]int{}, owners: map[string]int{}, failed: map[identity.ID]time.Time{},
		homes: map[uint64]identity.ID{}, attempts: map[*attempt]bool{}, uses: map[string]use{},
	}
}

// lostPeriod is how often members at which a request is are looked at.
const lostPeriod = 250 * time.Millisecond

// Run ends attempts at members that are down, until ctx ends: a machine that has
// lost its power closes no connection.
func (g *Gateway) Run(ctx context.Context) {
	defer g.direct.CloseIdleConnections()
	tick := time.NewTicker(lostPeriod)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			g.dropLost()
		}
	}
}

func (g *Gateway) dropLost() {
	g.mu.Lock()
	defer g.mu.Unlock()
	if len(g.attempts) == 0 {
		return
	}
	down := map[identity.ID]bool{}
	for _, n := range g.cfg.View() {
		down[n.ID] = n.State == fleet.Down
	}
	for a := range g.attempts {
		if down[a.node] {
			a.cancel(errLost)
		}
	}
}

// Asked returns how many requests the engines of this machine are answering.
func (g *Gateway) Asked() int {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.asked
}

// begin counts a request at a member, until done is called.
func (g *Gateway) begin(id identity.ID) (done func()) {
	g.mu.Lock()
	g.busy[id]++
	g.mu.Unlock()
	return func() {
		g.mu.Lock()
		defer g.mu.Unlock()
		if g.busy[id]--; g.busy[id] == 0 {
			delete(g.busy, id)
		}
	}
}

// admit asks the owner's terms whether engines of this machine may answer, and
// counts the request until done is called.
func (g *Gateway) admit(c *Caller, model string) (done func(), reasons []task.Reason) {
	terms := g.cfg.Terms()
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, owner := range c.owners() {
		reasons := terms.AskModel(policy.ModelQuestion{Owner: owner, Machine: g.cfg.Owner, Model: model, Asked: g.owners[owner], Used: g.spent.within(owner, time.Now())})
		if len(reasons) > 0 {
			return nil, reasons
		}
	}
	owners := c.owners()
	for _, owner := range owners {
		g.owners[owner]++
	}
	g.asked++
	g.uses[model] = use{now: g.uses[model].now + 1}
	return func() {
		g.mu.Lock()
		defer g.mu.Unlock()
		g.asked--
		g.uses[model] = use{now: g.uses[model].now - 1, last: time.Now()}
		for _, owner := range owners {
			if g.owners[owner]--; g.owners[owner] == 0 {
				delete(g.owners, owner)
			}
		}
	}, nil
}

// use is what is asked of a model of this machine.
type use struct {
	now  int       // requests that are being answered
	last time.Time // end of the newest
}

// Idle returns since when nobody has asked the engines of this machine for a
// model; the zero time where nobody ever has. It reports false while somebody
// does.
func (g *Gateway) Idle(model string) (since time.Time, idle bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	u := g.uses[model]
	return u.last, u.now == 0
}

// avoid is how long a member that has failed is asked last.
const avoid = 5 * time.Second

// fail remembers that a member has failed.
func (g *Gateway) fail(id identity.ID) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.failed[id] = time.Now()
}

// maxHomes is how many conversations are remembered.
const maxHomes = 4096

// settle remembers where a conversation was answered.
func (g *Gateway) settle(conversation uint64, id identity.ID) {
	g.mu.Lock()
	defer g.mu.Unlock()
	delete(g.failed, id)
	if _, known := g.homes[conversation]; !known && len(g.homes) >= maxHomes {
		skip := rand.IntN(16) // any that is not always the same
		for k := range g.homes {
			if skip--; skip < 0 {
				delete(g.homes, k)
				break
			}
		}
	}
	g.homes[conversation] = id
}

// Caller is who asks.
type Caller struct {
	Owner string // of the run, or of the machine that calls
	Via   string // owner of the machine that asks for Owner; empty where that is this machine
	Run   string // empty where it is no run

	limit  chan struct{} // of a place for each request; nil for no limit
	record func(task.ModelUsage)
}

// owners are those whom the terms have to allow a request: a machine cannot get
// for somebody else what it could not get for itself.
func (c *Caller) owners() []string {
	if c.Via == "" || c.Via == c.Owner {
		return []string{c.Owner}
	}
	return []string{c.Owner, c.Via}
}
