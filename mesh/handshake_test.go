package mesh

import (
	"bytes"
	"encoding/binary"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"
)

// wgEnd behaves as WireGuard does in a handshake with one peer: there is one
// state, which the last message that was made or consumed has written.
type wgEnd struct {
	h         handshakes
	created   uint32             // index of our initiation that waits for a response; 0: none
	consumed  uint32             // index of the peer's initiation that waits for ours; 0: none
	lastStamp uint32             // of the initiations consumed
	next      uint32             // index of a session that the peer has not confirmed
	passed    map[string]instant // when WireGuard last saw a message
	session   bool
}

// wgLab is two such ends and the datagrams between them. Between WireGuard's
// change of state and the bind's part in it some time passes, as they run in
// several goroutines.
type wgLab struct {
	ends   [2]wgEnd
	index  uint32 // the last one given; also the time stamp
	events map[instant][]func()
	delay  func() time.Duration // of a datagram
	gap    func() time.Duration // between goroutines
	lost   func() bool
	open   instant     // before it, all is lost
	twice  func() bool // a datagram arrives twice
	fail   func(...any)
}

func (l *wgLab) at(t instant, f func()) { l.events[t] = append(l.events[t], f) }

// send carries a message to the other end.
func (l *wgLab) send(now instant, from int, msg []byte) {
	if msg == nil || now < l.open || l.lost() {
		return
	}
	t := now.add(l.delay())
	l.at(t, func() { l.receive(t, 1-from, msg) })
	if l.twice() {
		l.at(t, func() { l.receive(t, 1-from, msg) })
	}
}

func (l *wgLab) initiate(now instant, i int) {
	e := &l.ends[i]
	l.index++
	e.created, e.consumed = l.index, 0
	msg := make([]byte, 148)
	msg[0] = initiation
	binary.LittleEndian.PutUint32(msg[4:], l.index)
	t := now.add(l.gap())
	l.at(t, func() {
		if e.h.initiated(t, msg) {
			l.send(t, i, msg)
		}
	})
}

func (l *wgLab) receive(now instant, i int, msg []byte) {
	e := &l.ends[i]
	switch msg[0] {
	case initiation:
		pass, send := e.h.arrives(now, msg)
		l.send(now, i, send)
		if pass {
			l.see(now, e, msg)
			t := now.add(l.gap())
			l.at(t, func() { l.consume(t, i, binary.LittleEndian.Uint32(msg[4:])) })
		}
	case response:
		if !e.h.answered(msg) {
			return
		}
		l.see(now, e, msg)
		if got := binary.LittleEndian.Uint32(msg[8:]); got == e.created {
			e.created, e.session = 0, true
			keepalive := make([]byte, 32)
			keepalive[0] = transport
			binary.LittleEndian.PutUint32(keepalive[4:], got)
			l.send(now, i, keepalive)
		}
	case transport:
		e.session = e.session || e.next == binary.LittleEndian.Uint32(msg[4:])
	}
}

// see fails if WireGuard sees two copies of a message at nearly the same time.
func (l *wgLab) see(now instant, e *wgEnd, msg []byte) {
	if last, ok := e.passed[string(msg)]; ok && last.within(precedence, now) {
		l.fail("two copies of a message", msg[0], now.sub(last))
	}
	e.passed[string(msg)] = now
}

func (l *wgLab) consume(now instant, i int, stamp uint32) {
	e := &l.ends[i]
	if stamp <= e.lastStamp {
		return
	}
	e.lastStamp, e.consumed, e.created = stamp, stamp, 0
	t := now.add(l.gap())
	l.at(t, func() { l.respond(t, i) })
}

// respond happens unless something else has come in between.
func (l *wgLab) respond(now instant, i int) {
	e := &l.ends[i]
	if e.consumed == 0 {
		return
	}
	msg := make([]byte, 92)
	msg[0] = response
	binary.LittleEndian.PutUint32(msg[8:], e.consumed)
	e.next, e.consumed = e.consumed, 0
	t := now.add(l.gap())
	l.at(t, func() {
		e.h.responded(t, msg)
		l.send(t, i, msg)
	})
}

// run goes on for so long.
func (l *wgLab) run(d time.Duration) {
	for now := start; now < start.add(d); now = now.add(ms) {
		for i := range l.ends {
			if h := &l.ends[i].h; h.next != 0 && h.next <= now {
				l.send(now, i, h.again(now))
			}
		}
		for len(l.events[now]) > 0 {
			f := l.events[now][0]
			l.events[now] = l.events[now][1:]
			f()
		}
	}
}

// Whenever the two ends begin, however slow they are, and with a datagram lost:
// there is a session before WireGuard itself would try again.
func TestHandshakes(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		slowest := rapid.IntRange(0, 50).Draw(t, "slowest")
		losses := rapid.SliceOfN(rapid.IntRange(0, 12), 0, 2).Draw(t, "losses")
		sent := 0
		l := &wgLab{
			events: map[instant][]func(){},
			delay:  func() time.Duration { return time.Duration(rapid.IntRange(0, slowest).Draw(t, "delay")) * ms },
			gap:    func() time.Duration { return time.Duration(rapid.IntRange(0, 2).Draw(t, "gap")) * ms },
			twice:  func() bool { return rapid.IntRange(0, 9).Draw(t, "twice") == 9 },
			fail:   t.Fatal,
			lost: func() bool {
				sent++
				return slices.Contains(losses, sent)
			},
		}
		l.ends[0].h.first = true
		l.ends[0].passed, l.ends[1].passed = map[string]instant{}, map[string]instant{}
		who := rapid.SampledFrom([][]int{{0}, {1}, {0, 1}}).Draw(t, "who")
		for _, i := range who {
			begin := start.add(time.Duration(rapid.OneOf(rapid.IntRange(0, 60), rapid.IntRange(0, 1000)).Draw(t, "begin")) * ms)
			l.at(begin, func() { l.initiate(begin, i) })
		}
		l.open = start.add(time.Duration(rapid.OneOf(rapid.Just(0), rapid.IntRange(0, 1000)).Draw(t, "open")) * ms)
		found := rapid.SliceOfN(rapid.OneOf(rapid.IntRange(0, 20), rapid.IntRange(0, 1000)), 0, 4).Draw(t, "paths found")
		for _, at := range append(found, 0) {
			found := l.open.add(time.Duration(at) * ms)
			for i := range l.ends {
				l.at(found, func() { l.send(found, i, l.ends[i].h.again(found)) })
			}
		}
		l.run(4 * time.Second)
		if !l.ends[0].session && !l.ends[1].session {
			t.Fatalf("no session: %+v", l.ends)
		}
	})
}

// An initiation that nobody answers is not sent for ever.
func TestHandshakeEnds(t *testing.T) {
	var h handshakes
	h.initiated(start, make([]byte, 148))
	now, sent := start, 1
	for h.next != 0 {
		now = h.next
		if h.again(now) != nil {
			sent++
		}
	}
	if sent < 4 || sent > 8 || now.sub(start) > 2*handshakeLife {
		t.Errorf("sent %d times in %v", sent, now.sub(start))
	}
}

// While WireGuard's peer is made anew, no initiation gets to it that it would
// answer together with beginning itself.
func TestHandshakeRestart(t *testing.T) {
	their, ours := make([]byte, 148), make([]byte, 148)
	their[4], ours[4] = 1, 2
	p := &peer{instance: 1, restarted: 2}
	p.waking.Do(func() {})            // it is in use
	if p.initiated(start, their, 1) { // by a relay, of which the last probe is older
		t.Error("an initiation passes while the restart is being dealt with")
	}
	h := handshakes{}
	if pass, _ := h.arrives(start, their); !pass {
		t.Fatal("an initiation does not pass")
	}
	if h = h.renewed(start.add(ms)); h.initiated(start.add(ms), ours) {
		t.Error("an initiation leaves while WireGuard may be answering one")
	}
	if !bytes.Equal(h.again(start.add(2*retry)), ours) {
		t.Error("it does not leave later")
	}
}

// Messages that are cut short do no harm.
func TestHandshakeDamaged(t *testing.T) {
	var h handshakes
	h.initiated(start, []byte{initiation})
	h.answered([]byte{response})
	h.arrives(start, []byte{initiation})
	h.responded(start, []byte{response})
	h.answered(make([]byte, 92))
	if h.reply != nil {
		t.Error("a response to nothing is kept")
	}
}
