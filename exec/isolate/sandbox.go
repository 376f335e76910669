package isolate

import (
	"encoding/json"
	"strconv"

	"github.com/balanceai/balance/exec/isolate/inside"
	"github.com/balanceai/balance/exec/isolate/launch"
	"github.com/balanceai/balance/exec/task"
)

const (
	sandboxHost = "run" // its host name
	sandboxUser = 1000  // who it is, whoever it is outside

	// sharedMemory bounds /dev/shm, which counts as the run's memory where that
	// is limited.
	sharedMemory = 1 * task.GiB
)

// sandbox returns the command that starts a job in a sandbox.
//
// bubblewrap itself runs outside the sandbox as it builds it. So it gets an
// empty environment, and nothing of what the submitter wrote but through a
// descriptor that it does not read.
func (m *Machine) sandbox(j Job) (launch.Command, error) {
	in := inside.Plan{Command: j.Command, Env: j.environ(inside.Work, inside.Temp), Dir: inside.Work, Limits: j.Limits, Landlock: m.Landlock > 0, Terminal: j.TTY, Devices: j.Devices}
	var door []launch.File // the first: bubblewrap's own come behind
	if j.Proxy {
		door = []launch.File{{Door: true}}
		in.Door = launch.FirstFile
	}
	c, err := j.enter(in, door)
	if err != nil {
		return launch.Command{}, err
	}
	b := &bwrap{files: c.Files}
	b.add("--unshare-user", "--unshare-pid", "--unshare-net", "--unshare-ipc", "--unshare-uts", "--unshare-cgroup",
		"--disable-userns", "--die-with-parent", "--cap-drop", "ALL", "--hostname", sandboxHost,
		"--uid", strconv.Itoa(sandboxUser), "--gid", strconv.Itoa(sandboxUser))
	for _, p := range m.System {
		if p.Link != "" {
			b.add("--symlink", p.Link, p.Path)
		} else {
			b.add("--ro-bind", p.Path, p.Path)
		}
	}
	b.add("--ro-bind", m.Etc, "/etc")
	b.add("--proc", "/proc", "--dev", "/dev", "--size", strconv.FormatUint(uint64(sharedMemory), 10), "--perms", "1777", "--tmpfs", "/dev/shm")
	for _, d := range j.Devices {
		b.add("--dev-bind", d, d)
	}
	for _, d := range j.Trees {
		b.add("--ro-bind", d, d)
	}
	b.add("--bind", j.Work, inside.Work, "--bind", j.Temp, inside.Temp, "--dir", "/var", "--symlink", inside.Temp, "/var/tmp",
		"--ro-bind-fd", b.file(launch.File{Self: true}), inside.Name, "--remount-ro", "/", "--chdir", inside.Work,
		"--seccomp", b.file(launch.File{Data: m.Filter}), "--")
	return launch.Command{Path: m.Bubblewrap, Args: append(b.args, append([]string{inside.Name}, c.Args[1:]...)...), Env: nil, Dir: "/", Files: b.files}, nil
}

// bwrap are the arguments of bubblewrap.
type bwrap struct {
	args  []string
	files []launch.File
}

func (b *bwrap) add(args ...string) {
	if b.args == nil {
		b.args = []string{"bwrap"}
	}
	b.args = append(b.args, args...)
}

// file adds a descriptor and returns its number.
func (b *bwrap) file(f launch.File) string {
	b.files = append(b.files, f)
	return strconv.Itoa(launch.FirstFile + len(b.files) - 1)
}

// enter returns the command that becomes a run.
func (j *Job) enter(in inside.Plan, files []launch.File) (launch.Command, error) {
	if j.Private {
		files = append(files, launch.File{Private: true})
		in.Private = launch.FirstFile + len(files) - 1
	}
	b, err := json.Marshal(in)
	if err != nil {
		return launch.Command{}, err
	}
	files = append(files, launch.File{Data: b}, launch.File{Report: true})
	n := launch.FirstFile + len(files)
	return launch.Command{Path: launch.Self, Args: []string{inside.Name, strconv.Itoa(n - 2), strconv.Itoa(n - 1)}, Dir: in.Dir, Files: files}, nil
}
