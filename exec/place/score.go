package place

import (
	"fmt"
	"slices"
	"time"

	"github.com/balanceai/balance/exec/fleet"
	"github.com/balanceai/balance/exec/task"
)

// What the parts of a score give. The unit is one level of packing, which is
// [levelPoints]. A run that could start twice as soon goes there; else packing
// decides, unless a preference outweighs it; what is then still equal goes to
// the machine that is nearer, and has the least CPU left over.
const (
	levelPoints = 100
	startPoints = 60 * levelPoints // for each halving of the time to start
	slowest     = 6                // halvings that count: after a minute, late is late
	ownerPoints = 10 * levelPoints
	wishPoints  = 20 * levelPoints // for a label that the run prefers
	powerPoints = 8 * levelPoints  // for a machine that is no laptop; half for one that is plugged in
	selfPoints  = 5 * levelPoints  // for the submitter's own machine
	nearPoints  = 4 * levelPoints  // for one beside it
	fitPoints   = levelPoints - 1
)

// halfPath is the round trip that halves the points for the path: about that
// between two towns of one country.
const halfPath = 20 * time.Millisecond

// What a link is taken to carry, in bytes a second, until something large has been
// sent over it; and what else costs time.
const (
	lanRate      = 60e6
	directRate   = 8e6
	relayRate    = 2e6
	imageStart   = 500 * time.Millisecond
	suspectStart = 10 * time.Second // a machine that has not answered lately may be gone
)

// score returns the parts of the machine's score for a run. It is asked only
// where the run fits.
func (f *fit) score() []task.Part {
	start, why := f.start()
	parts := []task.Part{
		{Name: "start", Text: "starts in about " + seconds(start) + why, Points: startScore(start)},
		f.scorePacking(),
		f.scoreOwner(),
	}
	if len(f.spec.Prefer) > 0 {
		parts = append(parts, f.scoreWishes())
	}
	left := f.cpu - f.needs.CPU
	return append(parts, f.scorePower(), f.scorePath(), task.Part{
		Name: "cpu", Text: "leaves " + left.String() + " of " + f.offer.CPU.String() + " cores", Points: f.fitScore(),
	})
}

// total returns the sum of the parts of the score, without their words.
func (f *fit) total() int {
	start, _ := f.start()
	return startScore(start) + f.packs(f.devices)*levelPoints + f.scoreOwner().Points + f.scoreWishes().Points + f.scorePower().Points + f.nearScore() + f.fitScore()
}

// start estimates when the run could start: after those who wait there already, and
// when what it needs has travelled to the machine, over the path to it.
func (f *fit) start() (time.Duration, string) {
	wait := time.Duration(f.live.Queue) * time.Second
	why := ""
	if wait > 0 {
		why = ", as others wait there"
	}
	if f.spec.Driver == task.DriverImage {
		wait += imageStart
	}
	size := f.toSend()
	if f.node.Self && size == 0 {
		return wait, why
	}
	if f.node.State == fleet.Suspect {
		wait += suspectStart
	}
	rate, way := float64(directRate), "directly"
	switch f.node.Path.Kind {
	case fleet.PathLAN:
		rate, way = lanRate, "on the local network"
	case fleet.PathRelay, fleet.PathTCP, fleet.PathNone:
		rate, way = relayRate, "over a slow path"
	}
	if m := f.node.Path.Rate; m > 0 {
		rate, way = float64(m), way+" at the measured "+m.String()+"/s"
	}
	wait += 2*f.node.Path.RTT + time.Duration(float64(size)/rate*float64(time.Second))
	if size == 0 {
		return wait, why
	}
	return wait, why + fmt.Sprintf(", with %v to send %s", size, way)
}

// toSend is what the machine lacks of what the run needs: its inputs, which its
// submitter has, and the weights of a model that it serves.
func (f *fit) toSend() (size task.Bytes) {
	if !f.node.Self {
		for _, in := range f.spec.Inputs {
			size += in.Size
		}
	}
	if v := f.spec.Serve; v != nil && !slices.Contains(v.On, f.node.ID) {
		size += v.Size
	}
	return size
}

// startScore gives points for each halving, from a minute down to a second.
func startScore(d time.Duration) int {
	late := 0
	for s := d.Seconds(); s >= 1 && late < slowest; s /= 2 {
		late++
	}
	return (slowest - late) * startPoints
}

func seconds(d time.Duration) string {
	if d < 100*time.Millisecond {
		return "0.1 s or less"
	}
	return fmt.Sprintf("%.1f s", d.Seconds())
}

// scorePacking says what of the machine usual runs could not use any more.
func (f *fit) scorePacking() task.Part {
	p := task.Part{Name: "packing", Points: f.packs(f.devices) * levelPoints}
	if len(f.pool) == 0 {
		p.Text = "has no GPU to leave idle"
		return p
	}
	idle, useless := f.scale.workload.fragmented(f.stand, int64(f.cpu)-int64(f.needs.CPU), f.claims(f.devices))
	if len(f.devices) > 0 {
		p.Text = f.vramLeft()
	}
	if idle == 0 {
		p.Text += "leaves no GPU idle"
		return p
	}
	p.Text += fmt.Sprintf("leaves %s idle, %.0f %% of it useless to a usual run", devices(idle), 100*useless/float64(idle))
	return p
}

// vramLeft says what the run leaves of its devices' memory, as the beginning of a
// sentence.
func (f *fit) vramLeft() string {
	var free, all task.Bytes
	for _, d := range f.devices {
		free += d.free - f.vram(d)
		all += d.VRAM
	}
	if all == 0 {
		return ""
	}
	return fmt.Sprintf("leaves %v of %v of VRAM, ", free, all)
}

// devices writes thousandths of devices.
func devices(n int) string {
	if n == whole {
		return "1 GPU"
	}
	return fmt.Sprintf("%.4g GPUs", float64(n)/whole)
}

func (f *fit) scoreOwner() task.Part {
	if f.node.Owner == f.from.Owner {
		return task.Part{Name: "owner", Text: "belongs to the same owner", Points: ownerPoints}
	}
	return task.Part{Name: "owner", Text: "belongs to " + f.node.Owner}
}

// scoreWishes gives points for labels that the run prefers, the first ones more.
func (f *fit) scoreWishes() task.Part {
	for i, l := range f.spec.Prefer {
		if miss := missing([]string{l}, f.offer.Has); len(miss) == 0 {
			return task.Part{Name: "prefer", Text: "has the label " + l, Points: wishPoints / (i + 1)}
		}
	}
	return task.Part{Name: "prefer", Text: "has no label that the run prefers"}
}

// scorePower keeps laptops free, those that live on their battery most of all.
func (f *fit) scorePower() task.Part {
	p := task.Part{Name: "power", Text: "is no laptop", Points: powerPoints}
	switch {
	case f.offer.Portable && f.live.OnBattery:
		p.Text, p.Points = "lives on its battery", 0
	case f.offer.Portable:
		p.Text, p.Points = "is a laptop, plugged in", powerPoints/2
	}
	return p
}

// fitScore gives the more the less CPU is left over.
func (f *fit) fitScore() int {
	const half = 64 * task.Core
	return int(fitPoints * half / (half + f.cpu - f.needs.CPU))
}

func (f *fit) scorePath() task.Part {
	part := task.Part{Name: "path", Points: f.nearScore()}
	p := f.node.Path
	switch {
	case f.node.Self:
		part.Text = "is this machine"
	case f.node.State == fleet.Suspect:
		part.Text = "has not answered lately"
	case p.Kind == fleet.PathRelay:
		part.Text = "reached through " + p.Via
	case p.Kind != fleet.PathLAN && p.Kind != fleet.PathDirect && p.Kind != fleet.PathTCP:
		part.Text = "no path is known"
	case p.RTT <= 0:
		part.Text = p.Kind + " path, round trip not measured"
	default:
		part.Text = p.Kind + " path, round trip " + short(p.RTT).String()
	}
	return part
}

func (f *fit) nearScore() int {
	p := f.node.Path
	near := nearPoints / (1 + float64(p.RTT)/float64(halfPath))
	switch {
	case f.node.Self:
		return selfPoints
	case f.node.State == fleet.Suspect || p.RTT <= 0:
		return 0
	case p.Kind == fleet.PathRelay:
		near /= 2
	case p.Kind != fleet.PathLAN && p.Kind != fleet.PathDirect:
		return 0
	}
	return int(near/levelPoints+0.5) * levelPoints // or noise would outweigh the CPU that is left
}

// fraction is part of whole, from 0 to 1, whatever a machine claims; 1 where the
// whole is not known.
func fraction[T int | task.CPU | task.Bytes](part, whole T) float64 {
	if part >= whole {
		return 1
	}
	return float64(part) / float64(whole)
}

// short keeps two or three digits of a round trip.
func short(d time.Duration) time.Duration {
	if d < time.Millisecond {
		return d.Round(10 * time.Microsecond)
	}
	return d.Round(100 * time.Microsecond)
}
