package fleet

import (
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"strings"
)

// drm finds the GPUs that the kernel's own drivers tell about under
// /sys/class/drm: AMD's and Intel's.
type drm struct{ root string }

func newDRM(root string) *drm { return &drm{root} }

func (d *drm) close() {}

func (d *drm) cards() ([]card, error) {
	paths, err := filepath.Glob(filepath.Join(d.root, "sys/class/drm/card*"))
	if err != nil {
		return nil, fmt.Errorf("list graphics cards: %w", err)
	}
	found := map[string]card{} // by PCI address: the order of cards changes between boots
	for _, path := range paths {
		if strings.Contains(filepath.Base(path), "-") {
			continue // a connector, such as card0-DP-1
		}
		p := readPCI(d.root, path)
		switch p.driver {
		case "amdgpu":
			found[p.slot] = newAMDCard(p)
		case "i915", "xe":
			found[p.slot] = newIntelCard(p)
		}
	}
	var out []card
	for _, slot := range slices.Sorted(maps.Keys(found)) {
		out = append(out, found[slot])
	}
	return out, nil
}

// pciCard is what the kernel tells of every graphics card on the PCI bus.
type pciCard struct {
	root     string
	card     string // folder of the card
	dir      string // folder of its PCI device
	driver   string // module of the kernel
	slot     string // address, such as 0000:03:00.0
	vendor   string // ids, in lower-case hexadecimal
	device   string
	revision string
}

func readPCI(root, card string) pciCard {
	p := pciCard{root: root, card: card, dir: filepath.Join(card, "device")}
	for line := range strings.Lines(readText(filepath.Join(p.dir, "uevent"))) {
		key, value, _ := strings.Cut(strings.TrimSpace(line), "=")
		switch key {
		case "DRIVER":
			p.driver = value
		case "PCI_SLOT_NAME":
			p.slot = value
		case "PCI_ID":
			p.vendor, p.device, _ = strings.Cut(strings.ToLower(value), ":")
		}
	}
	p.revision = strings.TrimPrefix(readText(filepath.Join(p.dir, "revision")), "0x")
	return p
}

// number reads a file of the PCI device.
func (p pciCard) number(name string) (uint64, bool) {
	return readNumber(filepath.Join(p.dir, name))
}

// sensor finds a file of the device's hardware monitor; empty if there is none.
func (p pciCard) sensor(name string) string {
	paths, _ := filepath.Glob(filepath.Join(p.dir, "hwmon/hwmon*", name))
	if len(paths) == 0 {
		return ""
	}
	return paths[0]
}

// asleep reports whether the device is switched off until somebody uses it. Its
// memory can be counted then; to ask for more would wake it each second.
func (p pciCard) asleep() bool {
	return readText(filepath.Join(p.dir, "power/runtime_status")) == "suspended"
}

// sensors are the files for temperature and power; empty where there are none.
type sensors struct{ temperature, power string }

// read fills in a sample. The units of hwmon are thousandths of a degree and
// millionths of a watt; see Documentation/hwmon/sysfs-interface.rst.
func (s sensors) read(g *SampleGPU) {
	if t, ok := readNumber(s.temperature); ok {
		g.Temperature = float64(t) / 1e3
	}
	if w, ok := readNumber(s.power); ok {
		g.Power = float64(w) / 1e6
	}
}
