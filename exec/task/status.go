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
	Waiting   State = "waiting"   // no machine has room for it now, and one could later
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

// Kinds of ledger entries in the topic of a run. The node that submits it is the
// only writer of the five from [KindSubmit] on, the executor's node of the others.
// A gang has no executor: who submits it writes when it started and finished. A
// node that gives the run to another one, for that to submit it, writes a
// [KindHand] instead.
const (
	KindHand = "hand"

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
	Spec Spec        `cbor:"1,keyasint" json:"spec"`
	For  identity.ID `cbor:"2,keyasint,omitzero" json:"for,omitzero"`  // the node that has given it the run with a [Hand]; zero: none
	Hand wire.Hash   `cbor:"3,keyasint,omitzero" json:"hand,omitzero"` // that entry
}

// Hand gives a run into the custody of another node of the same owner, which is to
// submit it and see it through. Until that node has answered, nobody else may.
type Hand struct {
	To   identity.ID `cbor:"1,keyasint" json:"to"`
	Spec Spec        `cbor:"2,keyasint" json:"spec"`
}

// Place is the submitter's choice, with the verdict on every machine at that
// moment, or its finding that none fits (zero Node). An attempt that waits is
// told of twice: once without a machine, and again when it has one.
type Place struct {
	Attempt  int         `cbor:"1,keyasint"`
	Node     identity.ID `cbor:"2,keyasint"`
	Name     string      `cbor:"3,keyasint"`
	Verdicts [][]byte    `cbor:"4,keyasint"`            // each a Verdict, best first; records nest four levels at most
	More     int         `cbor:"5,keyasint,omitempty"`  // verdicts left out because the record would be too long
	Wait     bool        `cbor:"23,keyasint,omitempty"` // none fits now, and the run waits until one does
	Ranks    []Rank      `cbor:"50,keyasint,omitempty"` // of a gang, in order, instead of a Node
}

// NewPlace records a choice. It keeps as many verdicts as fit into an entry,
// the best ones.
func NewPlace(attempt int, node identity.ID, name string, ranking Ranking) (Place, error) {
	p := Place{Attempt: attempt, Node: node, Name: name}
	room := wire.MaxPayload - 256
	for i, v := range ranking {
		b, err := wire.Marshal(v)
		if err != nil {
			return Place{}, err
		}
		if room -= len(b) + 4; room < 0 {
			p.More = len(ranking) - i
			break
		}
		p.Verdicts = append(p.Verdicts, b)
	}
	return p, nil
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

// Started says that the program runs, or did.
type Started struct {
	Attempt int   `cbor:"1,keyasint" json:"attempt"`
	Millis  int64 `cbor:"2,keyasint" json:"at_ms"` // when it was started: the executor's clock, Unix milliseconds
}

// Finished is the executor's account of an attempt.
type Finished struct {
	Attempt  int       `cbor:"1,keyasint" json:"attempt"`
	State    State     `cbor:"2,keyasint" json:"state"`
	ExitCode int       `cbor:"3,keyasint" json:"exit_code"`                  // 128+n after signal n; -1 where the program never ran or its end was not seen
	Reason   string    `cbor:"4,keyasint,omitempty" json:"reason,omitempty"` // why it failed or was cancelled, where the exit code does not say
	Usage    Usage     `cbor:"5,keyasint" json:"usage"`
	Outputs  wire.Hash `cbor:"6,keyasint" json:"outputs,omitzero"`           // listing of the output files; zero for none
	Cause    string    `cbor:"26,keyasint,omitempty" json:"cause,omitempty"` // which limit has ended it: one of Cause…

	// Manifest and Policy are the digests of what it ran by: the manifest of the
	// agent, zero for a bare command, and the terms of the machine's owner.
	Manifest wire.Hash `cbor:"27,keyasint,omitzero" json:"manifest,omitzero"`
	Policy   wire.Hash `cbor:"28,keyasint,omitzero" json:"policy,omitzero"`

	// Lost says that the machine has lost the run, which did not end by itself:
	// its lease ran out, or the node stopped. A run that may be retried is.
	Lost bool `cbor:"32,keyasint,omitempty" json:"lost,omitempty"`
}

// Causes of an end: the limit that was reached.
const (
	CauseTime   = "time"
	CauseMemory = "memory"
	CausePIDs   = "pids"
	CauseDisk   = "disk"
	CauseIdle   = "idle" // of a run that serves: nobody has asked it for as long as it says
)

// Usage is what a run used, as the executor measured it.
type Usage struct {
	WallMS   uint64 `cbor:"1,keyasint" json:"wall_ms"`
	CPUMS    uint64 `cbor:"2,keyasint" json:"cpu_ms"`              // user and system
	MaxRSS   Bytes  `cbor:"3,keyasint" json:"max_rss"`             // of its largest process
	Output   Bytes  `cbor:"4,keyasint" json:"output"`              // written to standard output and error
	Dropped  Bytes  `cbor:"5,keyasint" json:"dropped"`             // of that, not kept
	GPUMS    uint64 `cbor:"6,keyasint" json:"gpu_ms"`              // devices held × wall time
	PeakVRAM Bytes  `cbor:"7,keyasint" json:"peak_vram,omitempty"` // of its processes on all devices together; absent where the driver does not tell
	InBytes  Bytes  `cbor:"8,keyasint" json:"bytes_in"`            // inputs fetched over the mesh
	OutBytes Bytes  `cbor:"9,keyasint" json:"bytes_out"`           // size of the output files

	// PeakMemory is what all its processes together held at most at one time;
	// absent where no control group has counted it.
	PeakMemory Bytes `cbor:"60,keyasint,omitempty" json:"peak_memory,omitempty"`

	Models ModelUsage `cbor:"40,keyasint,omitzero" json:"models,omitzero"` // what it asked of models
}

// Peak is the most memory that the run is known to have held: of all its
// processes where that was counted, else of the largest one.
func (u *Usage) Peak() Bytes { return max(u.PeakMemory, u.MaxRSS) }

// Status is what the entries of a run's topic add up to.
type Status struct {
	ID        string      `json:"id"`
	State     State       `json:"state"`
	Node      string      `json:"node"` // name of the machine; empty before placement
	NodeID    identity.ID `json:"node_id,omitzero"`
	Submitter identity.ID `json:"submitter"`          // the node that dispatches it
	For       identity.ID `json:"for,omitzero"`       // the node that gave it into the custody of that one
	Custodian identity.ID `json:"custodian,omitzero"` // likewise: the node that was given it
	Attempt   int         `json:"attempt"`
	ExitCode  *int        `json:"exit_code"`
	Reason    string      `json:"reason,omitempty"`
	Cause     string      `json:"cause,omitempty"` // the limit that has ended it, as in [Finished]
	Agent     string      `json:"agent,omitempty"`
	Command   []string    `json:"command"`
	Submitted time.Time   `json:"submitted"`
	Started   time.Time   `json:"started,omitzero"`
	Finished  time.Time   `json:"finished,omitzero"`
	Usage     *Usage      `json:"usage,omitempty"`
	Outputs   wire.Hash   `json:"outputs,omitzero"`
	Receipt   bool        `json:"receipt"`         // both sides have signed the end
	Ranks     []string    `json:"ranks,omitempty"` // of a gang: the run of each rank
	Gang      string      `json:"gang,omitempty"`  // of a rank: the run of its gang
	Rank      *int        `json:"rank,omitempty"`  // likewise: which one it is
}

// Fold computes the status of a run from the entries of its topic. The entries
// of one author are in the order of its chain; how the two authors' entries
// interleave does not matter. An entry by the wrong author, or one that cannot
// be read, counts for nothing. It fails only where nobody has submitted the run.
func Fold(run string, entries []*wire.Entry) (Status, error) {
	f := folder{Status: Status{ID: run}}
	for _, e := range entries {
		if e.Kind == KindHand && f.For.IsZero() {
			f.hand(e)
		}
	}
	for _, e := range entries {
		if e.Kind == KindSubmit && f.Submitter.IsZero() {
			f.submit(e)
		}
	}
	switch {
	case !f.Submitter.IsZero():
	case !f.For.IsZero(): // it is on its way
		f.Submitter = f.For
		return f.Status, nil
	default:
		return Status{}, fmt.Errorf("run %s: nobody has submitted it", run)
	}
	// The submitter's entries first: they say who the executor of an attempt is.
	for _, e := range entries {
		if e.Author == f.Submitter {
			f.wish(e)
		}
	}
	for _, e := range entries {
		if e.Author == f.NodeID || f.gang && e.Author == f.Submitter {
			f.fact(e)
		}
	}
	f.Receipt = !f.finished.IsZero() && f.receipt == f.finished
	return f.Status, nil
}

// folder adds entries up.
type folder struct {
	Status
	retry    Retry
	gang     bool
	finished wire.Hash // the executor's last word on the current attempt
	receipt  wire.Hash // what the submitter has countersigned
}

// read decodes a record, and reports whether it can be.
func read(e *wire.Entry, record any) bool { return wire.Unmarshal(e.Payload, record) == nil }

func (f *folder) hand(e *wire.Entry) {
	var r Hand
	if !read(e, &r) || r.To == e.Author {
		return
	}
	f.For, f.Custodian = e.Author, r.To
	f.wanted(&r.Spec, e)
}

// submit takes the wish of who may have it: of a run that was given to another
// node, that one, or who has given it and was not heard.
func (f *folder) submit(e *wire.Entry) {
	var r Submit
	if !read(e, &r) {
		return
	}
	switch {
	case f.For.IsZero() && !r.For.IsZero() && r.For != e.Author: // what gave it is not known here
		f.For, f.Custodian = r.For, e.Author
	case f.For.IsZero(), e.Author == f.Custodian && r.For == f.For:
	case e.Author == f.For:
		f.For, f.Custodian = identity.ID{}, identity.ID{}
	default:
		return
	}
	f.Submitter = e.Author
	f.wanted(&r.Spec, e)
}

func (f *folder) wanted(s *Spec, by *wire.Entry) {
	f.State, f.Submitted = Submitted, by.Time()
	f.Agent, f.Command, f.retry = s.Agent, s.Command, s.Retry
	f.gang = s.Gang != nil && s.Member == nil
	if m := s.Member; m != nil {
		f.Gang, f.Rank = m.Gang, &m.Rank
	}
}

// InCustody reports whether another node than the one that the run was submitted
// on sees it through, or is to.
func (s *Status) InCustody() bool { return !s.Custodian.IsZero() }

// OnItsWay reports whether that node has not taken it yet, as far as is known here.
func (s *Status) OnItsWay() bool { return s.InCustody() && s.Submitter == s.For }

func (f *folder) wish(e *wire.Entry) {
	var place Place
	var cancel Cancel
	var lost LostRecord
	var receipt Receipt
	switch {
	case e.Kind == KindPlace && read(e, &place) && place.Attempt >= f.Attempt:
		f.State, f.Attempt, f.Node, f.NodeID, f.Reason = Placed, place.Attempt, place.Name, place.Node, ""
		f.Ranks = nil
		for _, r := range place.Ranks {
			f.Ranks = append(f.Ranks, r.Run)
		}
		if place.Node.IsZero() && len(place.Ranks) == 0 {
			f.nowhere(place.Wait, e.Time())
		}
	case e.Kind == KindCancel && read(e, &cancel) && f.NodeID.IsZero() && !f.gang:
		f.State, f.Finished, f.Reason = Cancelled, e.Time(), cancel.Reason
	case e.Kind == KindLost && read(e, &lost) && lost.Attempt == f.Attempt:
		f.State, f.Reason = Lost, lost.Reason
	case e.Kind == KindReceipt && read(e, &receipt) && receipt.Attempt == f.Attempt:
		f.receipt = receipt.Finished
	}
}

// nowhere takes the submitter's finding that no machine fits.
func (f *folder) nowhere(waits bool, at time.Time) {
	f.State, f.Reason = Unplaced, "no machine fits"
	if f.gang {
		f.Reason = "too few machines fit at one time"
	}
	if waits {
		f.State, f.Reason = Waiting, "no machine has room for it now"
		return
	}
	f.Finished = at
}

// fact takes what the executor of the current attempt says: the truth, also
// where the submitter has given it up for lost.
func (f *folder) fact(e *wire.Entry) {
	var started Started
	var finished Finished
	switch {
	case e.Kind == KindStarted && read(e, &started) && started.Attempt == f.Attempt:
		f.Started = time.UnixMilli(started.Millis)
		if f.State == Placed {
			f.State = Running
		}
	case e.Kind == KindFinished && read(e, &finished) && finished.Attempt == f.Attempt && ran(finished.State):
		f.State, f.Reason, f.Cause, f.Finished, f.Outputs = finished.State, finished.Reason, finished.Cause, e.Time(), finished.Outputs
		f.Usage, f.ExitCode, f.finished = &finished.Usage, &finished.ExitCode, e.Hash()
		if finished.Lost && f.retry == RetryOnLoss && f.receipt != f.finished { // the next attempt is to come
			f.State, f.ExitCode, f.Finished = Lost, nil, time.Time{}
		}
	}
}

// ran reports whether a state is one that an executor can give: what only the
// submitter can say is not the executor's.
func ran(s State) bool { return s.Final() && s != Unplaced }
