//go:build cgo

package fleet

import (
	"errors"
	"fmt"

	"github.com/NVIDIA/go-nvml/pkg/nvml"

	"github.com/balanceai/balance/exec/task"
)

func nvidiaSources() []source { return []source{&nvidia{lib: nvml.New()}} }

// nvidia asks NVIDIA's management library, which comes with the driver and is
// loaded when it is first needed.
//
// Of a device that is split into MIG instances each instance is a device of its
// own: a program can use no more than one. Instances tell neither how busy they
// are nor their temperature and power.
type nvidia struct {
	lib  nvml.Interface
	open bool
}

func (n *nvidia) cards() (cards []card, err error) {
	defer func() {
		if p := recover(); p != nil {
			cards, err = nil, fmt.Errorf("list NVIDIA devices: %v", p)
		}
	}()
	n.close()
	ret := n.lib.Init()
	if ret == nvml.ERROR_LIBRARY_NOT_FOUND {
		return nil, nil // no driver, so no device that could be used
	}
	if ret != nvml.SUCCESS {
		return nil, fmt.Errorf("start NVIDIA's library: %w", ret)
	}
	n.open = true
	return n.list()
}

func (n *nvidia) close() {
	if n.open {
		_ = n.lib.Shutdown() // nothing can be done about it
		n.open = false
	}
}

func (n *nvidia) list() (cards []card, err error) {
	driver, _ := n.lib.SystemGetDriverVersion()
	count, ret := n.lib.DeviceGetCount()
	if ret != nvml.SUCCESS {
		return nil, fmt.Errorf("count NVIDIA devices: %w", ret)
	}
	var errs []error
	for i := range count {
		whole, ret := n.lib.DeviceGetHandleByIndex(i)
		if ret != nvml.SUCCESS {
			errs = append(errs, fmt.Errorf("open NVIDIA device %d: %w", i, ret))
			continue
		}
		for _, handle := range n.instances(whole) {
			c, err := newNvidiaCard(handle, driver)
			if err != nil {
				errs = append(errs, fmt.Errorf("identify NVIDIA device %d: %w", i, err))
				continue
			}
			cards = append(cards, c)
		}
	}
	return cards, errors.Join(errs...)
}

// instances returns the MIG instances of a device, or the device itself where
// it is not split.
func (n *nvidia) instances(whole nvml.Device) []nvml.Device {
	// A symbol that is missing ends the process when it is called; drivers
	// before 450 lack these.
	if n.lib.Extensions().LookupSymbol("nvmlDeviceGetMigMode") != nil {
		return []nvml.Device{whole}
	}
	mode, _, ret := whole.GetMigMode()
	if ret != nvml.SUCCESS || mode != nvml.DEVICE_MIG_ENABLE {
		return []nvml.Device{whole}
	}
	var out []nvml.Device
	most, _ := whole.GetMaxMigDeviceCount()
	for i := range most {
		if part, ret := whole.GetMigDeviceHandleByIndex(i); ret == nvml.SUCCESS {
			out = append(out, part)
		}
	}
	return out
}

type nvidiaCard struct {
	handle nvml.Device
	about  Device
}

func newNvidiaCard(handle nvml.Device, driver string) (*nvidiaCard, error) {
	uuid, ret := handle.GetUUID()
	if ret != nvml.SUCCESS {
		return nil, ret
	}
	model, ret := handle.GetName()
	if ret != nvml.SUCCESS {
		return nil, ret
	}
	memory, ret := handle.GetMemoryInfo()
	return &nvidiaCard{handle, Device{
		UUID:    uuid,
		Vendor:  NVIDIA,
		Model:   model,
		VRAM:    task.Bytes(memory.Total),
		Unified: ret == nvml.ERROR_NOT_SUPPORTED, // chips that have no memory but the machine's
		Driver:  driver,
	}}, nil
}

func (c *nvidiaCard) device() Device { return c.about }

// processes sums up the memory that each process holds of the device, for
// computing and for graphics. A driver in a container may not know it.
func (c *nvidiaCard) processes(into map[int]task.Bytes) {
	for _, ask := range []func() ([]nvml.ProcessInfo, nvml.Return){c.handle.GetComputeRunningProcesses, c.handle.GetGraphicsRunningProcesses} {
		list, ret := ask()
		if ret != nvml.SUCCESS {
			continue
		}
		for _, p := range list {
			if p.UsedGpuMemory != notAvailable {
				into[int(p.Pid)] += task.Bytes(p.UsedGpuMemory)
			}
		}
	}
}

// notAvailable is what NVML says of memory that it cannot tell.
const notAvailable = ^uint64(0)

func (c *nvidiaCard) measure(detail bool) SampleGPU {
	s := SampleGPU{UUID: c.about.UUID, Percent: Unknown}
	if m, ret := c.handle.GetMemoryInfo(); ret == nvml.SUCCESS {
		s.VRAM, s.VRAMUsed = task.Bytes(m.Total), task.Bytes(m.Total-min(m.Free, m.Total))
	}
	if u, ret := c.handle.GetUtilizationRates(); ret == nvml.SUCCESS {
		s.Percent = float64(u.Gpu)
	}
	if !detail {
		return s
	}
	if t, ret := c.handle.GetTemperature(nvml.TEMPERATURE_GPU); ret == nvml.SUCCESS {
		s.Temperature = float64(t)
	}
	if p, ret := c.handle.GetPowerUsage(); ret == nvml.SUCCESS {
		s.Power = float64(p) / 1000 // milliwatts
	}
	return s
}
