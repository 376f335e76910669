// Package launch says how a program is to be started behind walls, as a plain
// value, and opens what it starts with. It knows nothing of walls itself: package
// isolate does. It is small, because it is in every supervisor.
package launch

// Command is a program to start, as a plain value.
type Command struct {
	Path  string   `json:"path"`
	Args  []string `json:"args"` // from the program's name on
	Env   []string `json:"env"`
	Dir   string   `json:"dir"`
	Files []File   `json:"files,omitempty"` // open in it from descriptor 3 on
}

// File is a descriptor that a [Command] starts with: one of these.
type File struct {
	Data   []byte `json:"data,omitempty"`   // a file with this in it, to read
	Self   bool   `json:"self,omitempty"`   // this program
	Report bool   `json:"report,omitempty"` // a pipe that tells what became of the start; see [Report]
}

// FirstFile is the descriptor of the first of a command's files.
const FirstFile = 3

// Self is this program's file, wherever it has been moved to.
const Self = "/proc/self/exe"
