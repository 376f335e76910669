package fleet

import (
	"os"
	"path/filepath"

	"github.com/balanceai/balance/exec/task"
)

// amdCard is a device of the amdgpu driver; its files are described in
// Documentation/gpu/amdgpu of the kernel.
type amdCard struct {
	pci     pciCard
	about   Device
	sensors sensors
}

func newAMDCard(p pciCard) *amdCard {
	c := &amdCard{pci: p, about: Device{
		UUID:   "pci-" + p.slot,
		Vendor: AMD,
		Model:  p.model(),
		Driver: p.driver,
	}}
	if id := readText(filepath.Join(p.dir, "unique_id")); id != "" {
		c.about.UUID = "GPU-" + id // as ROCm names it
	}
	own, _ := p.number("mem_info_vram_total")
	lent, _ := p.number("mem_info_gtt_total")
	c.about.VRAM = task.Bytes(own)
	// A chip that is part of the processor may have a slice of the memory for
	// itself that is larger than what it borrows: then that is its VRAM.
	if lent > own && p.integratedAMD() {
		c.about.VRAM, c.about.Unified = task.Bytes(own+lent), true
	}
	c.sensors = sensors{temperature: p.sensor("temp1_input"), power: p.sensor("power1_average")}
	if c.sensors.power == "" {
		c.sensors.power = p.sensor("power1_input")
	}
	return c
}

// integratedAMD reports whether the GPU is part of the processor. The third
// byte of gpu_metrics is the revision of its format: 1 for cards, 2 and above
// for processors (kgd_pp_interface.h of the kernel).
func (p pciCard) integratedAMD() bool {
	b, err := os.ReadFile(filepath.Join(p.dir, "gpu_metrics"))
	return err == nil && len(b) > 2 && b[2] >= 2
}

func (c *amdCard) device() Device { return c.about }

func (c *amdCard) measure(detail bool) SampleGPU {
	s := SampleGPU{UUID: c.about.UUID, Percent: Unknown}
	used, ok := c.pci.number("mem_info_vram_used")
	if ok && c.about.Unified {
		var borrowed uint64
		borrowed, ok = c.pci.number("mem_info_gtt_used")
		used += borrowed
	}
	if ok {
		s.VRAM, s.VRAMUsed = c.about.VRAM, min(task.Bytes(used), c.about.VRAM)
	}
	if c.pci.asleep() {
		s.Percent = 0
		return s
	}
	if busy, ok := c.pci.number("gpu_busy_percent"); ok {
		s.Percent = float64(busy)
	}
	if detail {
		c.sensors.read(&s)
	}
	return s
}
