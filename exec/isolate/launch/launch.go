// Package launch says how a program is to be started behind walls, as a plain
// value, and opens what it starts with. It knows nothing of walls itself: package
// isolate does. It is small, because it is in every supervisor.
package launch

import "os"

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
	Data    []byte `json:"data,omitempty"`    // a file with this in it, to read
	Self    bool   `json:"self,omitempty"`    // this program
	Report  bool   `json:"report,omitempty"`  // a pipe that tells what became of the start; see [Report]
	Private bool   `json:"private,omitempty"` // a file with variables that are in no order: whoever opens it fills in Data
	Door    bool   `json:"door,omitempty"`    // a socket over which a listener in the run's network comes out; see [Listener]
}

// FirstFile is the descriptor of the first of a command's files.
const FirstFile = 3

// ProxyAddr is where a run in a sandbox finds the way out, on its own loopback.
const ProxyAddr = "127.0.0.1:3128"

// Opened is what a [Command] starts with, and the other ends of it.
type Opened struct {
	Files  []*os.File // for the command, from [FirstFile] on
	Report *os.File   // ends when the program has started, or was not; see [Report]. nil for none
	Door   *os.File   // for [Listener]; nil for none
}

// Close closes all that is open.
func (o *Opened) Close() {
	o.CloseFiles()
	for _, f := range []*os.File{o.Report, o.Door} {
		if f != nil {
			f.Close()
		}
	}
}

// CloseFiles closes what the command has, once it is started.
func (o *Opened) CloseFiles() {
	for _, f := range o.Files {
		f.Close()
	}
	o.Files = nil
}

// Self is this program's file, wherever it has been moved to.
const Self = "/proc/self/exe"
