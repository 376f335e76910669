package member

import (
	"bytes"
	"log"
	"log/slog"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/memberlist"

	"github.com/balanceai/balance/mesh/identity"
)

// delegate is what memberlist asks and tells. It calls with its lock held, so
// nothing here calls it back.
type delegate struct{ l *List }

// NotifyAlive is asked before a node is taken in, and hears each sign of life
// that is passed on.
func (d delegate) NotifyAlive(n *memberlist.Node) error {
	if err := d.l.check(n); err != nil {
		return err
	}
	d.l.enter(n.Name, Up, Suspect, n.Meta)
	return nil
}

// NotifyPingComplete hears that a node has answered.
func (d delegate) NotifyPingComplete(n *memberlist.Node, _ time.Duration, _ []byte) {
	d.l.enter(n.Name, Up, Suspect, n.Meta)
}

func (d delegate) NotifyJoin(n *memberlist.Node)   { d.l.enter(n.Name, Up, "", n.Meta) }
func (d delegate) NotifyUpdate(n *memberlist.Node) { d.l.enter(n.Name, Up, "", n.Meta) }
func (d delegate) NotifyLeave(n *memberlist.Node)  { d.l.enter(n.Name, Down, "", nil) }

// NodeMeta is what this node says of itself.
func (d delegate) NodeMeta(limit int) []byte {
	meta := d.l.cfg.Meta()
	if len(meta) > limit {
		d.l.cfg.Log.Error("meta left out: too long", "bytes", len(meta), "limit", limit)
		return nil
	}
	return meta
}

// The rest of the delegates: no message and no state of ours travels in the
// gossip but the meta.

func (delegate) AckPayload() []byte              { return nil }
func (delegate) NotifyMsg([]byte)                {}
func (delegate) GetBroadcasts(int, int) [][]byte { return nil }
func (delegate) LocalState(bool) []byte          { return nil }
func (delegate) MergeRemoteState([]byte, bool)   {}

// memberlist tells of a suspicion in its log alone, in these words around the
// name of the node. A test holds them.
const (
	suspicionHead = "[INFO] memberlist: Suspect "
	suspicionTail = " has failed, no acks received"
)

// engineLog passes the engine's log on, and picks suspicions out of it.
type engineLog struct {
	log       *slog.Logger
	suspected func(name string)
}

func newLogger(to *slog.Logger, suspected func(string)) *log.Logger {
	return log.New(engineLog{to, suspected}, "", 0)
}

func (e engineLog) Write(line []byte) (int, error) {
	text := string(bytes.TrimSpace(line))
	if rest, ok := strings.CutPrefix(text, suspicionHead); ok {
		if name, ok := strings.CutSuffix(rest, suspicionTail); ok {
			e.suspected(name)
		}
	}
	e.log.Debug("gossip", "message", text)
	return len(line), nil
}

// event is a change to report.
type event struct {
	id    identity.ID
	state string
	meta  []byte
}

// events reports changes in order, from a goroutine of its own: whoever is told
// may take a lock that the engine's caller holds.
type events struct {
	tell  func(identity.ID, string, []byte)
	mu    sync.Mutex
	queue []event
	ready chan struct{}
	done  chan struct{}
	run   sync.WaitGroup
}

func newEvents(tell func(identity.ID, string, []byte)) *events {
	e := &events{tell: tell, ready: make(chan struct{}, 1), done: make(chan struct{})}
	e.run.Go(e.pass)
	return e
}

func (e *events) add(ev event) {
	e.mu.Lock()
	e.queue = append(e.queue, ev)
	e.mu.Unlock()
	signal(e.ready)
}

func (e *events) pass() {
	for {
		select {
		case <-e.done:
			return
		case <-e.ready:
		}
		e.mu.Lock()
		queue := e.queue
		e.queue = nil
		e.mu.Unlock()
		for _, ev := range queue {
			e.tell(ev.id, ev.state, ev.meta)
		}
	}
}

// close ends the reports. What is in the queue is not reported any more.
func (e *events) close() {
	close(e.done)
	e.run.Wait()
}
