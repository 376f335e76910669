package tui

import (
	"context"
	"errors"
	"time"

	"github.com/balanceai/balance/exec/fleet"
	"github.com/balanceai/balance/exec/task"
	"github.com/balanceai/balance/mesh/identity"
)

// ErrNotRunning is what a [Backend] returns, wrapped or not, when the node does
// not answer. The screen then says how to start it, and keeps trying.
var ErrNotRunning = errors.New("the node is not running")

// Backend is the node as the screen needs it. Every method may be called
// concurrently, and returns soon after its context has ended.
type Backend interface {
	Viewer
	Runner
	Dispatcher
}

// Viewer tells what the mesh looks like.
type Viewer interface {
	// Watch calls show with the whole picture, at once and then about once a
	// second, until ctx ends or the node is gone. Nothing behind the picture
	// is changed after it was shown.
	Watch(ctx context.Context, show func(Mesh)) error

	// Ledger returns the newest entries, newest first, of one topic or, where
	// topic is empty, of all.
	Ledger(ctx context.Context, topic string, limit int) ([]Entry, error)
}

// Runner tells about runs.
type Runner interface {
	// Runs returns the status of the newest runs known here, newest first.
	Runs(ctx context.Context, limit int) ([]task.Status, error)

	// Events calls show with every event of a run after the given number, and
	// follows until the run is over (nil), ctx ends or the node is gone.
	Events(ctx context.Context, run string, after uint64, show func(task.Event)) error

	// Why returns how the machines of a run were chosen, first attempt first.
	Why(ctx context.Context, run string) ([]Attempt, error)

	// Cancel asks a run to stop; with force it is killed at once.
	Cancel(ctx context.Context, run string, force bool) error
}

// Dispatcher starts runs.
type Dispatcher interface {
	// Agents returns the manifests that can be picked by name.
	Agents(ctx context.Context) ([]Agent, error)

	// Plan ranks every machine for a draft, and starts nothing. It is asked
	// while the draft is typed: a draft without a command is ranked by its
	// needs.
	Plan(ctx context.Context, d Draft) (task.Ranking, error)

	// Submit starts a run that goes on when the screen is closed, and returns
	// its id.
	Submit(ctx context.Context, d Draft) (string, error)
}

// Mesh is one picture of the mesh.
type Mesh struct {
	Name  string
	Self  identity.ID
	Nodes []fleet.Node
}

// Attempt is how one attempt of a run got its machine.
type Attempt struct {
	Attempt int
	Node    string        // name of the machine; empty where none fitted
	Waits   bool          // for a machine
	Ranking task.Ranking  // best first
	Refusal []task.Reason // why that machine did not take it; empty where it did
}

// Agent is a manifest that can be run.
type Agent struct {
	Name        string
	Path        string // as `balance run` takes it
	Description string
	Parameters  []Parameter // as far as they are known
}

// Parameter is something that an agent is told.
type Parameter struct {
	Name    string
	About   string
	Choices []string // it is one of these; nil: any text
	Default string   // where nothing is given
	Needed  bool     // there is no default
}

// UntoldError is the answer to a draft of an agent that has to be told more.
type UntoldError struct {
	Parameters []Parameter // all that it can be told
	Text       string
}

func (e *UntoldError) Error() string { return e.Text }

// Draft is a run that is being written. Zero needs mean what the agent's
// manifest says, or the defaults.
type Draft struct {
	Agent   string            // path of a manifest; empty for a bare command
	Command []string          // the command, or the agent's arguments
	Params  map[string]string // that the agent is told
	Needs   task.Needs
	Time    time.Duration // limit; 0 for none
	Node    string        // the one machine that may run it; empty for the best
}

// Entry is one entry of the ledger, in words.
type Entry struct {
	Topic   string
	Author  identity.ID
	Kind    string
	Seq     uint64
	Time    time.Time
	Summary string
	Hash    string // hexadecimal
}
