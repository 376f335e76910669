package fleet

import (
	"context"
	"errors"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"
	"pgregory.net/rapid"

	"github.com/balanceai/balance/exec/task"
	"github.com/balanceai/balance/mesh/wire"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// fakeMachine is what a sampler measures in tests.
type fakeMachine struct {
	mu      sync.Mutex
	reading reading
	held    Held
	details int // readings with detail
	told    []Live
}

func (f *fakeMachine) measure(detail bool) reading {
	f.mu.Lock()
	defer f.mu.Unlock()
	if detail {
		f.details++
	}
	r := f.reading
	r.at = time.Now()
	return r
}

func (f *fakeMachine) start(t *testing.T) (*Sampler, func()) {
	s := newSampler(f.measure,
		func() Held { f.mu.Lock(); defer f.mu.Unlock(); return f.held },
		func(l Live) { f.mu.Lock(); defer f.mu.Unlock(); f.told = append(f.told, l) })
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { defer close(done); s.Run(ctx) }()
	return s, func() { cancel(); <-done }
}

// counts returns how often the mesh was told and how many detailed readings were
// taken, once everything that is due has happened.
func (f *fakeMachine) counts() (told, details int) {
	synctest.Wait()
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.told), f.details
}

// after changes the machine, and returns how often the mesh was told within the
// next second.
func (f *fakeMachine) after(change func()) int {
	before, _ := f.counts()
	f.mu.Lock()
	change()
	f.mu.Unlock()
	time.Sleep(time.Second)
	now, _ := f.counts()
	return now - before
}

func TestLiveIsToldOnChange(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fakeMachine{reading: reading{
			cpu: 20, memory: 64 * task.GiB, available: 32 * task.GiB,
			gpus: []SampleGPU{{UUID: "a", VRAM: 24 * task.GiB}}, unified: []bool{false},
		}}
		_, stop := f.start(t)
		defer stop()
		time.Sleep(100 * time.Millisecond) // between the ticks from here on
		if told, _ := f.counts(); told != 1 {
			t.Fatalf("told %d times at the start", told)
		}
		for _, tc := range []struct {
			name   string
			change func()
			want   int
		}{
			{"nothing", func() {}, 0},
			{"256 MiB of memory", func() { f.reading.available -= 256 * task.MiB }, 0},
			{"one more byte", func() { f.reading.available-- }, 1},
			{"CPU by 10 points", func() { f.reading.cpu = 30 }, 0},
			{"CPU by 11 points", func() { f.reading.cpu = 31 }, 1},
			{"CPU not measured", func() { f.reading.cpu = Unknown }, 1},
			{"VRAM", func() { f.reading.gpus[0].VRAMUsed = task.GiB }, 1},
			{"busy GPU", func() { f.reading.gpus[0].Percent = 100 }, 0},
			{"a run", func() { f.held.Runs = []RunUse{{CPU: 500, Memory: task.GiB}} }, 1},
			{"its device", func() { f.held.Devices = []DeviceUse{{UUID: "a"}} }, 1},
			{"another run of that size", func() { f.held.Runs = append(f.held.Runs, RunUse{}) }, 1},
			{"a device gone", func() { f.reading.gpus, f.reading.unified = nil, nil }, 1},
			{"little memory left", func() { f.reading.available = 100 * task.MiB }, 1},
			{"6 % of that", func() { f.reading.available -= 6 * task.MiB }, 1},
			{"used up", func() { f.reading.available = 0 }, 1},
		} {
			if got := f.after(tc.change); got != tc.want {
				t.Errorf("%s: told %d times, want %d", tc.name, got, tc.want)
			}
		}
	})
}

func TestLiveIsToldAtLeastEach15Seconds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fakeMachine{}
		_, stop := f.start(t)
		time.Sleep(61 * time.Second)
		stop()
		if len(f.told) != 5 {
			t.Errorf("told %d times in a minute, want 5", len(f.told))
		}
	})
}

func TestLiveOfNow(t *testing.T) {
	f := &fakeMachine{reading: reading{available: 10 * task.GiB, gpus: []SampleGPU{{UUID: "a", VRAM: 8, VRAMUsed: 3}}, unified: []bool{false}}}
	s := newSampler(f.measure, nil, nil)
	l := s.Live(Held{Runs: []RunUse{{CPU: 1500, Memory: task.GiB}, {CPU: 500, Memory: task.GiB}}, Devices: []DeviceUse{{UUID: "a"}}})
	if l.Runs != 2 || l.HeldCPU != 2000 || l.HeldMemory != 2*task.GiB || l.FreeMemory != 10*task.GiB {
		t.Errorf("got %+v", l)
	}
	same(t, l.GPUs, []LiveGPU{{FreeVRAM: 5, Held: true}})
}

// A device that works in the machine's memory cannot have more than is free.
func TestLiveOfUnifiedMemory(t *testing.T) {
	r := reading{available: 4 * task.GiB, gpus: []SampleGPU{{VRAM: 32 * task.GiB, VRAMUsed: task.GiB}, {VRAM: 32 * task.GiB}}, unified: []bool{true, false}}
	l := r.live(Held{})
	if l.GPUs[0].FreeVRAM != 4*task.GiB || l.GPUs[1].FreeVRAM != 32*task.GiB {
		t.Errorf("got %+v", l.GPUs)
	}
}

func TestWatch(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fakeMachine{reading: reading{cpu: 12.5, memory: 8, available: 3}, held: Held{Runs: []RunUse{{ID: "r-1"}}}}
		s, stop := f.start(t)
		defer stop()
		time.Sleep(10*time.Second + time.Millisecond)
		if _, details := f.counts(); details != 0 {
			t.Errorf("%d detailed readings with nobody watching", details)
		}
		full := errors.New("seen enough")
		var seen []Sample
		err := s.Watch(t.Context(), func(x Sample) error {
			if seen = append(seen, x); len(seen) == 3 {
				return full
			}
			return nil
		})
		if _, details := f.counts(); !errors.Is(err, full) || details != 3 {
			t.Errorf("error %v after %d detailed readings", err, details)
		}
		if x := seen[0]; x.CPUPercent != 12.5 || x.MemoryUsed != 5 || x.Memory != 8 || len(x.Runs) != 1 {
			t.Errorf("got %+v", x)
		}
		if gap := seen[2].Time.Sub(seen[1].Time); gap != time.Second {
			t.Errorf("samples are %v apart", gap)
		}
		time.Sleep(10 * time.Second)
		if _, details := f.counts(); details != 3 {
			t.Errorf("%d detailed readings after the end of Watch", details-3)
		}
	})
}

// A watcher that hangs holds up neither the others nor the sampler.
func TestSlowWatcher(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fakeMachine{}
		s, stop := f.start(t)
		defer stop()
		ctx, cancel := context.WithCancel(t.Context())
		var quick, slow []time.Time
		var all sync.WaitGroup
		all.Go(func() {
			_ = s.Watch(ctx, func(x Sample) error { quick = append(quick, x.Time); return nil })
		})
		all.Go(func() {
			_ = s.Watch(ctx, func(x Sample) error {
				slow = append(slow, x.Time)
				time.Sleep(4500 * time.Millisecond)
				return nil
			})
		})
		time.Sleep(10*time.Second + time.Millisecond)
		cancel()
		all.Wait()
		if len(quick) != 10 || len(slow) < 3 || len(slow) > 4 {
			t.Errorf("%d and %d samples in 10 s", len(quick), len(slow))
		}
		if behind := slow[1].Sub(slow[0]); behind != 4*time.Second {
			t.Errorf("second sample is %v after the first: the newest was not kept", behind)
		}
	})
}

func genLive(t *rapid.T) Live {
	n := rapid.IntRange(0, 72).Draw(t, "GPUs")
	l := Live{
		Millis:     rapid.Int64Range(0, 1<<62).Draw(t, "at"),
		HeldCPU:    task.CPU(rapid.Uint64().Draw(t, "cpu")),
		HeldMemory: task.Bytes(rapid.Uint64().Draw(t, "held")),
		FreeMemory: task.Bytes(rapid.Uint64().Draw(t, "memory")),
		FreeDisk:   task.Bytes(rapid.Uint64().Draw(t, "disk")),
		Runs:       rapid.IntRange(0, 65535).Draw(t, "runs"),
		CPUPercent: rapid.IntRange(Unknown, 100).Draw(t, "percent"),
		Taken:      rapid.Uint32().Draw(t, "taken"),
		OnBattery:  rapid.Bool().Draw(t, "battery"),
		Queue:      rapid.IntRange(0, mostQueue).Draw(t, "queue"),
	}
	for range n {
		l.GPUs = append(l.GPUs, LiveGPU{
			FreeVRAM: task.Bytes(rapid.Uint64().Draw(t, "vram")),
			Held:     rapid.Bool().Draw(t, "held"),
			Percent:  rapid.IntRange(Unknown, 100).Draw(t, "busy"),
		})
	}
	return l
}

func TestTrim(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		l := genLive(t)
		short := l.Trim()
		b, err := wire.Marshal(short)
		if err != nil {
			t.Fatal(err)
		}
		if len(b) > MaxLive {
			t.Fatalf("%d devices take %d bytes", len(l.GPUs), len(b))
		}
		if len(l.GPUs) <= 14 && len(short.GPUs) != len(l.GPUs) {
			t.Fatalf("%d of %d devices are left", len(short.GPUs), len(l.GPUs))
		}
		for i, g := range short.GPUs {
			if want := l.GPUs[i]; g.Held != want.Held || !g.Held && g != want {
				t.Fatalf("device %d: %+v became %+v", i, want, g)
			}
		}
		var back Live
		if err := wire.Unmarshal(b, &back); err != nil {
			t.Fatal(err)
		}
	})
}

// Sixteen devices, as the largest machines have them, are all told unless
// nearly all are free.
func TestTrimSixteen(t *testing.T) {
	var l Live
	for i := range 16 {
		l.GPUs = append(l.GPUs, LiveGPU{FreeVRAM: 140 * task.GiB, Held: i < 2, Percent: 100})
	}
	if n := len(l.Trim().GPUs); n != 16 {
		t.Errorf("%d of 16 devices are left", n)
	}
}

// Runs that share a device add up, and others hold all of theirs.
func TestLiveOfSharedDevices(t *testing.T) {
	r := reading{gpus: []SampleGPU{{UUID: "a", VRAM: 10 * task.GiB}, {UUID: "b", VRAM: 10 * task.GiB}, {UUID: "c", VRAM: 10 * task.GiB}}, unified: make([]bool, 3)}
	l := r.live(Held{Devices: []DeviceUse{
		{UUID: "a", Share: 250, Owner: "ana"},
		{UUID: "a", Share: 100, VRAM: 4 * task.GiB, Owner: "ana"},
		{UUID: "b", VRAM: task.GiB, Owner: "ben"},
	}})
	a, b, c := l.GPUs[0], l.GPUs[1], l.GPUs[2]
	if a.Held || a.Share != 350 || a.Owner != "ana" || a.Promised < 6*task.GiB || a.Promised > 7*task.GiB {
		t.Errorf("shared: %+v", a)
	}
	if !b.Held || b.Share != 0 || c.Held || c.Share != 0 {
		t.Errorf("held %+v, free %+v", b, c)
	}
	old := r.live(Held{})
	if !l.differs(&old) {
		t.Error("that a device is shared is told to nobody")
	}
}

func TestTrimOfSharedDevices(t *testing.T) {
	l := Live{}
	for range 16 {
		l.GPUs = append(l.GPUs, LiveGPU{FreeVRAM: 79 * task.GiB, Share: 999, Promised: 78 * task.GiB, Owner: strings.Repeat("o", 63), Percent: 100})
	}
	l = l.Trim()
	if b, err := wire.Marshal(l); err != nil || len(b) > MaxLive || len(l.GPUs) == 0 {
		t.Errorf("%d bytes for %d devices, %v", len(b), len(l.GPUs), err)
	}
}
