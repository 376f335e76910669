package container

import (
	"fmt"
	"maps"
	"path"
	"slices"
	"strings"
)

// Where a run finds its own, as in a sandbox.
const (
	WorkDir = "/work"
	TempDir = "/tmp"
)

// Limits bound a container; 0 for none.
type Limits struct {
	Memory uint64 `json:"memory,omitempty"` // bytes, with none to swap
	CPU    uint64 `json:"cpu,omitempty"`    // of time, in thousandths of a core
	PIDs   int    `json:"pids,omitempty"`   // processes and threads
	File   uint64 `json:"file,omitempty"`   // bytes of the largest file
}

// Plan is a container that is to be started.
type Plan struct {
	Socket  string   `json:"socket"` // of the engine
	Run     string   `json:"run"`
	Node    string   `json:"node"`
	Image   string   `json:"image"`
	Command []string `json:"command"` // instead of what the image starts
	Env     []string `json:"env"`
	User    string   `json:"user"` // UID:GID in the container
	Work    string   `json:"work"` // folder that is [WorkDir]
	Temp    string   `json:"temp"` // folder that is [TempDir]
	Stdin   bool     `json:"stdin,omitempty"`
	TTY     bool     `json:"tty,omitempty"`
	Limits  Limits   `json:"limits"`
}

// Labels of containers.
const (
	labelRun  = "balance.run"
	labelNode = "balance.node"
)

// name is the name of the container of a run.
func name(run string) string { return "balance-" + run }

// The rest are the words of the interface.

type config struct {
	Image      string
	Entrypoint []string
	Cmd        []string
	Env        []string
	User       string
	WorkingDir string
	Hostname   string
	Labels     map[string]string

	Tty          bool
	OpenStdin    bool
	StdinOnce    bool
	AttachStdin  bool
	AttachStdout bool
	AttachStderr bool

	HostConfig hostConfig
}

type hostConfig struct {
	Privileged     bool
	CapAdd         []string
	CapDrop        []string
	SecurityOpt    []string
	ReadonlyRootfs bool
	NetworkMode    string
	IpcMode        string
	PidMode        string
	UTSMode        string
	Mounts         []mount `json:",omitempty"`
	Tmpfs          map[string]string
	Devices        []device
	Ulimits        []ulimit
	LogConfig      struct{ Type string }
	Memory         int64
	MemorySwap     int64
	CPUPeriod      int64 `json:"CpuPeriod"`
	CPUQuota       int64 `json:"CpuQuota"`
	PidsLimit      *int64
}

type mount struct {
	Type, Source, Target string
	ReadOnly             bool
}

type device struct{ PathOnHost, PathInContainer string }

type ulimit struct {
	Name       string
	Soft, Hard int64
}

// period in microseconds, in which a container gets its quota of CPU time.
const (
	period   = 100_000
	minQuota = 1000
)

func (l Limits) quota() int64 {
	if l.CPU == 0 {
		return 0
	}
	return max(minQuota, int64(l.CPU)*period/1000)
}

// volumeSize bounds what a run writes where its image wants a volume, which it
// gets in memory.
const volumeSize = "64m"

// config returns what to ask of the engine. Nothing in it is the submitter's but
// the command, the variables and the choice of an image.
func (p *Plan) config(im *image) (*config, error) {
	c := &config{
		Image: im.ID, Entrypoint: p.Command, Env: p.Env, User: p.User, WorkingDir: WorkDir, Hostname: "run",
		Labels: map[string]string{labelRun: p.Run, labelNode: p.Node},
		Tty:    p.TTY, OpenStdin: p.Stdin, StdinOnce: p.Stdin, AttachStdin: p.Stdin, AttachStdout: true, AttachStderr: true,
		HostConfig: hostConfig{
			CapDrop: []string{"ALL"}, SecurityOpt: []string{"no-new-privileges"}, ReadonlyRootfs: true,
			NetworkMode: "none", IpcMode: "private",
			Mounts: []mount{{Type: "bind", Source: p.Work, Target: WorkDir}, {Type: "bind", Source: p.Temp, Target: TempDir}},
			Tmpfs:  map[string]string{},
			Memory: int64(p.Limits.Memory), MemorySwap: int64(p.Limits.Memory),
			CPUQuota: p.Limits.quota(),
			// An engine may not have the right to raise what its own default would.
			Ulimits: []ulimit{{"nofile", 1024, 1024}, {"core", 0, 0}},
		},
	}
	h := &c.HostConfig
	h.LogConfig.Type = "none" // the supervisor keeps what is written
	if h.CPUQuota > 0 {
		h.CPUPeriod = period
	}
	if n := int64(p.Limits.PIDs); n > 0 {
		h.PidsLimit = &n
		h.Ulimits = append(h.Ulimits, ulimit{"nproc", n, n})
	} else {
		h.Ulimits = append(h.Ulimits, ulimit{"nproc", 4096, 4096})
	}
	if n := int64(p.Limits.File); n > 0 {
		h.Ulimits = append(h.Ulimits, ulimit{"fsize", n, n})
	}
	for _, dir := range slices.Sorted(maps.Keys(im.Config.Volumes)) {
		clean := path.Clean(dir)
		switch {
		case !path.IsAbs(clean) || clean == "/":
			return nil, fmt.Errorf("the image wants a volume at %.80q", dir)
		case clean == WorkDir || clean == TempDir:
		default:
			h.Tmpfs[clean] = "rw,nosuid,nodev,size=" + volumeSize
		}
	}
	return c, nil
}

// verify compares what an engine has made of a container with what it was asked
// for. What is not as asked is an error, and nothing is started: an engine may
// leave out in silence what it cannot do.
func (c *config) verify(got *inspected) error {
	want, h := &c.HostConfig, &got.HostConfig
	var bad []string
	note := func(ok bool, what string, asked, is any) {
		if !ok {
			bad = append(bad, fmt.Sprintf("%s is %v, not %v", what, is, asked))
		}
	}
	note(strings.TrimPrefix(got.Image, "sha256:") == strings.TrimPrefix(c.Image, "sha256:"), "the image", c.Image, got.Image)
	note(!h.Privileged, "privileged", false, h.Privileged)
	note(len(h.CapAdd) == 0, "the list of added capabilities", "empty", h.CapAdd)
	note(h.ReadonlyRootfs, "the read-only root", true, h.ReadonlyRootfs)
	note(h.NetworkMode == "none", "the network", "none", h.NetworkMode)
	for _, mode := range []struct{ what, is string }{{"the PID namespace", h.PidMode}, {"the IPC namespace", h.IpcMode}, {"the UTS namespace", h.UTSMode}} {
		note(mode.is != "host" && !strings.HasPrefix(mode.is, "container:"), mode.what, "its own", mode.is)
	}
	note(slices.ContainsFunc(h.SecurityOpt, func(s string) bool { return strings.HasPrefix(s, "no-new-privileges") }), "the list of security options", "one with no-new-privileges", h.SecurityOpt)
	note(len(h.Devices) == 0, "the list of devices", "empty", h.Devices)
	note(h.Memory == want.Memory, "the limit of memory", want.Memory, h.Memory)
	if want.Memory > 0 {
		note(h.MemorySwap == want.MemorySwap, "the limit of memory and swap", want.MemorySwap, h.MemorySwap)
	}
	if want.CPUQuota > 0 {
		note(h.CPUQuota == want.CPUQuota && h.CPUPeriod == want.CPUPeriod, "the quota of CPU time", want.CPUQuota, h.CPUQuota)
	}
	if want.PidsLimit != nil {
		note(h.PidsLimit != nil && *h.PidsLimit == *want.PidsLimit, "the limit of processes", *want.PidsLimit, value(h.PidsLimit))
	}
	for _, m := range got.Mounts {
		own := slices.ContainsFunc(want.Mounts, func(w mount) bool { return w.Source == m.Source && w.Target == m.Destination })
		note(own || m.Type == "tmpfs", "a mount at "+m.Destination, "a folder of the run", m.Type+" "+m.Source)
	}
	if len(bad) > 0 {
		return fmt.Errorf("the container engine has not done as it was asked: %s", strings.Join(bad, "; "))
	}
	return nil
}

func value(n *int64) any {
	if n == nil {
		return "none"
	}
	return *n
}
