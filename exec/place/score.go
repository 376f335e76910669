package place

import (
	"strconv"
	"time"

	"github.com/balanceai/balance/exec/fleet"
	"github.com/balanceai/balance/exec/task"
)

// What each part of a score can give; together 1000. The fit outweighs who owns
// the machine and how far it is. For a run that asks for no GPU, the GPUs that
// it would leave idle weigh as much as GPUs and VRAM do for one that asks.
const (
	cpuPoints    = 200
	memoryPoints = 200
	gpuPoints    = 300
	vramPoints   = 200
	ownerPoints  = 40
	pathPoints   = 60
)

// halfPath is the round trip that halves the points for the path: about that
// between two towns of one country.
const halfPath = 20 * time.Millisecond

// score returns the parts of the machine's score for a run of owner's. It is
// asked only where the run fits.
func (f *fit) score(owner string) []task.Part {
	o, n := f.offer, f.needs
	cpu, memory := f.cpu-n.CPU, f.memory-n.Memory
	parts := make([]task.Part, 0, 6)
	parts = append(parts,
		fill("cpu", cpuPoints, fraction(cpu, o.CPU), "leaves "+cpu.String()+" of "+o.CPU.String()+" cores"),
		fill("memory", memoryPoints, fraction(memory, o.Memory), "leaves "+memory.String()+" of "+o.Memory.String()))
	parts = f.scoreGPUs(parts)
	return append(parts, f.scoreOwner(owner), f.scorePath())
}

func (f *fit) scoreGPUs(parts []task.Part) []task.Part {
	if len(f.pool) == 0 {
		return append(parts, task.Part{Name: "gpu", Text: "has no GPU to leave idle", Points: gpuPoints + vramPoints})
	}
	idle := -len(f.devices)
	for i := range f.pool {
		if !f.pool[i].held {
			idle++
		}
	}
	left, text := fraction(idle, len(f.pool)), "leaves "+strconv.Itoa(idle)+" of "+gpuCount(len(f.pool))+" idle"
	if len(f.devices) == 0 {
		return append(parts, fill("gpu", gpuPoints+vramPoints, left, text))
	}
	var free, total task.Bytes
	for _, d := range f.devices {
		free += d.free - f.needs.VRAM
		total += d.VRAM
	}
	return append(parts,
		fill("gpu", gpuPoints, left, text),
		fill("vram", vramPoints, fraction(free, total), "leaves "+free.String()+" of "+total.String()+" of VRAM"))
}

// fill gives the more points the less is left over.
func fill(name string, points int, left float64, text string) task.Part {
	return task.Part{Name: name, Text: text, Points: int(float64(points)*(1-left) + 0.5)}
}

// fraction is part of whole, from 0 to 1, whatever a machine claims; 1 where the
// whole is not known.
func fraction[T int | task.CPU | task.Bytes](part, whole T) float64 {
	if part >= whole {
		return 1
	}
	return float64(part) / float64(whole)
}

func (f *fit) scoreOwner(owner string) task.Part {
	if f.node.Owner == owner {
		return task.Part{Name: "owner", Text: "belongs to the same owner", Points: ownerPoints}
	}
	return task.Part{Name: "owner", Text: "belongs to " + f.node.Owner}
}

func (f *fit) scorePath() task.Part {
	p := f.node.Path
	switch {
	case f.node.Self:
		return task.Part{Name: "path", Text: "is this machine", Points: pathPoints}
	case f.node.State == fleet.Suspect:
		return task.Part{Name: "path", Text: "has not answered lately"}
	case p.Kind == fleet.PathRelay:
		return task.Part{Name: "path", Text: "reached through " + p.Via, Points: int(pathPointsFor(p.RTT)/2 + 0.5)}
	case p.Kind != fleet.PathLAN && p.Kind != fleet.PathDirect:
		return task.Part{Name: "path", Text: "no path is known"}
	case p.RTT <= 0:
		return task.Part{Name: "path", Text: p.Kind + " path, round trip not measured"}
	}
	return task.Part{Name: "path", Text: p.Kind + " path, round trip " + short(p.RTT).String(), Points: int(pathPointsFor(p.RTT) + 0.5)}
}

func pathPointsFor(rtt time.Duration) float64 {
	return pathPoints / (1 + float64(rtt)/float64(halfPath))
}

// short keeps two or three digits of a round trip.
func short(d time.Duration) time.Duration {
	if d < time.Millisecond {
		return d.Round(10 * time.Microsecond)
	}
	return d.Round(100 * time.Microsecond)
}
