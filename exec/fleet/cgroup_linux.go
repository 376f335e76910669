package fleet

import (
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/balanceai/balance/exec/task"
)

// cgroups are the control groups that this process is in, by version and
// controller. A process is bound by its group and by every group above it, as
// far as it can see them; see cgroups(7).
type cgroups struct {
	root string
	v2   []string            // folders of the unified hierarchy, from the leaf up
	v1   map[string][]string // folders by controller, from the leaf up
}

// readCgroups joins where the hierarchies are mounted with where this process
// is in them.
func readCgroups(root string) cgroups {
	c := cgroups{root: root, v1: map[string][]string{}}
	at := map[string]string{} // controller, or "" for v2: path
	for line := range strings.Lines(readText(filepath.Join(root, "proc/self/cgroup"))) {
		// hierarchy:controller,controller:/path
		f := strings.SplitN(strings.TrimSpace(line), ":", 3)
		if len(f) == 3 {
			for name := range strings.SplitSeq(f[1], ",") {
				at[name] = f[2]
			}
		}
	}
	for line := range strings.Lines(readText(filepath.Join(root, "proc/self/mountinfo"))) {
		c.mount(line, at)
	}
	return c
}

// mount takes a line of proc_pid_mountinfo(5): id, parent, device, root, mount
// point, options, …, "-", type, source, options of the file system.
func (c *cgroups) mount(line string, at map[string]string) {
	left, right, ok := strings.Cut(line, " - ")
	l, r := strings.Fields(left), strings.Fields(right)
	if !ok || len(l) < 5 || len(r) < 3 {
		return
	}
	switch r[0] {
	case "cgroup2":
		if path, ok := at[""]; ok && c.v2 == nil {
			c.v2 = c.folders(l[3], l[4], path)
		}
	case "cgroup":
		for name := range strings.SplitSeq(r[2], ",") {
			if path, ok := at[name]; ok {
				c.v1[name] = c.folders(l[3], l[4], path)
			}
		}
	}
}

// folders lists the folders of a group and of those above it. mounted is the
// group that is seen at point: in a container that is its own, while path may
// count from the machine's root.
func (c *cgroups) folders(mounted, point, path string) []string {
	rest, ok := strings.CutPrefix(path, strings.TrimSuffix(mounted, "/"))
	if !ok {
		rest = ""
	}
	top := filepath.Join(c.root, point)
	var out []string
	for dir := filepath.Join(top, filepath.Join("/", rest)); ; dir = filepath.Dir(dir) {
		out = append(out, dir)
		if dir == top {
			return out
		}
	}
}

// cpuQuota returns the CPU time that the groups allow, if they bound it.
func (c *cgroups) cpuQuota() (task.CPU, bool) {
	var quotas []task.CPU
	add := func(quota, period string) {
		q, err1 := strconv.ParseUint(quota, 10, 40) // "max" and -1 stand for no bound
		p, err2 := strconv.ParseUint(period, 10, 40)
		if err1 == nil && err2 == nil && p > 0 {
			quotas = append(quotas, task.Core*task.CPU(q)/task.CPU(p))
		}
	}
	for _, dir := range c.v1["cpu"] {
		add(readText(filepath.Join(dir, "cpu.cfs_quota_us")), readText(filepath.Join(dir, "cpu.cfs_period_us")))
	}
	for _, dir := range c.v2 {
		if quota, period, ok := strings.Cut(readText(filepath.Join(dir, "cpu.max")), " "); ok {
			add(quota, period)
		}
	}
	if len(quotas) == 0 {
		return 0, false
	}
	return slices.Min(quotas), true
}

// memoryLimit is a group that bounds memory.
type memoryLimit struct {
	max   task.Bytes
	used  string // file: everything that counts
	stat  string // file: what it consists of
	cache string // name in stat of the files' pages that are given back first
}

// memoryLimits returns the groups that allow less than total.
func (c *cgroups) memoryLimits(total task.Bytes) []memoryLimit {
	var out []memoryLimit
	add := func(dir, limit, used, cache string) {
		if n, ok := readNumber(filepath.Join(dir, limit)); ok && task.Bytes(n) < total {
			out = append(out, memoryLimit{task.Bytes(n), filepath.Join(dir, used), filepath.Join(dir, "memory.stat"), cache})
		}
	}
	for _, dir := range c.v1["memory"] {
		add(dir, "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
	}
	for _, dir := range c.v2 {
		add(dir, "memory.max", "memory.current", "inactive_file")
	}
	return out
}

// free returns what the group could still get.
func (l memoryLimit) free() task.Bytes {
	used, _ := readNumber(l.used)
	var cache uint64
	for line := range strings.Lines(readText(l.stat)) {
		if name, value, ok := strings.Cut(strings.TrimSpace(line), " "); ok && name == l.cache {
			cache, _ = strconv.ParseUint(value, 10, 64)
		}
	}
	used -= min(cache, used)
	return l.max - min(l.max, task.Bytes(used))
}
