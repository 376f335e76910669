// Package policy answers one question: may this run be on this machine, by the
// rules of the machine's owner?
//
// The answer is pure and denies by default. The owner's own runs are allowed;
// another owner's run is allowed only what the owner wrote down. Both ends ask:
// the submitter to predict, the executor to decide. The executor's answer is
// the law.
package policy

import (
	"cmp"
	"fmt"
	"math"
	"strings"
	"time"

	"github.com/balanceai/balance/exec/task"
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

	// Duty is what the owner has told the machine to do for now, whatever the
	// rules give: [Draining], [Paused], or nothing special.
	Duty string `cbor:"7,keyasint,omitempty" json:"duty,omitempty"`

	Models []ModelGrant `cbor:"40,keyasint,omitempty" json:"models,omitempty"` // what owners other than the machine's may ask its engines
}

// FileName is the name of the file in which an owner writes terms.
const FileName = "policy.yaml"

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

// Isolation of another owner's runs in a [Grant].
const (
	// IsolationSandbox is what they get where the owner does not say otherwise. A
	// machine that cannot build one refuses them.
	IsolationSandbox = "sandbox"
	// IsolationNone runs another owner's program as the user who runs Balance.
	IsolationNone = "none"
	// IsolationContainer is as IsolationSandbox, and lets their images run too, in
	// containers of the machine's engine.
	IsolationContainer = "container"
)

// Grant is what other owners may use at one time. Amounts are of all runs of one
// owner together, by whichever grant they came.
type Grant struct {
	Owner     string        `cbor:"1,keyasint" json:"owner"`                       // exact name, or "*" for every member
	Isolation string        `cbor:"2,keyasint,omitempty" json:"isolation"`         // [IsolationNone] or [IsolationContainer]; else a sandbox
	CPU       task.CPU      `cbor:"3,keyasint,omitempty" json:"cpu_milli"`         //
	Memory    task.Bytes    `cbor:"4,keyasint,omitempty" json:"memory"`            //
	GPUs      int           `cbor:"5,keyasint,omitempty" json:"gpus"`              // devices
	Time      time.Duration `cbor:"6,keyasint,omitempty" json:"time_ns,omitempty"` // longest run; 0 for no limit

	Node    string        `cbor:"9,keyasint,omitempty" json:"node,omitempty"`        // only from this machine of the owner
	Role    string        `cbor:"10,keyasint,omitempty" json:"role,omitempty"`       // only for members of this role
	Drivers Words         `cbor:"11,keyasint,omitempty" json:"drivers,omitempty"`    // only runs of these; none: of any
	VRAM    task.Bytes    `cbor:"12,keyasint,omitempty" json:"vram,omitempty"`       // 0 for no limit
	Runs    int           `cbor:"13,keyasint,omitempty" json:"runs,omitempty"`       // at one time; 0 for no limit
	Use     time.Duration `cbor:"14,keyasint,omitempty" json:"use_ns,omitempty"`     // of run time within Per; 0 for no limit
	Per     time.Duration `cbor:"15,keyasint,omitempty" json:"per_ns,omitempty"`     // up to now
	Hours   Hours         `cbor:"16,keyasint,omitempty" json:"hours,omitempty"`      // of the machine's clock; empty: at any
	Idle    time.Duration `cbor:"17,keyasint,omitempty" json:"idle_ns,omitempty"`    // only after nobody has touched the machine for so long; 0: also while somebody does
	Mains   bool          `cbor:"18,keyasint,omitempty" json:"mains,omitempty"`      // only while it does not live on its battery
	GPUFree bool          `cbor:"19,keyasint,omitempty" json:"gpu_unused,omitempty"` // starts only while no other program uses a GPU
	Return  string        `cbor:"40,keyasint,omitempty" json:"on_return,omitempty"`  // to runs when Idle or Mains ends: [Keep], [Pause] or [Stop]
	Grace   time.Duration `cbor:"41,keyasint,omitempty" json:"grace_ns,omitempty"`   // between SIGTERM and SIGKILL; 0 for [DefaultGrace]
	Agents  Words         `cbor:"43,keyasint,omitempty" json:"agents,omitempty"`     // only runs of these, by the digest of the manifest; none: of any, and of none
	Queue   int           `cbor:"50,keyasint,omitempty" json:"queue,omitempty"`      // runs that are here or wait for it, at one time; 0 for [DefaultQueue]
	Ledger  task.Bytes    `cbor:"51,keyasint,omitempty" json:"ledger,omitempty"`     // that its runs may add to the ledger in a day; 0 for [DefaultLedger]
	Line    int           `cbor:"42,keyasint,omitempty" json:"line,omitempty"`       // of [FileName]; 0 where it comes from elsewhere
}

// AnyOwner in a [Grant] stands for every member of the mesh.
const AnyOwner = "*"

// Question is a run that asks to be on a machine.
type Question struct {
	From      Asker
	Machine   string     // the machine's owner
	Driver    string     //
	Agent     string     // digest of its manifest; empty for a bare command
	Needs     task.Needs // as [task.Needs.Held] gives them
	Limits    task.Limits
	Held      Held
	Now       time.Time   // the machine's clock, in its time zone
	Isolation string      // the strongest level that the machine has, of package task
	Measured  *Conditions // nil: whoever asks cannot know, and the machine decides
}

// Level returns the isolation that a run of a member gets on a machine, a level
// of package task. The run may ask for more.
func (t Terms) Level(from Asker, machine string) string {
	if from.Owner == machine {
		return task.LevelProcess
	}
	if g, ok := t.Grant(from); ok && g.Isolation == IsolationNone {
		return task.LevelProcess
	}
	return task.LevelSandbox
}

// Held is what an owner's runs use of a machine. Only the machine knows it.
type Held struct {
	CPU    task.CPU
	Memory task.Bytes
	GPUs   int
	VRAM   task.Bytes // on all devices
	Runs   int
	Used   func(within time.Duration) time.Duration // run time up to now; nil: none is known
}

// Add counts one more run.
func (h *Held) Add(n task.Needs) {
	h.CPU += n.CPU
	h.Memory += n.Memory
	h.GPUs += n.GPUs
	h.VRAM += vram(n)
	h.Runs++
}

// vram is what a run needs on all its devices. What a stranger asks for may be
// any number.
func vram(n task.Needs) task.Bytes {
	count := task.Bytes(max(n.GPUs, 0))
	if count > 0 && n.VRAM > math.MaxUint64/count {
		return math.MaxUint64
	}
	return n.VRAM * count
}

// Ask returns every rule that forbids the run; none means that it is allowed.
func (t Terms) Ask(q Question) []task.Reason {
	if !t.Offers {
		return []task.Reason{task.Reasonf("terms", "offers nothing to the mesh")}
	}
	if t.Duty != "" {
		return []task.Reason{{Rule: "duty", Text: offDuty(t.Duty), Ever: true}}
	}
	if q.From.Owner == q.Machine {
		return nil
	}
	g, ok := t.Grant(q.From)
	if !ok {
		return []task.Reason{task.Reasonf("terms", "its owner %s has not granted anything to %s", q.Machine, q.From.Owner)}
	}
	return g.ask(q)
}

// answer collects what a grant says against a run.
type answer struct {
	grant   *Grant
	reasons []task.Reason
}

// refuse notes a reason, and where the owner has written it.
func (a *answer) refuse(ever bool, need, have uint64, format string, args ...any) {
	text := fmt.Sprintf(format, args...) + a.grant.at()
	a.reasons = append(a.reasons, task.Reason{Rule: "terms", Text: text, Need: need, Have: have, Ever: ever})
}

// at tells where a grant is written, as the end of a sentence.
func (g *Grant) at() string {
	if g.Line == 0 {
		return ""
	}
	return fmt.Sprintf(" (%s:%d)", FileName, g.Line)
}

func (g Grant) ask(q Question) []task.Reason {
	a := answer{grant: &g}
	a.kind(&q)
	a.amounts(&q)
	a.when(&q)
	return a.reasons
}

// kind checks what the run is.
func (a *answer) kind(q *Question) {
	g, who := a.grant, q.From.Owner
	switch image := q.Driver == task.DriverImage; {
	case g.Isolation == IsolationNone:
	case image && g.Isolation != IsolationContainer:
		a.refuse(false, 0, 0, "runs no image of another owner: its terms do not grant %s isolation: %s", who, IsolationContainer)
	case !image && q.Isolation != task.LevelSandbox:
		a.refuse(false, 0, 0, "has no sandbox for the run of another owner, and its terms do not grant %s isolation: none", who)
	}
	if g.Drivers != "" && !g.Drivers.Has(q.Driver) {
		a.refuse(false, 0, 0, "grants %s runs of %s, not of %s", who, strings.Join(g.Drivers.List(), " and "), cmp.Or(q.Driver, "no driver"))
	}
	if g.Agents != "" && (q.Agent == "" || !g.Agents.Has(q.Agent)) {
		a.refuse(false, 0, 0, "grants %s certain agents alone, and this is none of them", who)
	}
	if g.Time > 0 && (q.Limits.Time == 0 || q.Limits.Time > g.Time) {
		a.refuse(false, uint64(q.Limits.Time), uint64(g.Time), "grants %s runs of %v at most: give the run a time limit within that", who, g.Time)
	}
}

// amounts checks how much it wants. There are no sums of what it asks for: that
// may be any number.
func (a *answer) amounts(q *Question) {
	g, h, n, who := a.grant, q.Held, q.Needs, q.From.Owner
	if n.CPU > left(g.CPU, h.CPU) {
		a.refuse(n.CPU <= g.CPU, uint64(n.CPU), uint64(left(g.CPU, h.CPU)), "grants %s %v cores in all, %v are in use, the run needs %v", who, g.CPU, h.CPU, n.CPU)
	}
	if n.Memory > left(g.Memory, h.Memory) {
		a.refuse(n.Memory <= g.Memory, uint64(n.Memory), uint64(left(g.Memory, h.Memory)), "grants %s %v of memory in all, %v are in use, the run needs %v", who, g.Memory, h.Memory, n.Memory)
	}
	if n.GPUs > max(0, g.GPUs-h.GPUs) {
		a.refuse(n.GPUs <= g.GPUs, uint64(n.GPUs), uint64(max(0, g.GPUs-h.GPUs)), "grants %s %d GPUs in all, %d are in use, the run needs %d", who, g.GPUs, h.GPUs, n.GPUs)
	}
	if need := vram(n); g.VRAM > 0 && need > left(g.VRAM, h.VRAM) {
		a.refuse(need <= g.VRAM, uint64(need), uint64(left(g.VRAM, h.VRAM)), "grants %s %v of VRAM in all, %v are in use, the run needs %v", who, g.VRAM, h.VRAM, need)
	}
	if g.VRAM > 0 && n.GPUs > 0 && n.VRAM == 0 {
		a.refuse(false, 0, uint64(g.VRAM), "grants %s %v of VRAM in all: say how much the run needs", who, g.VRAM)
	}
	if g.Runs > 0 && h.Runs >= g.Runs {
		a.refuse(true, 1, 0, "grants %s %d runs at one time, %d are going", who, g.Runs, h.Runs)
	}
}

func left[T task.CPU | task.Bytes](cap, held T) T {
	if held > cap {
		return 0
	}
	return cap - held
}

// Check refuses terms that cannot mean what their author wanted.
func (t Terms) Check() error {
	seen := map[Asker]bool{}
	for _, g := range t.Others {
		if err := g.check(); err != nil {
			return fmt.Errorf("grant: %w", err)
		}
		key := Asker{g.Owner, g.Node, g.Role}
		if seen[key] {
			return fmt.Errorf("grant: %s is there twice", g.Who())
		}
		seen[key] = true
	}
	return nil
}

func (g *Grant) check() error {
	if err := g.checkWho(); err != nil {
		return err
	}
	switch who := g.Who(); {
	case g.Isolation != "" && g.Isolation != IsolationSandbox && g.Isolation != IsolationContainer && g.Isolation != IsolationNone:
		return fmt.Errorf("%s: unknown isolation %q: it is %s, %s or %s", who, g.Isolation, IsolationSandbox, IsolationContainer, IsolationNone)
	case g.CPU == 0 || g.Memory == 0:
		return fmt.Errorf("%s: say how much cpu and memory", who)
	case g.GPUs < 0 || g.Runs < 0 || g.Queue < 0 || g.Time < 0 || g.Use < 0 || g.Per < 0 || g.Idle < 0 || g.Grace < 0:
		return fmt.Errorf("%s: a negative amount", who)
	case g.Use > 0 && (g.Per <= 0 || g.Use > g.Per*1024):
		return fmt.Errorf("%s: use is so many hours in a time, like 10h/7d", who)
	case g.Grace > MaxGrace:
		return fmt.Errorf("%s: grace is %v at most", who, MaxGrace)
	case g.Return != "" && g.Return != Keep && g.Return != Pause && g.Return != Stop:
		return fmt.Errorf("%s: unknown on_return %q: keep, pause and stop are known", who, g.Return)
	case g.Return != "" && g.Idle == 0 && !g.Mains:
		return fmt.Errorf("%s: on_return is for idle and for power: ac, and there is neither", who)
	}
	if _, err := g.Hours.windows(); err != nil {
		return fmt.Errorf("%s: %w", g.Who(), err)
	}
	return nil
}
