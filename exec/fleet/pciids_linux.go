package fleet

import (
	"bufio"
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// model names a card: as its maker wrote into it, else from the lists that come
// with graphics drivers and with lspci, else by its numbers.
func (p pciCard) model() string {
	if name := readText(filepath.Join(p.dir, "product_name")); name != "" {
		return name
	}
	for _, list := range []struct {
		path string
		find func(*bufio.Scanner, pciCard) string
	}{
		{"usr/share/libdrm/amdgpu.ids", findAMDGPU},
		{"usr/share/hwdata/pci.ids", findPCI},
		{"usr/share/misc/pci.ids", findPCI},
	} {
		f, err := os.Open(filepath.Join(p.root, list.path))
		if err != nil {
			continue
		}
		name := list.find(bufio.NewScanner(f), p)
		f.Close()
		if name != "" {
			return name
		}
	}
	return fmt.Sprintf("GPU %s:%s", p.vendor, p.device)
}

// findAMDGPU reads lines of libdrm's list: "744C,\tC8,\tAMD Radeon RX 7900 XTX".
func findAMDGPU(lines *bufio.Scanner, p pciCard) string {
	for p.vendor == "1002" && lines.Scan() {
		f := strings.SplitN(lines.Text(), ",", 3)
		if len(f) == 3 && strings.EqualFold(f[0], p.device) && strings.EqualFold(strings.TrimSpace(f[1]), p.revision) {
			return strings.TrimSpace(f[2])
		}
	}
	return ""
}

// findPCI reads the list of pci-ids.ucw.cz: a line of a vendor, "8086  Intel
// Corporation", then its devices, each after a tab: "\t56a0  DG2 [Arc A770]".
func findPCI(lines *bufio.Scanner, p pciCard) string {
	mine := false
	for lines.Scan() {
		line := lines.Text()
		device, indented := strings.CutPrefix(line, "\t")
		switch {
		case indented && mine:
			if name, ok := strings.CutPrefix(device, p.device+"  "); ok {
				return name
			}
		case !indented && line != "" && line[0] != '#':
			mine = strings.HasPrefix(line, p.vendor+"  ")
		}
	}
	return ""
}
