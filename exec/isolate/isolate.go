// Package isolate puts walls around runs.
//
// A level says how thick they are. [Process] is none: the program runs as the
// user who runs Balance, and only what it starts is kept together. [Sandbox] is
// for programs that are not trusted with the machine: bubblewrap gives the run
// namespaces of its own, in which there are the system's programs to read, a
// work folder, an empty /tmp, the GPUs that it was given, and nothing else: no
// other file or process of the machine, no network, no device.
//
// Four walls stand behind each other, so that a hole in one is not a way out:
//
//   - namespaces (user, PID, mount, network, IPC, UTS, cgroup), by bubblewrap;
//   - no privileges, and none to be gained: every capability is dropped, set-uid
//     programs give none, and there are no further user namespaces;
//   - a filter of system calls ([Filter]) for the parts of the kernel that most
//     ways out have led through and that runs do not need;
//   - Landlock, which holds what the mount namespace says a second time.
//
// What is decided is a plain value, a [launch.Command]: [Machine.Command] makes it of
// what the run is and what the machine can do, without I/O. Whoever starts it
// needs to know nothing of sandboxes. The last wall cannot be built from outside,
// so the program that bubblewrap starts is this one again, which becomes the run:
// see package inside.
//
// Whether a machine can build a sandbox is never assumed: [Detect] builds one.
package isolate

import (
	"fmt"
	"maps"
	"slices"

	"github.com/balanceai/balance/exec/isolate/inside"
	"github.com/balanceai/balance/exec/isolate/launch"
	"github.com/balanceai/balance/exec/task"
)

// Levels of isolation between a run and the machine, the weakest first.
const (
	Process = task.LevelProcess
	Sandbox = task.LevelSandbox
)

var levels = []string{Process, Sandbox}

// Stronger reports whether a level is a thicker wall than another. What is no
// level is the weakest.
func Stronger(level, than string) bool {
	return slices.Index(levels, level) > slices.Index(levels, than)
}

// Machine is what a machine can do, as [Detect] found it.
type Machine struct {
	Bubblewrap string  `json:"bubblewrap,omitempty"` // path of bwrap; empty: no sandbox
	Why        string  `json:"why,omitempty"`        // there is none
	Landlock   int     `json:"landlock,omitempty"`   // version of its interface; 0 without
	System     []Place `json:"system,omitempty"`     // what sandboxes see of the machine
	Filter     []byte  `json:"-"`                    // of system calls, as the kernel takes it
	User       int     `json:"-"`                    // who runs Balance
	Group      int     `json:"-"`
	Etc        string  `json:"-"` // folder that is the /etc of sandboxes
}

// Place is a part of the system that sandboxes see, read-only.
type Place struct {
	Path string `json:"path"`
	Link string `json:"link,omitempty"` // where a symbolic link leads; empty for a folder
}

// Level is the strongest level that the machine has.
func (m *Machine) Level() string {
	if m != nil && m.Bubblewrap != "" {
		return Sandbox
	}
	return Process
}

// Job is a program that is to be started.
type Job struct {
	Level   string
	Command []string          // program and arguments, as they were written
	Env     map[string]string // all of it, but for HOME and TMPDIR where they are as usual
	Work    string            // folder where it works
	Temp    string            // folder that is its TMPDIR
	Devices []string          // device nodes, all that it sees
	Trees   []string          // further folders that it may read, such as those that tell of its devices
	Proxy   bool              // it gets a listener at [launch.ProxyAddr], in a sandbox
	Private bool              // further variables come when it starts; see [launch.File]
	TTY     bool              // its standard input is a terminal
	Limits  inside.Limits
}

// Command returns how to start a job on this machine. A level that the machine
// does not have is an error: nothing is started behind a weaker wall than was
// asked for.
func (m *Machine) Command(j Job) (launch.Command, error) {
	switch j.Level {
	case Process:
		return plain(j)
	case Sandbox:
		if m.Bubblewrap == "" {
			return launch.Command{}, fmt.Errorf("no sandbox on this machine: %s", m.Why)
		}
		return m.sandbox(j)
	}
	return launch.Command{}, fmt.Errorf("unknown isolation %q", j.Level)
}

// plain starts the program as it is, unless it has limits of its own to carry.
func plain(j Job) (launch.Command, error) {
	c := launch.Command{Args: j.Command, Env: j.environ(j.Work, j.Temp), Dir: j.Work}
	var err error
	c.Path, err = launch.LookPath(j.Command[0], j.Env["PATH"], j.Work)
	if err != nil || j.Limits == (inside.Limits{}) && !j.Private {
		return c, err
	}
	return j.enter(inside.Plan{Command: j.Command, Env: c.Env, Dir: j.Work, Limits: j.Limits}, nil)
}

// environ lists the program's variables, with its folders as it sees them.
func (j Job) environ(home, temp string) []string {
	env := map[string]string{"HOME": home, "TMPDIR": temp}
	maps.Copy(env, j.Env)
	var out []string
	for _, k := range slices.Sorted(maps.Keys(env)) {
		out = append(out, k+"="+env[k])
	}
	return out
}
