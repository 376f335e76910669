package mesh

import (
	"fmt"
	"net/netip"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"
)

// start is a time on the clock of the tests: well after the zero instant.
const start = instant(time.Hour)

var (
	lan1 = netip.MustParseAddrPort("192.168.1.2:7000")
	wan1 = netip.MustParseAddrPort("203.0.113.1:7000")
	wan2 = netip.MustParseAddrPort("203.0.113.2:7000")
)

func testKind(a netip.Addr) Kind {
	if a.IsPrivate() {
		return LAN
	}
	return Direct
}

// script runs a state machine against what happens, and holds what it does.
type script struct {
	t   *testing.T
	p   paths
	now instant
}

func newScript(t *testing.T, addrs ...netip.AddrPort) *script {
	s := &script{t: t, now: start, p: paths{kind: testKind}}
	s.p.learn(s.now, roster, addrs...)
	return s
}

func (s *script) pings(what string, got []netip.AddrPort, want ...netip.AddrPort) {
	s.t.Helper()
	if !slices.Equal(got, want) {
		s.t.Errorf("%s at %v: pings %v, want %v", what, s.now.sub(start), got, want)
	}
}

func (s *script) want(want ...netip.AddrPort) {
	s.t.Helper()
	s.pings("traffic", s.p.want(s.now), want...)
}

// wait goes on to a time and expects pings at the last tick on the way.
func (s *script) wait(d time.Duration, want ...netip.AddrPort) {
	s.t.Helper()
	end := s.now.add(d)
	var got []netip.AddrPort
	for s.p.next != 0 && s.p.next <= end {
		s.now = s.p.next
		got = s.p.tick(s.now, s.p.wanted)
	}
	s.now = end
	s.pings("the last tick", got, want...)
}

func (s *script) pong(addr netip.AddrPort, rtt time.Duration) {
	s.now = s.now.add(rtt)
	s.p.pong(s.now, addr, rtt)
}

func (s *script) is(want Path) {
	s.t.Helper()
	if got := s.p.path(); got != want {
		s.t.Errorf("path at %v: %+v, want %+v", s.now.sub(start), got, want)
	}
}

const ms = time.Millisecond

func TestPathSearch(t *testing.T) {
	s := newScript(t, wan1, lan1)
	s.wait(time.Hour) // nothing to send, nothing to do
	s.want(wan1, lan1)
	s.want() // a search goes on
	s.is(Path{})
	s.wait(100*ms, wan1, lan1)
	s.pong(wan1, 20*ms)
	s.is(Path{Direct, wan1, 20 * ms})
	s.pong(lan1, 30*ms)
	s.is(Path{LAN, lan1, 30 * ms}) // slower, and yet better
	s.pong(wan1, 10*ms)
	s.is(Path{LAN, lan1, 30 * ms})
}

func TestPathSearchEnds(t *testing.T) {
	s := newScript(t, wan1)
	s.want(wan1)
	for _, at := range []time.Duration{100, 200, 400, 800} {
		s.wait(at*ms, wan1)
	}
	s.wait(1600 * ms)
	if s.p.next != 0 {
		t.Error("the search does not end")
	}
	s.want(wan1) // the next thing to send begins another
}

func TestPathHeartbeat(t *testing.T) {
	s := newScript(t, wan1, wan2)
	s.want(wan1, wan2)
	s.pong(wan1, 10*ms)
	for range 5 {
		s.p.wanted = s.now.add(900 * ms)
		s.wait(time.Second, wan1)
		s.pong(wan1, 10*ms)
	}
	s.wait(2 * time.Second) // no traffic, no heartbeat
	s.is(Path{Direct, wan1, 10 * ms})
	s.wait(time.Hour)
	s.want(wan1) // it was only idle: no need to ask all
	s.pong(wan1, 10*ms)
	s.is(Path{Direct, wan1, 10 * ms})
}

func TestPathFailover(t *testing.T) {
	s := newScript(t, wan1, wan2)
	s.want(wan1, wan2)
	s.pong(wan1, 10*ms)
	s.pong(wan2, 30*ms)
	s.is(Path{Direct, wan1, 10 * ms})
	busy := func(d time.Duration, want ...netip.AddrPort) {
		t.Helper()
		s.p.wanted = s.now.add(d)
		s.wait(d, want...)
	}
	busy(time.Second, wan1) // from here on wan1 is dead
	busy(time.Second, wan1, wan2)
	s.pong(wan2, 30*ms)
	s.is(Path{Direct, wan2, 30 * ms})
}

func TestPathIsLost(t *testing.T) {
	s := newScript(t, wan1)
	s.want(wan1)
	s.pong(wan1, 10*ms)
	s.wait(time.Hour)
	s.want(wan1)
	if got := s.p.path().Addr; got != wan1 {
		t.Errorf("in doubt, packets go to %v", got)
	}
	s.wait(10 * time.Second)
	s.is(Path{})
}

// Another address takes over only if it is clearly faster.
func TestPathHysteresis(t *testing.T) {
	for _, c := range []struct {
		best, other time.Duration
		moves       bool
	}{
		{100 * ms, 90 * ms, false}, {100 * ms, 60 * ms, true}, {1 * ms, ms / 4, false}, {10 * ms, 20 * ms, false},
	} {
		s := newScript(t, wan1, wan2)
		s.want(wan1, wan2)
		s.pong(wan1, c.best)
		s.pong(wan2, c.other)
		if moved := s.p.path().Addr == wan2; moved != c.moves {
			t.Errorf("from %v to %v: moved %v", c.best, c.other, moved)
		}
	}
}

// A ping makes its source a candidate, never the path; an answer to our own
// ping does.
func TestPathCaller(t *testing.T) {
	s := newScript(t)
	s.want()
	s.pings("a call", s.p.ping(s.now, wan1, false), wan1)
	s.pings("a call again", s.p.ping(s.now, wan1, false))
	s.pings("a call of another process", s.p.ping(s.now, wan1, true), wan1)
	s.is(Path{})
	if got := s.p.callers(s.now); !slices.Equal(got, []netip.AddrPort{wan1}) {
		t.Errorf("callers %v", got)
	}
	s.pong(wan1, 5*ms)
	s.is(Path{Direct, wan1, 5 * ms})
	s.wait(500 * ms)
	s.pings("a call from the path", s.p.ping(s.now, wan1, false))
}

// An address that becomes known while something waits to be sent is asked at
// once.
func TestPathLearn(t *testing.T) {
	s := newScript(t)
	s.pings("news without traffic", s.p.learn(s.now, rumour, wan1))
	s.want(wan1)
	s.wait(4 * time.Second)
	s.pings("news with traffic", s.p.learn(s.now, rumour, wan1, wan2), wan2)
	s.wait(100*ms, wan1, wan2)
}

// A better path is looked for now and then, but not when the best kind is in
// use.
func TestPathRecheck(t *testing.T) {
	for best, others := range map[netip.AddrPort]bool{wan1: true, lan1: false} {
		s := newScript(t, best, wan2)
		s.want(best, wan2)
		s.pong(best, 10*ms)
		asked := false
		for range 60 {
			s.now = s.p.next
			asked = slices.Contains(s.p.tick(s.now, s.now), wan2) || asked
			s.pong(best, 10*ms)
		}
		if asked != others {
			t.Errorf("with path %v, others were asked: %v", best, asked)
		}
	}
}

func TestPathRoster(t *testing.T) {
	s := newScript(t, wan1, wan2)
	addr := func(i int) netip.AddrPort {
		return netip.AddrPortFrom(netip.AddrFrom4([4]byte{198, 51, 100, byte(i)}), 1)
	}
	for i := range 200 { // rumours do not push out what is stored
		s.p.learn(s.now, rumour, addr(i))
	}
	for i := range 200 { // nor do calls
		s.p.ping(s.now, addr(i), false)
	}
	if s.p.find(wan1) == nil || s.p.find(wan2) == nil {
		t.Error("a stored address is forgotten")
	}
	pings := 0
	s.now = s.now.add(time.Second)
	for i := range 3 * calls {
		pings += len(s.p.ping(s.now, addr(i), true))
	}
	if pings != calls {
		t.Errorf("%d pings for %d calls", pings, 3*calls)
	}
	for i := range 200 {
		s.p.replace(s.now, []netip.AddrPort{addr(i)})
	}
	if n := len(s.p.candidates); n > 8+8+4 {
		t.Errorf("%d candidates", n)
	}
}

// world is a set of addresses, each of which works at some times, as seen by a
// state machine with or without traffic.
type world struct {
	p     paths
	rtt   map[netip.AddrPort]time.Duration
	flips map[netip.AddrPort][]int // seconds at which it begins or ends to work
	pongs map[instant][]answer
	pings map[netip.AddrPort][]instant
}

type answer struct {
	addr netip.AddrPort
	rtt  time.Duration
}

func (w *world) works(addr netip.AddrPort, now instant) bool {
	works := true
	for _, f := range w.flips[addr] {
		if now.sub(start) >= time.Duration(f)*time.Second {
			works = !works
		}
	}
	return works
}

func (w *world) send(now instant, addrs []netip.AddrPort) {
	for _, a := range addrs {
		w.pings[a] = append(w.pings[a], now)
		if rtt := w.rtt[a]; rtt > 0 && w.works(a, now) {
			due := now.add(rtt.Round(10 * ms))
			w.pongs[due] = append(w.pongs[due], answer{a, rtt})
		}
	}
}

// Whatever comes and goes: the path is an address that has answered a ping,
// with traffic it works soon after something works, and pings stay few.
func TestPathProperties(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w := &world{
			p: paths{kind: testKind}, rtt: map[netip.AddrPort]time.Duration{}, flips: map[netip.AddrPort][]int{},
			pongs: map[instant][]answer{}, pings: map[netip.AddrPort][]instant{},
		}
		addrs := []netip.AddrPort{lan1, wan1, wan2}
		for _, a := range addrs {
			w.rtt[a] = time.Duration(rapid.IntRange(1, 15).Draw(t, "rtt")) * 10 * ms
			w.flips[a] = rapid.SliceOfN(rapid.IntRange(0, 60), 0, 4).Draw(t, fmt.Sprint("flips of ", a))
		}
		w.p.learn(start, roster, addrs...)
		pauses := rapid.SliceOfN(rapid.IntRange(0, 60), 0, 4).Draw(t, "traffic flips")
		callers := rapid.SliceOfN(rapid.IntRange(0, 6000), 0, 10).Draw(t, "calls")
		answered, worked := map[netip.AddrPort]bool{}, map[netip.AddrPort]instant{}
		var good instant // since when traffic flows and one address works, the same all the time
		var steady netip.AddrPort
		for step := range 6000 {
			now := start.add(time.Duration(step) * 10 * ms)
			for _, a := range w.pongs[now] {
				answered[a.addr] = true
				w.p.pong(now, a.addr, a.rtt)
			}
			if slices.Contains(callers, step) {
				w.send(now, w.p.ping(now, wan2, false))
			}
			traffic := true
			for _, f := range pauses {
				if step >= f*100 {
					traffic = !traffic
				}
			}
			if traffic {
				w.send(now, w.p.want(now))
			}
			w.send(now, w.p.tick(now, w.p.wanted))

			if !traffic || !steady.IsValid() || !w.works(steady, now) {
				good, steady = now, netip.AddrPort{}
				if i := slices.IndexFunc(addrs, func(a netip.AddrPort) bool { return w.works(a, now) }); traffic && i >= 0 {
					steady = addrs[i]
				}
			}
			for _, a := range addrs {
				if w.works(a, now) {
					worked[a] = now
				}
			}
			path := w.p.path()
			if path.Kind != None && !answered[path.Addr] {
				t.Fatalf("the path %v has never answered", path.Addr)
			}
			// Trust, one heartbeat, the longest wait within a search, a new search.
			if patience := trust + heartbeat + 1600*ms + 500*ms; now.sub(good) > patience && (path.Kind == None || now.sub(worked[path.Addr]) > patience) {
				t.Fatalf("at %v: path %+v though %v works since %v", now.sub(start), path, steady, good.sub(start))
			}
		}
		for a, at := range w.pings {
			for i := 20; i < len(at); i++ {
				if d := at[i].sub(at[i-20]); d < 3*time.Second {
					t.Fatalf("21 pings to %v in %v", a, d)
				}
			}
		}
	})
}
