package mesh

import (
	"fmt"
	"net/netip"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/balanceai/balance/mesh/identity"
)

// start is a time on the clock of the tests: well after the zero instant.
const start = instant(time.Hour)

var (
	lan1   = direct(netip.MustParseAddrPort("192.168.1.2:7000"))
	wan1   = direct(netip.MustParseAddrPort("203.0.113.1:7000"))
	wan2   = direct(netip.MustParseAddrPort("203.0.113.2:7000"))
	relay1 = hop{via: &peer{id: identity.ID{1}}}
	relay2 = hop{via: &peer{id: identity.ID{2}}}
)

func testKind(h hop) Kind {
	switch {
	case h.via != nil:
		return Relayed
	case h.addr.Addr().IsPrivate():
		return LAN
	}
	return Direct
}

// testLeads has a way to every relay.
func testLeads(hop) bool { return true }

func pathOf(k Kind, h hop, rtt time.Duration) Path {
	p := Path{Kind: k, Addr: h.addr, RTT: rtt, MTU: mtu}
	if h.via != nil {
		p.Via = h.via.id
	}
	return p
}

// pinged returns where pings go, without those that try a size.
func pinged(errands []errand) []hop {
	var out []hop
	for _, e := range errands {
		if e.what == ping && e.size == 0 {
			out = append(out, e.hop)
		}
	}
	return out
}

// script runs a state machine against what happens, and holds what it does.
type script struct {
	t   *testing.T
	p   paths
	now instant
}

func newScript(t *testing.T, addrs ...hop) *script {
	s := &script{t: t, now: start, p: paths{kind: testKind, leads: testLeads}}
	s.p.learn(s.now, roster, addrs...)
	return s
}

func (s *script) pings(what string, errands []errand, want ...hop) {
	s.t.Helper()
	got := pinged(errands)
	if !slices.Equal(got, want) {
		s.t.Errorf("%s at %v: pings %v, want %v", what, s.now.sub(start), got, want)
	}
}

func (s *script) want(want ...hop) {
	s.t.Helper()
	s.pings("traffic", s.p.want(s.now), want...)
}

// wait goes on to a time and expects pings at the last tick on the way.
func (s *script) wait(d time.Duration, want ...hop) {
	s.t.Helper()
	end := s.now.add(d)
	var got []errand
	for s.p.next != 0 && s.p.next <= end {
		s.now = s.p.next
		got = s.p.tick(s.now, s.p.wanted)
	}
	s.now = end
	s.pings("the last tick", got, want...)
}

func (s *script) pong(addr hop, rtt time.Duration) {
	s.now = s.now.add(rtt)
	s.p.pong(s.now, addr, rtt, 0)
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
	s.is(pathOf(Direct, wan1, 20*ms))
	s.pong(lan1, 30*ms)
	s.is(pathOf(LAN, lan1, 30*ms)) // slower, and yet better
	s.pong(wan1, 10*ms)
	s.is(pathOf(LAN, lan1, 30*ms))
}

// A node that has just started has no way to any relay yet. Then it asks every
// address at once, and, when there is a way to a relay, that one without delay.
func TestPathSearchBeforeRelays(t *testing.T) {
	s := newScript(t, wan1)
	up := false
	s.p.leads = func(hop) bool { return up }
	s.p.learn(s.now, relay, relay1)
	s.want(wan1, relay1)
	if got := s.p.first(); !slices.Equal(got, []hop{wan1, relay1}) {
		t.Errorf("a session begins by %v", got)
	}
	up = true
	want := []errand{{relay1, ping, 0}, {relay1, call, 0}}
	if got := s.p.replace(s.now.add(ms), relay, []hop{relay1}); !slices.Equal(got, want) {
		t.Errorf("when there is a way to the relay: %v, want %v", got, want)
	}
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
	s.is(pathOf(Direct, wan1, 10*ms))
	s.wait(time.Hour)
	s.want(wan1) // it was only idle: no need to ask all
	s.pong(wan1, 10*ms)
	s.is(pathOf(Direct, wan1, 10*ms))
}

func TestPathFailover(t *testing.T) {
	s := newScript(t, wan1, wan2)
	s.want(wan1, wan2)
	s.pong(wan1, 10*ms)
	s.pong(wan2, 30*ms)
	s.is(pathOf(Direct, wan1, 10*ms))
	busy := func(d time.Duration, want ...hop) {
		t.Helper()
		s.p.wanted = s.now.add(d)
		s.wait(d, want...)
	}
	busy(time.Second, wan1) // from here on wan1 is dead
	busy(time.Second, wan1, wan2)
	s.pong(wan2, 30*ms)
	s.is(pathOf(Direct, wan2, 30*ms))
}

func TestPathIsLost(t *testing.T) {
	s := newScript(t, wan1)
	s.want(wan1)
	s.pong(wan1, 10*ms)
	s.wait(time.Hour)
	s.want(wan1)
	if got := s.p.path().Addr; got != wan1.addr {
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
		if moved := s.p.path().Addr == wan2.addr; moved != c.moves {
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
	if got := s.p.callers(s.now); !slices.Equal(got, []hop{wan1}) {
		t.Errorf("callers %v", got)
	}
	s.pong(wan1, 5*ms)
	s.is(pathOf(Direct, wan1, 5*ms))
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
	for best, others := range map[hop]bool{wan1: true, lan1: false} {
		s := newScript(t, best, wan2)
		s.want(best, wan2)
		s.pong(best, 10*ms)
		asked := false
		for range 60 {
			s.now = s.p.next
			asked = slices.Contains(pinged(s.p.tick(s.now, s.now)), wan2) || asked
			s.pong(best, 10*ms)
		}
		if asked != others {
			t.Errorf("with path %v, others were asked: %v", best, asked)
		}
	}
}

func TestPathRoster(t *testing.T) {
	s := newScript(t, wan1, wan2)
	addr := func(i int) hop {
		return direct(netip.AddrPortFrom(netip.AddrFrom4([4]byte{198, 51, 100, byte(i)}), 1))
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
	for i := range 3 * pingsBack {
		pings += len(s.p.ping(s.now, addr(i), true))
	}
	if pings != pingsBack {
		t.Errorf("%d pings for %d calls", pings, 3*pingsBack)
	}
	for i := range 200 {
		s.p.replace(s.now, roster, []hop{addr(i)})
	}
	if n := len(s.p.candidates); n > 8+8+4 {
		t.Errorf("%d candidates", n)
	}
}

// errandsAre compares errands, of which order does not matter.
func (s *script) errandsAre(what string, got []errand, want ...errand) {
	s.t.Helper()
	ok := len(got) == len(want)
	for _, e := range want {
		ok = ok && slices.Contains(got, e)
	}
	if !ok {
		s.t.Errorf("%s at %v: %v, want %v", what, s.now.sub(start), got, want)
	}
}

// A relay carries at once; an address behind a NAT is approached from both
// sides, and takes over when it has answered.
func TestPathUpgrade(t *testing.T) {
	s := newScript(t, wan1)
	s.p.replace(s.now, relay, []hop{relay1, relay2})
	s.errandsAre("the first packet", s.p.want(s.now),
		errand{wan1, opening, 0}, errand{relay1, ping, 0}, errand{relay2, ping, 0}, errand{relay1, call, 0}, errand{relay2, call, 0})
	if got := s.p.first(); !slices.Equal(got, []hop{relay1, relay2}) {
		t.Errorf("a session begins over %v", got)
	}
	s.pong(relay1, 10*ms)
	s.is(pathOf(Relayed, relay1, 10*ms))
	s.errandsAre("an answer to the call", s.p.call(s.now, relay1, true, []netip.AddrPort{wan1.addr}), errand{wan1, ping, 0})
	s.pong(wan1, 20*ms)
	s.is(pathOf(Direct, wan1, 20*ms)) // slower, and yet better
	s.pong(relay2, 5*ms)
	s.is(pathOf(Direct, wan1, 20*ms))
}

func TestPathIsCalled(t *testing.T) {
	s := newScript(t)
	s.p.replace(s.now, relay, []hop{relay1})
	addrs := []netip.AddrPort{wan1.addr, lan1.addr}
	s.errandsAre("a call", s.p.call(s.now, relay1, false, addrs), errand{wan1, ping, 0}, errand{lan1, ping, 0}, errand{relay1, answer, 0})
	if got := s.p.callers(s.now); !slices.Equal(got, []hop{relay1}) {
		t.Errorf("callers %v", got)
	}
	heeded := 1
	for range 100 {
		if s.p.call(s.now, relay1, false, addrs) != nil {
			heeded++
		}
	}
	if heeded != callsBack {
		t.Errorf("of 101 calls in one instant, %d were heeded", heeded)
	}
}

// When no address answers, the relay stays, and the addresses are left alone
// until a NAT has forgotten what it noted.
func TestPathStaysRelayed(t *testing.T) {
	s := newScript(t, wan1)
	s.p.replace(s.now, relay, []hop{relay1})
	s.p.want(s.now)
	s.pong(relay1, 10*ms)
	var asked []time.Duration
	end := s.now.add(100 * time.Second)
	for s.now < end {
		s.now = s.p.next
		for _, e := range s.p.tick(s.now, s.now) {
			if e.hop == wan1 {
				asked = append(asked, s.now.sub(start))
			}
		}
		s.p.pong(s.now, relay1, 10*ms, 0)
		if got := s.p.path(); got.Kind != Relayed {
			t.Fatalf("at %v: path %+v", s.now.sub(start), got)
		}
	}
	searches := 1
	for i := 1; i < len(asked); i++ {
		if pause := asked[i] - asked[i-1]; pause > 30*time.Second {
			searches++
		} else if pause > 2*time.Second {
			t.Errorf("addresses are asked at %v and at %v", asked[i-1], asked[i])
		}
	}
	if searches != 3 {
		t.Errorf("%d searches in 100 s: %v", searches, asked)
	}
}

// An address that answered before the relay took over is asked again soon, and
// takes over when it answers.
func TestPathComesBack(t *testing.T) {
	s := newScript(t, wan1)
	s.p.replace(s.now, relay, []hop{relay1})
	s.p.want(s.now)
	s.pong(wan1, 20*ms)
	s.now = s.now.add(trust)
	s.p.want(s.now)
	s.pong(relay1, 10*ms) // wan1 does not answer any more
	s.is(pathOf(Relayed, relay1, 10*ms))
	s.p.tried, s.p.next = 0, s.now.add(heartbeat) // the search is over
	var asked []time.Duration
	for range 30 {
		s.now = s.p.next
		for _, e := range s.p.tick(s.now, s.now) {
			if e.hop == wan1 {
				asked = append(asked, s.now.sub(start))
			}
		}
		s.p.pong(s.now, relay1, 10*ms, 0)
	}
	if len(asked) < 5 || len(asked) > 7 {
		t.Errorf("in 30 s the address was asked at %v", asked)
	}
	s.pong(wan1, 20*ms)
	if got := s.p.path().Kind; got != Direct {
		t.Errorf("the path is %v", got)
	}
}

// A path in doubt is used beside the relay.
func TestPathDoubt(t *testing.T) {
	s := newScript(t, wan1)
	s.p.replace(s.now, relay, []hop{relay1})
	s.p.want(s.now)
	s.pong(relay1, 10*ms)
	s.pong(wan1, 20*ms)
	s.now = s.now.add(20 * time.Second)
	s.p.want(s.now)
	if got := s.p.doubted(s.now); !slices.Equal(got, []hop{wan1}) {
		t.Errorf("after a pause, data go to %v", got)
	}
	s.pong(wan1, 20*ms)
	s.now = s.now.add(time.Minute)
	s.errandsAre("after a longer one", s.p.want(s.now), errand{wan1, ping, 0}, errand{relay1, ping, 0}, errand{relay1, call, 0})
	if got := s.p.doubted(s.now); !slices.Equal(got, []hop{wan1, relay1}) {
		t.Errorf("after a longer pause, data go to %v", got)
	}
	s.pong(wan1, 20*ms)
	s.now = s.now.add(10 * time.Second)
	s.p.want(s.now)
	s.now = s.p.next
	s.p.tick(s.now, s.now)
	s.now = s.now.add(100 * ms)
	if got := s.p.doubted(s.now); !slices.Equal(got, []hop{wan1, relay1}) {
		t.Errorf("in doubt, data go to %v", got)
	}
}

func TestPathMoves(t *testing.T) {
	s := newScript(t, wan1, wan2)
	s.p.want(s.now)
	s.pong(wan1, 20*ms)
	s.pings("a change of our network", s.p.moved(s.now), wan1, wan2)
	s.is(pathOf(Direct, wan1, 20*ms)) // in doubt
	s.pong(wan2, 30*ms)
	s.is(pathOf(Direct, wan2, 30*ms))
	s.p.relocated()
	s.is(Path{})
	s.pong(wan1, 30*ms)
	s.is(pathOf(Direct, wan1, 22500*time.Microsecond))
	s.now = s.now.add(time.Hour)
	s.pings("a change of our network long after", s.p.moved(s.now))
}

// Sizes are tried beside the heartbeat, thrice each, and again after a while.
// The heartbeat then is as large as what the path carries.
func TestPathSizes(t *testing.T) {
	s := newScript(t, wan1)
	s.want(wan1)
	s.pong(wan1, 10*ms)
	tried := map[int]int{}
	beat := 0
	second := func() {
		s.now = s.p.next
		for _, e := range s.p.tick(s.now, s.now) {
			if e.size > beat {
				tried[e.size]++
			} else if e.size != beat {
				t.Errorf("a heartbeat of %d bytes", e.size)
			}
		}
		s.p.pong(s.now, wan1, 10*ms, beat)
	}
	second()
	beat = sizes[0]
	s.p.pong(s.now, wan1, 10*ms, beat)
	for range 30 {
		second()
	}
	if tried[sizes[0]] != 1 || tried[sizes[1]] != soundings {
		t.Errorf("tries %v", tried)
	}
	if got := s.p.path().MTU; got != 1420 {
		t.Errorf("MTU %d", got)
	}
	for range int(soundAgain / time.Second) {
		second()
	}
	if tried[sizes[1]] <= soundings || tried[sizes[1]] > 2*soundings {
		t.Errorf("tries %v", tried)
	}
}

func TestPathDropsRelay(t *testing.T) {
	s := newScript(t)
	s.p.replace(s.now, relay, []hop{relay1, relay2})
	s.p.want(s.now)
	s.pong(relay1, 20*ms)
	s.p.drop(func(h hop) bool { return h == relay1 })
	s.is(Path{})
	if s.p.find(relay1) != nil || s.p.find(relay2) == nil {
		t.Error("the wrong relay was dropped")
	}
}

// world is a set of addresses, each of which works at some times, as seen by a
// state machine with or without traffic.
type world struct {
	p     paths
	rtt   map[hop]time.Duration
	flips map[hop][]int // seconds at which it begins or ends to work
	pongs map[instant][]reply
	pings map[hop][]instant
}

type reply struct {
	addr hop
	rtt  time.Duration
}

func (w *world) works(addr hop, now instant) bool {
	works := true
	for _, f := range w.flips[addr] {
		if now.sub(start) >= time.Duration(f)*time.Second {
			works = !works
		}
	}
	return works
}

func (w *world) send(now instant, errands []errand) {
	for _, a := range pinged(errands) {
		w.pings[a] = append(w.pings[a], now)
		if rtt := w.rtt[a]; rtt > 0 && w.works(a, now) {
			due := now.add(rtt.Round(10 * ms))
			w.pongs[due] = append(w.pongs[due], reply{a, rtt})
		}
	}
}

// Whatever comes and goes: the path is an address that has answered a ping,
// with traffic it works soon after something works, and pings stay few.
func TestPathProperties(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w := &world{
			p: paths{kind: testKind, leads: testLeads}, rtt: map[hop]time.Duration{}, flips: map[hop][]int{},
			pongs: map[instant][]reply{}, pings: map[hop][]instant{},
		}
		addrs := []hop{lan1, wan1, wan2}
		for _, a := range addrs {
			w.rtt[a] = time.Duration(rapid.IntRange(1, 15).Draw(t, "rtt")) * 10 * ms
			w.flips[a] = rapid.SliceOfN(rapid.IntRange(0, 60), 0, 4).Draw(t, fmt.Sprint("flips of ", a))
		}
		w.p.learn(start, roster, addrs...)
		pauses := rapid.SliceOfN(rapid.IntRange(0, 60), 0, 4).Draw(t, "traffic flips")
		callers := rapid.SliceOfN(rapid.IntRange(0, 6000), 0, 10).Draw(t, "calls")
		answered, worked := map[hop]bool{}, map[hop]instant{}
		var good instant // since when traffic flows and one address works, the same all the time
		var steady hop
		for step := range 6000 {
			now := start.add(time.Duration(step) * 10 * ms)
			for _, a := range w.pongs[now] {
				answered[a.addr] = true
				w.p.pong(now, a.addr, a.rtt, 0)
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

			if !traffic || steady == (hop{}) || !w.works(steady, now) {
				good, steady = now, hop{}
				if i := slices.IndexFunc(addrs, func(a hop) bool { return w.works(a, now) }); traffic && i >= 0 {
					steady = addrs[i]
				}
			}
			for _, a := range addrs {
				if w.works(a, now) {
					worked[a] = now
				}
			}
			path := w.p.path()
			if path.Kind != None && !answered[direct(path.Addr)] {
				t.Fatalf("the path %v has never answered", path.Addr)
			}
			// Trust, one heartbeat, the longest wait within a search, a new search.
			if patience := trust + heartbeat + 1600*ms + 500*ms; now.sub(good) > patience && (path.Kind == None || now.sub(worked[direct(path.Addr)]) > patience) {
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

// newRelays returns a script that has two relays, one of which has a load.
func newRelays(t *testing.T, load uint32) (s *script, busy, idle hop) {
	busy, idle = hop{via: &peer{id: identity.ID{3}}}, hop{via: &peer{id: identity.ID{4}}}
	busy.via.load.Store(load)
	s = newScript(t)
	s.p.replace(s.now, relay, []hop{busy, idle})
	s.p.want(s.now)
	return s, busy, idle
}

// A relay that can hardly carry more gives way to one that is farther away, but
// not to one that is too far; what is less than crowded is no reason.
func TestPathByLoad(t *testing.T) {
	for _, c := range []struct {
		load  uint32
		rtt   time.Duration // of the idle one; the other has 10 ms
		moves bool
	}{{0, 20 * ms, false}, {crowded, 20 * ms, false}, {255, 20 * ms, true}, {255, 70 * ms, true}, {255, 100 * ms, false}} {
		s, busy, idle := newRelays(t, c.load)
		s.pong(busy, 10*ms)
		s.pong(idle, c.rtt)
		if moved := s.p.best.hop == idle; moved != c.moves {
			t.Errorf("load %d, 10 ms or %v: moved %v", c.load, c.rtt, moved)
		}
	}
}

// A relay that becomes crowded is left within seconds. When the load has moved
// with the traffic, that stays where it is for a while.
func TestPathLeavesCrowdedRelay(t *testing.T) {
	s, first, second := newRelays(t, 0)
	s.pong(first, 10*ms)
	s.pong(second, 10*ms)
	moved := func(to hop, patience time.Duration) time.Duration {
		t.Helper()
		from := s.now
		for s.p.best.hop != to && s.now.sub(from) < patience {
			s.now = s.now.add(100 * ms)
			for _, h := range pinged(s.p.tick(s.now, s.now)) {
				s.p.pong(s.now, h, 10*ms, 0)
			}
		}
		return s.now.sub(from)
	}
	if d := moved(second, 3*recheck); d < 3*recheck {
		t.Fatalf("two relays that are alike take turns after %v", d)
	}
	first.via.load.Store(255)
	if d := moved(second, time.Minute); d > leave+heartbeat {
		t.Errorf("a crowded relay is left after %v", d)
	}
	first.via.load.Store(0)
	second.via.load.Store(255)
	if d := moved(first, 5*time.Minute); d < stay || d > stay+recheck+leave {
		t.Errorf("the traffic goes back after %v", d)
	}
}
