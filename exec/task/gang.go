package task

import (
	"errors"
	"fmt"

	"github.com/balanceai/balance/mesh/identity"
)

// MaxGang bounds the ranks of a gang.
const MaxGang = 128

// Gang says that a run is one program on several machines, which start together
// or not at all. Such a run is on no machine itself: each rank is a run of its
// own, a member, and its submitter writes how the gang as a whole began and
// ended.
type Gang struct {
	Nodes int `cbor:"1,keyasint" json:"nodes"`                    // how many machines, each with one rank
	Port  int `cbor:"2,keyasint,omitempty" json:"port,omitempty"` // where each rank listens for the others, on loopback; 0: a free one
}

// Member says that a run is one rank of a gang. Who the others are is signed
// with it: their machines alone may reach this rank.
type Member struct {
	Gang  string        `cbor:"1,keyasint" json:"gang"` // id of the gang's run
	Rank  int           `cbor:"2,keyasint" json:"rank"` // place in the two lists
	Runs  []string      `cbor:"3,keyasint" json:"runs"` // by rank
	Nodes []identity.ID `cbor:"4,keyasint" json:"nodes"`
	Port  int           `cbor:"5,keyasint,omitempty" json:"port,omitempty"` // as in [Gang]
}

// Size returns how many ranks the gang has.
func (m *Member) Size() int { return len(m.Runs) }

func (s *Spec) checkGang() error {
	if g := s.Gang; g != nil {
		if g.Nodes < 1 || g.Nodes > MaxGang {
			return fmt.Errorf("a gang of %d machines: it has from 1 to %d", g.Nodes, MaxGang)
		}
		if err := checkPort(g.Port); err != nil {
			return err
		}
	}
	m := s.Member
	if m == nil {
		return nil
	}
	if !ValidID(m.Gang) || len(m.Runs) < 1 || len(m.Runs) > MaxGang || len(m.Nodes) != len(m.Runs) || m.Rank < 0 || m.Rank >= len(m.Runs) {
		return errors.New("the run belongs to no sound gang")
	}
	for _, id := range m.Runs {
		if !ValidID(id) {
			return fmt.Errorf("run id %.64q in its gang", id)
		}
	}
	return checkPort(m.Port)
}

func checkPort(port int) error {
	if port < 0 || port > 65535 {
		return fmt.Errorf("port %d of a gang: it is from 1 to 65535, or 0 for a free one", port)
	}
	return nil
}

// CheckGang refuses what a gang cannot be together with.
func (s *Spec) CheckGang() error {
	switch {
	case s.Member != nil:
		return errors.New("a rank is submitted by its gang alone")
	case s.Gang == nil:
		return nil
	case s.Stdin:
		return errors.New("a gang has no standard input")
	case s.Serve != nil:
		return errors.New("a gang serves nothing: leave serve away")
	case s.TTY != nil:
		return errors.New("a gang has no terminal")
	case s.Retry == RetryOnLoss:
		return errors.New("a gang is not started again when a machine is lost: leave retry away, or say never")
	case s.Isolation == LevelSandbox:
		return errors.New("a gang runs without a sandbox: its ranks meet on the loopback of their machines, which a sandbox does not have")
	case s.Node != "" && s.Gang.Nodes > 1:
		return fmt.Errorf("a gang of %d machines cannot be on %s alone", s.Gang.Nodes, s.Node)
	}
	return nil
}

// Rank says which rank of a gang a machine takes, in [Place].
type Rank struct {
	Run  string      `cbor:"1,keyasint" json:"run"`
	Node identity.ID `cbor:"2,keyasint" json:"node"`
	Name string      `cbor:"3,keyasint" json:"name"` // of the machine
}
