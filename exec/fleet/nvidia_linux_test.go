//go:build cgo

package fleet

import (
	"errors"
	"strings"
	"testing"

	"github.com/NVIDIA/go-nvml/pkg/nvml"
	"github.com/NVIDIA/go-nvml/pkg/nvml/mock"

	"github.com/balanceai/balance/exec/task"
)

// fakeLibrary is a library that knows devices.
func fakeLibrary(devices ...*mock.Device) *mock.Interface {
	return &mock.Interface{
		InitFunc:                   func() nvml.Return { return nvml.SUCCESS },
		ShutdownFunc:               func() nvml.Return { return nvml.SUCCESS },
		SystemGetDriverVersionFunc: func() (string, nvml.Return) { return "570.86.15", nvml.SUCCESS },
		DeviceGetCountFunc:         func() (int, nvml.Return) { return len(devices), nvml.SUCCESS },
		DeviceGetHandleByIndexFunc: func(i int) (nvml.Device, nvml.Return) {
			if devices[i] == nil {
				return nil, nvml.ERROR_GPU_IS_LOST
			}
			return devices[i], nvml.SUCCESS
		},
		ExtensionsFunc: func() nvml.ExtendedInterface {
			return &mock.ExtendedInterface{LookupSymbolFunc: func(string) error { return nil }}
		},
	}
}

// fakeH200 is a device that answers every question. MIG is off.
func fakeH200(uuid string) *mock.Device {
	return &mock.Device{
		GetUUIDFunc:    func() (string, nvml.Return) { return uuid, nvml.SUCCESS },
		GetNameFunc:    func() (string, nvml.Return) { return "NVIDIA H200", nvml.SUCCESS },
		GetMigModeFunc: func() (int, int, nvml.Return) { return nvml.DEVICE_MIG_DISABLE, 0, nvml.SUCCESS },
		GetMemoryInfoFunc: func() (nvml.Memory, nvml.Return) {
			return nvml.Memory{Total: 140 << 30, Free: 100 << 30, Used: 39 << 30}, nvml.SUCCESS
		},
		GetUtilizationRatesFunc: func() (nvml.Utilization, nvml.Return) {
			return nvml.Utilization{Gpu: 93, Memory: 40}, nvml.SUCCESS
		},
		GetTemperatureFunc: func(nvml.TemperatureSensors) (uint32, nvml.Return) { return 61, nvml.SUCCESS },
		GetPowerUsageFunc:  func() (uint32, nvml.Return) { return 512_300, nvml.SUCCESS },
	}
}

func nvidiaProbe(lib nvml.Interface) *Probe {
	return &Probe{disk: "/", host: newHost("/"), sources: []source{&nvidia{lib: lib}}, engines: newEngineFinder()}
}

func TestNVIDIA(t *testing.T) {
	p := nvidiaProbe(fakeLibrary(fakeH200("GPU-a"), fakeH200("GPU-b")))
	o, err := p.Offer(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	want := Device{UUID: "GPU-a", Vendor: NVIDIA, Model: "NVIDIA H200", VRAM: 140 * task.GiB, Driver: "570.86.15"}
	other := want
	other.UUID = "GPU-b"
	same(t, o.GPUs, []Device{want, other})

	r := p.measure(true)
	same(t, r.gpus[1], SampleGPU{UUID: "GPU-b", Percent: 93, VRAM: 140 * task.GiB, VRAMUsed: 40 * task.GiB, Temperature: 61, Power: 512.3})
	same(t, r.live(Held{Devices: []DeviceUse{{UUID: "GPU-b"}}}).GPUs, []LiveGPU{
		{FreeVRAM: 100 * task.GiB, Percent: 93},
		{FreeVRAM: 100 * task.GiB, Percent: 93, Held: true},
	})
	p.Close()
}

// The memory of a device is told by the process, and none is made up.
func TestNVIDIAProcesses(t *testing.T) {
	a, b := fakeH200("GPU-a"), fakeH200("GPU-b")
	tells := func(list ...nvml.ProcessInfo) func() ([]nvml.ProcessInfo, nvml.Return) {
		return func() ([]nvml.ProcessInfo, nvml.Return) { return list, nvml.SUCCESS }
	}
	a.GetComputeRunningProcessesFunc = tells(nvml.ProcessInfo{Pid: 7, UsedGpuMemory: 1 << 30}, nvml.ProcessInfo{Pid: 8, UsedGpuMemory: ^uint64(0)})
	a.GetGraphicsRunningProcessesFunc = func() ([]nvml.ProcessInfo, nvml.Return) { return nil, nvml.ERROR_NOT_SUPPORTED }
	b.GetComputeRunningProcessesFunc = tells(nvml.ProcessInfo{Pid: 7, UsedGpuMemory: 2 << 30})
	b.GetGraphicsRunningProcessesFunc = tells(nvml.ProcessInfo{Pid: 9, UsedGpuMemory: 1})
	p := nvidiaProbe(fakeLibrary(a, b, fakeH200("GPU-old"))) // a driver that lacks the symbol panics
	if _, err := p.Offer(t.Context()); err != nil {
		t.Fatal(err)
	}
	same(t, p.Processes([]string{"GPU-a"}), map[int]task.Bytes{7: task.GiB})
	same(t, p.Processes([]string{"GPU-a", "GPU-b", "GPU-old"}), map[int]task.Bytes{7: 3 * task.GiB, 9: 1})
	p.Close()
}

// A split device is offered by its instances, which know less.
func TestMIG(t *testing.T) {
	none := func() (uint32, nvml.Return) { return 0, nvml.ERROR_NOT_SUPPORTED }
	part := &mock.Device{
		GetUUIDFunc: func() (string, nvml.Return) { return "MIG-c", nvml.SUCCESS },
		GetNameFunc: func() (string, nvml.Return) { return "NVIDIA H200 MIG 1g.18gb", nvml.SUCCESS },
		GetMemoryInfoFunc: func() (nvml.Memory, nvml.Return) {
			return nvml.Memory{Total: 16 << 30, Free: 16 << 30}, nvml.SUCCESS
		},
		GetUtilizationRatesFunc: func() (nvml.Utilization, nvml.Return) {
			return nvml.Utilization{}, nvml.ERROR_NOT_SUPPORTED
		},
		GetTemperatureFunc: func(nvml.TemperatureSensors) (uint32, nvml.Return) { return none() },
		GetPowerUsageFunc:  none,
	}
	whole := fakeH200("GPU-a")
	whole.GetMigModeFunc = func() (int, int, nvml.Return) { return nvml.DEVICE_MIG_ENABLE, 1, nvml.SUCCESS }
	whole.GetMaxMigDeviceCountFunc = func() (int, nvml.Return) { return 7, nvml.SUCCESS }
	whole.GetMigDeviceHandleByIndexFunc = func(i int) (nvml.Device, nvml.Return) {
		if i != 2 {
			return nil, nvml.ERROR_NOT_FOUND
		}
		return part, nvml.SUCCESS
	}
	p := nvidiaProbe(fakeLibrary(whole))
	o, err := p.Offer(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	same(t, o.GPUs, []Device{{UUID: "MIG-c", Vendor: NVIDIA, Model: "NVIDIA H200 MIG 1g.18gb", VRAM: 16 * task.GiB, Driver: "570.86.15"}})
	same(t, p.measure(true).gpus, []SampleGPU{{UUID: "MIG-c", Percent: Unknown, VRAM: 16 * task.GiB}})

	old := fakeLibrary(fakeH200("GPU-a"))
	old.ExtensionsFunc = func() nvml.ExtendedInterface {
		return &mock.ExtendedInterface{LookupSymbolFunc: func(string) error { return errors.New("no such symbol") }}
	}
	if o, err := nvidiaProbe(old).Offer(t.Context()); err != nil || len(o.GPUs) != 1 {
		t.Errorf("driver without MIG: %v, %v", o.GPUs, err)
	}
}

func TestNVIDIAWithoutMemoryOfItsOwn(t *testing.T) {
	d := fakeH200("GPU-a")
	d.GetMemoryInfoFunc = func() (nvml.Memory, nvml.Return) { return nvml.Memory{}, nvml.ERROR_NOT_SUPPORTED }
	o, err := nvidiaProbe(fakeLibrary(d)).Offer(t.Context())
	if err != nil || !o.GPUs[0].Unified || o.GPUs[0].VRAM != 0 {
		t.Errorf("got %+v, %v", o.GPUs, err)
	}
}

// A device that fails in the middle, by an error or by a panic in the binding,
// loses its values and costs the others nothing.
func TestNVIDIAFails(t *testing.T) {
	lost, broken := fakeH200("GPU-a"), fakeH200("GPU-b")
	p := nvidiaProbe(fakeLibrary(lost, broken, fakeH200("GPU-c")))
	if _, err := p.Offer(t.Context()); err != nil {
		t.Fatal(err)
	}
	lost.GetMemoryInfoFunc = func() (nvml.Memory, nvml.Return) { return nvml.Memory{}, nvml.ERROR_GPU_IS_LOST }
	lost.GetUtilizationRatesFunc = func() (nvml.Utilization, nvml.Return) { return nvml.Utilization{}, nvml.ERROR_GPU_IS_LOST }
	lost.GetTemperatureFunc = func(nvml.TemperatureSensors) (uint32, nvml.Return) { return 9, nvml.ERROR_GPU_IS_LOST }
	lost.GetPowerUsageFunc = func() (uint32, nvml.Return) { return 9, nvml.ERROR_GPU_IS_LOST }
	broken.GetUtilizationRatesFunc = nil // the mock panics
	got := p.measure(true).gpus
	same(t, got[:2], []SampleGPU{{UUID: "GPU-a", Percent: Unknown}, {UUID: "GPU-b", Percent: Unknown}})
	if got[2].Percent != 93 {
		t.Errorf("third device: %+v", got[2])
	}
}

func TestNVIDIALibraryFails(t *testing.T) {
	for _, tc := range []struct {
		name  string
		spoil func(*mock.Interface)
		want  string // in the error; empty for none
		gpus  int
	}{
		{"absent", func(l *mock.Interface) { l.InitFunc = func() nvml.Return { return nvml.ERROR_LIBRARY_NOT_FOUND } }, "", 0},
		{"of another driver", func(l *mock.Interface) {
			l.InitFunc = func() nvml.Return { return nvml.ERROR_LIB_RM_VERSION_MISMATCH }
		}, "start NVIDIA's library", 0},
		{"without count", func(l *mock.Interface) {
			l.DeviceGetCountFunc = func() (int, nvml.Return) { return 0, nvml.ERROR_UNKNOWN }
		}, "count NVIDIA devices", 0},
		{"one device lost", func(*mock.Interface) {}, "open NVIDIA device 0", 1},
		{"panics", func(l *mock.Interface) { l.DeviceGetCountFunc = nil }, "list NVIDIA devices", 0},
	} {
		t.Run(tc.name, func(t *testing.T) {
			lib := fakeLibrary(nil, fakeH200("GPU-b"))
			tc.spoil(lib)
			o, err := nvidiaProbe(lib).Offer(t.Context())
			if len(o.GPUs) != tc.gpus || o.Memory == 0 {
				t.Errorf("got %d GPUs and %v of memory, want %d GPUs", len(o.GPUs), o.Memory, tc.gpus)
			}
			switch {
			case tc.want == "" && err != nil:
				t.Error(err)
			case tc.want != "" && (err == nil || !strings.Contains(err.Error(), tc.want)):
				t.Errorf("error %v, want %q", err, tc.want)
			}
		})
	}
}

// Each offer starts the library anew, so that devices that came and instances
// that were made since are found.
func TestNVIDIAListedAgain(t *testing.T) {
	lib := fakeLibrary(fakeH200("GPU-a"))
	p := nvidiaProbe(lib)
	for range 3 {
		if _, err := p.Offer(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	p.Close()
	p.Close()
	if starts, ends := len(lib.InitCalls()), len(lib.ShutdownCalls()); starts != 3 || ends != 3 {
		t.Errorf("started %d times, ended %d times", starts, ends)
	}
}
