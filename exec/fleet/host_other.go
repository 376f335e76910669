//go:build !linux

package fleet

import (
	"fmt"
	"runtime"

	"github.com/shirou/gopsutil/v4/cpu"
	"github.com/shirou/gopsutil/v4/disk"
	"github.com/shirou/gopsutil/v4/mem"

	"github.com/balanceai/balance/exec/task"
)

// host measures CPU and memory with gopsutil.
type host struct{ started bool }

func newHost(string) *host { return &host{} }

func (h *host) describe() (model string, cores task.CPU, memory task.Bytes, err error) {
	if info, err := cpu.Info(); err == nil && len(info) > 0 {
		model = info[0].ModelName
	}
	m, err := mem.VirtualMemory()
	if err != nil {
		return model, 0, 0, fmt.Errorf("measure memory: %w", err)
	}
	return model, task.Core * task.CPU(runtime.NumCPU()), task.Bytes(m.Total), nil
}

// usage gives the share of the cores that was busy since the last call, and
// memory in all and what a new program could get.
func (h *host) usage() (busy float64, memory, available task.Bytes) {
	busy = Unknown
	if p, err := cpu.Percent(0, false); err == nil && len(p) == 1 && h.started {
		busy = p[0]
	}
	h.started = true
	if m, err := mem.VirtualMemory(); err == nil {
		memory, available = task.Bytes(m.Total), task.Bytes(m.Available)
	}
	return busy, memory, available
}

// diskSpace measures the file system that holds a folder: all of it, and what
// is free for this user.
func diskSpace(folder string) (total, free task.Bytes, err error) {
	u, err := disk.Usage(folder)
	if err != nil {
		return 0, 0, err
	}
	return task.Bytes(u.Total), task.Bytes(u.Free), nil
}
