package fleet

import (
	"path/filepath"
	"runtime"
	"testing"

	"github.com/balanceai/balance/exec/task"
)

func TestHostWithinControlGroups(t *testing.T) {
	for _, tc := range []struct {
		tree              string
		model             string
		cpu               task.CPU
		memory, available task.Bytes
	}{
		{"cgroup2.txtar", "AMD EPYC 7543 32-Core Processor", 1500, 8 * task.GiB, 6 * task.GiB},
		{"cgroup1.txtar", "", 500, 2 * task.GiB, 1536 * task.MiB},
	} {
		t.Run(tc.tree, func(t *testing.T) {
			h := newHost(tree(t, tc.tree))
			model, cpu, memory, err := h.describe()
			if err != nil {
				t.Fatal(err)
			}
			if want := min(tc.cpu, task.Core*task.CPU(runtime.NumCPU())); cpu != want {
				t.Errorf("CPU %v, want %v", cpu, want)
			}
			if model != tc.model || memory != tc.memory {
				t.Errorf("model %q with %v, want %q with %v", model, memory, tc.model, tc.memory)
			}
			busy, all, available := h.usage()
			if busy != Unknown || all != tc.memory || available != tc.available {
				t.Errorf("%v %% busy, %v of %v available; want unknown, %v of %v", busy, available, all, tc.available, tc.memory)
			}
		})
	}
}

func TestCPUUsage(t *testing.T) {
	root := tree(t, "cgroup2.txtar")
	h := newHost(root)
	if busy, _, _ := h.usage(); busy != Unknown {
		t.Errorf("first reading: %v %% busy, want unknown", busy)
	}
	for _, tc := range []struct {
		stat string
		want float64
	}{
		// 60 ticks more in user, nice, system, irq, softirq and steal; 140 in idle and iowait.
		{"cpu  1010 60 310 8100 240 20 50 410 130 0\n", 30},
		{"cpu  1010 60 310 8100 240 20 50 410 130 0\n", Unknown}, // no time has passed
		{"cpu  1000 60 310 8200 240 20 50 410 130 0\n", 0},       // a counter went back
		{"", Unknown},
	} {
		write(t, filepath.Join(root, "proc/stat"), tc.stat)
		if busy, _, _ := h.usage(); busy != tc.want {
			t.Errorf("%q: %v %% busy, want %v", tc.stat, busy, tc.want)
		}
	}
}

func TestHostNotMeasured(t *testing.T) {
	h := newHost(t.TempDir())
	if _, _, memory, err := h.describe(); err == nil || memory != 0 {
		t.Errorf("no /proc: %v of memory, error %v", memory, err)
	}
	if busy, memory, available := h.usage(); busy != Unknown || memory != 0 || available != 0 {
		t.Errorf("no /proc: %v %% busy, %v of %v", busy, available, memory)
	}
}

func TestBoardName(t *testing.T) {
	root := t.TempDir()
	write(t, filepath.Join(root, "sys/firmware/devicetree/base/model"), "Raspberry Pi 5 Model B Rev 1.0\x00")
	if got := newHost(root).model(); got != "Raspberry Pi 5 Model B Rev 1.0" {
		t.Errorf("got %q", got)
	}
}

func FuzzCgroups(f *testing.F) {
	f.Add("0::/a/b\n", "32 25 0:28 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n")
	f.Add("4:memory:/docker/abc\n", "35 31 0:32 /docker/abc /m rw - cgroup cgroup rw,memory\n")
	f.Add("4:memory:/../..\n0::", "35 31 0:32 /x /../m rw - cgroup cgroup rw,memory")
	f.Fuzz(func(t *testing.T, cgroup, mountinfo string) {
		root := t.TempDir()
		write(t, filepath.Join(root, "proc/self/cgroup"), cgroup)
		write(t, filepath.Join(root, "proc/self/mountinfo"), mountinfo)
		c := readCgroups(root)
		c.cpuQuota()
		c.memoryLimits(task.TiB)
	})
}
