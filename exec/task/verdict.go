package task

import (
	"fmt"
	"strings"

	"github.com/balanceai/balance/mesh/identity"
)

// Reason is one sentence of why a machine does not fit, as data. The CLI, the
// TUI and --json show the same.
type Reason struct {
	Rule string `cbor:"1,keyasint" json:"rule"`                     // what was checked, such as "memory" or "terms"
	Text string `cbor:"2,keyasint" json:"text"`                     // for people: "needs 8 GiB of memory, 3.1 GiB are free"
	Need uint64 `cbor:"3,keyasint,omitempty" json:"need,omitempty"` // in the rule's own unit, where it has one
	Have uint64 `cbor:"4,keyasint,omitempty" json:"have,omitempty"` //
	Ever bool   `cbor:"5,keyasint,omitempty" json:"ever,omitempty"` // the machine could fit at another time
}

// String returns the sentence.
func (r Reason) String() string { return r.Text }

// Reasonf makes a reason that only a change of the machine or the run removes.
func Reasonf(rule, format string, args ...any) Reason {
	return Reason{Rule: rule, Text: fmt.Sprintf(format, args...)}
}

// Part is one term of a score, in words that people know.
type Part struct {
	Name   string `cbor:"1,keyasint" json:"name"`   // such as "vram"
	Text   string `cbor:"2,keyasint" json:"text"`   // such as "leaves 8 of 24 GiB"
	Points int    `cbor:"3,keyasint" json:"points"` // thousandths; the score is their sum
}

// Verdict is what placement says of one machine for one run.
type Verdict struct {
	Node    identity.ID `cbor:"1,keyasint" json:"id"`
	Name    string      `cbor:"2,keyasint" json:"node"`
	Owner   string      `cbor:"3,keyasint" json:"owner"`
	Fits    bool        `cbor:"4,keyasint" json:"fits"`
	Score   int         `cbor:"5,keyasint" json:"score"`                       // 0 to 1000; higher is better; 0 where it does not fit
	Parts   []Part      `cbor:"6,keyasint,omitempty" json:"parts,omitempty"`   // of the score
	Reasons []Reason    `cbor:"7,keyasint,omitempty" json:"reasons,omitempty"` // every check that fails
	AgeMS   int64       `cbor:"8,keyasint,omitempty" json:"age_ms,omitempty"`  // of the facts about the machine; 0 for live or own
	Devices []string    `cbor:"9,keyasint,omitempty" json:"devices,omitempty"` // GPUs that would be used, by UUID; the executor decides

	// Nearest is where no machine fits the smallest change with which one would:
	// at this machine, for people.
	Nearest string `cbor:"10,keyasint,omitempty" json:"nearest,omitempty"`
}

// Ranking is every machine's verdict, the best first, those that do not fit
// last.
type Ranking []Verdict

// Best returns the verdicts that fit.
func (r Ranking) Best() Ranking {
	for i := range r {
		if !r[i].Fits {
			return r[:i]
		}
	}
	return r
}

// Lead says for people by how much the best machine is before the next one, and
// in which parts of the score. It is empty where there are not two that fit.
func (r Ranking) Lead() string {
	fit := r.Best()
	if len(fit) < 2 {
		return ""
	}
	a, b := fit[0], fit[1]
	if a.Score == b.Score {
		return fmt.Sprintf("%s and %s are equal; the lower id comes first", a.Name, b.Name)
	}
	var parts []string
	for _, p := range a.Parts {
		other := 0
		for _, q := range b.Parts {
			if q.Name == p.Name {
				other = q.Points
			}
		}
		if p.Points != other {
			parts = append(parts, fmt.Sprintf("%s %+d", p.Name, p.Points-other))
		}
	}
	return fmt.Sprintf("%s comes before %s by %d: %s", a.Name, b.Name, a.Score-b.Score, strings.Join(parts, ", "))
}
