package cgroup

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// Base is where this process makes groups.
type Base struct {
	prefix string            // of their names
	v2     string            // folder; empty where groups cannot be made
	v2has  []string          // controllers of the groups made there
	v1     map[string]string // folder by controller
}

// controllers are those that limits are made of. The freezer holds processes
// still while all of them are killed.
var controllers = []string{"memory", "cpu", "pids", "freezer"}

// Find finds out where groups can be made, by making one. Their names begin with
// prefix.
func Find(prefix string) *Base {
	b := &Base{prefix: prefix, v1: map[string]string{}}
	where := locate()
	if dir := where[""]; dir != "" {
		b.find2(dir)
	}
	for _, c := range controllers {
		if dir := where[c]; dir != "" && !slices.Contains(b.v2has, c) && tryMake(filepath.Join(dir, prefix+"probe")) == nil {
			b.v1[c] = dir
		}
	}
	return b
}

// tryMake makes a group and removes it.
func tryMake(dir string) error {
	if err := os.Mkdir(dir, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	return os.Remove(dir)
}

// locate returns the folders of the groups that this process is in, by
// controller, and that of version 2 without one.
func locate() map[string]string {
	at := map[string]string{}
	for line := range lines("/proc/self/cgroup") { // hierarchy:controller,controller:/path
		if f := strings.SplitN(line, ":", 3); len(f) == 3 && !strings.HasPrefix(f[2], "/..") {
			for name := range strings.SplitSeq(f[1], ",") {
				at[name] = f[2]
			}
		}
	}
	out := map[string]string{}
	for line := range lines("/proc/self/mountinfo") {
		mounted, point, kind, options := parseMount(line)
		switch kind {
		case "cgroup2":
			if path, ok := at[""]; ok && out[""] == "" {
				out[""] = below(mounted, point, path)
			}
		case "cgroup":
			for name := range strings.SplitSeq(options, ",") {
				if path, ok := at[name]; ok && name != "" {
					out[name] = below(mounted, point, path)
				}
			}
		}
	}
	return out
}

// parseMount takes a line of proc_pid_mountinfo(5): id, parent, device, root,
// mount point, options, …, "-", type, source, options of the file system.
func parseMount(line string) (mounted, point, kind, options string) {
	left, right, ok := strings.Cut(line, " - ")
	l, r := strings.Fields(left), strings.Fields(right)
	if !ok || len(l) < 5 || len(r) < 3 {
		return "", "", "", ""
	}
	return l[3], l[4], r[0], r[2]
}

// below joins where a hierarchy is seen with the path of a group. In a container
// the group that is mounted is its own, while the path may count from the
// machine's root.
func below(mounted, point, path string) string {
	rest, ok := strings.CutPrefix(path, strings.TrimSuffix(mounted, "/"))
	if !ok {
		rest = ""
	}
	return filepath.Join(point, filepath.Join("/", rest))
}

// find2 prepares version 2 below the group that this process is in, or beside it
// where it is in its leaf already.
func (b *Base) find2(own string) {
	dir := own
	if filepath.Base(own) == Leaf {
		dir = filepath.Dir(own)
	}
	probe := filepath.Join(dir, b.prefix+"probe")
	if err := os.Mkdir(probe, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
		return
	}
	defer os.Remove(probe)
	if _, err := os.Stat(filepath.Join(probe, "cgroup.kill")); err != nil { // Linux 5.14
		return
	}
	b.v2 = dir
	b.v2has = b.enable(own, dir)
}

// enable gives the groups below dir their controllers and returns those that
// they have.
func (b *Base) enable(own, dir string) []string {
	offered := strings.Fields(read(filepath.Join(dir, "cgroup.controllers")))
	var wanted []string
	for _, c := range controllers {
		if slices.Contains(offered, c) {
			wanted = append(wanted, c)
		}
	}
	if len(wanted) == 0 {
		return nil
	}
	order := "+" + strings.Join(wanted, " +")
	control := filepath.Join(dir, "cgroup.subtree_control")
	if os.WriteFile(control, []byte(order), 0) != nil && own == dir && stepDown(dir) == nil {
		_ = os.WriteFile(control, []byte(order), 0) // what holds is read
	}
	has := strings.Fields(read(control))
	return slices.DeleteFunc(wanted, func(c string) bool { return !slices.Contains(has, c) })
}

// stepDown moves this process out of a group that is to have groups with limits,
// into a leaf. A group that others are in too is left as it is: it is not this
// process's to arrange.
func stepDown(dir string) error {
	self := strconv.Itoa(os.Getpid())
	if procs := strings.Fields(read(filepath.Join(dir, "cgroup.procs"))); len(procs) != 1 || procs[0] != self {
		return errors.New("other processes are in the group")
	}
	leaf := filepath.Join(dir, Leaf)
	if err := os.Mkdir(leaf, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	return os.WriteFile(filepath.Join(leaf, "cgroup.procs"), []byte(self), 0)
}

// Can tells what groups are able to do here.
func (b *Base) Can() Can {
	has := func(c string) bool { return slices.Contains(b.v2has, c) || b.v1[c] != "" }
	c := Can{Memory: has("memory"), CPU: has("cpu"), PIDs: has("pids"), Kill: b.v2 != "" || b.v1["freezer"] != ""}
	switch {
	case len(b.v2has) > 0:
		c.Version = 2
	case c.Memory || c.CPU || c.PIDs:
		c.Version = 1
	}
	return c
}

// Make makes a group and sets its limits, in those hierarchies that it takes to
// hold them and to kill it. Where one of them does not hold, there
// is no group, and the error says which.
func (b *Base) Make(name string, l Limits) (g *Group, err error) {
	can := b.Can()
	if lacks := l.lacks(can); len(lacks) > 0 {
		return nil, fmt.Errorf("this machine has no control groups to limit %s", strings.Join(lacks, " and "))
	}
	g = &Group{V1: map[string]string{}}
	defer func() {
		if err != nil {
			_ = g.remove()
			g = nil
		}
	}()
	if b.v2 != "" {
		dir := filepath.Join(b.v2, b.prefix+name)
		if err := fresh(dir); err != nil {
			return g, err
		}
		g.V2 = dir
		has := func(c string) bool { return slices.Contains(b.v2has, c) }
		if err := set(dir, l.settings2(Can{Memory: has("memory"), CPU: has("cpu"), PIDs: has("pids")})); err != nil {
			return g, err
		}
	}
	settings := l.settings1()
	for _, c := range controllers {
		at := b.v1[c]
		if at == "" || len(settings[c]) == 0 && (c != "freezer" || b.v2 != "") {
			continue
		}
		dir := filepath.Join(at, b.prefix+name)
		if other := g.sharing(dir); other == "" { // cpu and cpuacct are one hierarchy, for example
			if err := fresh(dir); err != nil {
				return g, err
			}
		}
		g.V1[c] = dir
		if err := set(dir, settings[c]); err != nil {
			return g, err
		}
	}
	return g, nil
}

// fresh makes a folder. One that an earlier life has left has nothing in it: it
// goes.
func fresh(dir string) error {
	err := os.Mkdir(dir, 0o755)
	if errors.Is(err, fs.ErrExist) {
		if err = os.Remove(dir); err == nil {
			err = os.Mkdir(dir, 0o755)
		}
	}
	if err != nil {
		return fmt.Errorf("make a control group: %w", err)
	}
	return nil
}

func (g *Group) sharing(dir string) string {
	for c, d := range g.V1 {
		if d == dir {
			return c
		}
	}
	return ""
}

// set writes settings and reads them back.
func set(dir string, files []file) error {
	for _, f := range files {
		path := filepath.Join(dir, f.name)
		err := os.WriteFile(path, []byte(f.value), 0)
		if f.maybe && errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return fmt.Errorf("limit %s: %w", f.name, err)
		}
		got := read(path)
		if f.same == nil && got != f.value || f.same != nil && !f.same(got) {
			return fmt.Errorf("limit %s: asked for %s, the kernel has %s", f.name, f.value, cmp.Or(got, "nothing"))
		}
	}
	return nil
}

func read(path string) string {
	b, err := os.ReadFile(path)
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(b))
}

func lines(path string) func(func(string) bool) { return strings.SplitSeq(read(path), "\n") }
