// Package cgroup keeps the processes of a run together and holds what they use
// within limits, by the kernel's control groups: see cgroups(7).
//
// A run gets a group, and everything that it starts stays in it. Version 2 of
// the kernel's interface is used where this process may make groups with limits
// in it, and version 1 for what version 2 does not have here, for on a machine
// each controller belongs to one of the two. Nothing is assumed to hold because
// it was written: limits are read back, and a limit that does not stick is an
// error, before anything is started. [Base.Can] tells beforehand.
//
// Version 2 wants processes in the leaves of the tree alone. Where this process
// has a group to itself, as under a service manager, it moves into one below,
// [Leaf], and makes the groups of runs beside it.
//
// A [Group] is a plain value, so that another process can go on with it.
package cgroup

import (
	"fmt"
	"strings"
	"time"
)

// Leaf is the name of the group that the node itself is in.
const Leaf = "node"

// Can says what groups are able to do on this machine.
type Can struct {
	Memory  bool `json:"memory"`
	CPU     bool `json:"cpu"`
	PIDs    bool `json:"pids"`
	Version int  `json:"version,omitempty"` // 2 where any limit is kept by version 2, else 1; 0 for no limit
	Kill    bool `json:"kill"`              // all of a group at once
}

// Holds names the limits that groups keep.
func (c Can) Holds() []string {
	var out []string
	for _, limit := range []struct {
		name string
		can  bool
	}{{"memory", c.Memory}, {"cpu", c.CPU}, {"pids", c.PIDs}} {
		if limit.can {
			out = append(out, limit.name)
		}
	}
	return out
}

// Core is one core in [Limits].
const Core = 1000

// Limits bound all processes of a group together; 0 for none.
type Limits struct {
	Memory uint64 // bytes
	CPU    uint64 // of time, in parts of [Core]
	PIDs   int    // processes and threads
}

// lacks names the limits that groups cannot hold here.
func (l Limits) lacks(c Can) []string {
	return Can{Memory: l.Memory > 0 && !c.Memory, CPU: l.CPU > 0 && !c.CPU, PIDs: l.PIDs > 0 && !c.PIDs}.Holds()
}

// Group is the group of one run: a folder in each hierarchy that it is in.
type Group struct {
	V2 string            `json:"v2,omitempty"`
	V1 map[string]string `json:"v1,omitempty"` // by controller
}

// Events counts what happened in a group because of its limits.
type Events struct {
	OOM  uint64 // processes killed for want of memory
	PIDs uint64 // processes or threads that were refused
}

// Usage is what all processes of a group have used, those that have ended
// included. What could not be measured is 0.
type Usage struct {
	CPU    time.Duration
	Memory uint64 // bytes, at most at one time
}

// file is a setting: where it is, what is written, and what may be read then.
type file struct {
	name  string
	value string
	maybe bool              // it need not be there
	same  func(string) bool // nil: exactly the value
}

// settings2 lists what to write in version 2.
func (l Limits) settings2(c Can) []file {
	var out []file
	if l.Memory > 0 && c.Memory {
		out = append(out,
			file{name: "memory.max", value: fmt.Sprint(l.Memory), same: about(l.Memory)},
			file{name: "memory.swap.max", value: "0", maybe: true},
			file{name: "memory.oom.group", value: "1", maybe: true}) // half a run is of no use
	}
	if l.CPU > 0 && c.CPU {
		out = append(out, file{name: "cpu.max", value: fmt.Sprintf("%d %d", quota(l.CPU), period)})
	}
	if l.PIDs > 0 && c.PIDs {
		out = append(out, file{name: "pids.max", value: fmt.Sprint(l.PIDs)})
	}
	return out
}

// settings1 lists what to write in version 1, by controller.
func (l Limits) settings1() map[string][]file {
	out := map[string][]file{}
	if l.Memory > 0 {
		same := about(l.Memory)
		out["memory"] = []file{
			{name: "memory.limit_in_bytes", value: fmt.Sprint(l.Memory), same: same},
			{name: "memory.memsw.limit_in_bytes", value: fmt.Sprint(l.Memory), same: same, maybe: true}, // with swap
		}
	}
	if l.CPU > 0 {
		out["cpu"] = []file{{name: "cpu.cfs_period_us", value: fmt.Sprint(period)}, {name: "cpu.cfs_quota_us", value: fmt.Sprint(quota(l.CPU))}}
	}
	if l.PIDs > 0 {
		out["pids"] = []file{{name: "pids.max", value: fmt.Sprint(l.PIDs)}}
	}
	return out
}

// period in microseconds, in which a group gets its quota of CPU time. The
// kernel takes no quota below a millisecond.
const (
	period   = 100_000
	minQuota = 1000
)

func quota(cpu uint64) uint64 { return max(minQuota, cpu*period/Core) }

// about takes what the kernel makes of an amount of memory: whole pages.
func about(want uint64) func(string) bool {
	const page = 64 << 10 // the largest there are
	return func(s string) bool {
		var got uint64
		_, err := fmt.Sscanf(strings.TrimSpace(s), "%d", &got)
		return err == nil && got <= want && want-got < page
	}
}

// counter finds a number in a file of lines "name number", such as memory.events.
func counter(text, name string) uint64 {
	for line := range strings.Lines(text) {
		var n uint64
		if rest, ok := strings.CutPrefix(line, name+" "); ok {
			if _, err := fmt.Sscan(rest, &n); err == nil {
				return n
			}
		}
	}
	return 0
}
