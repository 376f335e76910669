// Package member tells which members of the mesh are alive, and passes a few
// bytes of news about each to all.
//
// The engine is hashicorp/memberlist (SWIM with Lifeguard's extensions): every
// node asks another one each second, lets others ask in its place before it
// suspects, and gossips what it finds. It runs over connections of the mesh,
// which have authenticated whoever speaks; here it is checked that nobody speaks
// for an identity at another address than its own, and that only members of the
// roster are taken in.
//
// memberlist forgets who is dead and never calls again. So a [List] keeps
// calling the members of the roster that are not up, less and less often, and at
// once when it is told that a path to one has appeared: two or three nodes find
// each other again in whatever order they restart.
//
// A member that vanishes is reported within about ten seconds in a mesh of a
// few dozen nodes. One that closes its List is reported at once.
package member

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/hashicorp/memberlist"

	"github.com/balanceai/balance/mesh/identity"
)

// States of a member.
const (
	Up      = "up"
	Suspect = "suspect" // did not answer, not given up yet
	Down    = "down"
)

// MaxMeta is the most that a node can say of itself, in bytes.
const MaxMeta = memberlist.MetaMaxSize

const (
	packetSize = 1200                   // bytes: what fits the overlay's MTU of 1280
	callFor    = 5 * time.Second        // until a call is given up
	callAgain  = time.Second            // after the first failed call; doubled at each
	callSeldom = 30 * time.Second       // at most between calls
	callers    = 4                      // calls at a time
	callPause  = 10 * time.Millisecond  // for each member that there is, after a call that worked
	callRest   = 2 * time.Second        // at most
	farewell   = 300 * time.Millisecond // for the others to hear of something: a round of gossip
)

// Config says who the node is and how it reaches others. Every member uses the
// same port.
type Config struct {
	Mesh identity.MeshID
	Self identity.ID
	// Listener and Packets are on one port number of the node's overlay
	// address. The List closes them.
	Listener net.Listener
	Packets  net.PacketConn
	// Dial connects to a member's port of that number.
	Dial func(context.Context, identity.ID) (net.Conn, error)
	// Roster returns the members that there are, and Member reports whether somebody
	// is one of them.
	Roster func() []identity.ID
	Member func(identity.ID) bool
	// Meta returns what the node says of itself: at most MaxMeta bytes.
	Meta func() []byte
	// OnChange is told when a member's state or meta changes; meta is nil unless
	// it is up. It is called from one goroutine, in order. It must not close
	// the List.
	OnChange func(id identity.ID, state string, meta []byte)
	Log      *slog.Logger
}

// List is this node's view of who is alive.
type List struct {
	cfg       Config
	engine    *memberlist.Memberlist
	transport *transport
	events    *events

	stop context.CancelFunc
	once sync.Once // Close
	run  sync.WaitGroup
	wake chan struct{} // calls may be due
	meta chan struct{} // what the node says of itself has changed

	mu    sync.Mutex
	state map[identity.ID]string // of others; absent: never seen
	calls map[identity.ID]*call  // to those not up
	rest  time.Time              // nobody is called before: gossip tells more
	pause time.Duration          // after a call that worked
}

// call is when a member is to be called next.
type call struct {
	due     time.Time
	wait    time.Duration
	running bool
	poked   bool // while it was running
}

// Start joins the gossip, with whoever of the roster answers.
func Start(cfg Config) (*List, error) {
	l := &List{
		cfg: cfg, events: newEvents(cfg.OnChange), wake: make(chan struct{}, 1), meta: make(chan struct{}, 1),
		state: map[identity.ID]string{}, calls: map[identity.ID]*call{},
	}
	l.transport = newTransport(cfg)
	engine, err := memberlist.Create(l.settings())
	if err != nil {
		_ = l.transport.Shutdown()
		l.events.close()
		return nil, fmt.Errorf("start gossip: %w", err)
	}
	l.engine = engine
	ctx, cancel := context.WithCancel(context.Background())
	l.stop = cancel
	l.run.Go(func() { l.follow(ctx) })
	return l, nil
}

// settings tunes memberlist: its figures for a LAN, without compression, which
// costs more than it saves in messages of this size.
func (l *List) settings() *memberlist.Config {
	c := memberlist.DefaultLANConfig()
	c.Name = l.cfg.Self.String()
	c.Transport = l.transport
	c.BindPort, c.AdvertisePort = int(l.transport.port), int(l.transport.port)
	c.TCPTimeout = callFor
	c.SuspicionMaxTimeoutMult = 3
	c.EnableCompression = false
	c.UDPBufferSize = packetSize
	c.RequireNodeNames = true
	c.Logger = newLogger(l.cfg.Log, func(name string) { l.enter(name, Suspect, Up, nil) })
	c.Delegate = delegate{l}
	c.Events = delegate{l}
	c.Alive = delegate{l}
	c.Ping = delegate{l}
	return c
}

// Close tells the others that the node leaves, and ends.
func (l *List) Close() error {
	var err error
	l.once.Do(func() {
		l.stop()
		l.transport.hangUp()
		l.run.Wait()
		_ = l.engine.Leave(farewell) // who was not told will find out
		err = l.engine.Shutdown()
		l.events.close()
	})
	return err
}

// UpdateMeta says that Meta gives something new.
func (l *List) UpdateMeta() { signal(l.meta) }

// Poke has a member that is not up called at once, because there is reason to
// believe that it can be reached.
func (l *List) Poke(id identity.ID) {
	l.mu.Lock()
	if c := l.calls[id]; c != nil {
		c.due, c.wait, c.poked = time.Time{}, callAgain, true
	}
	l.mu.Unlock()
	signal(l.wake)
}

func signal(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// follow calls members that are not up, until ctx ends.
func (l *List) follow(ctx context.Context) {
	var calling sync.WaitGroup
	defer calling.Wait()
	for {
		due, next := l.due()
		for _, id := range due {
			calling.Go(func() {
				l.call(id)
				signal(l.wake)
			})
		}
		again := time.NewTimer(next)
		select {
		case <-ctx.Done():
		case <-l.wake:
		case <-again.C:
		case <-l.meta:
			_ = l.engine.UpdateNode(farewell) // the news goes on after the wait
		}
		again.Stop()
		if ctx.Err() != nil {
			return
		}
	}
}

// due returns whom to call now, and how long nobody else is due.
func (l *List) due() (ids []identity.ID, next time.Duration) {
	roster := l.cfg.Roster()
	rand.Shuffle(len(roster), func(i, j int) { roster[i], roster[j] = roster[j], roster[i] })
	l.mu.Lock()
	defer l.mu.Unlock()
	l.forgetOthers(roster)
	now, busy := time.Now(), 0
	for _, c := range l.calls {
		if c.running {
			busy++
		}
	}
	next, l.pause = callSeldom, min(callRest, time.Duration(len(roster))*callPause)
	if rest := l.rest.Sub(now); rest > 0 {
		return nil, rest
	}
	for _, id := range roster {
		if id == l.cfg.Self || l.state[id] == Up || l.state[id] == Suspect {
			continue
		}
		c := l.calls[id]
		if c == nil {
			c = &call{wait: callAgain}
			l.calls[id] = c
		}
		switch wait := c.due.Sub(now); {
		case c.running:
		case wait > 0:
			next = min(next, wait)
		case busy < callers: // else the end of a call wakes us
			busy++
			c.running, c.poked = true, false
			ids = append(ids, id)
		}
	}
	return ids, next
}

// forgetOthers drops what is known of those who are no members any more.
func (l *List) forgetOthers(roster []identity.ID) {
	members := make(map[identity.ID]bool, len(roster))
	for _, id := range roster {
		members[id] = true
	}
	maps.DeleteFunc(l.calls, func(id identity.ID, _ *call) bool { return !members[id] })
	maps.DeleteFunc(l.state, func(id identity.ID, _ string) bool { return !members[id] })
}

// call exchanges the state of the mesh with a member. Whether it worked shows
// in the member's state, at once or after a round of gossip. In a large mesh that is
// much to exchange, and all that both know: the next one can wait for what comes of
// it.
func (l *List) call(id identity.ID) {
	to := netip.AddrPortFrom(l.cfg.Mesh.Address(id), l.transport.port)
	_, err := l.engine.Join([]string{id.String() + "/" + to.String()})
	l.mu.Lock()
	defer l.mu.Unlock()
	if err == nil {
		l.rest = time.Now().Add(l.pause)
	}
	c := l.calls[id]
	if c == nil {
		return
	}
	c.running = false
	if c.poked {
		return // and is due again
	}
	c.due = time.Now().Add(c.wait*3/4 + rand.N(c.wait/2))
	c.wait = min(2*c.wait, callSeldom)
}

// enter enters a member's state and reports it. If from is not empty, it is the
// state that the member must be in now.
func (l *List) enter(name, state, from string, meta []byte) {
	id, err := identity.ParseID(name)
	if err != nil || id == l.cfg.Self {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if from != "" && l.state[id] != from {
		return
	}
	l.state[id] = state
	if state == Up {
		delete(l.calls, id)
	}
	l.events.add(event{id, state, slices.Clone(meta)})
	if state == Down {
		signal(l.wake)
	}
}

var errStranger = errors.New("no member")

// check refuses a claim that a node is alive if it is not made for a member at
// its own address.
func (l *List) check(n *memberlist.Node) error {
	id, err := identity.ParseID(n.Name)
	if err != nil {
		return err
	}
	addr, ok := netip.AddrFromSlice(n.Addr)
	if !ok || addr != l.cfg.Mesh.Address(id) || n.Port != l.transport.port {
		return fmt.Errorf("%s is not at %s port %d", id.Short(), n.Addr, n.Port)
	}
	if id != l.cfg.Self && !l.cfg.Member(id) {
		return fmt.Errorf("%s: %w", id.Short(), errStranger)
	}
	return nil
}
