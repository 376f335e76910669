// Package inside is what happens between bubblewrap and a run: this program is
// started once more, where the run is to be, and becomes it.
//
// It does its work while packages are initialised, before main, and imports
// little, so that the rest of the program, which is the node's, costs nothing
// there. Whatever program imports it, a test for example, can be a run.
package inside

// Name is the path of this program in a sandbox, and its name wherever it is
// started to become a run. Two arguments follow: the descriptors of a [Plan] and
// of a [launch.File] that reports.
const Name = "/.balance"

// Where a run finds its own in a sandbox.
const (
	Work = "/work"
	Temp = "/tmp"
)

// Plan is what this program is told when it is started to become a run.
type Plan struct {
	Command  []string `json:"command"`
	Env      []string `json:"env"`
	Dir      string   `json:"dir"`
	Limits   Limits   `json:"limits"`
	Landlock bool     `json:"landlock,omitempty"` // the second wall of a sandbox
	Devices  []string `json:"devices,omitempty"`
	Terminal bool     `json:"terminal,omitempty"` // standard input is one, which is to be its own
	Door     int      `json:"door,omitempty"`     // descriptor of a [launch.File] that is one; 0 for none
	Private  int      `json:"private,omitempty"`  // descriptor of one with further variables; 0 for none
}

// Limits are those that each process of a run has for itself; 0 for none. They
// hold on every machine, but only roughly: what a run uses altogether is bounded
// by control groups.
type Limits struct {
	Memory    uint64 `json:"memory,omitempty"`    // bytes that it may write to, but for files
	File      uint64 `json:"file,omitempty"`      // bytes of the largest file
	Processes int    `json:"processes,omitempty"` // of the run's user, which in a sandbox is the run's own
}
