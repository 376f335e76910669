package tui

import (
	"strings"
	"time"

	"github.com/balanceai/balance/exec/fleet"
)

// machine is a node with what follows from its facts.
type machine struct {
	*fleet.Node
	reading
	id     string    // of its row
	device string    // what it computes with
	sample time.Time // its own clock at its newest sample
	seen   time.Time // our clock when its newest facts came; zero: none
	search string    // lower case, for filters
}

// A machine that is up and sends samples does so each second. One that only
// gossips tells when something changes.
const (
	sampleFresh = 5 * time.Second
	gossipFresh = 2 * time.Minute
)

// newMachine works out what the facts say. before is the same machine in the
// picture before, or nil.
func newMachine(n *fleet.Node, before *machine, now time.Time) *machine {
	mc := &machine{Node: n, reading: read(n), id: n.ID.String(), device: deviceSummary(n), seen: n.LiveAt}
	if s := n.Sample(); s != nil {
		mc.sample = s.Time
		switch {
		case before != nil && before.sample.Equal(s.Time):
			mc.seen = later(before.seen, n.LiveAt)
		case before != nil || n.State == fleet.Up:
			mc.seen = now
		}
	}
	words := []string{n.Name, n.Owner, n.State, n.Path.Kind, n.Address, mc.device, mc.id}
	if n.Offer != nil {
		words = append(words, n.Offer.OS, n.Offer.Arch)
		words = append(words, n.Offer.Labels...)
		for _, e := range n.Offer.Engines {
			words = append(words, e.Name)
		}
		for _, g := range n.Offer.GPUs {
			words = append(words, g.Model)
		}
	}
	mc.search = strings.ToLower(strings.Join(words, "\n"))
	return mc
}

func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

// live reports whether the facts can be taken for the present.
func (m *model) live(mc *machine) bool {
	fresh := gossipFresh
	if len(mc.History) > 0 {
		fresh = sampleFresh
	}
	return m.connected() && mc.State == fleet.Up && m.now.Sub(mc.seen) < fresh
}

// standing says in one word how a machine is, with the age of what is known of
// it where that is not live.
func (m *model) standing(mc *machine) (sign, words string, st style) {
	g := m.th.glyph
	ago := ""
	if !mc.seen.IsZero() {
		ago = " " + shortAge(m.now.Sub(mc.seen))
	}
	switch {
	case mc.State == fleet.Down:
		return g.down, "down" + ago, hot
	case mc.State == fleet.Suspect:
		return g.suspect, "suspect" + ago, warm
	case m.live(mc):
		return g.up, "up", accent
	case mc.seen.IsZero():
		return g.stale, "no facts", dim
	default:
		return g.stale, shortAge(m.now.Sub(mc.seen)) + " ago", dim
	}
}

// The fields of a machine for filters.

func (mc *machine) rowID() string { return mc.id }

func (mc *machine) keys() (texts, numbers []string) {
	return []string{"name", "owner", "state", "path", "os", "arch", "gpu", "label", "engine"},
		[]string{"gpu", "gpus", "vram", "free", "cpu", "mem", "rtt", "runs"}
}

func (mc *machine) all() string { return mc.search }

func (mc *machine) text(key string) (string, bool) {
	switch key {
	case "name":
		return mc.Name, true
	case "owner":
		return mc.Owner, true
	case "state":
		return mc.State, true
	case "path":
		return mc.Path.Kind, true
	}
	if mc.Offer == nil {
		return "", false
	}
	switch o := mc.Offer; key {
	case "os":
		return o.OS, true
	case "arch":
		return o.Arch, true
	case "label":
		return strings.ToLower(strings.Join(o.Labels, " ")), true
	case "gpu":
		var models []string
		for _, g := range o.GPUs {
			models = append(models, g.Model)
		}
		return strings.ToLower(mc.device + " " + strings.Join(models, " ")), true
	case "engine":
		var names []string
		for _, e := range o.Engines {
			names = append(names, e.Name)
		}
		return strings.ToLower(strings.Join(names, " ")), true
	}
	return "", false
}

func (mc *machine) num(key string) (float64, bool) {
	switch key {
	case "gpu":
		return mc.gpu, mc.gpu >= 0
	case "gpus":
		return float64(len(mc.gpus)), true
	case "vram":
		return float64(mc.vram), mc.vram > 0
	case "free":
		return float64(mc.vram - min(mc.vramUsed, mc.vram)), mc.vram > 0
	case "cpu":
		return mc.cpu, mc.cpu >= 0
	case "mem":
		p := mc.memoryPercent()
		return p, p >= 0
	case "rtt":
		ms := float64(mc.Path.RTT) / float64(time.Millisecond)
		return ms, ms > 0
	case "runs":
		return float64(mc.runs), mc.runs >= 0
	}
	return 0, false
}

// known reports whether anything of the machine's use was ever measured.
func (mc *machine) known() bool { return mc.Live != nil || len(mc.History) > 0 }

func (mc *machine) memoryPercent() float64 {
	if !mc.known() {
		return unknown
	}
	return ratio(mc.used, mc.memory)
}

func (mc *machine) memoryUse() string {
	if !mc.known() {
		return none
	}
	return usedOf(mc.used, mc.memory)
}

func (g gpuReading) vramPercent() float64 {
	if !g.known {
		return unknown
	}
	return ratio(g.used, g.vram)
}

func (g gpuReading) vramUse() string {
	if !g.known {
		return none
	}
	return usedOf(g.used, g.vram)
}
