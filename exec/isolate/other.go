//go:build !linux

package isolate

import (
	"context"
	"runtime"
)

// Detect finds no sandbox: there are ones for other systems, but none that this
// program trusts with the work of strangers.
func Detect(context.Context, string) *Machine {
	return &Machine{Why: "there is none for " + runtime.GOOS}
}

// Devices knows no device nodes: there are no sandboxes to put them into.
func Devices(string, []string) (nodes, trees []string, err error) { return nil, nil, nil }
