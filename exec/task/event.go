package task

import (
	"fmt"
	"time"
	"unicode/utf8"
)

// Types of events.
const (
	EventPlaced   = "placed"   // the submitter chose a machine
	EventStarted  = "started"  // the program runs
	EventOutput   = "output"   // it wrote something
	EventNote     = "note"     // something worth telling happened: output was dropped, a machine refused
	EventReady    = "ready"    // of a rank: it could start, and waits for the others of its gang
	EventEnded    = "ended"    // of a rank, among the events of its gang: it reached a final state
	EventFinished = "finished" // the run reached a final state

	// EventRecord is between nodes alone: it carries ledger entries that became
	// durable while the program went on, and nothing to show.
	EventRecord = "record"

	// EventHeld is between nodes alone: a machine keeps what a [Bid] asked for.
	EventHeld = "held"
)

// Streams of output events.
const (
	Stdout = "stdout"
	Stderr = "stderr"
)

// Event is one thing that happened to a run. Events are numbered from 1 by who
// journals them, and are journalled before they are sent: a reader that saw Seq
// n asks for what came after n and misses nothing.
//
// The JSON names are stable; docs/json.md describes them.
type Event struct {
	Seq      uint64    `json:"seq"`
	Type     string    `json:"type"`
	Run      string    `json:"run"`
	Time     time.Time `json:"time"`
	Attempt  int       `json:"attempt,omitempty"`
	Node     string    `json:"node,omitempty"`        // name of the machine
	Rank     *int      `json:"rank,omitempty"`        // of a gang: whose event it is
	Member   string    `json:"member,omitempty"`      // likewise: the run of that rank
	Stream   string    `json:"stream,omitempty"`      // of output
	Data     string    `json:"data,omitempty"`        // output that is UTF-8
	Binary   []byte    `json:"data_base64,omitempty"` // output that is not
	Offset   int64     `json:"offset,omitempty"`      // of output: bytes that the attempt wrote before it, to both streams; see [Gaps]
	State    State     `json:"state,omitempty"`       // after the event
	ExitCode *int      `json:"exit_code,omitempty"`   // of finished and ended: the program's own; 128+n after signal n
	Message  string    `json:"message,omitempty"`     // for people
	Outputs  string    `json:"outputs,omitempty"`     // of finished and ended: digest of the listing of the output files

	// Between nodes alone, never shown: the ledger entries that go with the
	// event, encoded, and the number that the executor gave to it.
	Entries [][]byte `json:"entries,omitempty"`
	Source  uint64   `json:"source,omitempty"`
	Facts   []byte   `json:"facts,omitempty"`   // of held: what is free there besides, as the machine encodes it
	Reasons []Reason `json:"reasons,omitempty"` // of a note in answer to a [Bid]: why it waits there

	// Of output, between nodes alone: with it a part of the newest output begins.
	// Who keeps as much as the machine may drop the oldest part now.
	Part bool `json:"part,omitempty"`

	// In the executor's journal alone: how much of the program's log is in the
	// journal, see exec/run.
	Place int64 `json:"place,omitempty"`
}

// SetOutput stores what a program wrote.
func (e *Event) SetOutput(b []byte) {
	if utf8.Valid(b) {
		e.Data = string(b)
	} else {
		e.Binary = b
	}
}

// Output returns what a program wrote.
func (e *Event) Output() []byte {
	if e.Binary != nil {
		return e.Binary
	}
	return []byte(e.Data)
}

// Gaps finds out what is missing in the output of a run: of a long one only the
// beginning and the newest part are kept, and a disk may have been full. It is
// given the events in their order.
type Gaps struct {
	Joined bool // the first event may come from anywhere in the output

	at map[int]reached // by rank; -1 for a run that is no gang
}

// Dropped says for people that so many bytes of output are missing at a place.
func Dropped(n int64) string { return fmt.Sprintf("… %v dropped …", Bytes(n)) }

// reached is how far the output of a run has got.
type reached struct {
	attempt int
	next    int64
	known   bool
}

// Before returns how many bytes of output are missing before an event.
func (g *Gaps) Before(e *Event) (missing int64) {
	if e.Type != EventOutput {
		return 0
	}
	rank := -1
	if e.Rank != nil {
		rank = *e.Rank
	}
	r, seen := g.at[rank]
	if !seen || r.attempt != e.Attempt {
		r = reached{attempt: e.Attempt, known: seen || !g.Joined}
	}
	if r.known && e.Offset > r.next {
		missing = e.Offset - r.next
	}
	r.known = e.Offset > 0 || r.next == 0 // a machine of an older version does not tell
	r.next = e.Offset + int64(len(e.Data)+len(e.Binary))
	if g.at == nil {
		g.at = map[int]reached{}
	}
	g.at[rank] = r
	return missing
}
