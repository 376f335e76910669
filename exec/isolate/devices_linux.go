package isolate

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// Devices returns the device nodes of GPUs, and the folders that tell programs
// about them, by the GPUs' names in the machine's offer. root is / but in tests.
// A GPU without a node is an error: the run would start without it.
func Devices(root string, uuids []string) (nodes, trees []string, err error) {
	for _, uuid := range uuids {
		found, more := nvidiaNodes(root, uuid), []string(nil)
		if len(found) == 0 {
			found, more = drmNodes(root, uuid)
		}
		if len(found) == 0 {
			return nil, nil, fmt.Errorf("there is no device node for the GPU %s", uuid)
		}
		nodes, trees = append(nodes, found...), append(trees, more...)
	}
	slices.Sort(nodes)
	slices.Sort(trees)
	return slices.Compact(nodes), slices.Compact(trees), nil
}

// nvidiaNodes finds a device by what the driver tells in /proc, and adds the
// nodes that all of NVIDIA's devices share.
func nvidiaNodes(root, uuid string) []string {
	about, _ := filepath.Glob(filepath.Join(root, "proc/driver/nvidia/gpus/*/information"))
	for _, path := range about {
		values := map[string]string{}
		b, err := os.ReadFile(path)
		if err != nil {
			continue
		}
		for line := range strings.Lines(string(b)) {
			if key, value, ok := strings.Cut(line, ":"); ok {
				values[strings.TrimSpace(key)] = strings.TrimSpace(value)
			}
		}
		minor := values["Device Minor"]
		if values["GPU UUID"] != uuid || minor == "" || strings.Trim(minor, "0123456789") != "" {
			continue
		}
		own := existing(root, "/dev/nvidia"+minor)
		if len(own) == 0 {
			return nil
		}
		return append(own, existing(root, "/dev/nvidiactl", "/dev/nvidia-uvm", "/dev/nvidia-uvm-tools", "/dev/nvidia-modeset")...)
	}
	return nil
}

// drmNodes finds a device of AMD or Intel: its render node, which computes and
// does not draw on a screen, and for AMD the one that all of them share.
func drmNodes(root, uuid string) (nodes, trees []string) {
	renders, _ := filepath.Glob(filepath.Join(root, "sys/class/drm/renderD*"))
	for _, render := range renders {
		device := filepath.Join(render, "device")
		driver, slot := "", ""
		b, err := os.ReadFile(filepath.Join(device, "uevent"))
		if err != nil {
			continue
		}
		for line := range strings.Lines(string(b)) {
			switch key, value, _ := strings.Cut(strings.TrimSpace(line), "="); key {
			case "DRIVER":
				driver = value
			case "PCI_SLOT_NAME":
				slot = value
			}
		}
		unique, _ := os.ReadFile(filepath.Join(device, "unique_id")) // AMD alone has it
		if uuid != "pci-"+slot && (len(unique) == 0 || uuid != "GPU-"+strings.TrimSpace(string(unique))) {
			continue
		}
		nodes = existing(root, "/dev/dri/"+filepath.Base(render))
		if len(nodes) > 0 && driver == "amdgpu" {
			nodes = append(nodes, existing(root, "/dev/kfd")...)
		}
		return nodes, existing(root, "/sys/class/drm", "/sys/class/kfd", "/sys/devices", "/sys/dev/char", "/sys/bus/pci")
	}
	return nil, nil
}

func existing(root string, paths ...string) []string {
	return slices.DeleteFunc(paths, func(path string) bool {
		_, err := os.Stat(filepath.Join(root, path))
		return err != nil
	})
}
