package tui

import (
	"cmp"
	"fmt"
	"strconv"
	"strings"

	"github.com/balanceai/balance/exec/fleet"
)

// columns describes the table of machines. Without a GPU anywhere, processors
// and memory take the place of GPUs.
func (p *fleetPage) columns(w int) []column {
	history := 9
	if w >= 110 {
		history = 15
	}
	name := longest(p.rows, 8, 20, func(mc *machine) string { return mc.Name })
	owner := longest(p.rows, 5, 12, func(mc *machine) string { return mc.Owner })
	device := longest(p.rows, 8, 18, func(mc *machine) string { return mc.device })
	out := []column{
		{title: "NAME", min: 8, max: name, rank: 0, sort: "name", draw: p.drawName},
		{title: "OWNER", min: 5, max: owner, rank: 9, sort: "owner", draw: p.first(p.drawOwner)},
		{title: "DEVICE", min: min(device, 12), max: device, rank: 10, draw: p.drawDevice},
	}
	bars := 14 // rank of the bars of processors and memory
	if p.m.anyGPU {
		out = append(out,
			column{title: "GPU", min: 4, rank: 2, right: true, sort: "gpu", draw: p.drawGPU},
			column{min: 5, max: 10, rank: 6, tight: true, draw: p.drawGPUBar},
			column{title: "VRAM", min: 9, rank: 4, right: true, sort: "vram", draw: p.drawVRAM},
			column{min: 6, max: 10, rank: 12, tight: true, draw: p.drawVRAMBar})
	} else {
		bars = 6
	}
	return append(out,
		column{title: "CPU", min: 4, rank: 3, right: true, sort: "cpu", draw: p.first(p.drawCPU)},
		column{min: 5, max: 10, rank: bars, tight: true, draw: p.first(p.drawCPUBar)},
		column{title: "MEM", min: 8, max: 9, rank: 8, right: true, sort: "mem", draw: p.first(p.drawMemory)},
		column{min: 5, max: 10, rank: max(bars, 8), tight: true, draw: p.first(p.drawMemoryBar)},
		column{titled: p.lastSeconds, min: history, max: fleet.HistoryLen / perCell(p.m.ascii), rank: 5, draw: p.drawHistory},
		column{title: "RTT", min: 6, rank: 7, right: true, sort: "rtt", draw: p.first(p.drawRTT)},
		column{title: "PATH", min: 6, rank: 13, draw: p.first(p.drawPath)},
		column{title: "RUNS", min: 4, rank: 11, right: true, sort: "runs", draw: p.first(p.drawRuns)},
		column{title: "STATE", min: 9, max: 13, rank: 1, sort: "state", draw: p.first(p.drawState)})
}

// longest returns the width of the widest of some texts, within bounds.
func longest(rows []*machine, low, high int, of func(*machine) string) int {
	w := low
	for _, mc := range rows {
		if w = max(w, len(of(mc))); w >= high {
			return high
		}
	}
	return w
}

// first draws what a machine has once, on its first line.
func (p *fleetPage) first(draw func(k cell, mc *machine)) func(cell) {
	return func(k cell) {
		if k.sub == 0 {
			draw(k, p.rows[k.row])
		}
	}
}

// value is the style of a figure.
func (p *fleetPage) value(mc *machine, percent float64) style {
	switch {
	case percent < 0 || !p.m.live(mc):
		return dim
	case percent >= 80:
		return heat(percent)
	default:
		return plain
	}
}

func (p *fleetPage) drawName(k cell) {
	mc := p.rows[k.row]
	switch {
	case k.sub > 0:
		k.text(dim, k.c.th.glyph.gpu+" gpu "+strconv.Itoa(k.sub-1))
	case p.m.live(mc):
		k.text(strong, mc.Name)
	default:
		k.text(dim, mc.Name)
	}
}

func (p *fleetPage) drawOwner(k cell, mc *machine) { k.text(dim, mc.Owner) }

func (p *fleetPage) drawDevice(k cell) {
	s := p.rows[k.row].device
	if k.sub > 0 {
		g := p.rows[k.row].gpus[k.sub-1]
		s = deviceName(fleet.Device{Model: g.model, VRAM: g.vram})
	}
	k.text(dim, s)
}

// gpu returns the use of a machine's GPUs together, or of the one whose line it
// is.
func (p *fleetPage) gpu(k cell) gpuReading {
	mc := p.rows[k.row]
	if k.sub > 0 {
		return mc.gpus[k.sub-1]
	}
	return gpuReading{percent: mc.gpu, used: mc.vramUsed, vram: mc.vram, known: mc.vram > 0}
}

func (p *fleetPage) drawGPU(k cell) {
	g := p.gpu(k)
	k.right(p.value(p.rows[k.row], g.percent), percent(g.percent))
}

func (p *fleetPage) drawGPUBar(k cell) { k.bar(p.gpu(k).percent, p.m.live(p.rows[k.row])) }

func (p *fleetPage) drawVRAM(k cell) {
	g := p.gpu(k)
	k.right(p.value(p.rows[k.row], g.vramPercent()), g.vramUse())
}

func (p *fleetPage) drawVRAMBar(k cell) { k.bar(p.gpu(k).vramPercent(), p.m.live(p.rows[k.row])) }

func (p *fleetPage) drawCPU(k cell, mc *machine) { k.right(p.value(mc, mc.cpu), percent(mc.cpu)) }

func (p *fleetPage) drawCPUBar(k cell, mc *machine) { k.bar(mc.cpu, p.m.live(mc)) }

func (p *fleetPage) drawMemory(k cell, mc *machine) {
	k.right(p.value(mc, mc.memoryPercent()), mc.memoryUse())
}

func (p *fleetPage) drawMemoryBar(k cell, mc *machine) { k.bar(mc.memoryPercent(), p.m.live(mc)) }

// lastSeconds is the title of the history: how much of it w cells show.
func (p *fleetPage) lastSeconds(w int) string {
	return fmt.Sprintf("LAST %d s", w*perCell(p.m.ascii))
}

// drawHistory draws the last of a GPU, of all GPUs of a machine, or of
// the processors of one without any.
func (p *fleetPage) drawHistory(k cell) {
	mc := p.rows[k.row]
	of := cpuOf
	switch {
	case k.sub > 0:
		of = deviceOf(k.sub - 1)
	case len(mc.gpus) > 0:
		of = gpuOf
	}
	k.c.putSparkline(k.x, k.y, k.w, history(mc.Node, of), p.m.live(mc))
}

func (p *fleetPage) drawRTT(k cell, mc *machine) {
	if mc.Self || !p.m.live(mc) {
		k.right(dim, none)
		return
	}
	k.right(dim, rtt(mc.Path.RTT))
}

func (p *fleetPage) drawPath(k cell, mc *machine) { k.text(dim, cmp.Or(mc.Path.Kind, none)) }

func (p *fleetPage) drawRuns(k cell, mc *machine) {
	switch {
	case mc.runs < 0:
		k.right(dim, none)
	case mc.runs == 0 || !p.m.live(mc):
		k.right(dim, strconv.Itoa(mc.runs))
	default:
		k.right(plain, strconv.Itoa(mc.runs))
	}
}

func (p *fleetPage) drawState(k cell, mc *machine) {
	sign, words, st := p.m.standing(mc)
	k.text(st, sign)
	rest := k.after(1)
	if width(words) > rest.w { // the age has no room
		words, _, _ = strings.Cut(words, " ")
	}
	rest.text(dim, words)
}
