package dispatch

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"
	"time"

	"github.com/balanceai/balance/exec/fleet"
	"github.com/balanceai/balance/exec/lease"
	"github.com/balanceai/balance/exec/policy"
	"github.com/balanceai/balance/exec/task"
	"github.com/balanceai/balance/mesh/identity"
	"github.com/balanceai/balance/mesh/wire"
)

var mesh = identity.MeshID{1, 2, 3}

// memLedger is a ledger in memory, as strict about chains as the real one.
type memLedger struct {
	key identity.Key

	mu      sync.Mutex
	segment uint64
	topics  map[string][]*wire.Entry
	full    bool // refuses to write
}

func newLedger(n byte) *memLedger {
	return &memLedger{key: identity.KeyFromSeed([32]byte{n}), segment: 1, topics: map[string][]*wire.Entry{}}
}

var errFull = errors.New("disk full")

func (l *memLedger) Append(ctx context.Context, drafts ...task.Draft) ([]*wire.Entry, error) {
	return l.Record(ctx, nil, drafts...)
}

func (l *memLedger) Record(_ context.Context, theirs []*wire.Entry, drafts ...task.Draft) ([]*wire.Entry, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if _, err := l.accept(theirs); err != nil {
		return nil, err
	}
	if l.full {
		return nil, errFull
	}
	var out []*wire.Entry
	for _, d := range drafts {
		payload, err := wire.Marshal(d.Record)
		if err != nil {
			return nil, err
		}
		seq, prev := l.tail(d.Topic, l.key.ID(), l.segment)
		e, err := wire.NewEntry(l.key, mesh, wire.Body{Topic: d.Topic, Segment: l.segment, Seq: seq, Prev: prev, Kind: d.Kind, Millis: 1_700_000_000_000, Payload: payload})
		if err != nil {
			return nil, err
		}
		l.topics[d.Topic] = append(l.topics[d.Topic], e)
		out = append(out, e)
	}
	return out, nil
}

func (l *memLedger) tail(topic string, author identity.ID, segment uint64) (seq uint64, prev wire.Hash) {
	for _, e := range l.topics[topic] {
		if e.Author == author && e.Segment == segment {
			seq, prev = e.Seq+1, e.Hash()
		}
	}
	return seq, prev
}

func (l *memLedger) Accept(_ context.Context, entries ...*wire.Entry) ([]*wire.Entry, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.accept(entries)
}

func (l *memLedger) accept(entries []*wire.Entry) ([]*wire.Entry, error) {
	if l.full {
		return nil, errFull
	}
	var fresh []*wire.Entry
	for _, e := range entries {
		if slices.ContainsFunc(l.topics[e.Topic], func(h *wire.Entry) bool { return h.Hash() == e.Hash() }) {
			continue
		}
		if err := e.Verify(mesh); err != nil {
			return nil, err
		}
		if seq, prev := l.tail(e.Topic, e.Author, e.Segment); e.Seq != seq || e.Prev != prev {
			return nil, fmt.Errorf("entry %s %d does not continue its chain", e.Kind, e.Seq)
		}
		l.topics[e.Topic] = append(l.topics[e.Topic], e)
		fresh = append(fresh, e)
	}
	return fresh, nil
}

func (l *memLedger) Entries(_ context.Context, topic string) ([]*wire.Entry, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	out := slices.Clone(l.topics[topic])
	slices.SortStableFunc(out, func(a, b *wire.Entry) int {
		return cmp.Or(bytes.Compare(a.Author[:], b.Author[:]), cmp.Compare(a.Segment, b.Segment), cmp.Compare(a.Seq, b.Seq))
	})
	return out, nil
}

func (l *memLedger) setFull(full bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.full = full
}

// runs is [Config.Runs].
func (l *memLedger) runs(context.Context) ([]task.Status, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	var out []task.Status
	for topic, entries := range l.topics {
		st, err := task.Fold(topic, entries)
		if err != nil {
			return nil, err
		}
		out = append(out, st)
	}
	return out, nil
}

// kinds lists what is in a topic, in the order in which it came.
func (l *memLedger) kinds(topic string) []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	var out []string
	for _, e := range l.topics[topic] {
		out = append(out, e.Kind)
	}
	return out
}

// machine is an executor that does what a test tells it.
type machine struct {
	name   string
	ledger *memLedger
	script func(m *machine, run string) // what a started run does at once; nil: all of it
	went   func(m *machine, run string) // what a rank does when it may start

	mu       sync.Mutex
	changed  chan struct{}
	runs     map[string]*machineRun
	starts   map[string]int
	refusal  []task.Reason
	late     []task.Reason // of orders alone
	dead     bool          // cannot be reached
	deaf     bool          // takes requests, answers nothing
	breaks   int           // after so many events a stream breaks; 0: never
	requests int
	bids     []task.Bid
	let      int // bids that are over
}

type machineRun struct {
	attempt  int
	lease    *lease.Holder
	held     bool // it was granted
	events   []*task.Event
	stdin    bytes.Buffer
	size     task.Terminal
	eof      bool
	slow     int // bytes of input after which the connection breaks; 0: never
	finished bool
	cancels  []bool
	release  sync.Once
}

func newMachine(n byte, name string) *machine {
	return &machine{name: name, ledger: newLedger(n), changed: make(chan struct{}), runs: map[string]*machineRun{}, starts: map[string]int{}}
}

func (m *machine) id() identity.ID { return m.ledger.key.ID() }

func (m *machine) set(change func()) {
	m.mu.Lock()
	defer m.mu.Unlock()
	change()
	m.changedLocked()
}

func (m *machine) changedLocked() {
	close(m.changed)
	m.changed = make(chan struct{})
}

// emit appends an event of a run, with the entries of the drafts.
func (m *machine) emit(run string, e task.Event, drafts ...task.Draft) {
	for _, d := range drafts {
		d.Topic = run
		entries, err := m.ledger.Append(context.Background(), d)
		if err != nil {
			panic(err)
		}
		e.Entries = append(e.Entries, entries[0].Encode())
	}
	m.set(func() {
		r := m.runs[run]
		e.Run, e.Seq = run, uint64(len(r.events)+1)
		r.events = append(r.events, &e)
		r.finished = r.finished || e.Type == task.EventFinished
	})
}

// attempt returns which attempt a run is here.
func (m *machine) attempt(run string) int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.runs[run].attempt
}

func (m *machine) start(run string) {
	attempt := m.attempt(run)
	m.emit(run, task.Event{Type: task.EventStarted})
	m.emit(run, task.Event{Type: task.EventRecord},
		task.Draft{Kind: task.KindAccepted, Record: task.Accepted{Attempt: attempt}},
		task.Draft{Kind: task.KindStarted, Record: task.Started{Attempt: attempt}})
}

func (m *machine) output(run, text string) {
	m.emit(run, task.Event{Type: task.EventOutput, Stream: task.Stdout, Data: text})
}

func (m *machine) finish(run string, end task.Finished) {
	end.Attempt = m.attempt(run)
	m.emit(run, task.Event{Type: task.EventFinished}, task.Draft{Kind: task.KindFinished, Record: end})
}

// all is the whole of a run that goes well.
func (m *machine) all(run string) {
	m.start(run)
	for _, text := range []string{"one\n", "two\n", "three\n"} {
		m.output(run, text)
	}
	m.finish(run, task.Finished{State: task.Succeeded})
}

// reach counts a request and says how it fares.
func (m *machine) reach(ctx context.Context) error {
	m.mu.Lock()
	m.requests++
	dead, deaf := m.dead, m.deaf
	m.mu.Unlock()
	switch {
	case dead:
		return fmt.Errorf("%w: no route", task.ErrUnreachable)
	case deaf:
		return fmt.Errorf("%w: no answer", task.ErrBroken)
	}
	return ctx.Err()
}

func (m *machine) Start(ctx context.Context, o task.Order, yield func(*task.Event) error) error {
	if err := m.reach(ctx); err != nil && !errors.Is(err, task.ErrBroken) {
		return err
	}
	m.mu.Lock()
	refusal, known := slices.Concat(m.refusal, m.late), m.runs[o.Run] != nil && m.runs[o.Run].attempt >= o.Attempt
	m.mu.Unlock()
	if !known {
		if _, err := m.ledger.Accept(ctx, o.Entries...); err != nil {
			return err
		}
		if len(refusal) > 0 {
			entries, err := m.ledger.Append(ctx, task.Draft{Topic: o.Run, Kind: task.KindRefused, Record: task.Refused{Attempt: o.Attempt, Reasons: refusal}})
			if err != nil {
				return err
			}
			return &task.Refusal{Reasons: refusal, Entries: entries}
		}
		m.set(func() {
			m.runs[o.Run] = &machineRun{attempt: o.Attempt, lease: lease.NewHolder(time.Second)}
			m.starts[o.Run]++
		})
		if m.script == nil {
			m.all(o.Run)
		} else {
			m.script(m, o.Run)
		}
	}
	return m.stream(ctx, o.Run, 0, yield)
}

// Reserve keeps what a run needs as soon as the machine does not refuse it any
// more; what it can never have is refused.
func (m *machine) Reserve(ctx context.Context, b task.Bid, yield func(*task.Event) error) error {
	if err := m.reach(ctx); err != nil {
		return err
	}
	m.set(func() { m.bids = append(m.bids, b) })
	defer m.set(func() { m.let++ })
	for {
		m.mu.Lock()
		reasons, changed := m.refusal, m.changed
		m.mu.Unlock()
		if len(reasons) > 0 && !b.Wait || slices.ContainsFunc(reasons, func(r task.Reason) bool { return !r.Ever }) {
			return &task.Refusal{Reasons: reasons}
		}
		if len(reasons) == 0 {
			break
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	if err := yield(&task.Event{Seq: 1, Type: task.EventHeld, Run: b.Run}); err != nil {
		return err
	}
	<-ctx.Done()
	return ctx.Err()
}

func (m *machine) Follow(ctx context.Context, run string, after uint64, yield func(*task.Event) error) error {
	if err := m.reach(ctx); err != nil {
		return err
	}
	return m.stream(ctx, run, after, yield)
}

func (m *machine) stream(ctx context.Context, run string, after uint64, yield func(*task.Event) error) error {
	for sent := 0; ; {
		m.mu.Lock()
		r, changed := m.runs[run], m.changed
		broken := m.dead || m.deaf || m.breaks > 0 && sent == m.breaks
		var next *task.Event
		if r != nil && uint64(len(r.events)) > after {
			e := *r.events[after]
			next = &e
		}
		over := r != nil && r.finished
		m.mu.Unlock()
		switch {
		case broken:
			return fmt.Errorf("%w: reset", task.ErrBroken)
		case r == nil:
			return task.ErrNoRun
		case next != nil:
			if err := yield(next); err != nil {
				return err
			}
			after = next.Seq
			sent++
			continue
		case over:
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func (m *machine) Files(ctx context.Context, run, path string, w io.Writer) error {
	if err := m.reach(ctx); err != nil {
		return err
	}
	_, err := io.WriteString(w, run+":"+path)
	return err
}

func (m *machine) Resize(ctx context.Context, run string, size task.Terminal) error {
	if err := m.reach(ctx); err != nil {
		return err
	}
	m.set(func() { m.runs[run].size = size })
	return nil
}

func (m *machine) Stdin(ctx context.Context, run string, offset int64, in io.Reader) error {
	if err := m.reach(ctx); err != nil {
		return err
	}
	m.mu.Lock()
	r := m.runs[run]
	m.mu.Unlock()
	if have := int64(r.stdin.Len()); offset > have {
		return &task.OffsetError{Offset: have}
	} else if _, err := io.CopyN(io.Discard, in, have-offset); err != nil {
		return err
	}
	for buf := make([]byte, 1000); ; {
		n, err := in.Read(buf)
		var broken bool
		m.set(func() {
			if r.slow > 0 && r.stdin.Len()+n > r.slow { // what is under way is lost
				broken, r.slow = true, 0
				return
			}
			r.stdin.Write(buf[:n])
			r.eof = errors.Is(err, io.EOF)
		})
		switch {
		case broken:
			return task.ErrBroken
		case errors.Is(err, io.EOF):
			return nil
		case err != nil:
			return err
		}
	}
}

func (m *machine) Cancel(ctx context.Context, run string, force bool) error {
	if err := m.reach(ctx); err != nil {
		return err
	}
	m.mu.Lock()
	r := m.runs[run]
	if r == nil {
		m.mu.Unlock()
		return task.ErrNoRun
	}
	first := len(r.cancels) == 0 && !r.finished
	r.cancels = append(r.cancels, force)
	m.mu.Unlock()
	if first {
		m.finish(run, task.Finished{State: task.Cancelled, ExitCode: 143, Reason: "cancelled"})
	}
	return nil
}

// Go is what a rank waits for that has said [machine.ready].
func (m *machine) Go(ctx context.Context, run string) error {
	if err := m.reach(ctx); err != nil {
		return err
	}
	m.mu.Lock()
	r := m.runs[run]
	m.mu.Unlock()
	if r == nil {
		return task.ErrNoRun
	}
	r.release.Do(func() { m.went(m, run) })
	return nil
}

// ready is a rank that waits for the others.
func (m *machine) ready(run string) {
	attempt := m.attempt(run)
	m.emit(run, task.Event{Type: task.EventReady}, task.Draft{Kind: task.KindAccepted, Record: task.Accepted{Attempt: attempt}})
}

func (m *machine) Renew(ctx context.Context, run string, attempt int, seen uint64) (uint64, error) {
	if err := m.reach(ctx); err != nil {
		return 0, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	r := m.runs[run]
	if r == nil || r.attempt != attempt || r.finished {
		return 0, task.ErrNoRun
	}
	m.changedLocked()
	next, err := r.lease.Renew(lease.Now(), seen)
	r.held = r.held || r.lease.Until() > 0
	return next, err
}

func (m *machine) Settle(ctx context.Context, _ string, entries []*wire.Entry) error {
	if err := m.reach(ctx); err != nil {
		return err
	}
	_, err := m.ledger.Accept(ctx, entries...)
	return err
}

// count returns how often a run was started.
func (m *machine) count(run string) int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.starts[run]
}

// node is how the fleet sees the machine: the more cores, the worse the fit.
func (m *machine) node(cores task.CPU) fleet.Node {
	return fleet.Node{
		ID: m.id(), Name: m.name, Owner: "alice", State: fleet.Up,
		Offer: &fleet.Offer{
			OS: "linux", Arch: "amd64", CPU: cores * task.Core, Memory: 16 * task.GiB, Drivers: []string{task.DriverProcess},
			Terms: policy.Terms{Offers: true},
		},
	}
}

func settled(m *machine, run string) bool {
	return slices.Contains(m.ledger.kinds(run), task.KindReceipt)
}

func count(list []string, s string) int {
	n := 0
	for _, x := range list {
		if x == s {
			n++
		}
	}
	return n
}
