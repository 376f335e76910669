package fleet

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/balanceai/balance/exec/task"
)

// drmDevices lists and measures what a driver tree has.
func drmDevices(t *testing.T, root string) (about []Device, now []SampleGPU) {
	t.Helper()
	cards, err := newDRM(root).cards()
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range cards {
		about = append(about, c.device())
		now = append(now, c.measure(true))
	}
	return about, now
}

func TestAMD(t *testing.T) {
	root := tree(t, "amd.txtar")
	write(t, filepath.Join(root, "sys/class/drm/card1/device/gpu_metrics"), "\x78\x00\x01\x03")
	write(t, filepath.Join(root, "sys/class/drm/card0/device/gpu_metrics"), "\x78\x00\x02\x03")
	about, now := drmDevices(t, root)
	same(t, about, []Device{
		{UUID: "GPU-5ab2f4d1c0e96b37", Vendor: AMD, Model: "AMD Radeon RX 7900 XTX", VRAM: 25753026560, Driver: "amdgpu"},
		{UUID: "pci-0000:0f:00.0", Vendor: AMD, Model: "AMD Radeon Graphics", VRAM: 536870912 + 33533591552, Unified: true, Driver: "amdgpu"},
	})
	same(t, now, []SampleGPU{
		{UUID: "GPU-5ab2f4d1c0e96b37", Percent: 37, VRAMUsed: 9 * task.GiB, VRAM: 25753026560, Temperature: 54, Power: 118},
		{UUID: "pci-0000:0f:00.0", Percent: 0, VRAMUsed: 36700160 + 27262976, VRAM: 536870912 + 33533591552, Temperature: 41, Power: 11},
	})
}

// A processor that keeps most of its memory for its GPU has a device with
// memory of its own, as far as a run can tell.
func TestAMDLargeCarveOut(t *testing.T) {
	root := tree(t, "amd.txtar")
	dev := filepath.Join(root, "sys/class/drm/card0/device")
	write(t, filepath.Join(dev, "gpu_metrics"), "\x78\x00\x03\x00")
	write(t, filepath.Join(dev, "mem_info_vram_total"), "103079215104")
	about, now := drmDevices(t, root)
	if got := about[1]; got.Unified || got.VRAM != 96*task.GiB || now[1].VRAMUsed != 36700160 {
		t.Errorf("got %+v, %+v", got, now[1])
	}
}

func TestAMDAsleep(t *testing.T) {
	root := tree(t, "amd.txtar")
	dev := filepath.Join(root, "sys/class/drm/card1/device")
	write(t, filepath.Join(dev, "power/runtime_status"), "suspended\n")
	_, now := drmDevices(t, root)
	same(t, now[0], SampleGPU{UUID: "GPU-5ab2f4d1c0e96b37", VRAMUsed: 9 * task.GiB, VRAM: 25753026560})
}

func TestAMDVanishes(t *testing.T) {
	root := tree(t, "amd.txtar")
	cards, err := newDRM(root).cards()
	if err != nil {
		t.Fatal(err)
	}
	if err := os.RemoveAll(filepath.Join(root, "sys")); err != nil {
		t.Fatal(err)
	}
	same(t, cards[0].measure(true), SampleGPU{UUID: "GPU-5ab2f4d1c0e96b37", Percent: Unknown})
}

func TestIntel(t *testing.T) {
	about, now := drmDevices(t, tree(t, "intel.txtar"))
	same(t, about, []Device{
		{UUID: "pci-0000:00:02.0", Vendor: Intel, Model: "Raptor Lake-S GT1 [UHD Graphics 770]", Unified: true, Driver: "i915"},
		{UUID: "pci-0000:03:00.0", Vendor: Intel, Model: "DG2 [Arc A770]", VRAM: 17095983104, Driver: "i915"},
		{UUID: "pci-0000:08:00.0", Vendor: Intel, Model: "GPU 8086:e20b", VRAM: 12 * task.GiB, Driver: "xe"},
	})
	same(t, now, []SampleGPU{
		{UUID: "pci-0000:00:02.0", Percent: Unknown},
		{UUID: "pci-0000:03:00.0", Percent: Unknown, VRAM: 17095983104, VRAMUsed: 17095983104 - 13958643712, Temperature: 47},
		{UUID: "pci-0000:08:00.0", Percent: Unknown},
	})
}

func TestProductName(t *testing.T) {
	root := tree(t, "amd.txtar")
	write(t, filepath.Join(root, "sys/class/drm/card1/device/product_name"), "AMD Instinct MI210\n")
	about, _ := drmDevices(t, root)
	if about[0].Model != "AMD Instinct MI210" {
		t.Errorf("got %q", about[0].Model)
	}
}

func TestNoGraphics(t *testing.T) {
	if about, _ := drmDevices(t, t.TempDir()); about != nil {
		t.Errorf("got %v", about)
	}
}
