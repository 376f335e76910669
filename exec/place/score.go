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
	start := f.start()
	parts := []task.Part{
		{Name: "start", Text: "starts in about " + seconds(start) + f.why(), Points: startScore(start)},
		f.scorePacking(),
		ownerScore(f.node, f.from.Owner),
	}
	if len(f.spec.Prefer) > 0 {
		parts = append(parts, wishScore(f.spec.Prefer, f.offer))
	}
	left := f.cpu - f.needs.CPU
	return append(parts, powerScore(f.offer, &f.live), f.scorePath(), task.Part{
		Name: "cpu", Text: "leaves " + left.String() + " of " + f.offer.CPU.String() + " cores", Points: fitScore(left),
	})
}

// total returns the sum of the parts of the score, without their words.
func (f *fit) total() int {
	return startScore(f.start()) + f.packs(f.devices)*levelPoints + ownerScore(f.node, f.from.Owner).Points + wishScore(f.spec.Prefer, f.offer).Points +
		powerScore(f.offer, &f.live).Points + nearScore(f.node) + fitScore(f.cpu-f.needs.CPU)
}

// start estimates when the run could start: after those who wait there already, and
// when what it needs has travelled to the machine, over the path to it.
func (f *fit) start() time.Duration {
	return startOf(f.spec) + queueOf(&f.live) + linkTo(f.node).send(f.node, toSend(f.spec, sizeOf(f.spec), f.node))
}

// startOf returns how long a run takes to start, wherever it is.
func startOf(spec *task.Spec) time.Duration {
	if spec.Driver == task.DriverImage {
		return imageStart
	}
	return 0
}

// queueOf returns how long those wait who wait at a machine already.
func queueOf(l *fleet.Live) time.Duration { return time.Duration(l.Queue) * time.Second }

// link is what it takes to send something to a machine.
type link struct {
	wait time.Duration // for as little as the run itself
	rate float64       // bytes a second
	way  string        // how, as the end of a sentence
}

func linkTo(n *fleet.Node) link {
	l := link{2 * n.Path.RTT, directRate, "directly"}
	if n.State == fleet.Suspect {
		l.wait += suspectStart
	}
	switch n.Path.Kind {
	case fleet.PathLAN:
		l.rate, l.way = lanRate, "on the local network"
	case fleet.PathRelay, fleet.PathTCP, fleet.PathNone:
		l.rate, l.way = relayRate, "over a slow path"
	}
	if m := n.Path.Rate; m > 0 {
		l.rate = float64(m)
	}
	return l
}

// send returns how long it takes to send the run, and so much with it.
func (l link) send(n *fleet.Node, size task.Bytes) time.Duration {
	if n.Self && size == 0 {
		return 0
	}
	return l.wait + time.Duration(float64(size)/l.rate*float64(time.Second))
}

// sizeOf returns the size of all inputs.
func sizeOf(spec *task.Spec) (size task.Bytes) {
	for _, in := range spec.Inputs {
		size += in.Size
	}
	return size
}

// toSend is what a machine lacks of what a run needs: its inputs, which its
// submitter has, and the weights of a model that it serves.
func toSend(spec *task.Spec, inputs task.Bytes, n *fleet.Node) (size task.Bytes) {
	if !n.Self {
		size = inputs
	}
	if v := spec.Serve; v != nil && !slices.Contains(v.On, n.ID) {
		size += v.Size
	}
	return size
}

// why says what the run waits for, as the end of a sentence.
func (f *fit) why() string {
	text := ""
	if f.live.Queue > 0 {
		text = ", as others wait there"
	}
	size := toSend(f.spec, sizeOf(f.spec), f.node)
	if size == 0 {
		return text
	}
	way := linkTo(f.node).way
	if m := f.node.Path.Rate; m > 0 {
		way += " at the measured " + m.String() + "/s"
	}
	return text + fmt.Sprintf(", with %v to send %s", size, way)
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

func ownerScore(n *fleet.Node, owner string) task.Part {
	if n.Owner == owner {
		return task.Part{Name: "owner", Text: "belongs to the same owner", Points: ownerPoints}
	}
	return task.Part{Name: "owner", Text: "belongs to " + n.Owner}
}

// wishScore gives points for labels that a run prefers, the first ones more.
func wishScore(prefer []string, o *fleet.Offer) task.Part {
	for i, l := range prefer {
		if o.Has(l) {
			return task.Part{Name: "prefer", Text: "has the label " + l, Points: wishPoints / (i + 1)}
		}
	}
	return task.Part{Name: "prefer", Text: "has no label that the run prefers"}
}

// powerScore keeps laptops free, those that live on their battery most of all.
func powerScore(o *fleet.Offer, l *fleet.Live) task.Part {
	p := task.Part{Name: "power", Text: "is no laptop", Points: powerPoints}
	switch {
	case o.Portable && l.OnBattery:
		p.Text, p.Points = "lives on its battery", 0
	case o.Portable:
		p.Text, p.Points = "is a laptop, plugged in", powerPoints/2
	}
	return p
}

// fitScore gives the more the less CPU is left over.
func fitScore(left task.CPU) int {
	const half = 64 * task.Core
	return int(fitPoints * half / (half + left))
}

func (f *fit) scorePath() task.Part {
	part := task.Part{Name: "path", Points: nearScore(f.node)}
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

func nearScore(n *fleet.Node) int {
	p := n.Path
	near := nearPoints / (1 + float64(p.RTT)/float64(halfPath))
	switch {
	case n.Self:
		return selfPoints
	case n.State == fleet.Suspect || p.RTT <= 0:
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
