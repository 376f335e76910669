package replica

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/balanceai/balance/exec/task"
	"github.com/balanceai/balance/mesh/identity"
	"github.com/balanceai/balance/mesh/wire"
	"github.com/balanceai/balance/store"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func key(n byte) identity.Key { return identity.KeyFromSeed([32]byte{n}) }

type note struct {
	Text string `cbor:"1,keyasint"`
}

func draft(topic, text string) task.Draft {
	return task.Draft{Topic: topic, Kind: "note", Record: note{text}}
}

func marshal(t testing.TB, record any) []byte {
	t.Helper()
	b, err := wire.Marshal(record)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func genesis(t testing.TB) (identity.MeshID, *wire.Entry) {
	t.Helper()
	e, err := wire.NewEntry(key(1), identity.MeshID{}, wire.Body{Topic: wire.TopicMesh, Kind: "genesis", Payload: marshal(t, note{"mesh"})})
	if err != nil {
		t.Fatal(err)
	}
	return identity.MeshID(e.Hash()), e
}

// forge signs a chain of notes of test node n.
func forge(t testing.TB, n byte, segment uint64, texts ...string) []*wire.Entry {
	t.Helper()
	mesh, _ := genesis(t)
	var out []*wire.Entry
	var prev wire.Hash
	for i, text := range texts {
		e, err := wire.NewEntry(key(n), mesh, wire.Body{
			Topic: wire.TopicMesh, Segment: segment, Seq: uint64(i), Prev: prev, Kind: "note", Payload: marshal(t, note{text}),
		})
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, e)
		prev = e.Hash()
	}
	return out
}

// network is a mesh as the tests need it: requests that can fail, and bodies
// that can change on the way.
type network struct {
	t     testing.TB
	nodes []*node

	mu     sync.Mutex
	down   func(from, to identity.ID) bool
	mangle func(page []byte) []byte // of an answer
}

type node struct {
	*Replica
	store  *store.Store
	server *httptest.Server
	up     bool // as the others see it

	mu     sync.Mutex
	alarms []identity.ID
}

func newNetwork(t testing.TB, nodes int) *network {
	t.Helper()
	w := &network{t: t}
	for n := range nodes {
		w.add(byte(n + 1))
	}
	return w
}

func (w *network) add(n byte) *node {
	w.t.Helper()
	s, err := store.Open(w.t.Context(), filepath.Join(w.t.TempDir(), "ledger.db"), key(n))
	if err != nil {
		w.t.Fatal(err)
	}
	mesh, g := genesis(w.t)
	if err := s.Import(w.t.Context(), mesh, []*wire.Entry{g}); err != nil {
		w.t.Fatal(err)
	}
	v := &node{store: s, up: true}
	transport := &http.Transport{}
	v.Replica = New(Config{
		Self: key(n).ID(), Ledger: s, Log: slog.New(slog.DiscardHandler),
		Client: &http.Client{Transport: roundTrip(func(req *http.Request) (*http.Response, error) { return w.carry(transport, v.Self, req) })},
		Live:   func() []identity.ID { return w.live(v.Self) },
		Caller: func(req *http.Request) (identity.ID, bool) {
			id, err := identity.ParseID(req.Header.Get("From"))
			return id, err == nil
		},
		Gate: func(_ identity.ID, topic string) bool { return topic == wire.TopicMesh },
		Admit: func(_ context.Context, _ identity.ID, _ string, list []*wire.Entry) ([]*wire.Entry, error) {
			return list, nil
		},
		Alarm: func(peer identity.ID, _ error) {
			v.mu.Lock()
			defer v.mu.Unlock()
			v.alarms = append(v.alarms, peer)
		},
	})
	s.OnCommit(func(fresh []*wire.Entry) {
		v.Push(slices.DeleteFunc(slices.Clone(fresh), func(e *wire.Entry) bool { return e.Author != v.Self || e.Topic != wire.TopicMesh })...)
	})
	v.server = httptest.NewServer(v.Handler())
	w.t.Cleanup(func() {
		transport.CloseIdleConnections()
		v.server.Close()
		if err := s.Close(); err != nil {
			w.t.Error(err)
		}
	})
	w.nodes = append(w.nodes, v)
	return v
}

type roundTrip func(*http.Request) (*http.Response, error)

func (f roundTrip) RoundTrip(req *http.Request) (*http.Response, error) { return f(req) }

func (w *network) carry(transport *http.Transport, from identity.ID, req *http.Request) (*http.Response, error) {
	for _, v := range w.nodes {
		if v.Self.String() != req.URL.Host {
			continue
		}
		w.mu.Lock()
		down, mangle := w.down, w.mangle
		w.mu.Unlock()
		if down != nil && down(from, v.Self) {
			return nil, errors.New("no route")
		}
		req = req.Clone(req.Context())
		req.URL.Host = v.server.Listener.Addr().String()
		req.Header.Set("From", from.String())
		resp, err := transport.RoundTrip(req)
		if err == nil && mangle != nil {
			page, _ := io.ReadAll(resp.Body)
			resp.Body.Close()
			resp.Body = io.NopCloser(bytes.NewReader(mangle(page)))
		}
		return resp, err
	}
	return nil, errors.New("no such node")
}

func (w *network) live(self identity.ID) []identity.ID {
	w.mu.Lock()
	defer w.mu.Unlock()
	var out []identity.ID
	for _, v := range w.nodes {
		if v.up && v.Self != self {
			out = append(out, v.Self)
		}
	}
	return out
}

func (w *network) set(change func()) {
	w.mu.Lock()
	defer w.mu.Unlock()
	change()
}

// run starts all nodes; they stop at the end of the test.
func (w *network) run() {
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	for _, v := range w.nodes {
		wg.Go(func() { _ = v.Run(ctx) })
	}
	w.t.Cleanup(func() {
		cancel()
		wg.Wait()
	})
}

func (v *node) write(t testing.TB, topic string, texts ...string) {
	t.Helper()
	for _, text := range texts {
		if _, err := v.store.Append(t.Context(), draft(topic, text)); err != nil {
			t.Fatal(err)
		}
	}
}

func (v *node) heads(t testing.TB) []wire.Head {
	t.Helper()
	h, err := v.store.Heads(t.Context(), wire.TopicMesh)
	if err != nil {
		t.Fatal(err)
	}
	return h
}

func (v *node) alarmed() []identity.ID {
	v.mu.Lock()
	defer v.mu.Unlock()
	return slices.Clone(v.alarms)
}

func (v *node) pull(t testing.TB, from *node) {
	t.Helper()
	if err := v.Pull(t.Context(), from.Self, wire.TopicMesh); err != nil {
		t.Fatal(err)
	}
}

// agree waits until all nodes hold the same and checks that it is sound.
func (w *network) agree(chains int) {
	w.t.Helper()
	w.eventually("the nodes agree", func() bool {
		first := w.nodes[0].heads(w.t)
		return len(first) >= chains && !slices.ContainsFunc(w.nodes[1:], func(v *node) bool { return !slices.Equal(first, v.heads(w.t)) })
	})
	for _, v := range w.nodes {
		if r, err := v.store.Verify(w.t.Context()); err != nil || !r.OK {
			w.t.Errorf("a ledger is not sound: %+v %v", r.Bad, err)
		}
	}
}

func (w *network) eventually(what string, is func() bool) {
	w.t.Helper()
	for end := time.Now().Add(30 * time.Second); !is(); {
		if time.Now().After(end) {
			w.t.Fatalf("not in time: %s", what)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

func TestPull(t *testing.T) {
	w := newNetwork(t, 2)
	a, b := w.nodes[0], w.nodes[1]
	a.page, b.page = 3, 3
	a.write(t, wire.TopicMesh, "a", "b", "c", "d", "e", "f", "g")
	b.write(t, wire.TopicMesh, "h")
	if _, err := a.store.Accept(t.Context(), forge(t, 9, 1, "x", "y")...); err != nil {
		t.Fatal(err)
	}
	b.pull(t, a)
	a.pull(t, b)
	b.pull(t, a)
	w.agree(4)
}

// What this node pushes is with the members that are up at once, without any
// pull: what it writes, and what a newcomer brought.
func TestPush(t *testing.T) {
	w := newNetwork(t, 3)
	for _, v := range w.nodes {
		v.interval = time.Hour
	}
	w.run()
	a := w.nodes[0]
	for i := range 300 {
		a.write(t, wire.TopicMesh, fmt.Sprint(i))
	}
	a.write(t, "r-aaaaaaaaaaaaaaaa", "not for others")
	brought, err := a.store.Accept(t.Context(), forge(t, 9, 1, "x", "y")...)
	if err != nil {
		t.Fatal(err)
	}
	a.Push(brought...)
	w.agree(3)
	for _, v := range w.nodes[1:] {
		if list, err := v.store.Entries(t.Context(), "r-aaaaaaaaaaaaaaaa"); err != nil || len(list) != 0 {
			t.Errorf("%d entries of a run have come along, %v", len(list), err)
		}
	}
}

// A member that was away gets what it missed when it is met, and a push that
// does not continue what it holds makes it ask for the rest.
func TestMet(t *testing.T) {
	w := newNetwork(t, 3)
	for _, v := range w.nodes {
		v.interval = time.Hour
	}
	a, b, c := w.nodes[0], w.nodes[1], w.nodes[2]
	w.set(func() { c.up = false })
	w.run()
	a.write(t, wire.TopicMesh, "a", "b")
	b.write(t, wire.TopicMesh, "c")
	w.eventually("the two that are up agree", func() bool { return slices.Equal(a.heads(t), b.heads(t)) && len(a.heads(t)) == 3 })
	if len(c.heads(t)) != 1 {
		t.Error("a member that is down got a push")
	}
	c.write(t, wire.TopicMesh, "written in private")
	c.Met(b.Self) // who is asked sees that c has more, and asks in turn
	w.eventually("the two that met agree", func() bool { return slices.Equal(b.heads(t), c.heads(t)) && len(b.heads(t)) == 4 })
	a.Met(b.Self)
	w.agree(4)
	a.write(t, wire.TopicMesh, "missed")
	w.set(func() { c.up = true })
	a.write(t, wire.TopicMesh, "continues what was missed")
	w.agree(4)
}

// The entries of a run go to the one node that they are given to. One that has
// missed some asks for the rest, and one that does not know the run is left alone.
func TestGive(t *testing.T) {
	const run, unknown = "r-aaaaaaaaaaaaaaaa", "r-bbbbbbbbbbbbbbbb"
	w := newNetwork(t, 3)
	a, b, c := w.nodes[0], w.nodes[1], w.nodes[2]
	for _, v := range w.nodes {
		v.interval = time.Hour
		v.Gate = func(_ identity.ID, topic string) bool { return topic != unknown }
	}
	w.run()
	of := func(v *node) []*wire.Entry {
		list, err := v.store.Entries(t.Context(), run)
		if err != nil {
			t.Fatal(err)
		}
		return list
	}
	a.write(t, run, "a", "b", "c")
	a.Give(b.Self, of(a)...)
	w.eventually("it has what it was given", func() bool { return len(of(b)) == 3 })
	a.write(t, run, "d", "e")
	a.Give(b.Self, of(a)[4])
	w.eventually("it asks for what it has missed", func() bool { return len(of(b)) == 5 })

	a.Want(b.Self, unknown)
	a.write(t, run, "f")
	b.Want(a.Self, run)
	w.eventually("it gets what it asks for", func() bool { return len(of(b)) == 6 })
	if len(of(c)) != 0 {
		t.Error("a third node has got it")
	}
	w.eventually("nobody is asked for ever", func() bool {
		a.Replica.mu.Lock()
		defer a.Replica.mu.Unlock()
		return len(a.work) == 0
	})
}

// Whatever is written during whatever partition, on lines that repeat and reorder
// what they carry: in the end all hold the same.
func TestConverge(t *testing.T) {
	w := newNetwork(t, 3)
	for _, v := range w.nodes {
		v.interval, v.page = 20*time.Millisecond, 4
	}
	w.mangle = func(page []byte) []byte {
		lines := slices.DeleteFunc(bytes.SplitAfter(page, []byte("\n")), func(l []byte) bool { return len(l) == 0 })
		if len(lines) > 0 && rand.IntN(2) == 0 {
			lines = append(lines, lines[rand.IntN(len(lines))])
		}
		rand.Shuffle(len(lines), func(i, j int) { lines[i], lines[j] = lines[j], lines[i] })
		return bytes.Join(lines, nil)
	}
	w.run()
	for round := range 8 {
		cut := rand.IntN(3)
		w.set(func() {
			w.down = func(from, to identity.ID) bool {
				return round < 7 && (from == w.nodes[cut].Self) != (to == w.nodes[cut].Self) || rand.IntN(10) == 0
			}
		})
		for range 10 {
			w.nodes[rand.IntN(3)].write(t, wire.TopicMesh, "x")
		}
	}
	w.set(func() { w.down = nil })
	w.agree(1)
	total := 0
	for _, h := range w.nodes[0].heads(t) {
		total += int(h.Seq) + 1
	}
	if total != 81 {
		t.Errorf("%d entries of 81", total)
	}
	for _, v := range w.nodes {
		if len(v.alarmed()) > 0 {
			t.Error("an honest node raised an alarm")
		}
	}
}

// Of what was changed on the way nothing is taken, and who sent it is noted; what
// is sent whole later is taken.
func TestCorruption(t *testing.T) {
	w := newNetwork(t, 2)
	a, b := w.nodes[0], w.nodes[1]
	a.write(t, wire.TopicMesh, "a", "b", "c")
	whole, err := a.store.Entries(t.Context(), wire.TopicMesh)
	if err != nil {
		t.Fatal(err)
	}
	const rounds = 200
	for range rounds {
		w.set(func() {
			w.mangle = func(page []byte) []byte {
				if len(page) > 0 {
					page[rand.IntN(len(page))] ^= 1 << rand.IntN(8)
				}
				return page
			}
		})
		_ = b.Pull(t.Context(), a.Self, wire.TopicMesh)
		got, err := b.store.Entries(t.Context(), wire.TopicMesh)
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range got {
			if !slices.ContainsFunc(whole, func(o *wire.Entry) bool { return bytes.Equal(o.Raw, e.Raw) && o.Sig == e.Sig }) {
				t.Fatalf("an entry that nobody wrote is taken: %+v", e.Body)
			}
		}
		a.write(t, wire.TopicMesh, "more")
		if whole, err = a.store.Entries(t.Context(), wire.TopicMesh); err != nil {
			t.Fatal(err)
		}
	}
	if n := len(b.alarmed()); n < rounds/2 || b.alarmed()[0] != a.Self {
		t.Errorf("%d alarms in %d rounds", n, rounds)
	}
	w.set(func() { w.mangle = nil })
	b.pull(t, a)
	w.agree(2)
}

// Both branches of a forked chain meet: the evidence is on both sides after one
// pull each, also in small pages, and there is nothing more to exchange.
func TestFork(t *testing.T) {
	w := newNetwork(t, 2)
	a, b := w.nodes[0], w.nodes[1]
	one := strings.Split("abcdefghijkl", "")
	two := strings.Split("abcdefgxyz", "")
	for i, v := range w.nodes {
		v.page = 3
		if _, err := v.store.Accept(t.Context(), forge(t, 9, 5, [][]string{one, two}[i]...)...); err != nil {
			t.Fatal(err)
		}
	}
	b.pull(t, a) // which is ahead, so that it is b that sees the difference
	a.pull(t, b)
	for i, v := range w.nodes {
		evidence, err := v.store.Forks(t.Context(), wire.TopicMesh)
		if err != nil || len(evidence) != 1 || evidence[0].Seq != 7 {
			t.Errorf("node %d: evidence %v %v", i, evidence, err)
		}
		other := w.nodes[1-i]
		if sent, fresh, err := v.pass(t.Context(), other.Self, wire.TopicMesh); sent+fresh > 0 || err != nil {
			t.Errorf("node %d: %d sent, %d fresh, %v", i, sent, fresh, err)
		}
	}
	if len(a.alarmed()) == 0 {
		t.Error("nobody is told of the fork")
	}
}

// An author may be admitted by an entry that comes after its own.
func TestAdmittedLater(t *testing.T) {
	w := newNetwork(t, 2)
	a, b := w.nodes[0], w.nodes[1]
	a.page = 2
	early, late := byte(9), byte(10)
	if bytes.Compare(ident(early), ident(late)) > 0 {
		early, late = late, early
	}
	for _, n := range []byte{early, late} {
		if _, err := a.store.Accept(t.Context(), forge(t, n, 5, "a", "b", "c", "d", "e")...); err != nil {
			t.Fatal(err)
		}
	}
	b.Admit = func(ctx context.Context, _ identity.ID, topic string, list []*wire.Entry) ([]*wire.Entry, error) {
		held, err := b.store.Entries(ctx, topic)
		known := slices.ContainsFunc(held, func(e *wire.Entry) bool { return e.Author == key(late).ID() })
		return slices.DeleteFunc(list, func(e *wire.Entry) bool { return e.Author == key(early).ID() && !known }), err
	}
	b.pull(t, a)
	w.agree(3)
}

func ident(n byte) []byte {
	id := key(n).ID()
	return id[:]
}

// A run's entries reach its two parties and nobody else.
func TestGate(t *testing.T) {
	w := newNetwork(t, 3)
	a, b, c := w.nodes[0], w.nodes[1], w.nodes[2]
	const run = "r-aaaaaaaaaaaaaaaa"
	for _, v := range w.nodes {
		v.Gate = func(peer identity.ID, topic string) bool {
			return topic == wire.TopicMesh || topic == run && (peer == a.Self || peer == b.Self)
		}
	}
	a.write(t, run, "wish")
	if err := b.Pull(t.Context(), a.Self, run); err != nil {
		t.Fatal(err)
	}
	if list, err := b.store.Entries(t.Context(), run); err != nil || len(list) != 1 {
		t.Errorf("the other party holds %d entries, %v", len(list), err)
	}
	if err := c.Pull(t.Context(), a.Self, run); err == nil || !strings.Contains(err.Error(), "404") {
		t.Errorf("a third node: %v", err)
	}
	c.write(t, run, "not yours")
	list, err := c.store.Entries(t.Context(), run)
	if err != nil {
		t.Fatal(err)
	}
	page, _ := appendLines(nil, list)
	if err := c.post(t.Context(), a.Self, run, page, nil); err == nil || !strings.Contains(err.Error(), "404") {
		t.Errorf("push by a third node: %v", err)
	}
	// Nor do they come in under the name of a topic that is open.
	if err := c.post(t.Context(), a.Self, wire.TopicMesh, page, nil); err == nil || !strings.Contains(err.Error(), "422") {
		t.Errorf("push under another topic: %v", err)
	}
	if list, err := a.store.Entries(t.Context(), run); err != nil || len(list) != 1 {
		t.Errorf("the submitter holds %d entries, %v", len(list), err)
	}
}

func TestServerRefuses(t *testing.T) {
	w := newNetwork(t, 1)
	a := w.nodes[0]
	a.write(t, wire.TopicMesh, "a")
	entries, err := a.store.Entries(t.Context(), wire.TopicMesh)
	if err != nil {
		t.Fatal(err)
	}
	good, _ := appendLines(nil, entries)
	for name, test := range map[string]struct {
		method, path, from, body string
		want                     int
	}{
		"good":           {"POST", "/v1/ledger/mesh", key(2).ID().String(), string(good), 200},
		"stranger":       {"POST", "/v1/ledger/mesh", "", string(good), 404},
		"stranger's get": {"GET", "/v1/ledger/mesh", "", "", 404},
		"other topic":    {"POST", "/v1/ledger/r-x/since", key(2).ID().String(), "[]", 404},
		"get":            {"GET", "/v1/ledger/mesh", key(2).ID().String(), "", 405},
		"no heads":       {"POST", "/v1/ledger/mesh/since", key(2).ID().String(), "", 400},
		"other heads":    {"POST", "/v1/ledger/mesh/since", key(2).ID().String(), `[{"author":"x"}]`, 400},
		"huge heads":     {"POST", "/v1/ledger/mesh/since", key(2).ID().String(), "[" + strings.Repeat(" ", maxHeads) + "]", 400},
		"no line":        {"POST", "/v1/ledger/mesh", key(2).ID().String(), "hello\n", 422},
		"no entry":       {"POST", "/v1/ledger/mesh", key(2).ID().String(), `{"entry":"AAAA"}`, 422},
		"cut":            {"POST", "/v1/ledger/mesh", key(2).ID().String(), string(good[:len(good)/2]), 422},
		"huge line":      {"POST", "/v1/ledger/mesh", key(2).ID().String(), `{"entry":"` + strings.Repeat("A", maxLine) + `"}`, 422},
		"huge page":      {"POST", "/v1/ledger/mesh", key(2).ID().String(), strings.Repeat(string(good), maxPage/len(good)+1), 422},
	} {
		req, err := http.NewRequestWithContext(t.Context(), test.method, a.server.URL+test.path, strings.NewReader(test.body))
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("From", test.from)
		resp, err := a.server.Client().Do(req)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		resp.Body.Close()
		if resp.StatusCode != test.want {
			t.Errorf("%s: %s, want %d", name, resp.Status, test.want)
		}
	}
}

// A node that sends slowly is cut off, and does not keep others out.
func TestSlowNode(t *testing.T) {
	w := newNetwork(t, 2)
	a, b := w.nodes[0], w.nodes[1]
	a.timeout = 100 * time.Millisecond
	var slow sync.WaitGroup
	for i := range 2 * maxParallel {
		slow.Go(func() {
			body, trickle := io.Pipe()
			defer func() { _ = trickle.Close() }()
			req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, a.server.URL+"/v1/ledger/mesh", body)
			if err != nil {
				t.Error(err)
				return
			}
			if i%4 > 0 { // the others are strangers
				req.Header.Set("From", b.Self.String())
			}
			resp, err := a.server.Client().Do(req)
			if err == nil {
				resp.Body.Close()
				if resp.StatusCode == http.StatusOK {
					t.Error("a body that never ends was answered")
				}
			}
		})
	}
	slow.Wait() // each ends by the server's deadline
	a.timeout = time.Minute
	a.write(t, wire.TopicMesh, "a")
	b.pull(t, a)
	w.agree(2)
}

// A node that answers without end is left.
func TestEndlessNode(t *testing.T) {
	w := newNetwork(t, 2)
	a, b := w.nodes[0], w.nodes[1]
	a.write(t, wire.TopicMesh, "a")
	b.Admit = func(context.Context, identity.ID, string, []*wire.Entry) ([]*wire.Entry, error) { return nil, nil }
	page, _ := appendLines(nil, forge(t, 9, 1, "x"))
	w.set(func() { w.mangle = func([]byte) []byte { return page } })
	if err := b.Pull(t.Context(), a.Self, wire.TopicMesh); !errors.Is(err, errForm) {
		t.Errorf("endless pages: %v", err)
	}
}

// The forms that nodes of other versions read.
func TestForm(t *testing.T) {
	fork := uint64(2)
	got, err := json.Marshal([]wire.Head{{Author: key(1).ID(), Segment: 7, Seq: 3, Hash: wire.Hash{0xab}}, {Fork: &fork}})
	if err != nil {
		t.Fatal(err)
	}
	zero := strings.Repeat("0", 62)
	want := `[{"author":"` + key(1).ID().String() + `","segment":7,"seq":3,"hash":"ab` + zero + `"},` +
		`{"author":"` + strings.Repeat("a", 52) + `","segment":0,"seq":0,"hash":"00` + zero + `","fork":2}]`
	if string(got) != want {
		t.Errorf("heads:\n%s\n%s", got, want)
	}
	e := forge(t, 1, 7, "a")[0]
	page, _ := appendLines(nil, []*wire.Entry{e, e})
	one := `{"entry":"` + base64.StdEncoding.EncodeToString(e.Encode()) + "\"}\n"
	if string(page) != one+one {
		t.Errorf("lines:\n%s", page)
	}
}
