package tui

import (
	"cmp"
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"

	"github.com/balanceai/balance/exec/fleet"
	"github.com/balanceai/balance/exec/task"
)

// Things to text. Everything here is pure.

// none stands for what is not known: never zero, never empty.
const none = "–"

// reading is what is known of a machine's use, from its newest sample or,
// where nobody watches it, from what it gossips.
type reading struct {
	cpu      float64 // percent, or unknown
	used     task.Bytes
	memory   task.Bytes // 0: unknown
	gpus     []gpuReading
	runs     int     // unknown: -1
	gpu      float64 // mean percent of its GPUs, or unknown
	vramUsed task.Bytes
	vram     task.Bytes // of all GPUs; 0: unknown
}

// gpuReading is what is known of one device.
type gpuReading struct {
	model   string
	percent float64
	used    task.Bytes
	vram    task.Bytes // 0: unknown
	celsius float64    // 0: unknown
	watts   float64    // 0: unknown
	known   bool       // used was measured
}

// read adds up what is known of n.
func read(n *fleet.Node) reading {
	r := reading{cpu: unknown, gpu: unknown, runs: unknown}
	if n.Offer != nil {
		r.memory = n.Offer.Memory
		for _, d := range n.Offer.GPUs {
			r.gpus = append(r.gpus, gpuReading{model: deviceModel(d), vram: d.VRAM, percent: unknown})
		}
	}
	switch s := n.Sample(); {
	case s != nil:
		r.sample(s)
	case n.Live != nil:
		r.live(n.Live)
	}
	busy, measured := 0.0, 0
	for _, g := range r.gpus {
		if g.percent >= 0 {
			busy += g.percent
			measured++
		}
		if g.known {
			r.vramUsed += g.used
			r.vram += g.vram
		}
	}
	if measured > 0 {
		r.gpu = busy / float64(measured)
	}
	return r
}

func (r *reading) sample(s *fleet.Sample) {
	r.cpu, r.used, r.runs = s.CPUPercent, s.MemoryUsed, len(s.Runs)
	if s.Memory > 0 {
		r.memory = s.Memory
	}
	for i, g := range s.GPUs {
		if i == len(r.gpus) {
			r.gpus = append(r.gpus, gpuReading{model: "GPU"})
		}
		to := &r.gpus[i]
		to.percent, to.used, to.known = g.Percent, g.VRAMUsed, g.VRAM > 0
		to.celsius, to.watts = g.Temperature, g.Power
		if g.VRAM > 0 {
			to.vram = g.VRAM
		}
	}
}

func (r *reading) live(l *fleet.Live) {
	r.cpu, r.runs = float64(l.CPUPercent), l.Runs
	if r.memory > l.FreeMemory {
		r.used = r.memory - l.FreeMemory
	}
	for i, g := range l.GPUs {
		if i < len(r.gpus) {
			to := &r.gpus[i]
			to.percent = float64(g.Percent)
			to.used, to.known = to.vram-min(g.FreeVRAM, to.vram), to.vram > 0
		}
	}
}

// history returns one figure of every sample.
func history(n *fleet.Node, of func(*fleet.Sample) float64) []float64 {
	out := make([]float64, len(n.History))
	for i := range n.History {
		out[i] = of(&n.History[i])
	}
	return out
}

func deviceOf(i int) func(*fleet.Sample) float64 {
	return func(s *fleet.Sample) float64 {
		if i >= len(s.GPUs) {
			return unknown
		}
		return s.GPUs[i].Percent
	}
}

func cpuOf(s *fleet.Sample) float64 { return s.CPUPercent }

func memoryOf(s *fleet.Sample) float64 { return ratio(s.MemoryUsed, s.Memory) }

// gpuOf returns the mean use of the GPUs in a sample.
func gpuOf(s *fleet.Sample) float64 {
	sum, n := 0.0, 0
	for _, g := range s.GPUs {
		if g.Percent >= 0 {
			sum += g.Percent
			n++
		}
	}
	if n == 0 {
		return unknown
	}
	return sum / float64(n)
}

// ratio returns used as a percentage of total.
func ratio(used, total task.Bytes) float64 {
	if total == 0 {
		return unknown
	}
	return min(100*float64(used)/float64(total), 100)
}

// wrapping are words that makers put around the name of a GPU.
var wrapping = map[string]bool{
	"nvidia": true, "geforce": true, "tesla": true, "amd": true, "radeon": true, "instinct": true, "intel": true,
	"apple": true, "graphics": true, "r": true, "tm": true, "pcie": true, "sxm": true, "sxm4": true, "sxm5": true,
	"hbm2e": true, "hbm3": true, "hbm3e": true,
}

// deviceModel is a GPU's model without those words: "H100".
func deviceModel(d fleet.Device) string {
	var words []string
	for w := range strings.FieldsFuncSeq(d.Model, func(r rune) bool { return strings.ContainsRune(" -()", r) }) {
		low := strings.ToLower(w)
		if !wrapping[low] && strings.Trim(low, "0123456789") != "gb" {
			words = append(words, w)
		}
	}
	return cmp.Or(strings.Join(words, " "), "GPU")
}

// deviceName is a GPU's model and its memory: "H100 80G".
func deviceName(d fleet.Device) string {
	if d.VRAM == 0 {
		return deviceModel(d)
	}
	return deviceModel(d) + " " + gigabytes(d.VRAM)
}

// deviceSummary says what a machine computes with.
func deviceSummary(n *fleet.Node) string {
	o := n.Offer
	switch {
	case o == nil:
		return none
	case len(o.GPUs) == 0:
		return cores(o.CPU)
	}
	first, same := deviceName(o.GPUs[0]), true
	for _, d := range o.GPUs {
		same = same && deviceName(d) == first
	}
	switch {
	case len(o.GPUs) == 1:
		return first
	case same:
		return fmt.Sprintf("%d×%s", len(o.GPUs), first)
	default:
		return fmt.Sprintf("%s +%d", first, len(o.GPUs)-1)
	}
}

// cores counts cores.
func cores(c task.CPU) string {
	if c == task.Core {
		return "1 core"
	}
	return c.String() + " cores"
}

// percent writes a percentage, or that it is not known.
func percent(p float64) string {
	if p < 0 || math.IsNaN(p) {
		return none
	}
	return strconv.Itoa(int(math.Round(min(p, 999)))) + "%"
}

// gigabytes writes an amount of memory as short as it is sold: "80G", "512M".
func gigabytes(b task.Bytes) string {
	n, unit := scale(b, b)
	return n + unit
}

// usedOf writes two amounts in the unit of the second: "9.1/12G".
func usedOf(used, total task.Bytes) string {
	if total == 0 {
		return none
	}
	u, _ := scale(used, total)
	t, unit := scale(total, total)
	return u + "/" + t + unit
}

func scale(b, by task.Bytes) (number, unit string) {
	size, unit := task.MiB, "M"
	switch {
	case by >= task.TiB:
		size, unit = task.TiB, "T"
	case by >= task.GiB-task.GiB/16:
		size, unit = task.GiB, "G"
	}
	n := float64(b) / float64(size)
	if n >= 9.95 || n == math.Trunc(n) || math.Abs(n-math.Round(n)) < 0.05 {
		return strconv.FormatFloat(n, 'f', 0, 64), unit
	}
	return strconv.FormatFloat(n, 'f', 1, 64), unit
}

// rtt writes a round-trip time.
func rtt(d time.Duration) string {
	switch ms := float64(d) / float64(time.Millisecond); {
	case d <= 0:
		return none
	case ms < 99.95:
		return strconv.FormatFloat(ms, 'f', 1, 64) + "ms"
	case ms < 9999:
		return strconv.FormatFloat(ms, 'f', 0, 64) + "ms"
	default:
		return strconv.FormatFloat(ms/1000, 'f', 0, 64) + "s"
	}
}

// span of time in two units at most: "4s", "12m04s", "3h12m", "2d05h".
func duration(d time.Duration) string {
	s := int64(max(d, 0) / time.Second)
	switch {
	case s < 60:
		return fmt.Sprintf("%ds", s)
	case s < 3600:
		return fmt.Sprintf("%dm%02ds", s/60, s%60)
	case s < 24*3600:
		return fmt.Sprintf("%dh%02dm", s/3600, s/60%60)
	default:
		return fmt.Sprintf("%dd%02dh", s/86400, s/3600%24)
	}
}

// age writes how long ago something was, in one unit.
func age(d time.Duration) string {
	s := int64(max(d, 0) / time.Second)
	switch {
	case s < 100:
		return fmt.Sprintf("%d s ago", s)
	case s < 100*60:
		return fmt.Sprintf("%d min ago", s/60)
	case s < 48*3600:
		return fmt.Sprintf("%d h ago", s/3600)
	default:
		return fmt.Sprintf("%d d ago", s/86400)
	}
}

// shortAge is age in a narrow column.
func shortAge(d time.Duration) string {
	long := age(d)
	number, rest, _ := strings.Cut(long, " ")
	return number + rest[:1]
}

// shortRun is enough of a run's id for a person and for the command line.
func shortRun(id string) string { return id[:min(len(id), 8)] }

// fitRun is a run's id, or enough of it where that has no room.
func fitRun(id string, w int) string {
	if len(id) <= w {
		return id
	}
	return shortRun(id)
}

// command writes a run's program and arguments as a shell would read them.
func command(args []string) string {
	quoted := make([]string, len(args))
	for i, a := range args {
		quoted[i] = quote(a)
	}
	return strings.Join(quoted, " ")
}

// what is the name that a run goes by: its agent's, or its command.
func what(s *task.Status) string {
	if s.Agent == "" {
		return command(s.Command)
	}
	return strings.TrimSpace(s.Agent)
}

// stateGlyph returns a run's sign and the style of both.
func (th *theme) stateGlyph(s task.State) (string, style) {
	g := th.glyph
	switch s {
	case task.Running:
		return g.running, accent
	case task.Succeeded:
		return g.done, plain
	case task.Failed:
		return g.failed, hot
	case task.Cancelled:
		return g.cancelled, dim
	case task.Unplaced:
		return g.unplaced, warm
	case task.Lost:
		return g.lost, warm
	default:
		return g.queued, dim
	}
}

// elapsed returns how long a run has been going, or went.
func elapsed(s *task.Status, now time.Time) string {
	switch {
	case s.Started.IsZero():
		return none
	case !s.Finished.IsZero():
		return duration(s.Finished.Sub(s.Started))
	case s.State.Final():
		return none
	default:
		return duration(now.Sub(s.Started))
	}
}

// exit writes a run's exit code.
func exit(s *task.Status) string {
	if s.ExitCode == nil || *s.ExitCode < 0 {
		return none
	}
	return strconv.Itoa(*s.ExitCode)
}
