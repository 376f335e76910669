package lease

import (
	"errors"
	"math"
	"testing"
	"time"

	"pgregory.net/rapid"
)

func TestHolder(t *testing.T) {
	const length = 10 * time.Second
	h := NewHolder(length)
	first, err := h.Renew(100, 0)
	if err != nil || first == 0 || h.Until() != 0 {
		t.Fatalf("stamp %d, until %v: %v", first, h.Until(), err)
	}
	if _, err := h.Renew(200, first+1); err != nil || h.Until() != 0 {
		t.Fatalf("a stamp that was never given grants %v: %v", h.Until(), err)
	}
	if _, err := h.Renew(300, first); err != nil || h.Until() != 0 {
		t.Fatalf("a stamp that is not the last one grants %v: %v", h.Until(), err)
	}
	h = NewHolder(length)
	first, _ = h.Renew(100, 0)
	if _, err := h.Renew(200, first); err != nil || h.Until() != 100+length {
		t.Fatalf("until %v: %v", h.Until(), err)
	}
	if h.Lapsed(100+length-1) || !h.Lapsed(100+length) || !h.Lapsed(0) {
		t.Error("it lapses at its end, and for good")
	}
	if _, err := h.Renew(150, 0); !errors.Is(err, ErrLapsed) {
		t.Errorf("renewed after its end: %v", err)
	}
	h = NewHolder(length)
	first, _ = h.Renew(100, 0)
	if _, err := h.Renew(100+length, first); !errors.Is(err, ErrLapsed) || h.Until() == 0 {
		t.Errorf("a stamp that was under way for longer than the lease grants it until %v: %v", h.Until(), err)
	}
}

func TestNow(t *testing.T) {
	before := Now()
	time.Sleep(time.Millisecond)
	if after := Now(); before <= 0 || after-before < time.Millisecond {
		t.Errorf("%v, a millisecond later %v", before, after)
	}
}

// world is a run, those who may dispatch it one after the other, and machines:
// the protocol without I/O. Requests and answers are delayed, lost and paused at
// will, clocks begin anywhere and run at speeds of their own.
type world struct {
	t        *rapid.T
	length   time.Duration
	now      time.Duration // true time
	offset   []time.Duration
	speed    []float64 // of the machines' clocks, the dispatcher's last
	attempts []*attempt
	giver    *Giver
	wire     []message
}

type attempt struct {
	machine int
	holder  *Holder
	running bool
}

// message is under way: to a machine with what the dispatcher saw, or back.
type message struct {
	attempt int
	back    bool
	stamp   uint64
}

func (w *world) clock(i int) time.Duration {
	return w.offset[i] + time.Duration(float64(w.now)*w.speed[i])
}

func (w *world) dispatcher() time.Duration { return w.clock(len(w.speed) - 1) }

func (w *world) place() {
	machine := rapid.IntRange(0, len(w.speed)-2).Draw(w.t, "machine")
	w.attempts = append(w.attempts, &attempt{machine: machine, holder: NewHolder(w.length)})
	w.giver = NewGiver(w.length, w.dispatcher())
}

// step is one thing that happens somewhere.
func (w *world) step() {
	switch rapid.IntRange(0, 9).Draw(w.t, "step") {
	case 0, 1, 2, 3:
		w.sleep()
		w.ask(message{attempt: len(w.attempts) - 1, stamp: w.giver.Seen()})
	case 4, 5:
		w.sleep()
	case 6: // what was under way arrives after all
		if n := len(w.wire); n > 0 {
			w.ask(w.wire[rapid.IntRange(0, n-1).Draw(w.t, "message")])
		}
	case 7: // a machine gets to look at its clock
		w.look(w.attempts[rapid.IntRange(0, len(w.attempts)-1).Draw(w.t, "looks")])
	case 8: // the dispatcher dies and comes back
		w.giver = NewGiver(w.length, w.dispatcher())
	case 9:
		w.sleepUntilFree()
		w.place()
	}
}

func (w *world) sleep() {
	w.now += rapid.SampledFrom([]time.Duration{0, 1, w.length / 20, w.length / 4, w.length / 2, w.length - 1, w.length}).Draw(w.t, "sleep")
}

// sleepUntilFree lets the dispatcher wait no longer than it must.
func (w *world) sleepUntilFree() {
	for w.dispatcher() < w.giver.Free() {
		w.now += max(1, time.Duration(float64(w.giver.Free()-w.dispatcher())/w.speed[len(w.speed)-1]))
	}
}

// ask brings a message where it goes: now, now and once more later, or later.
func (w *world) ask(m message) {
	fate := rapid.IntRange(0, 3).Draw(w.t, "fate")
	if fate != 0 {
		w.wire = append(w.wire, m)
	}
	if fate == 3 {
		return
	}
	if m.back {
		if m.attempt == len(w.attempts)-1 {
			w.giver.Came(w.dispatcher(), m.stamp)
		}
		return
	}
	a := w.attempts[m.attempt]
	w.settle()
	stamp, err := a.holder.Renew(w.clock(a.machine), m.stamp)
	if err != nil {
		return
	}
	a.running = a.running || a.holder.Until() > 0
	w.ask(message{attempt: m.attempt, back: true, stamp: stamp})
}

func (w *world) look(a *attempt) {
	if a.running && a.holder.Lapsed(w.clock(a.machine)) {
		a.running = false
	}
}

// settle gives every machine the look at its clock that it has had, at the
// latest, by now.
func (w *world) settle() {
	for _, a := range w.attempts {
		if w.clock(a.machine) >= a.holder.Until()+Step(w.length) {
			w.look(a)
		}
	}
}

// At no moment two machines run, whatever the network, the pauses and the clocks
// do (R4, R6, R23).
func TestOneHolder(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w := &world{t: t, length: time.Duration(rapid.IntRange(int(Shortest), int(time.Hour)).Draw(t, "length"))}
		for range 4 {
			w.offset = append(w.offset, time.Duration(rapid.IntRange(0, math.MaxInt32).Draw(t, "offset")))
			w.speed = append(w.speed, 1+float64(rapid.IntRange(-400, 400).Draw(t, "ppm"))/1e6)
		}
		w.place()
		for range rapid.IntRange(1, 200).Draw(t, "steps") {
			w.step()
			w.settle()
			for i, a := range w.attempts[:len(w.attempts)-1] {
				if a.running {
					t.Fatalf("attempt %d of %d runs", i+1, len(w.attempts))
				}
			}
		}
	})
}
