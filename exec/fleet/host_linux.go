package fleet

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/balanceai/balance/exec/task"
)

// host measures CPU and memory from /proc (proc_stat(5), proc_meminfo(5)),
// within the control groups that bound this process.
type host struct {
	root   string
	limits []memoryLimit // those lower than the machine's memory

	busy, total uint64 // CPU time of all cores at the last usage, in clock ticks
}

func newHost(root string) *host { return &host{root: root} }

func (h *host) path(name string) string { return filepath.Join(h.root, name) }

// describe gives what does not change while the machine runs, unless its
// administrator changes it.
func (h *host) describe() (model string, cpu task.CPU, memory task.Bytes, err error) {
	groups := readCgroups(h.root)
	cpu = task.Core * task.CPU(runtime.NumCPU())
	if quota, ok := groups.cpuQuota(); ok {
		cpu = min(cpu, quota)
	}
	memory, _, err = h.memory()
	h.limits = groups.memoryLimits(memory)
	for _, l := range h.limits {
		memory = min(memory, l.max)
	}
	return h.model(), cpu, memory, err
}

// model returns the name of the processor, or of the board where Linux does
// not know the processor's name.
func (h *host) model() string {
	info, _ := os.ReadFile(h.path("proc/cpuinfo"))
	for line := range strings.Lines(string(info)) {
		if key, value, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(key) == "model name" {
			return strings.TrimSpace(value)
		}
	}
	return strings.TrimRight(readText(h.path("sys/firmware/devicetree/base/model")), "\x00")
}

// usage gives the share of the cores that was busy since the last call, and
// memory in all and what a new program could get.
func (h *host) usage() (cpu float64, memory, available task.Bytes) {
	cpu = Unknown
	busy, total := h.cpuTime()
	if h.total > 0 && total > h.total {
		cpu = 100 * float64(max(busy, h.busy)-h.busy) / float64(total-h.total)
	}
	h.busy, h.total = busy, total

	memory, available, _ = h.memory()
	for _, l := range h.limits {
		memory = min(memory, l.max)
		available = min(available, l.free())
	}
	return cpu, memory, min(available, memory)
}

// cpuTime reads the first line of /proc/stat: user, nice, system, idle, iowait,
// irq, softirq, steal; what follows is in user and nice already.
func (h *host) cpuTime() (busy, total uint64) {
	b, _ := os.ReadFile(h.path("proc/stat"))
	line, _, _ := bytes.Cut(b, []byte("\n"))
	for i, field := range strings.Fields(string(line)) {
		n, err := strconv.ParseUint(field, 10, 64)
		if err != nil || i > 8 {
			continue
		}
		total += n
		if i != 4 && i != 5 {
			busy += n
		}
	}
	return busy, total
}

func (h *host) memory() (total, available task.Bytes, err error) {
	b, err := os.ReadFile(h.path("proc/meminfo"))
	if err != nil {
		return 0, 0, fmt.Errorf("measure memory: %w", err)
	}
	for line := range strings.Lines(string(b)) {
		f := strings.Fields(line)
		if len(f) != 3 {
			continue
		}
		n, _ := strconv.ParseUint(f[1], 10, 54)
		switch f[0] {
		case "MemTotal:":
			total = task.Bytes(n) * task.KiB
		case "MemAvailable:":
			return total, task.Bytes(n) * task.KiB, nil
		}
	}
	return total, 0, fmt.Errorf("measure memory: %s does not tell what is available", h.path("proc/meminfo"))
}

// diskSpace measures the file system that holds a folder: all of it, and what
// is free for this user.
func diskSpace(folder string) (total, free task.Bytes, err error) {
	var s unix.Statfs_t
	if err := unix.Statfs(folder, &s); err != nil {
		return 0, 0, err
	}
	return task.Bytes(s.Blocks) * task.Bytes(s.Bsize), task.Bytes(s.Bavail) * task.Bytes(s.Bsize), nil
}

// readText returns the content of a small file of the kernel without the white
// space around it; empty where it cannot be read.
func readText(path string) string {
	b, _ := os.ReadFile(path)
	return string(bytes.TrimSpace(b))
}

// readNumber returns the number in a small file of the kernel.
func readNumber(path string) (uint64, bool) {
	n, err := strconv.ParseUint(readText(path), 10, 64)
	return n, err == nil
}
