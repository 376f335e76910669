package member_test

import (
	"context"
	"fmt"
	"net"
	"os"
	"slices"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/balanceai/balance/mesh"
	"github.com/balanceai/balance/mesh/identity"
	"github.com/balanceai/balance/mesh/member"
	"github.com/balanceai/balance/mesh/meshtest"
)

// memberlist cannot be waited for: a probe that is under way ends some seconds
// after it was shut down.
func TestMain(m *testing.M) {
	code := m.Run()
	err := goleak.Find()
	for deadline := time.Now().Add(30 * time.Second); err != nil && time.Now().Before(deadline); err = goleak.Find() {
		time.Sleep(time.Second)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	os.Exit(code)
}

const port = 2

// within is generous: the machine may be busy.
const within = 60 * time.Second

// lab is a mesh with a list on each node.
type lab struct {
	*meshtest.Mesh
	t     *testing.T
	lists []*member.List

	mu    sync.Mutex
	state []map[identity.ID]string // what each node last heard of the others
	meta  []map[identity.ID]string
	trail []map[identity.ID][]string
	say   []string // what each node says of itself
	calls int
}

func newLab(t *testing.T, m *meshtest.Mesh) *lab {
	n := len(m.Keys)
	l := &lab{Mesh: m, t: t, lists: make([]*member.List, n), say: make([]string, n)}
	for i := range n {
		l.state = append(l.state, map[identity.ID]string{})
		l.meta = append(l.meta, map[identity.ID]string{})
		l.trail = append(l.trail, map[identity.ID][]string{})
		l.say[i] = fmt.Sprintf("node %d", i)
	}
	m.Watch(func(node int, id identity.ID, p mesh.Path) {
		l.mu.Lock()
		list := l.lists[node]
		l.mu.Unlock()
		if list != nil && p.Kind != mesh.None {
			list.Poke(id)
		}
	})
	return l
}

// up starts a node if need be, and its list.
func (l *lab) up(i int) {
	l.t.Helper()
	if l.Nodes[i] == nil {
		l.Start(i)
	}
	n := l.Nodes[i]
	ln, err := n.Listen(port)
	if err != nil {
		l.t.Fatal(err)
	}
	pc, err := n.ListenPacket(port)
	if err != nil {
		l.t.Fatal(err)
	}
	l.mu.Lock()
	clear(l.state[i])
	l.mu.Unlock()
	list, err := member.Start(member.Config{
		Mesh: l.ID, Self: l.Node(i), Listener: ln, Packets: pc, Log: l.Log,
		Dial: func(ctx context.Context, id identity.ID) (net.Conn, error) {
			l.mu.Lock()
			l.calls++
			l.mu.Unlock()
			return n.Dial(ctx, id, port)
		},
		Roster: func() []identity.ID {
			var ids []identity.ID
			for j := range l.Keys {
				ids = append(ids, l.Node(j))
			}
			return ids
		},
		Member: func(id identity.ID) bool {
			return slices.ContainsFunc(l.Keys, func(k identity.Keys) bool { return k.Identity.ID() == id })
		},
		Meta: func() []byte {
			l.mu.Lock()
			defer l.mu.Unlock()
			return []byte(l.say[i])
		},
		OnChange: func(id identity.ID, state string, meta []byte) {
			l.mu.Lock()
			defer l.mu.Unlock()
			l.state[i][id] = state
			l.trail[i][id] = append(l.trail[i][id], state)
			if meta != nil {
				l.meta[i][id] = string(meta)
			}
		},
	})
	if err != nil {
		l.t.Fatal(err)
	}
	l.t.Cleanup(func() { _ = list.Close() })
	l.mu.Lock()
	l.lists[i] = list
	l.mu.Unlock()
}

// crash ends a node without a word to the others.
func (l *lab) crash(i int) {
	l.Stop(i)
	l.mu.Lock()
	list := l.lists[i]
	l.lists[i] = nil
	l.mu.Unlock()
	_ = list.Close()
}

func (l *lab) sees(i, j int) string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.state[i][l.Node(j)]
}

// saw returns the states that node i has seen node j in.
func (l *lab) saw(i, j int) []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Clone(l.trail[i][l.Node(j)])
}

// waitAll waits until every running node sees every other running node up.
func (l *lab) waitAll() {
	l.t.Helper()
	meshtest.Eventually(l.t, within, "all nodes see each other up", func() bool {
		for i := range l.lists {
			for j := range l.lists {
				if i != j && l.lists[i] != nil && l.lists[j] != nil && l.sees(i, j) != member.Up {
					return false
				}
			}
		}
		return true
	})
}

func (l *lab) wait(i, j int, state string) time.Duration {
	l.t.Helper()
	start := time.Now()
	meshtest.Eventually(l.t, within, fmt.Sprintf("node %d sees node %d %s", i, j, state), func() bool {
		return l.sees(i, j) == state
	})
	return time.Since(start)
}

func TestAliveAndMeta(t *testing.T) {
	l := newLab(t, meshtest.New(t, 3))
	for i := range 3 {
		l.up(i)
	}
	l.waitAll()
	said := func(want string) func() bool {
		return func() bool {
			l.mu.Lock()
			defer l.mu.Unlock()
			return l.meta[0][l.Node(1)] == want && l.meta[2][l.Node(1)] == want
		}
	}
	meshtest.Eventually(t, within, "node 1's meta", said("node 1"))
	l.mu.Lock()
	l.say[1] = "busy"
	l.mu.Unlock()
	l.lists[1].UpdateMeta()
	meshtest.Eventually(t, within, "node 1's new meta", said("busy"))
}

// A node that vanishes is suspected, then down; one that leaves is down.
func TestFailure(t *testing.T) {
	l := newLab(t, meshtest.New(t, 3))
	for i := range 3 {
		l.up(i)
	}
	l.waitAll()
	l.crash(2)
	t.Log("down after", l.wait(0, 2, member.Down), "and", l.wait(1, 2, member.Down))
	suspected := 0
	for i := range 2 {
		if slices.Contains(l.saw(i, 2), member.Suspect) {
			suspected++
		}
	}
	if suspected == 0 {
		t.Error("a node that did not answer was never suspected")
	}
	if err := l.lists[1].Close(); err != nil {
		t.Error(err)
	}
	t.Log("left after", l.wait(0, 1, member.Down))
}

// Who does not answer is called less and less often; a poke begins anew.
func TestCallsBecomeRare(t *testing.T) {
	l := newLab(t, meshtest.New(t, 2))
	l.up(0) // node 1 runs, but has no list
	calls := func() int {
		l.mu.Lock()
		defer l.mu.Unlock()
		return l.calls
	}
	time.Sleep(5 * time.Second) // calls after 0, 1, 3, 7 s, or so
	got := calls()
	if got < 2 || got > 5 {
		t.Errorf("%d calls in five seconds", got)
	}
	l.lists[0].Poke(l.Node(1))
	meshtest.Eventually(t, within, "another call", func() bool { return calls() > got })
}

// Restart of two and of three nodes, in every order.
func TestRestart(t *testing.T) {
	for n := 2; n <= 3; n++ {
		for _, order := range orders(n) {
			t.Run(fmt.Sprint(n, order), func(t *testing.T) {
				t.Parallel()
				l := newLab(t, meshtest.New(t, n))
				for i := range n {
					l.up(i)
				}
				l.waitAll()
				for _, i := range order {
					l.crash(i)
				}
				for _, i := range order {
					l.up(i)
				}
				l.waitAll()
				for _, i := range order { // one by one, while the others go on
					l.crash(i)
					l.up(i)
					l.waitAll()
				}
			})
		}
	}
}

func orders(n int) [][]int {
	if n == 1 {
		return [][]int{{0}}
	}
	var out [][]int
	for _, o := range orders(n - 1) {
		for at := range n {
			out = append(out, slices.Insert(slices.Clone(o), at, n-1))
		}
	}
	return out
}

func TestPartition(t *testing.T) {
	l := newLab(t, meshtest.Shaped(t, 3))
	for i := range 3 {
		l.up(i)
	}
	l.waitAll()
	l.Link(0, 2).Cut()
	l.Link(1, 2).Cut()
	l.wait(0, 2, member.Down)
	l.wait(1, 2, member.Down)
	l.wait(2, 0, member.Down)
	l.wait(2, 1, member.Down)
	l.Link(0, 2).Heal()
	l.Link(1, 2).Heal()
	start := time.Now()
	l.waitAll()
	t.Log("healed after", time.Since(start))
}

// A link that is bad but works makes nobody dead.
func TestLoss(t *testing.T) {
	if testing.Short() {
		t.Skip("takes 20 s")
	}
	l := newLab(t, meshtest.Shaped(t, 3))
	for i := range 3 {
		l.up(i)
	}
	l.waitAll()
	for _, link := range l.Links() {
		link.Shape(20*time.Millisecond, 0.1)
	}
	time.Sleep(20 * time.Second)
	for i := range 3 {
		for j := range 3 {
			if saw := l.saw(i, j); slices.Contains(saw, member.Down) {
				t.Errorf("node %d saw node %d down: %v", i, j, saw)
			}
		}
	}
}
