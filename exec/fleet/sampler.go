package fleet

import (
	"context"
	"slices"
	"sync"
	"time"

	"github.com/balanceai/balance/exec/task"
)

// How often a [Sampler] measures, and the longest that it stays silent about
// what is free.
const (
	samplePeriod = time.Second
	livePeriod   = 15 * time.Second
	hurryPause   = 250 * time.Millisecond
)

// Sampler watches this machine. Once a second it takes a reading, which costs
// next to nothing; whoever watches gets it as a [Sample], and the mesh is told
// a new [Live] when enough has changed.
type Sampler struct {
	measure func(detail bool) reading
	held    func() Held
	tell    func(Live)

	told   Live // by Run alone
	toldAt time.Time
	hurry  chan struct{} // of one: what runs hold has changed

	mu       sync.Mutex
	last     reading
	watchers map[chan Sample]struct{}
}

// NewSampler takes a first reading of p, whose Offer has been called.
//
// held says what runs hold now. tell is given what is free when Run starts,
// then on a change that matters: of what runs hold at once, of the rest at most
// once a second; and at least each 15 seconds. It must be quick.
func NewSampler(p *Probe, held func() Held, tell func(Live)) *Sampler {
	return newSampler(p.measure, held, tell)
}

func newSampler(measure func(bool) reading, held func() Held, tell func(Live)) *Sampler {
	return &Sampler{
		measure: measure, held: held, tell: tell, hurry: make(chan struct{}, 1),
		last: measure(false), watchers: map[chan Sample]struct{}{},
	}
}

// Run measures until ctx ends.
func (s *Sampler) Run(ctx context.Context) {
	ticker := time.NewTicker(samplePeriod)
	defer ticker.Stop()
	s.publish(s.Live(s.held()), time.Now())
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
			s.tick()
		case <-s.hurry:
			s.publishIfNew(s.Live(s.held()), time.Now())
			select { // many changes are told at once
			case <-ctx.Done():
				return
			case <-time.After(hurryPause):
			}
		}
	}
}

// Hurry tells that what runs hold has changed: the mesh hears of it now, not with
// the next measurement.
func (s *Sampler) Hurry() {
	select {
	case s.hurry <- struct{}{}:
	default: // Run is about to look
	}
}

// tick takes a reading and gives it to everybody.
func (s *Sampler) tick() {
	s.mu.Lock()
	watched := len(s.watchers) > 0
	s.mu.Unlock()
	r, h := s.measure(watched), s.held()

	s.mu.Lock()
	s.last = r
	for ch := range s.watchers {
		select {
		case <-ch: // a slow watcher loses the old one
		default:
		}
		ch <- r.sample(h)
	}
	s.mu.Unlock()

	s.publishIfNew(r.live(h), r.at)
}

func (s *Sampler) publishIfNew(l Live, at time.Time) {
	// Not by l.Millis: the clock of the day may be put back.
	if l.differs(&s.told) || at.Sub(s.toldAt) >= livePeriod {
		s.publish(l, at)
	}
}

func (s *Sampler) publish(l Live, at time.Time) {
	s.told, s.toldAt = l, at
	s.tell(l)
}

// Live returns what is free by the last reading, at most a second old while
// Run runs, with what h says is held. It measures nothing, so that admission
// of a run does not wait for a driver.
func (s *Sampler) Live(h Held) Live {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.last.live(h)
}

// Watch yields a sample each second until ctx ends or yield fails, and returns
// the error. A yield that takes longer misses samples.
func (s *Sampler) Watch(ctx context.Context, yield func(Sample) error) error {
	ch := make(chan Sample, 1)
	s.mu.Lock()
	s.watchers[ch] = struct{}{}
	s.mu.Unlock()
	defer func() {
		s.mu.Lock()
		delete(s.watchers, ch)
		s.mu.Unlock()
	}()
	for ctx.Err() == nil { // select alone might prefer a sample to the end
		select {
		case <-ctx.Done():
		case sample := <-ch:
			if err := yield(sample); err != nil {
				return err
			}
		}
	}
	return ctx.Err()
}

// differs reports whether those who place runs should hear of l, having heard
// of old.
func (l *Live) differs(old *Live) bool {
	if l.Runs != old.Runs || l.HeldCPU != old.HeldCPU || l.HeldMemory != old.HeldMemory ||
		len(l.GPUs) != len(old.GPUs) || far(l.FreeMemory, old.FreeMemory) || !slices.Equal(l.Loaded, old.Loaded) || l.Asked != old.Asked || l.OnBattery != old.OnBattery ||
		max(l.Queue, old.Queue) > 2*min(l.Queue, old.Queue) {
		return true
	}
	for i, g := range l.GPUs {
		if o := old.GPUs[i]; g.Held != o.Held || g.Share != o.Share || far(g.FreeVRAM, o.FreeVRAM) {
			return true
		}
	}
	change := l.CPUPercent - old.CPUPercent
	return max(change, -change) > 10
}

// far reports whether an amount has changed by more than 256 MiB or 5 %.
func far(now, old task.Bytes) bool {
	change := max(now, old) - min(now, old)
	return change > 256*task.MiB || change > old/20
}

// MaxLive bounds the encoded form of a trimmed [Live] in bytes, so that it fits
// into a gossip message with room to spare.
const MaxLive = 308

// What the parts of an encoded Live take at most, in bytes.
const (
	liveBase  = 70 // all but the devices
	liveFree  = 16 // a device
	liveTold  = 17 // more of one that runs share, and the name of their owner
	liveHeld  = 7  // a device of which nothing is told but that it is held
	liveModel = 3  // a model in memory
	liveQueue = 4  // that others wait
	liveAsks  = 10 // that there are any, and the requests for them
)

// Trim makes l short enough for gossip. Up to 14 devices pass unchanged where no
// model is in memory. Of more, those that are held tell nothing else, and what still does not fit is
// left out from the end: of a device that is in the offer and not in the Live
// nothing is said, and the machine itself decides.
func (l Live) Trim() Live {
	room := MaxLive - liveBase
	if len(l.Loaded) > 0 || l.Asked > 0 {
		room -= liveAsks + len(l.Loaded)*liveModel
	}
	if l.Queue > 0 {
		room -= liveQueue
	}
	all := 0
	for _, g := range l.GPUs {
		all += g.cost()
	}
	if all <= room {
		return l
	}
	var kept []LiveGPU
	for _, g := range l.GPUs {
		cost := g.cost()
		if g.Held {
			g, cost = LiveGPU{Held: true, Percent: Unknown}, liveHeld
		}
		if room -= cost; room < 0 {
			break
		}
		kept = append(kept, g)
	}
	l.GPUs = kept
	return l
}

// cost bounds what the encoded form of a device takes, in bytes.
func (g *LiveGPU) cost() int {
	if g.Share == 0 {
		return liveFree
	}
	return liveFree + liveTold + len(g.Owner)
}
