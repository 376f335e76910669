package main

import (
	"context"
	"encoding/binary"
	"net"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/balanceai/balance/mesh/meshtest/netlab"
)

// BenchmarkReach measures how long it takes until packets pass between two nodes
// of which one was started or has moved to another network, or whose relay has
// died. The packets are echo requests that the hosts send each other through the
// interface of the mesh every [echoInterval], before, meanwhile and after.
func BenchmarkReach(b *testing.B) {
	for _, c := range []struct {
		name         string
		mover, other netlab.NAT
	}{{"start/easy-open", netlab.Easy, openNAT}, {"start/easy-easy", netlab.Easy, netlab.Easy}, {"start/cone-hard", netlab.Cone, netlab.Hard}} {
		b.Run(c.name, func(b *testing.B) { benchStart(b, c.mover, c.other) })
	}
	b.Run("roam", func(b *testing.B) { benchRoam(b, false) })
	b.Run("roam-silent", func(b *testing.B) { benchRoam(b, true) })
	b.Run("relay-dies", benchRelayDies)
}

// benchStart restarts a node and takes the time until it has an echo of another,
// which is there, and how much of that is later than the first one of a node at
// a public address. What its router knew is forgotten.
func benchStart(b *testing.B, kind, otherKind netlab.NAT) {
	lab := netlab.New(b)
	home := lab.Router(kind, "192.168.1")
	network := lab.Internet
	if otherKind != openNAT {
		network = lab.Router(otherKind, "192.168.1")
	}
	pub, mover, other := newRelayNode(b, lab.Internet.Host("pub")), newLabNode(b, home.Host("a")), newLabNode(b, network.Host("b"))
	foundTUNLab(pub, mover, other)
	toPub, toOther := mover.echoes(pub), mover.echoes(other)
	var reply, later, direct times
	for range b.N {
		awaitPeers("direct", mover, other)
		mover.process.Kill()
		home.Forget()
		start := time.Now()
		mover.start()
		r := toOther.after(start)
		reply.add(r)
		later.add(max(0, r-toPub.after(start)))
		mover.answers()
		mover.eventually("a direct path", func() bool { return mover.sees(other).Path == "direct" })
		direct.add(time.Since(start) - r)
	}
	reply.report(b, "")
	later.report(b, "after-pub-")
	direct.report(b, "to-direct-")
}

// benchRoam moves a node between two networks. A silent one asks for nothing.
func benchRoam(b *testing.B, silent bool) {
	lab := netlab.New(b)
	home, office := lab.Router(netlab.Easy, "192.168.1"), lab.Router(netlab.Easy, "192.168.2")
	pub, mover, other := newRelayNode(b, lab.Internet.Host("pub")), newLabNode(b, home.Host("a")), newLabNode(b, lab.Internet.Host("b"))
	foundTUNLab(pub, mover, other)
	traffic := []*echoes{other.echoes(mover)}
	if !silent {
		traffic = append(traffic, mover.echoes(other))
	}
	to, next := office, home
	var reply times
	for range b.N {
		awaitPeers("direct", mover, other)
		mover.Roam(to)
		to, next = next, to
		reply.add(last(traffic, time.Now()))
	}
	reply.report(b, "")
}

// benchRelayDies kills the relay between two nodes that need one.
func benchRelayDies(b *testing.B) {
	lab := netlab.New(b)
	relays := []*labNode{newRelayNode(b, lab.Internet.Host("relay1")), newRelayNode(b, lab.Internet.Host("relay2"))}
	x := newLabNode(b, lab.Router(netlab.Hard, "192.168.1").Host("a"))
	y := newLabNode(b, lab.Router(netlab.Hard, "192.168.1").Host("b"))
	foundTUNLab(relays[0], relays[1], x, y)
	traffic := []*echoes{x.echoes(y), y.echoes(x)}
	var reply times
	for range b.N {
		awaitPeers("relay", x, y)
		for _, r := range relays {
			x.knows(r)
			y.knows(r)
		}
		via := x.sees(y).Via
		i := slices.IndexFunc(relays, func(r *labNode) bool { return r.Name == via })
		if i < 0 {
			b.Fatalf("the path is via %q", via)
		}
		relays[i].process.Kill()
		reply.add(last(traffic, time.Now()))
		relays[i].up()
	}
	reply.report(b, "")
}

// foundTUNLab is foundLab for nodes with an interface, and waits until all see
// each other up.
func foundTUNLab(nodes ...*labNode) {
	for _, n := range nodes {
		n.flags = append(n.flags, "--tun")
	}
	foundLab(nodes[0], nodes[1:]...)
	for _, n := range nodes {
		for _, other := range nodes {
			if n != other {
				n.knows(other)
			}
		}
	}
}

// echoInterval is the time from one echo request to the next.
const echoInterval = 20 * time.Millisecond

// echoes are echo requests (ICMPv6, RFC 4443) from one host to another's address
// in the mesh, and the answers, until the test ends.
type echoes struct {
	from, to *labNode
	conn     net.PacketConn

	mu      sync.Mutex
	sent    []time.Time // by sequence number
	replies chan echo
}

// echo is when an answer came, and when it was asked for.
type echo struct{ asked, came time.Time }

// maxReplies are those of a minute and more: nobody takes them before something
// is measured.
const maxReplies = 4096

func (n *labNode) echoes(to *labNode) *echoes {
	n.t.Helper()
	var status statusReply
	if err := to.client.get(n.t.Context(), "/v1/status", &status); err != nil {
		n.t.Fatal(err)
	}
	addr, err := net.ResolveIPAddr("ip6", status.Address)
	if err != nil {
		n.t.Fatal(err)
	}
	e := &echoes{from: n, to: to, replies: make(chan echo, maxReplies)}
	err = n.Do(func() (err error) {
		e.conn, err = net.ListenPacket("ip6:ipv6-icmp", "::")
		return err
	})
	if err != nil {
		n.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var work sync.WaitGroup
	work.Go(func() { e.ask(ctx, addr) })
	work.Go(func() { e.read(addr.String()) })
	n.t.Cleanup(func() {
		cancel()
		_ = e.conn.Close()
		work.Wait()
	})
	return e
}

func (e *echoes) ask(ctx context.Context, to net.Addr) {
	tick := time.NewTicker(echoInterval)
	defer tick.Stop()
	for {
		e.mu.Lock()
		seq := uint16(len(e.sent))
		e.sent = append(e.sent, time.Now())
		e.mu.Unlock()
		msg := []byte{128, 0, 0, 0, 0, 0, 0, 0} // the kernel enters the checksum
		binary.BigEndian.PutUint16(msg[6:], seq)
		_, _ = e.conn.WriteTo(msg, to) // there may be no interface at the moment
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}

func (e *echoes) read(of string) {
	buf := make([]byte, 1500)
	for {
		n, from, err := e.conn.ReadFrom(buf)
		if err != nil {
			return // it is closed
		}
		if n < 8 || buf[0] != 129 || from.String() != of {
			continue
		}
		e.mu.Lock()
		last := len(e.sent) - 1
		asked := e.sent[last-int(uint16(last)-binary.BigEndian.Uint16(buf[6:]))]
		e.mu.Unlock()
		select {
		case e.replies <- echo{asked, time.Now()}:
		default:
		}
	}
}

// after returns how long after an instant the first echo came of what was sent
// since.
func (e *echoes) after(start time.Time) time.Duration {
	e.from.t.Helper()
	for patience := time.After(labPatience); ; {
		select {
		case r := <-e.replies:
			if r.asked.After(start) {
				return r.came.Sub(start)
			}
		case <-patience:
			e.from.t.Fatalf("%s has no echo of %s within %v", e.from.Name, e.to.Name, labPatience)
		}
	}
}

// last returns how long after an instant all have had an echo.
func last(all []*echoes, start time.Time) (d time.Duration) {
	for _, e := range all {
		d = max(d, e.after(start))
	}
	return d
}

// times are what something took.
type times []time.Duration

func (t *times) add(d time.Duration) { *t = append(*t, d) }

// report reports percentiles.
func (t times) report(b *testing.B, what string) {
	slices.Sort(t)
	for _, p := range []struct {
		unit  string
		share float64
	}{{"p50-ms", 0.5}, {"p95-ms", 0.95}, {"max-ms", 1}} {
		b.ReportMetric(millis(t[int(p.share*float64(len(t)-1)+0.5)]), what+p.unit)
	}
	b.ReportMetric(0, "ns/op")
}
