package fleet

import (
	"path/filepath"

	"github.com/balanceai/balance/exec/task"
)

// intelCard is a device of the i915 or xe driver. How busy it is takes
// privileges that a node does not have, so that is unknown; its memory is known
// where the driver tells it.
type intelCard struct {
	pci     pciCard
	about   Device
	sensors sensors
}

// integratedIntel is the address of the GPU that is part of an Intel processor;
// a card sits behind a bridge.
const integratedIntel = "0000:00:02.0"

func newIntelCard(p pciCard) *intelCard {
	return &intelCard{
		pci: p,
		about: Device{
			UUID:    "pci-" + p.slot,
			Vendor:  Intel,
			Model:   p.model(),
			VRAM:    p.intelVRAM(),
			Unified: p.slot == integratedIntel,
			Driver:  p.driver,
		},
		sensors: sensors{temperature: p.sensor("temp1_input"), power: p.sensor("power1_input")},
	}
}

// intelVRAM reads the memory of the card: i915 tells it in one number, xe for
// each tile.
func (p pciCard) intelVRAM() task.Bytes {
	if n, ok := readNumber(filepath.Join(p.card, "lmem_total_bytes")); ok {
		return task.Bytes(n)
	}
	var sum task.Bytes
	tiles, _ := filepath.Glob(filepath.Join(p.dir, "tile*/physical_vram_size_bytes"))
	for _, path := range tiles {
		n, _ := readNumber(path)
		sum += task.Bytes(n)
	}
	return sum
}

func (c *intelCard) device() Device { return c.about }

func (c *intelCard) measure(detail bool) SampleGPU {
	s := SampleGPU{UUID: c.about.UUID, Percent: Unknown}
	if free, ok := readNumber(filepath.Join(c.pci.card, "lmem_avail_bytes")); ok {
		s.VRAM, s.VRAMUsed = c.about.VRAM, c.about.VRAM-min(task.Bytes(free), c.about.VRAM)
	}
	if detail && !c.pci.asleep() {
		c.sensors.read(&s)
	}
	return s
}
