package task

import (
	"fmt"
	"time"

	"github.com/balanceai/balance/mesh/identity"
	"github.com/balanceai/balance/mesh/wire"
)

// State is where a run stands.
type State string

// The states. A run starts as submitted and ends in one of those for which
// [State.Final] holds. Lost is not final: when the machine comes back, what it
// knows counts.
const (
	Submitted State = "submitted" // no machine chosen yet
	Placed    State = "placed"    // sent to a machine, which has not answered or has accepted
	Running   State = "running"
	Succeeded State = "succeeded" // exit code 0
	Failed    State = "failed"    // another exit code, a signal, a limit, or it could not be started
	Cancelled State = "cancelled" // its submitter stopped it
	Unplaced  State = "unplaced"  // no machine fits, or none took it
	Lost      State = "lost"      // the machine is out of reach
)

// Final reports whether nothing more can happen to the run.
func (s State) Final() bool {
	return s == Succeeded || s == Failed || s == Cancelled || s == Unplaced
}

// Kinds of ledger entries in the topic of a run. The submitter's node is the
// only writer of the first five, the executor's node of the others.
const (
	KindSubmit  = "submit"
	KindPlace   = "place"
	KindCancel  = "cancel"
	KindLost    = "lost"
	KindReceipt = "receipt"

	KindAccepted = "accepted"
	KindRefused  = "refused"
	KindStarted  = "started"
	KindFinished = "finished"
)

// Submit is the submitter's wish.
type Submit struct {
	Spec Spec `cbor:"1,keyasint" json:"spec"`
}

// Place is the submitter's choice, with the verdict on every machine at that
// moment, or its finding that none fits (zero Node).
type Place struct {
	Attempt  int         `cbor:"1,keyasint"`
	Node     identity.ID `cbor:"2,keyasint"`
	Name     string      `cbor:"3,keyasint"`
	Verdicts [][]byte    `cbor:"4,keyasint"`           // each a Verdict, best first; records nest four levels at most
	More     int         `cbor:"5,keyasint,omitempty"` // verdicts left out because the record would be too long
}

// NewPlace records a choice. It keeps as many verdicts as fit into an entry,
// the best ones, and none that is too long by itself: a machine has a say in
// how long the verdict on it is.
func NewPlace(attempt int, node identity.ID, name string, ranking Ranking) Place {
	p := Place{Attempt: attempt, Node: node, Name: name}
	room := wire.MaxPayload - 256
	for _, v := range ranking {
		b, err := wire.Marshal(v)
		if err != nil || len(b)+4 > room {
			p.More++
			continue
		}
		room -= len(b) + 4
		p.Verdicts = append(p.Verdicts, b)
	}
	return p
}

// Ranking returns the verdicts that were kept.
func (p Place) Ranking() (Ranking, error) {
	out := make(Ranking, len(p.Verdicts))
	for i, b := range p.Verdicts {
		if err := wire.Unmarshal(b, &out[i]); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// Cancel is the submitter's wish that the run end.
type Cancel struct {
	Reason string `cbor:"1,keyasint" json:"reason"`
}

// LostRecord is the submitter's finding that the machine is out of reach.
type LostRecord struct {
	Attempt int    `cbor:"1,keyasint" json:"attempt"`
	Reason  string `cbor:"2,keyasint" json:"reason"`
}

// Receipt is the submitter's countersignature on what the executor said at the
// end.
type Receipt struct {
	Attempt  int       `cbor:"1,keyasint" json:"attempt"`
	Finished wire.Hash `cbor:"2,keyasint" json:"finished"` // the executor's entry
}

// Accepted is the executor's promise to run an attempt.
type Accepted struct {
	Attempt int       `cbor:"1,keyasint" json:"attempt"`
	Submit  wire.Hash `cbor:"2,keyasint" json:"submit"`                      // the submitter's entry
	Devices []string  `cbor:"3,keyasint,omitempty" json:"devices,omitempty"` // GPUs reserved, by UUID
	Policy  wire.Hash `cbor:"4,keyasint" json:"policy"`                      // digest of the owner's terms that allowed it
}

// Refused is the executor's answer that it does not run an attempt.
type Refused struct {
	Attempt int      `cbor:"1,keyasint" json:"attempt"`
	Reasons []Reason `cbor:"2,keyasint" json:"reasons"`
}

// Started is written when the program runs.
type Started struct {
	Attempt int `cbor:"1,keyasint" json:"attempt"`
}

// Finished is the executor's account of an attempt.
type Finished struct {
	Attempt  int       `cbor:"1,keyasint" json:"attempt"`
	State    State     `cbor:"2,keyasint" json:"state"`
	ExitCode int       `cbor:"3,keyasint" json:"exit_code"`                  // 128+n after signal n; -1 where the program never ran or its end was not seen
	Reason   string    `cbor:"4,keyasint,omitempty" json:"reason,omitempty"` // why it failed or was cancelled, where the exit code does not say
	Usage    Usage     `cbor:"5,keyasint" json:"usage"`
	Outputs  wire.Hash `cbor:"6,keyasint" json:"outputs,omitzero"` // listing of the output files; zero for none
}

// Usage is what a run used, as the executor measured it.
type Usage struct {
	WallMS   uint64 `cbor:"1,keyasint" json:"wall_ms"`
	CPUMS    uint64 `cbor:"2,keyasint" json:"cpu_ms"`    // user and system
	MaxRSS   Bytes  `cbor:"3,keyasint" json:"max_rss"`   // of its largest process
	Output   Bytes  `cbor:"4,keyasint" json:"output"`    // written to standard output and error
	Dropped  Bytes  `cbor:"5,keyasint" json:"dropped"`   // of that, not kept
	GPUMS    uint64 `cbor:"6,keyasint" json:"gpu_ms"`    // devices held × wall time
	PeakVRAM Bytes  `cbor:"7,keyasint" json:"peak_vram"` // of its processes on all devices; 0 where not measured
	InBytes  Bytes  `cbor:"8,keyasint" json:"bytes_in"`  // inputs fetched over the mesh
	OutBytes Bytes  `cbor:"9,keyasint" json:"bytes_out"` // size of the output files
}

// Status is what the entries of a run's topic add up to.
type Status struct {
	ID        string      `json:"id"`
	State     State       `json:"state"`
	Node      string      `json:"node"` // name of the machine; empty before placement
	NodeID    identity.ID `json:"node_id,omitzero"`
	Submitter identity.ID `json:"submitter"`
	Attempt   int         `json:"attempt"`
	ExitCode  *int        `json:"exit_code"`
	Reason    string      `json:"reason,omitempty"`
	Agent     string      `json:"agent,omitempty"`
	Command   []string    `json:"command"`
	Submitted time.Time   `json:"submitted"`
	Started   time.Time   `json:"started,omitzero"`
	Finished  time.Time   `json:"finished,omitzero"`
	Usage     *Usage      `json:"usage,omitempty"`
	Outputs   wire.Hash   `json:"outputs,omitzero"`
	Receipt   bool        `json:"receipt"` // both sides have signed the end
}

// Fold computes the status of a run from the entries of its topic. The entries
// of one author are in the order of its chain; how the two authors' entries
// interleave does not matter. An entry by the wrong author counts for nothing.
func Fold(run string, entries []*wire.Entry) (Status, error) {
	f := folder{Status: Status{ID: run}}
	for _, e := range entries {
		if e.Kind == KindSubmit && f.Submitter.IsZero() {
			if err := f.submit(e); err != nil {
				return Status{}, err
			}
		}
	}
	if f.Submitter.IsZero() {
		return Status{}, fmt.Errorf("run %s: nobody has submitted it", run)
	}
	// The submitter's entries first: they say who the executor of an attempt is.
	for _, e := range entries {
		if e.Author == f.Submitter {
			if err := f.wish(e); err != nil {
				return Status{}, err
			}
		}
	}
	for _, e := range entries {
		if e.Author == f.NodeID {
			if err := f.fact(e); err != nil {
				return Status{}, err
			}
		}
	}
	return f.Status, nil
}

// folder adds entries up.
type folder struct{ Status }

func (f *folder) submit(e *wire.Entry) error {
	var r Submit
	if err := wire.Unmarshal(e.Payload, &r); err != nil {
		return err
	}
	f.State, f.Submitter, f.Submitted = Submitted, e.Author, e.Time()
	f.Agent, f.Command = r.Spec.Agent, r.Spec.Command
	return nil
}

func (f *folder) wish(e *wire.Entry) error {
	switch e.Kind {
	case KindPlace:
		var r Place
		if err := wire.Unmarshal(e.Payload, &r); err != nil {
			return err
		}
		if r.Attempt < f.Attempt {
			return nil
		}
		f.State, f.Attempt, f.Node, f.NodeID = Placed, r.Attempt, r.Name, r.Node
		if r.Node.IsZero() {
			f.State, f.Finished = Unplaced, e.Time()
			f.Reason = "no machine fits"
		}
	case KindCancel:
		var r Cancel
		if err := wire.Unmarshal(e.Payload, &r); err != nil {
			return err
		}
		if f.NodeID.IsZero() {
			f.State, f.Finished, f.Reason = Cancelled, e.Time(), r.Reason
		}
	case KindLost:
		var r LostRecord
		if err := wire.Unmarshal(e.Payload, &r); err != nil {
			return err
		}
		if r.Attempt == f.Attempt {
			f.State, f.Reason = Lost, r.Reason
		}
	case KindReceipt:
		f.Receipt = true
	}
	return nil
}

// fact takes what the executor of the current attempt says: the truth, also
// where the submitter has given it up for lost.
func (f *folder) fact(e *wire.Entry) error {
	switch e.Kind {
	case KindStarted:
		var r Started
		if err := wire.Unmarshal(e.Payload, &r); err != nil {
			return err
		}
		if r.Attempt == f.Attempt {
			f.Started = e.Time()
			if f.State == Placed {
				f.State = Running
			}
		}
	case KindFinished:
		var r Finished
		if err := wire.Unmarshal(e.Payload, &r); err != nil {
			return err
		}
		ran := r.State.Final() && r.State != Unplaced // what only the submitter can say is not the executor's
		if r.Attempt == f.Attempt && ran {
			f.State, f.Reason, f.Finished, f.Outputs = r.State, r.Reason, e.Time(), r.Outputs
			f.Usage, f.ExitCode = &r.Usage, &r.ExitCode
		}
	}
	return nil
}
