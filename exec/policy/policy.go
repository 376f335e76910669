// Package policy answers one question: may this run be on this machine, by the
// rules of the machine's owner?
//
// The answer is pure and denies by default. The owner's own runs are allowed;
// another owner's run is allowed only what the owner wrote down. Both ends ask:
// the submitter to predict, the executor to decide. The executor's answer is
// the law.
package policy

import (
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/balanceai/balance/exec/task"
	"github.com/balanceai/balance/mesh/identity"
)

// Terms are the rules of a machine's owner. The zero Terms offer nothing.
type Terms struct {
	Offers        bool       `cbor:"1,keyasint" json:"offers"`            // false: a thin client, which runs nothing, not even its owner's
	ReserveCPU    task.CPU   `cbor:"2,keyasint" json:"reserve_cpu_milli"` // kept for the owner
	ReserveMemory task.Bytes `cbor:"3,keyasint" json:"reserve_memory"`    //
	Others        []Grant    `cbor:"4,keyasint,omitempty" json:"others"`  // what owners other than the machine's get

	// Relay is for whom the machine passes on what members send to each other,
	// which it cannot read; empty is for nobody.
	Relay     string     `cbor:"5,keyasint,omitempty" json:"relay,omitempty"`
	RelayRate task.Bytes `cbor:"6,keyasint,omitempty" json:"relay_rate,omitempty"` // a second, of each member that sends; 0 for no limit

	Models []ModelGrant `cbor:"40,keyasint,omitempty" json:"models,omitempty"` // what owners other than the machine's may ask its engines
}

// For whom a machine relays.
const (
	RelayOwn = "own" // where one end belongs to the machine's owner
	RelayAll = "all" // for every member
)

// Relays reports whether the machine of an owner passes on what a member of one
// owner sends to a member of another.
func (t Terms) Relays(machine, from, to string) bool {
	return t.Relay == RelayAll || t.Relay == RelayOwn && machine != "" && (from == machine || to == machine)
}

// Levels of isolation between a run and the machine.
const (
	// IsolationNone runs another owner's program as the user who runs Balance.
	IsolationNone = "none"
)

// Grant is what one other owner may use at one time.
type Grant struct {
	Owner     string        `cbor:"1,keyasint" json:"owner"`                        // exact name, or "*" for every member
	Isolation string        `cbor:"2,keyasint,omitempty" json:"isolation"`          // the weakest that will do
	CPU       task.CPU      `cbor:"3,keyasint,omitempty" json:"cpu_milli"`          // of all its runs together
	Memory    task.Bytes    `cbor:"4,keyasint,omitempty" json:"memory"`             // of all its runs together
	GPUs      int           `cbor:"5,keyasint,omitempty" json:"gpus"`               // devices of all its runs together
	Time      time.Duration `cbor:"6,keyasint,omitempty" json:"time_ns,omitempty"`  // longest run; 0 for no limit
	From      int           `cbor:"7,keyasint,omitempty" json:"from_min,omitempty"` // minutes after midnight, the machine's clock;
	To        int           `cbor:"8,keyasint,omitempty" json:"to_min,omitempty"`   // From == To: at any hour; From > To: over midnight
}

// AnyOwner in a [Grant] stands for every member of the mesh.
const AnyOwner = "*"

// Question is a run that asks to be on a machine.
type Question struct {
	Owner     string     // whose run it is
	Machine   string     // the machine's owner
	Needs     task.Needs // as [task.Needs.Held] gives them
	Limits    task.Limits
	Held      task.Needs // what this owner's runs hold of the machine now; CPU, Memory and GPUs count
	Now       time.Time  // the machine's clock, in its time zone
	Isolation string     // the strongest that the machine has for this run
}

// Ask returns every rule that forbids the run; none means that it is allowed.
func (t Terms) Ask(q Question) []task.Reason {
	if !t.Offers {
		return []task.Reason{task.Reasonf("terms", "offers nothing to the mesh")}
	}
	if q.Owner == q.Machine {
		return nil
	}
	g, ok := t.grant(q.Owner)
	if !ok {
		return []task.Reason{task.Reasonf("terms", "its owner %s has not granted anything to %s", q.Machine, q.Owner)}
	}
	return g.ask(q)
}

// grant finds the grant for an owner: the one with the exact name before the
// one for everybody.
func (t Terms) grant(owner string) (Grant, bool) {
	var all *Grant
	for i, g := range t.Others {
		switch g.Owner {
		case owner:
			return g, true
		case AnyOwner:
			all = &t.Others[i]
		}
	}
	if all == nil {
		return Grant{}, false
	}
	return *all, true
}

func (g Grant) ask(q Question) []task.Reason {
	var out []task.Reason
	refuse := func(ever bool, need, have uint64, format string, args ...any) {
		r := task.Reasonf("terms", format, args...)
		r.Need, r.Have, r.Ever = need, have, ever
		out = append(out, r)
	}
	if q.Isolation == "" || g.Isolation != q.Isolation {
		refuse(false, 0, 0, "has no sandbox for the run of another owner, and its terms do not grant %s isolation: none", q.Owner)
	}
	if q.Needs.CPU > left(g.CPU, q.Held.CPU) { // no sums: what a stranger asks for may be any number
		refuse(q.Needs.CPU <= g.CPU, uint64(q.Needs.CPU), uint64(left(g.CPU, q.Held.CPU)), "grants %s %v cores in all, %v are in use, the run needs %v", q.Owner, g.CPU, q.Held.CPU, q.Needs.CPU)
	}
	if q.Needs.Memory > left(g.Memory, q.Held.Memory) {
		refuse(q.Needs.Memory <= g.Memory, uint64(q.Needs.Memory), uint64(left(g.Memory, q.Held.Memory)), "grants %s %v of memory in all, %v are in use, the run needs %v", q.Owner, g.Memory, q.Held.Memory, q.Needs.Memory)
	}
	if want := q.Held.GPUs + q.Needs.GPUs; want > g.GPUs {
		refuse(q.Needs.GPUs <= g.GPUs, uint64(q.Needs.GPUs), uint64(max(0, g.GPUs-q.Held.GPUs)), "grants %s %d GPUs in all, %d are in use, the run needs %d", q.Owner, g.GPUs, q.Held.GPUs, q.Needs.GPUs)
	}
	if g.Time > 0 && (q.Limits.Time == 0 || q.Limits.Time > g.Time) {
		refuse(false, uint64(q.Limits.Time), uint64(g.Time), "grants %s runs of %v at most: give the run a time limit within that", q.Owner, g.Time)
	}
	if !g.open(q.Now) {
		refuse(true, 0, 0, "is open to %s from %s to %s", q.Owner, Clock(g.From), Clock(g.To))
	}
	return out
}

func left[T task.CPU | task.Bytes](cap, held T) T {
	if held > cap {
		return 0
	}
	return cap - held
}

// open reports whether now is within the hours of the grant.
func (g Grant) open(now time.Time) bool {
	m := now.Hour()*60 + now.Minute()
	switch {
	case g.From == g.To:
		return true
	case g.From < g.To:
		return g.From <= m && m < g.To
	default:
		return m >= g.From || m < g.To
	}
}

// Clock writes minutes after midnight as 22:30.
func Clock(minutes int) string { return fmt.Sprintf("%02d:%02d", minutes/60, minutes%60) }

// Check refuses terms that cannot mean what their author wanted.
func (t Terms) Check() error {
	seen := map[string]bool{}
	for _, g := range t.Others {
		if g.Owner != AnyOwner {
			if err := identity.ValidName(g.Owner); err != nil {
				return fmt.Errorf("grant: owner: %w", err)
			}
		}
		switch {
		case seen[g.Owner]:
			return fmt.Errorf("grant: owner %s is there twice", g.Owner)
		case g.Isolation != "" && g.Isolation != IsolationNone:
			return fmt.Errorf("grant: owner %s: unknown isolation %q: none is the only one that this version has", g.Owner, g.Isolation)
		case g.CPU == 0 || g.Memory == 0:
			return fmt.Errorf("grant: owner %s: say how much cpu and memory", g.Owner)
		case g.GPUs < 0 || g.Time < 0:
			return fmt.Errorf("grant: owner %s: a negative amount", g.Owner)
		case g.From < 0 || g.To < 0 || g.From >= 24*60 || g.To >= 24*60:
			return fmt.Errorf("grant: owner %s: hours are from 00:00 to 23:59", g.Owner)
		}
		seen[g.Owner] = true
	}
	return nil
}

// ParseHours reads "22:00-07:30" as minutes after midnight.
func ParseHours(s string) (from, to int, err error) {
	a, b, ok := strings.Cut(strings.ReplaceAll(s, " ", ""), "-")
	if !ok {
		return 0, 0, fmt.Errorf("%q are no hours: write them like 22:00-07:30", s)
	}
	start, err1 := time.Parse("15:04", a)
	end, err2 := time.Parse("15:04", b)
	if errors.Join(err1, err2) != nil {
		return 0, 0, fmt.Errorf("%q are no hours: write them like 22:00-07:30", s)
	}
	return start.Hour()*60 + start.Minute(), end.Hour()*60 + end.Minute(), nil
}
