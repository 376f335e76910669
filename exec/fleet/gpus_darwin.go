package fleet

import (
	"fmt"
	"runtime"

	"golang.org/x/sys/unix"
)

func gpuSources(string) []source { return []source{apple{}} }

// apple is the GPU of an Apple chip, which works in the machine's memory. The
// system tells its use only through private interfaces, so nothing is measured.
type apple struct{}

func (apple) cards() ([]card, error) {
	if runtime.GOARCH != "arm64" {
		return nil, nil
	}
	model, err := unix.Sysctl("machdep.cpu.brand_string")
	if err != nil {
		return nil, fmt.Errorf("name the Apple chip: %w", err)
	}
	return []card{appleGPU{Device{UUID: "apple-gpu", Vendor: Apple, Model: model, Unified: true}}}, nil
}

func (apple) close() {}

type appleGPU struct{ about Device }

func (g appleGPU) device() Device { return g.about }

func (g appleGPU) measure(bool) SampleGPU {
	return SampleGPU{UUID: g.about.UUID, Percent: Unknown}
}
