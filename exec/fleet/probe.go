package fleet

import (
	"context"
	"errors"
	"fmt"
	"math"
	"runtime"
	"slices"
	"sync"
	"time"

	"github.com/balanceai/balance/exec/task"
)

// offerVersion is the version of the format of an [Offer].
const offerVersion = 1

// Probe measures this machine. It asks the system and the drivers of the GPUs
// where they can be asked without a process; only the version of an engine
// takes one, once. It is safe for concurrent use.
//
// What cannot be measured is absent. A device whose driver fails, even in the
// middle, loses its values until it answers again; nothing else suffers.
type Probe struct {
	disk    string
	engines engineFinder

	mu      sync.Mutex // one measurement at a time: usage is a difference to the last
	host    *host
	sources []source
	cards   []card // in the order of the last offer

	portable bool // likewise
}

// source is a driver that knows GPUs.
type source interface {
	// cards lists the devices that are there now. It ends the use of those
	// that it listed before.
	cards() ([]card, error)
	close()
}

// card is one GPU.
type card interface {
	device() Device
	// measure gives what can be read now. detail asks also for what only
	// people look at: temperature and power.
	measure(detail bool) SampleGPU
}

// NewProbe returns a probe of this machine. disk is a folder on the file system
// that holds the runs. Call Close when done.
func NewProbe(disk string) *Probe { return newProbe("/", disk) }

// newProbe takes another folder for the root of the file system, where tests
// keep what they recorded of /proc and /sys.
func newProbe(root, disk string) *Probe {
	return &Probe{disk: disk, host: newHost(root), sources: gpuSources(root), engines: newEngineFinder()}
}

// Close lets go of the drivers.
func (p *Probe) Close() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, s := range p.sources {
		s.close()
	}
	p.cards = nil
}

// Offer looks at the machine anew and gives what can be measured of its offer.
// Labels, Drivers, Terms, Isolation and Program are the caller's to fill in.
//
// The error tells what could not be measured; the offer without it is good
// nevertheless. It takes milliseconds, or some seconds where a GPU has to wake
// or an engine is asked for its version.
func (p *Probe) Offer(ctx context.Context) (Offer, error) {
	_, zone := time.Now().Zone()
	o := Offer{
		Version: offerVersion,
		OS:      runtime.GOOS,
		Arch:    runtime.GOARCH,
		Zone:    zone,
		Engines: p.engines.find(ctx),
	}
	var diskErr error
	if o.Disk, _, diskErr = diskSpace(p.disk); diskErr != nil {
		diskErr = fmt.Errorf("measure the disk of %s: %w", p.disk, diskErr)
	}

	p.mu.Lock()
	defer p.mu.Unlock()
	var hostErr error
	o.CPUModel, o.CPU, o.Memory, hostErr = p.host.describe()
	o.Portable, _, _ = power("/") // what cannot be told is no laptop
	p.portable = o.Portable
	gpuErr := p.list()
	for _, c := range p.cards {
		o.GPUs = append(o.GPUs, c.device())
	}
	return o, errors.Join(hostErr, diskErr, gpuErr)
}

// list asks every driver for its devices.
func (p *Probe) list() error {
	p.cards = nil
	var errs []error
	for _, s := range p.sources {
		cards, err := s.cards()
		p.cards = append(p.cards, cards...)
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// reading is one measurement of everything that changes.
type reading struct {
	at        time.Time
	cpu       float64 // percent of all cores, or Unknown
	memory    task.Bytes
	available task.Bytes // what a new program could get
	disk      task.Bytes // free
	gpus      []SampleGPU
	unified   []bool // of each GPU
	onBattery bool
}

// measure takes a reading of the devices of the last offer.
func (p *Probe) measure(detail bool) reading {
	p.mu.Lock()
	defer p.mu.Unlock()
	r := reading{at: time.Now()}
	r.cpu, r.memory, r.available = p.host.usage()
	_, r.disk, _ = diskSpace(p.disk) // its offer says why it fails
	if p.portable {
		_, fed, err := power("/")
		r.onBattery = err == nil && !fed
	}
	for _, c := range p.cards {
		r.gpus = append(r.gpus, measureCard(c, detail))
		r.unified = append(r.unified, c.device().Unified)
	}
	return r
}

// measureCard measures a device, and takes a panic in its driver's binding for
// a device that does not answer.
func measureCard(c card, detail bool) (s SampleGPU) {
	defer func() {
		if recover() != nil {
			s = SampleGPU{UUID: c.device().UUID, Percent: Unknown}
		}
	}()
	return c.measure(detail)
}

// Held is what runs hold of the machine, and what its engines do.
type Held struct {
	Runs    []RunUse
	Devices []DeviceUse
	Taken   uint32        // runs, since the node was started
	Loaded  []string      // models in memory
	Asked   int           // requests for models that are being answered
	Queue   time.Duration // about how long a run would wait for its turn, where others wait
}

// DeviceUse is what one run holds of a GPU.
type DeviceUse struct {
	UUID  string
	Share int        // thousandths; 0: all of it
	VRAM  task.Bytes // that the run asked for; where it did not, its share of the device
	Owner string     // of the run
}

// hold notes a use of a device with so much VRAM.
func (g *LiveGPU) hold(u DeviceUse, vram task.Bytes) {
	if u.Share == 0 {
		g.Held = true
		return
	}
	g.Share += u.Share
	g.Promised += max(u.VRAM, vram.Part(u.Share))
	g.Owner = u.Owner
}

// Idle is a machine of which nothing is used.
func Idle(o *Offer) Live {
	l := Live{FreeMemory: o.Memory, FreeDisk: o.Disk}
	for _, d := range o.GPUs {
		l.GPUs = append(l.GPUs, LiveGPU{FreeVRAM: d.VRAM})
	}
	return l
}

// With returns what is free of a machine when runs hold h of it besides.
func (l Live) With(o *Offer, h Held) Live {
	for _, run := range h.Runs {
		l.HeldCPU += run.CPU
		l.HeldMemory += run.Memory
	}
	l.Runs += len(h.Runs)
	l.GPUs = slices.Clone(l.GPUs)
	for _, u := range h.Devices {
		for i, d := range o.GPUs[:min(len(o.GPUs), len(l.GPUs))] {
			if d.UUID == u.UUID {
				l.GPUs[i].hold(u, d.VRAM)
			}
		}
	}
	return l
}

// sample is a reading as those see it who watch.
func (r *reading) sample(h Held) Sample {
	return Sample{
		Time:       r.at,
		CPUPercent: r.cpu,
		MemoryUsed: r.memory - r.available,
		Memory:     r.memory,
		GPUs:       r.gpus,
		Runs:       h.Runs,
	}
}

// mostQueue bounds what a machine says of its line, in seconds.
const mostQueue = math.MaxUint16

// live is a reading as those see it who place runs.
func (r *reading) live(h Held) Live {
	l := Live{
		Millis:     r.at.UnixMilli(),
		FreeMemory: r.available,
		FreeDisk:   r.disk,
		Runs:       len(h.Runs),
		CPUPercent: int(math.Round(r.cpu)),
		Asked:      h.Asked,
		Taken:      h.Taken,
		OnBattery:  r.onBattery,
		Queue:      int(min(math.Ceil(h.Queue.Seconds()), mostQueue)),
	}
	l.SetLoaded(h.Loaded)
	for _, run := range h.Runs {
		l.HeldCPU += run.CPU
		l.HeldMemory += run.Memory
	}
	for i, g := range r.gpus {
		free := g.VRAM - g.VRAMUsed
		if r.unified[i] {
			free = min(free, r.available)
		}
		gpu := LiveGPU{FreeVRAM: free, Percent: int(math.Round(g.Percent))}
		for _, u := range h.Devices {
			if u.UUID == g.UUID {
				gpu.hold(u, g.VRAM)
			}
		}
		l.GPUs = append(l.GPUs, gpu)
	}
	return l
}
