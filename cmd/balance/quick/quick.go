// Package quick does the most common thing before the rest of the program has
// started: balance run -- COMMAND, in a script.
//
// The program is one binary, and most of it is the node: WireGuard, a network
// stack, SQLite, the terminal UI. To start Go's runtime and to initialise all
// that takes as long as it takes the daemon and another machine to run the
// command. So the short way is in C, in a constructor, which the loader calls
// before anything else of the program (see the attribute constructor in the
// manual of GCC). A test holds that. Where it cannot be there, without cgo or
// with another C library, everything takes the long way.
//
// It handles the plain case and nothing else: no flags, no terminal to talk to,
// no standard input to send, a run that is placed, writes, and ends by itself.
// On anything else it leaves the run to main, in [Rest], which goes on after the
// last event that was shown. So nothing is decided there that main could decide
// differently.
//
// It speaks to the daemon in a form that needs no decoding: POST [Path] with the
// words of the command, separated by NUL. The answer is a stream of frames, each
// a line "<kind> <number of the event> <n>", and after an output frame n bytes.
// The daemon is the user's own, behind a socket that only that user can open.
package quick

import (
	"errors"
	"strings"
)

// Path of the request, and the header of the answer that names the run.
const (
	Path      = "/v1/quick"
	RunHeader = "Balance-Run"
)

// Kinds of frames.
const (
	Stdout = "o" // n bytes follow
	Stderr = "e" // n bytes follow
	Skip   = "s" // nothing to show
	Exit   = "x" // n is the exit code, and all has been said
	Other  = "?" // main knows what to do
)

// Socket is the name of the local API's socket in the home.
const Socket = "balance.sock"

// Rest is what is left to do of a run that was submitted here: all of it where
// Run is empty, unless it is unsure.
var Rest struct {
	Run         string
	Last        uint64 // number of the last event that was shown
	Interrupted bool   // the user wants it to stop
	Unsure      bool   // it may have been submitted, and must not be twice
}

// Home finds the home folder: the flag, else BALANCE_HOME, else the state folder
// of the XDG base directory specification. The first two may be relative.
func Home(flag string, env func(string) string) (string, error) {
	if flag != "" {
		return flag, nil
	}
	if dir := env("BALANCE_HOME"); dir != "" {
		return dir, nil
	}
	base := env("XDG_STATE_HOME")
	if !strings.HasPrefix(base, "/") {
		user := env("HOME")
		if user == "" {
			return "", errors.New("there is no HOME in the environment")
		}
		base = user + "/.local/state"
	}
	return base + "/balance", nil
}
