// Package replica brings the ledgers of a mesh into agreement.
//
// Two nodes compare the heads of their chains of a topic, and one sends the
// other what it lacks (anti-entropy). A [Replica] is both ends of that: it
// answers other nodes, and it asks them. It pushes what is new here to the
// members that are up, at once; it pulls from a member that came up, and from
// one that asks with heads that show that it holds more; and now and then it
// pulls from a member chosen at random. Whatever is lost on the way, nodes that can reach each other agree soon, because what counts is what
// they hold and not what was sent.
//
// Nothing that another node sends is believed: the ledger takes only entries
// that verify and continue their chains, and only those that the program admits.
// A node reads and writes only the topics that it is a party to. All bodies are
// bounded and all waiting ends, so a slow or hostile node costs little.
//
// The protocol is JSON over HTTP, inside the mesh:
//
//	POST /v1/ledger/{topic}/since   The caller's heads, a JSON array of
//	                                wire.Head. The answer is what it lacks, a page
//	                                at a time and an entry a line; an empty page
//	                                is the end.
//	POST /v1/ledger/{topic}         Such lines, to be stored.
//
// A line is {"entry":"<base64 of wire.Entry.Encode>"}.
package replica

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"slices"
	"sync"
	"time"

	"github.com/balanceai/balance/mesh/identity"
	"github.com/balanceai/balance/mesh/wire"
)

// Ledger is what a replica needs of a ledger.
type Ledger interface {
	Heads(ctx context.Context, topic string) ([]wire.Head, error)
	Since(ctx context.Context, topic string, heads []wire.Head, limit int) ([]*wire.Entry, error)
	Accept(ctx context.Context, list ...*wire.Entry) (fresh []*wire.Entry, err error)
}

// Config says who this node is, how it reaches the others and whom it believes.
// All fields are needed.
type Config struct {
	Self   identity.ID
	Ledger Ledger
	Client *http.Client // the host of its URLs is a node's id
	Log    *slog.Logger

	// Live returns the other members that are up.
	Live func() []identity.ID
	// Caller returns the node that sent a request, as the tunnel proves.
	Caller func(*http.Request) (identity.ID, bool)
	// Gate reports whether a node may read and write a topic.
	Gate func(peer identity.ID, topic string) bool
	// Admit returns those of a topic's entries that may be stored. It leaves
	// out, say, those whose authors are not members.
	Admit func(ctx context.Context, peer identity.ID, topic string, list []*wire.Entry) ([]*wire.Entry, error)
	// Alarm is told of a node that sent what does not verify, or what proves
	// that an author forked its chain. Several goroutines may call it at once.
	Alarm func(peer identity.ID, err error)
}

// Replica keeps one ledger in agreement with those of other nodes.
type Replica struct {
	Config
	interval time.Duration // between two pulls from members chosen at random
	page     int           // entries of an answer or a push
	timeout  time.Duration // of one request
	serving  chan struct{} // holds a token for each request that is answered
	asking   chan struct{} // and for each member that is talked to

	wake  chan struct{} // tells Run of news
	mu    sync.Mutex
	fresh []*wire.Entry                 // to be pushed to members
	gifts map[identity.ID][]*wire.Entry // to be pushed to one
	wants map[identity.ID][]string      // topics to be pulled, by member
	work  map[identity.ID]*chore        // what the members that are talked to are owed
	ahead map[identity.ID]wire.Hash     // sum of the heads by which a member was last seen to hold more
}

// Limits that keep a node small whatever others send.
const (
	maxParallel = 8
	pageEntries = 128
	maxPage     = 2 << 20  // bytes of an answer or a push
	maxLine     = 96 << 10 // bytes of an entry as a line: of 64 KiB, in base64
	maxHeads    = 8 << 20  // bytes of heads in a request
	maxIdle     = 100      // pages in a row of which nothing can be stored
	maxQueue    = 1024     // entries that wait for one member; what is over, it pulls
	turnTimeout = time.Minute
	pullTimeout = 10 * time.Minute // the next pull goes on where one ended
	pullEvery   = 30 * time.Second
	minBackoff  = 500 * time.Millisecond
	maxBackoff  = 30 * time.Second
)

// New returns a replica. It answers at once and talks while [Replica.Run] runs.
func New(c Config) *Replica {
	return &Replica{
		Config: c, interval: pullEvery, page: pageEntries, timeout: turnTimeout,
		serving: make(chan struct{}, maxParallel), asking: make(chan struct{}, maxParallel),
		gifts: map[identity.ID][]*wire.Entry{}, wants: map[identity.ID][]string{},
		wake: make(chan struct{}, 1), work: map[identity.ID]*chore{}, ahead: map[identity.ID]wire.Hash{},
	}
}

// take stores what a node sent of a topic and returns how many entries were new.
// That some are missing before those that were sent, or that an author forked its
// chain, keeps the rest out but is no error of the sender.
func (r *Replica) take(ctx context.Context, peer identity.ID, topic string, list []*wire.Entry) (fresh int, gap bool, err error) {
	for _, e := range list {
		if e.Topic != topic {
			err := fmt.Errorf("entry of topic %s where %s was asked for: %w", e.Topic, topic, errForm)
			r.Alarm(peer, err)
			return 0, false, err
		}
	}
	list, err = r.Admit(ctx, peer, topic, slices.Clone(list))
	if err != nil {
		return 0, false, err
	}
	stored, err := r.Ledger.Accept(ctx, list...)
	gap = errors.Is(err, wire.ErrGap)
	forged, fork := errors.Is(err, wire.ErrSignature), errors.Is(err, wire.ErrFork)
	if forged || fork {
		r.Alarm(peer, err)
	}
	if (gap || fork) && !forged {
		err = nil
	}
	return len(stored), gap, err
}
