// Package supervise holds a run while nobody else does.
//
// Each run has a supervisor, a small process that starts the program, owns its
// pipes or its terminal, keeps what it writes in a file, and writes down how it
// ended. It shares nothing with the node that started it but the run's folder, so
// the node can be killed, replaced or started again at any moment. The next one
// finds the run by its folder and goes on following it.
//
// The folder of a run has in it, of the supervisor:
//
//	order      what to start: an [Order], written by the node
//	lease      when its lease ends, where it has one; written by the node, see [lease.Write]
//	sock       where the supervisor answers; to make it is to claim the run
//	net        where the node lets a run in a sandbox out, while it follows it
//	log        what the program wrote first, in frames; see [AppendFrame]
//	log.N      what it wrote last, in parts; N is where one begins in all frames
//	exit.json  how it ended: an [Exit]
//
// A run is started once: whoever makes sock owns it, and nobody can make it
// again. A supervisor that is gone refuses connections, and where it has left no
// exit nobody saw how the run ended, which is never success. The program is
// killed with it, and what else it started by the node.
//
// The supervisor is this same program, started again under another name. It
// does its work while packages are initialised (see [Name]), so that most of
// the program, which is the node's, is neither run nor in memory.
//
// # Protocol
//
// On a connection the supervisor says "balance-supervisor 1" and then what
// happens, a line each: "s <ms>" once the program was started at that time, "o"
// when the log has grown, "x" when the exit is written. The node sends lines
// "end <0 or 1> <End>", to end the run, at once with 1, "hold <0 or 1>" to have it
// stand still, and "size <rows> <columns>" for its terminal. A connection of which the first line is
// "stdin <offset>" takes standard input instead: see [Stdin]. One that begins with
// "kept" is answered with what the supervisor was given to keep in memory: see
// [Private]. A line that is not
// known is passed over, so that a node may be newer than the supervisor; another
// number in the first line means that they cannot speak at all.
package supervise

import (
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/balanceai/balance/exec/cgroup"
	"github.com/balanceai/balance/exec/isolate/launch"
)

// Name is what a supervisor is started as: a process of this name, without
// arguments, takes its order from file 3 and never reaches main.
const Name = "balance-supervisor"

const (
	orderFile = "order"
	sockFile  = "sock"
	logFile   = "log"
	exitFile  = "exit.json"
)

// hello begins each connection.
const hello = Name + " 1"

// Order is all that is to be known of a program to start it.
type Order struct {
	Token   string        // of this order alone; set by [WriteOrder]
	Run     string        // its id
	Node    string        // name of the machine; both are in the program's environment
	Boot    string        // of the machine, as [Boot] has it
	Program string        // file to execute
	Argv    []string      // beginning with the name
	Env     []string      // all of it
	Dir     string        // where it works
	Stdin   bool          // it gets standard input; else there is none
	TTY     *Size         // it gets a terminal; nil for pipes
	Files   []launch.File // open in it besides its input and output
	Walled  bool          // what is started holds a sandbox with the program in it
	Group   *cgroup.Group // that it is in; nil for none
	After   []string      // arguments, from the name on, with which this program undoes what its end does not; nil for nothing
	Disk    uint64        // bytes that Fill may hold, after which DiskUp ends it; 0 for no limit
	DiskUp  End
	OOM     End           // where it fails and something of it was killed for want of memory
	PIDs    End           // where it fails and could not start all that it wanted
	XFSZ    End           // where one file was too large
	Network []string      // hosts that it may reach out of a sandbox; empty for none
	Narrow  []string      // those that the owner grants at most; nil for all
	Fill    []string      // folders
	Output  int64         // bytes of output to keep
	Time    time.Duration // after which TimeUp ends it; 0 for none
	TimeUp  End
	Lease   time.Duration // how long a lease of the run is, which is in its folder; 0 for none
	LeaseUp End           // ends it when that has run out
	Grace   time.Duration // from SIGTERM to SIGKILL
	Came    int64         // bytes of inputs, for the account of whoever reads it
}

// Size is that of a terminal, in characters.
type Size struct{ Rows, Cols uint16 }

// End is why a run is made to end.
type End struct {
	State  string
	Reason string
	Code   int    // instead of the program's own; 0 to keep that
	Cause  string // which limit it was; empty for none
	Lost   bool   `json:",omitempty"` // the machine has lost it

	Grace time.Duration `json:",omitempty"` // from SIGTERM to SIGKILL; 0 for that of the order
}

// Exit is how a run ended.
type Exit struct {
	Started time.Time // zero: it could not be
	Error   string    // why it could not
	Errno   int       // likewise
	Code    int       // of the program; -1 after a signal
	Signal  int
	WallMS  uint64
	CPUMS   uint64
	MaxRSS  int64  // bytes, of the largest process
	Memory  uint64 // bytes, of all processes together; 0: not measured
	Output  int64  // bytes written
	Dropped int64  // of those, not in the log any more, or never
	End     *End   // what made it end; nil for nothing
	Left    string // what could not be killed
	Said    string // by the program that holds a sandbox; see [launch.Report]
}

// WriteOrder puts the order into the run's folder.
func WriteOrder(dir string, o *Order) error {
	o.Token = rand.Text()
	b, err := json.Marshal(o)
	if err == nil {
		err = replace(filepath.Join(dir, orderFile), b)
	}
	if err != nil {
		return fmt.Errorf("write order: %w", err)
	}
	return nil
}

// ReadOrder returns the order in a run's folder; [os.ErrNotExist] says that it
// was never given.
func ReadOrder(dir string) (*Order, error) {
	var o Order
	if err := readJSON(filepath.Join(dir, orderFile), &o); err != nil {
		return nil, fmt.Errorf("read order: %w", err)
	}
	return &o, nil
}

// ReadExit returns how a run ended; [os.ErrNotExist] says that it has not, or
// that nobody saw it.
func ReadExit(dir string) (*Exit, error) {
	var e Exit
	if err := readJSON(filepath.Join(dir, exitFile), &e); err != nil {
		return nil, fmt.Errorf("read exit: %w", err)
	}
	return &e, nil
}

func readJSON(path string, to any) error {
	b, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	return json.Unmarshal(b, to)
}

// replace writes a file so that it is there whole or not at all.
func replace(path string, b []byte) error {
	part := path + ".part"
	if err := os.WriteFile(part, b, 0o600); err != nil {
		return err
	}
	return os.Rename(part, path)
}

// Fence claims a run that no supervisor has, so that none ever starts it. It
// reports whether it did: else a supervisor has it, or had it.
func Fence(dir string) (bool, error) {
	f, err := os.OpenFile(filepath.Join(dir, sockFile), os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if errors.Is(err, os.ErrExist) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("fence run: %w", err)
	}
	return true, f.Close()
}
