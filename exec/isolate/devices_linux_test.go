package isolate

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// machineOf makes the files by which the drivers of GPUs tell about them.
func machineOf(t *testing.T, files map[string]string) string {
	t.Helper()
	root := t.TempDir()
	for name, text := range files {
		path := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return root
}

func TestDevices(t *testing.T) {
	root := machineOf(t, map[string]string{
		"proc/driver/nvidia/gpus/0000:01:00.0/information": "Model: \t\t NVIDIA L4\nGPU UUID: \t GPU-aaaa\nDevice Minor: \t 0\n",
		"proc/driver/nvidia/gpus/0000:02:00.0/information": "Model: \t\t NVIDIA L4\nGPU UUID: \t GPU-bbbb\nDevice Minor: \t 1\n",
		"proc/driver/nvidia/gpus/0000:03:00.0/information": "GPU UUID: \t GPU-evil\nDevice Minor: \t ../sda\n",
		"dev/nvidia0": "", "dev/nvidia1": "", "dev/nvidiactl": "", "dev/nvidia-uvm": "", "dev/sda": "",
		"dev/kfd": "", "dev/dri/renderD128": "", "dev/dri/renderD129": "", "dev/dri/card0": "",
		"sys/class/drm/renderD128/device/uevent":    "DRIVER=amdgpu\nPCI_SLOT_NAME=0000:05:00.0\n",
		"sys/class/drm/renderD128/device/unique_id": "1234567890abcdef\n",
		"sys/class/drm/renderD129/device/uevent":    "DRIVER=xe\nPCI_SLOT_NAME=0000:06:00.0\n",
	})
	nvidia := []string{"/dev/nvidia-uvm", "/dev/nvidia1", "/dev/nvidiactl"}
	for name, test := range map[string]struct {
		uuids []string
		want  []string
	}{
		"none":        {nil, nil},
		"NVIDIA":      {[]string{"GPU-bbbb"}, nvidia},
		"two":         {[]string{"GPU-bbbb", "GPU-aaaa"}, []string{"/dev/nvidia-uvm", "/dev/nvidia0", "/dev/nvidia1", "/dev/nvidiactl"}},
		"AMD":         {[]string{"GPU-1234567890abcdef"}, []string{"/dev/dri/renderD128", "/dev/kfd"}},
		"AMD by slot": {[]string{"pci-0000:05:00.0"}, []string{"/dev/dri/renderD128", "/dev/kfd"}},
		"Intel":       {[]string{"pci-0000:06:00.0"}, []string{"/dev/dri/renderD129"}},
	} {
		if got, _, err := Devices(root, test.uuids); err != nil || !slices.Equal(got, test.want) {
			t.Errorf("%s: %v, %v", name, got, err)
		}
	}
	for _, uuid := range []string{"GPU-cccc", "GPU-evil", "", "pci-", "GPU-"} {
		if got, _, err := Devices(root, []string{"GPU-aaaa", uuid}); err == nil {
			t.Errorf("%q: %v", uuid, got)
		}
	}
}

// A run sees the device nodes that it was placed on and no other (TRUST, T52).
func TestSandboxDevices(t *testing.T) {
	m := machine(t)
	var nodes []string
	for i := range 2 {
		path := fmt.Sprintf("/dev/balance-test-%d-gpu%d", os.Getpid(), i)
		if err := unix.Mknod(path, unix.S_IFCHR|0o666, int(unix.Mkdev(195, uint32(i)))); err != nil {
			if os.Getenv("BALANCE_REQUIRE") == "1" && os.Getuid() == 0 {
				t.Fatal(err)
			}
			t.Skip("needs root to make device nodes")
		}
		t.Cleanup(func() { _ = os.Remove(path) })
		nodes = append(nodes, path)
	}
	const look = `for f in /dev/*; do [ -c $f ] && [ ! -L $f ] && echo $f; done | tr '\n' ' '`
	if o := start(t, m, job(t, Sandbox, "sh", "-c", look)); o.stdout != "/dev/full /dev/null /dev/random /dev/tty /dev/urandom /dev/zero " {
		t.Errorf("without a grant: %+v", o)
	}
	j := job(t, Sandbox, "sh", "-c", "cat "+nodes[1]+" 2>&1; cat "+nodes[0]+" 2>&1")
	j.Devices = nodes[1:]
	// The driver is not there, which is what the kernel answers, not that the run
	// may not open it.
	if o := start(t, m, j); !strings.Contains(o.stdout, "No such device or address") || !strings.Contains(o.stdout, nodes[0]+": No such file") {
		t.Errorf("%+v", o)
	}
}
