package container

import (
	"bytes"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func plan() *Plan {
	return &Plan{Run: "r-aaaaaaaaaaaaaaaa", Node: "n", Image: "box", Command: []string{"true"}, Work: "/runs/work", Temp: "/runs/tmp", Limits: Limits{Memory: 64 << 20, CPU: 500, PIDs: 64, File: 1 << 20}}
}

// made returns what an engine tells that does as it is asked.
func made(t testing.TB, c *config) *inspected {
	t.Helper()
	b, err := json.Marshal(c.HostConfig)
	if err != nil {
		t.Fatal(err)
	}
	got := &inspected{Image: c.Image}
	if err := json.Unmarshal(b, &got.HostConfig); err != nil {
		t.Fatal(err)
	}
	for _, m := range c.HostConfig.Mounts {
		got.Mounts = append(got.Mounts, struct{ Type, Source, Destination string }{m.Type, m.Source, m.Target})
	}
	return got
}

// What an engine leaves out in silence is found, each thing alone.
func TestVerify(t *testing.T) {
	im := &image{ID: "sha256:ab"}
	im.Config.Volumes = map[string]struct{}{"/data": {}, "/work": {}}
	c, err := plan().config(im)
	if err != nil {
		t.Fatal(err)
	}
	if err := c.verify(made(t, c)); err != nil {
		t.Fatal(err)
	}
	if len(c.HostConfig.Tmpfs) != 1 {
		t.Errorf("volumes became %v", c.HostConfig.Tmpfs)
	}
	for name, change := range map[string]func(*inspected){
		"image":        func(i *inspected) { i.Image = "sha256:cd" },
		"privileged":   func(i *inspected) { i.HostConfig.Privileged = true },
		"capabilities": func(i *inspected) { i.HostConfig.CapAdd = []string{"SYS_ADMIN"} },
		"root":         func(i *inspected) { i.HostConfig.ReadonlyRootfs = false },
		"network":      func(i *inspected) { i.HostConfig.NetworkMode = "host" },
		"PIDs":         func(i *inspected) { i.HostConfig.PidMode = "host" },
		"IPC":          func(i *inspected) { i.HostConfig.IpcMode = "container:x" },
		"UTS":          func(i *inspected) { i.HostConfig.UTSMode = "host" },
		"privileges":   func(i *inspected) { i.HostConfig.SecurityOpt = nil },
		"devices":      func(i *inspected) { i.HostConfig.Devices = []device{{"/dev/sda", "/dev/sda"}} },
		"memory":       func(i *inspected) { i.HostConfig.Memory = 0 },
		"swap":         func(i *inspected) { i.HostConfig.MemorySwap = -1 },
		"CPU":          func(i *inspected) { i.HostConfig.CPUQuota = 0 },
		"processes":    func(i *inspected) { i.HostConfig.PidsLimit = nil },
		"mount":        func(i *inspected) { i.Mounts[0].Source = "/" },
	} {
		got := made(t, c)
		change(got)
		if c.verify(got) == nil {
			t.Errorf("%s: what is not as asked is not found", name)
		}
	}
	for _, bad := range []string{"/", "data", ""} {
		im.Config.Volumes = map[string]struct{}{bad: {}}
		if _, err := plan().config(im); err == nil {
			t.Errorf("a volume at %q", bad)
		}
	}
}

// The kernel's word counts, of either version of control groups.
func TestEnforced(t *testing.T) {
	for name, test := range map[string]struct {
		groups string
		files  map[string]string
		bad    string
	}{
		"version 2":   {"0::/a", map[string]string{"a/memory.max": "67108864", "a/cpu.max": "50000 100000", "a/pids.max": "64"}, ""},
		"version 1":   {"5:cpu,cpuacct:/b\n4:memory:/a\n3:pids:/c\n0::/x", map[string]string{"memory/a/memory.limit_in_bytes": "67108864", "cpu/b/cpu.cfs_quota_us": "50000", "pids/c/pids.max": "64"}, ""},
		"no memory":   {"0::/a", map[string]string{"a/memory.max": "max", "a/cpu.max": "50000 100000", "a/pids.max": "64"}, "limit of memory"},
		"less of CPU": {"0::/a", map[string]string{"a/memory.max": "67108864", "a/cpu.max": "max 100000", "a/pids.max": "64"}, "limit of CPU time"},
		"more PIDs":   {"0::/a", map[string]string{"a/memory.max": "67108864", "a/cpu.max": "50000 100000", "a/pids.max": "65"}, "limit of processes"},
	} {
		root := t.TempDir()
		files := map[string]string{"proc/7/cgroup": test.groups}
		for path, text := range test.files {
			files["sys/fs/cgroup/"+path] = text
		}
		for path, text := range files {
			path = filepath.Join(root, path)
			if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(path, []byte(text+"\n"), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		err := plan().Limits.enforced(root, 7)
		if test.bad == "" && err != nil || test.bad != "" && (err == nil || !strings.Contains(err.Error(), test.bad)) {
			t.Errorf("%s: %v", name, err)
		}
		if err := plan().Limits.enforced(root, 8); !errors.Is(err, errEnded) {
			t.Errorf("%s: of one that has ended: %v", name, err)
		}
	}
}

// An engine without rights is not believed about limits where it leaves them out.
func TestEngine(t *testing.T) {
	all := info{MemoryLimit: true, PidsLimit: true, CPUCfsQuota: true, CgroupVersion: "1", SecurityOptions: []string{"name=rootless"}}
	limits := plan().Limits
	if e := engine("s", version{}, all); len(e.Lacks(limits)) != 3 || len(e.Lacks(Limits{})) != 0 || e.String() != "docker , rootless" {
		t.Errorf("%+v", e)
	}
	if e := engine("s", version{}, info{MemoryLimit: true, CgroupVersion: "1", Rootless: true}); !e.Rootless || e.Memory {
		t.Errorf("as podman says it: %+v", e)
	}
	all.CgroupVersion = "2"
	if e := engine("s", version{Components: []struct{ Name string }{{"Podman Engine"}}}, all); len(e.Lacks(limits)) != 0 || e.Name != "podman" {
		t.Errorf("%+v", e)
	}
}

func frame(stream byte, text string) []byte {
	return append([]byte{stream, 0, 0, 0, 0, 0, 0, byte(len(text))}, text...)
}

func TestSplit(t *testing.T) {
	var stdout, stderr bytes.Buffer
	in := append(append(frame(1, "out"), frame(2, "err")...), frame(1, "")...)
	if err := split(bytes.NewReader(in), &stdout, &stderr); err != nil || stdout.String() != "out" || stderr.String() != "err" {
		t.Errorf("%q %q %v", &stdout, &stderr, err)
	}
	for _, bad := range [][]byte{in[:5], in[:9], frame(3, "x")} {
		if err := split(bytes.NewReader(bad), &stdout, &stderr); err == nil {
			t.Errorf("%q is taken", bad)
		}
	}
}

// Output is never more than what has come.
func FuzzSplit(f *testing.F) {
	f.Add(append(frame(1, "out"), frame(2, "err")...))
	f.Add([]byte{1, 0, 0, 0, 255, 255, 255, 255, 'x'})
	f.Add(frame(9, "x"))
	f.Fuzz(func(t *testing.T, in []byte) {
		var stdout, stderr bytes.Buffer
		_ = split(bytes.NewReader(in), &stdout, &stderr)
		if stdout.Len()+stderr.Len() > len(in) {
			t.Fatal("more came out than went in")
		}
	})
}

// Whatever an engine answers, what is not as asked is not let run.
func FuzzAnswers(f *testing.F) {
	c, err := plan().config(&image{ID: "sha256:ab"})
	if err != nil {
		f.Fatal(err)
	}
	good, err := json.Marshal(made(f, c))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good)
	f.Add([]byte(`{"Id":"sha256:ab","RepoTags":["localhost/box:1","<none>:<none>"],"Os":"linux","Architecture":"amd64","Config":{"Volumes":{"/data":{}}}}`))
	f.Add([]byte(`{"MemoryLimit":true,"SecurityOptions":["name=rootless"],"Components":[{"Name":"Podman Engine"}]}`))
	f.Add([]byte(`{"message":"no such image"}`))
	f.Add([]byte(`null`))
	f.Fuzz(func(t *testing.T, b []byte) {
		var got inspected
		if json.Unmarshal(b, &got) == nil && c.verify(&got) == nil {
			h := got.HostConfig
			if h.Privileged || h.NetworkMode != "none" || h.Memory != c.HostConfig.Memory || len(h.Devices) > 0 {
				t.Fatalf("let run: %+v", got)
			}
		}
		var im image
		if json.Unmarshal(b, &im) == nil {
			_ = im.suits()
			_, _ = plan().config(&im)
			named([]image{im})
		}
		var v version
		var i info
		if json.Unmarshal(b, &v) == nil && json.Unmarshal(b, &i) == nil {
			_ = engine("s", v, i).Lacks(plan().Limits)
		}
		_ = refusal(400, b)
	})
}
