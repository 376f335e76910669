package tui

import (
	"cmp"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/balanceai/balance/exec/fleet"
	"github.com/balanceai/balance/exec/task"
)

// Parts of the text about one machine: the pane beside the fleet and the page
// of a node are made of them.

// row is a label with its value.
func row(label, value string) text {
	return text{{dim, padRight(label, 10)}, {plain, value}}
}

// title is the heading of a part.
func title(s string) text { return text{{head, s}} }

// machinePane is a machine in a narrow column of h lines.
func (m *model) machinePane(mc *machine, w, h int) []text {
	lines := append([]text{m.nameLine(mc), nil}, m.facts(mc)...)
	offer := m.offer(mc, w)
	runs := m.runsOn(mc)
	charts := append([]text{nil}, m.charts(mc, w, max(h-len(lines)-len(offer)-len(runs)-3, 6))...)
	lines = append(lines, charts...)
	if len(runs) > 0 {
		lines = append(append(lines, nil), runs...)
	}
	return append(append(lines, nil), offer...)
}

func (m *model) nameLine(mc *machine) text {
	sign, words, st := m.standing(mc)
	return text{{strong, mc.Name}, {plain, "  "}, {st, sign}, {dim, " " + words}}
}

// facts says what a machine is and how it is reached.
func (m *model) facts(mc *machine) []text {
	owner := mc.Owner
	if mc.Self {
		owner += "  (this machine)"
	}
	lines := []text{row("owner", owner), row("address", cmp.Or(mc.Address, none))}
	if !mc.Self {
		lines = append(lines, row("path", pathWords(mc.Path)))
		trip := none
		if m.live(mc) {
			trip = rtt(mc.Path.RTT)
		}
		lines = append(lines, row("rtt", trip))
	}
	o := mc.Offer
	if o == nil {
		return append(lines, row("offer", "none seen yet"))
	}
	lines = append(lines,
		row("cpu", cmp.Or(o.CPUModel, o.Arch)+", "+cores(o.CPU)),
		row("memory", o.Memory.String()))
	if mc.Live != nil {
		lines = append(lines, row("disk", fmt.Sprintf("%v of %v free", mc.Live.FreeDisk, o.Disk)))
	}
	lines = append(lines, row("system", o.OS+"/"+o.Arch+", balance "+cmp.Or(o.Program, none)))
	if len(o.GPUs) > 0 && o.GPUs[0].Driver != "" {
		lines = append(lines, row("driver", o.GPUs[0].Vendor+" "+o.GPUs[0].Driver))
	}
	if len(o.Engines) > 0 {
		lines = append(lines, row("engines", engines(o.Engines)))
	}
	if len(o.Labels) > 0 {
		lines = append(lines, row("labels", strings.Join(o.Labels, " ")))
	}
	return lines
}

func pathWords(p fleet.Path) string {
	switch p.Kind {
	case fleet.PathLAN:
		return "LAN, " + p.Addr
	case fleet.PathDirect:
		return "direct, " + p.Addr
	case fleet.PathRelay:
		return "relayed by " + p.Via
	case fleet.PathNone, "":
		return "no address has answered"
	default:
		return strings.TrimSpace(p.Kind + " " + p.Addr)
	}
}

func engines(list []fleet.Engine) string {
	out := make([]string, len(list))
	for i, e := range list {
		out[i] = strings.TrimSpace(e.Name + " " + e.Version)
	}
	return strings.Join(out, ", ")
}

// offer says in words what a machine gives to whom.
func (m *model) offer(mc *machine, w int) []text {
	lines := []text{title("OFFER")}
	for _, sentence := range terms(mc.Node) {
		lines = append(lines, paragraph(m.th, sentence, w)...)
	}
	return lines
}

// terms puts an owner's rules into sentences.
func terms(n *fleet.Node) []string {
	if n.Offer == nil {
		return []string{"not seen yet"}
	}
	t := n.Offer.Terms
	if !t.Offers {
		return []string{"offers nothing: it only sends work to others"}
	}
	out := []string{"runs what " + n.Owner + " sends"}
	if t.Duty != "" {
		out = []string{"is " + t.Duty + ": takes nothing new"}
	}
	if t.ReserveCPU > 0 || t.ReserveMemory > 0 {
		out = append(out, fmt.Sprintf("keeps %s and %v of memory back", cores(t.ReserveCPU), t.ReserveMemory))
	}
	if len(t.Others) == 0 {
		return append(out, "nothing for other owners")
	}
	for _, g := range t.Others {
		gpus := "no GPU"
		if g.GPUs > 0 {
			gpus = plural(g.GPUs, "GPU")
		}
		s := fmt.Sprintf("%s may use %s, %v of memory and %s", g.Who(), cores(g.CPU), g.Memory, gpus)
		if g.Time > 0 {
			s += ", for " + task.FormatDuration(g.Time) + " a run"
		}
		if g.Hours != "" {
			s += ", " + string(g.Hours)
		}
		if g.Idle > 0 {
			s += ", when nobody has used it for " + task.FormatDuration(g.Idle)
		}
		if g.Mains {
			s += ", on AC power"
		}
		if g.Isolation == "none" { // see policy.IsolationNone
			s += ", without a sandbox"
		}
		out = append(out, s)
	}
	return out
}

// paragraph is a sentence behind a bullet, broken into lines.
func paragraph(th *theme, s string, w int) []text {
	var lines []text
	for i, part := range wrapWords(clean(s), w-2) {
		lead := "  "
		if i == 0 {
			lead = th.glyph.bullet + " "
		}
		lines = append(lines, text{{dim, lead}, {plain, part}})
	}
	return lines
}

// charts draws the last minute of everything that was measured, in about h
// lines.
func (m *model) charts(mc *machine, w, h int) []text {
	w = max(w, 1)
	live := m.live(mc)
	all := []chart{
		{"CPU", percent(mc.cpu), history(mc.Node, cpuOf), mc.cpu},
		{"memory", mc.memoryUse(), history(mc.Node, memoryOf), mc.memoryPercent()},
	}
	var gpus []chart
	for i, g := range mc.gpus {
		figures := []string{percent(g.percent), g.vramUse()}
		if g.celsius > 0 {
			figures = append(figures, strconv.Itoa(int(g.celsius))+" °C")
		}
		if g.watts > 0 {
			figures = append(figures, strconv.Itoa(int(g.watts))+" W")
		}
		name := fmt.Sprintf("GPU %d  %s", i, g.model)
		gpus = append(gpus, chart{name, strings.Join(figures, "  "), history(mc.Node, deviceOf(i)), g.percent})
	}
	all = append(gpus, all...)
	rows := min(max(h/len(all)-2, 1), 6)
	if len(mc.History) == 0 {
		rows = 0
	}
	var lines []text
	for i, ch := range all {
		if i > 0 {
			lines = append(lines, nil)
		}
		lines = append(lines, ch.lines(m.th, w, rows, live)...)
	}
	return lines
}

// chart is one figure over time.
type chart struct {
	name, now string
	values    []float64
	percent   float64
}

func (ch chart) lines(th *theme, w, rows int, live bool) []text {
	st := plain
	if ch.percent >= 80 {
		st = heat(ch.percent)
	}
	if !live {
		st = dim
	}
	gap := max(1, w-width(ch.name)-width(ch.now))
	lines := []text{{{dim, ch.name + spaces(gap)}, {st, ch.now}}}
	if rows == 0 {
		return lines
	}
	values := stretch(ch.values, fleet.HistoryLen, w*perCell(th.ascii))
	return append(lines, heatChart(values, w, rows, th.ascii, live)...)
}

// runsOn lists the runs on a machine.
func (m *model) runsOn(mc *machine) []text {
	runs := sortedRuns(mc)
	if len(runs) == 0 {
		return nil
	}
	lines := []text{title("RUNS")}
	for _, r := range runs {
		lines = append(lines, text{
			{accent, m.th.glyph.running + " "},
			{plain, padRight(shortRun(clean(r.ID)), 9)},
			{dim, padRight(clean(r.Owner), 9) + " " + held(r)},
		})
	}
	return lines
}

// sortedRuns returns the runs in a machine's newest sample, the newest first.
func sortedRuns(mc *machine) []fleet.RunUse {
	s := mc.Sample()
	if s == nil {
		return nil
	}
	runs := slices.Clone(s.Runs)
	slices.SortFunc(runs, func(a, b fleet.RunUse) int {
		return cmp.Or(b.Since.Compare(a.Since), cmp.Compare(a.ID, b.ID))
	})
	return runs
}

// held says what a run holds of its machine.
func held(r fleet.RunUse) string {
	s := fmt.Sprintf("%s, %v", cores(r.CPU), r.Memory)
	if r.GPUs > 0 {
		s += ", " + plural(r.GPUs, "GPU")
	}
	return s
}
