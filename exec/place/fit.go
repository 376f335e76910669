package place

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/balanceai/balance/exec/fleet"
	"github.com/balanceai/balance/exec/policy"
	"github.com/balanceai/balance/exec/task"
	"github.com/balanceai/balance/mesh/wire"
)

// fit is one machine held against one run.
type fit struct {
	scale  *scale
	spec   *task.Spec
	from   policy.Asker
	needs  task.Needs // what the machine would reserve
	node   *fleet.Node
	offer  *fleet.Offer
	*stand // nil before open

	devices []*device // that the run would get, of the pool
	buffer  []claim
	reasons []task.Reason
	quiet   bool // nobody reads the reasons
	failed  bool // there is one
	now     time.Time
}

// weigh holds a machine against a run, and asks nothing yet.
func (sc *scale) weigh(spec *task.Spec, from policy.Asker, node *fleet.Node, now time.Time) *fit {
	return &fit{scale: sc, spec: spec, from: from, needs: spec.Needs.Held(), node: node, offer: node.Offer, now: now}
}

// check asks everything that stands between a run and a machine, and stops
// early only where nothing is known about the machine.
func (sc *scale) check(spec *task.Spec, from policy.Asker, node *fleet.Node, own Own, now time.Time) *fit {
	f := sc.weigh(spec, from, node, now)
	f.alive()
	f.pinned()
	if f.told(); f.offer == nil {
		return f
	}
	f.terms(own)
	f.secrets()
	f.kind()
	f.open()
	f.amounts()
	f.gpus()
	return f
}

// RuleOffer is the rule of the reason against a machine that has not said what it
// offers.
const RuleOffer = "offer"

func (f *fit) told() {
	if f.offer == nil {
		f.later(RuleOffer, 0, 0, "has not said yet what it offers")
	}
}

// open looks at how the machine stands.
func (f *fit) open() {
	if f.stand == nil {
		f.stand = f.scale.newStand(f.node)
	}
}

// terms asks the rules of the machine's owner.
func (f *fit) terms(own Own) {
	f.reasons = append(f.reasons, f.offer.Terms.Ask(policy.Question{
		From:      f.from,
		Machine:   f.node.Owner,
		Needs:     f.needs,
		Limits:    f.spec.Limits,
		Driver:    f.spec.Driver,
		Agent:     digest(f.spec.Manifest),
		Held:      own.Held,
		Measured:  own.Measured,
		Now:       f.now.In(time.FixedZone("", f.offer.Zone)),
		Isolation: f.offer.Isolation,
	})...)
}

// granted keeps runs from machines whose owner grants them nothing at any time. It
// is a part of terms, which says why.
func (f *fit) granted() {
	_, ok := f.offer.Terms.Grant(f.from)
	f.failed = !f.offer.Terms.Offers || !ok && f.node.Owner != f.from.Owner
}

// digest is that of a run's manifest as the rules of owners have it; empty where
// there is none.
func digest(manifest wire.Hash) string {
	if manifest.IsZero() {
		return ""
	}
	return manifest.String()
}

// liveOf returns what is free on a machine. One that has told what it offers
// but not yet what is free of it counts as all free: it decides in the end.
func liveOf(node *fleet.Node) fleet.Live {
	if node.Live != nil {
		return *node.Live
	}
	return fleet.Idle(node.Offer)
}

// freeCPU is what a run could get: not what the owner keeps, nor what runs hold.
func freeCPU(o *fleet.Offer, l *fleet.Live) task.CPU {
	return sub(sub(o.CPU, o.Terms.ReserveCPU), l.HeldCPU)
}

// freeMemory is what a run could get. Two limits hold. By promise: all memory
// without what the owner keeps and what runs hold. By measurement: what is free
// now. What runs hold is not taken from the second as well, for most of it is
// in use and so measured already; nor is what the owner keeps, for the owner's
// programs use it. FreeMemory 0 means that it was not measured: a machine with
// nothing free could not tell.
func freeMemory(o *fleet.Offer, l *fleet.Live) task.Bytes {
	promise := sub(sub(o.Memory, o.Terms.ReserveMemory), l.HeldMemory)
	if l.FreeMemory == 0 {
		return promise
	}
	return min(promise, l.FreeMemory)
}

func sub[T task.CPU | task.Bytes](a, b T) T {
	if b > a {
		return 0
	}
	return a - b
}

// secrets keeps those of the submitter from machines of others.
func (f *fit) secrets() {
	if s := ownSecret(f.spec); s != "" && f.node.Owner != f.from.Owner {
		f.never("secrets", 0, 0, "belongs to %s, and secret %s does not leave your own machines: its manifest can say to: others", f.node.Owner, s)
	}
}

// ownSecret returns the name of a secret that does not leave the machines of the
// run's owner; empty where there is none.
func ownSecret(spec *task.Spec) string {
	for _, s := range spec.Secrets {
		if !s.Others {
			return s.Name
		}
	}
	return ""
}

// isDown reports whether a machine is down; this one is not.
func isDown(n *fleet.Node) bool { return !n.Self && n.State == fleet.Down }

func (f *fit) alive() {
	if !isDown(f.node) {
		return
	}
	if f.node.LiveAt.IsZero() {
		f.later("alive", 0, 0, "is down; nothing was heard of it since this node started")
		return
	}
	f.later("alive", 0, 0, "is down, last heard of %v ago", f.now.Sub(f.node.LiveAt).Round(time.Second))
}

func (f *fit) pinned() {
	if pin := f.spec.Node; pin != "" && !isPin(pin, f.node) {
		f.never("node", 0, 0, "the run is for another machine only")
	}
}

func isPin(pin string, n *fleet.Node) bool { return pin == n.Name || pin == n.ID.String() }

// kind checks what the machine is, as opposed to how much of it is free.
func (f *fit) kind() {
	o, n := f.offer, f.needs
	if !slices.Contains(o.Drivers, f.spec.Driver) {
		f.never("driver", 0, 0, "has no %s", driverName(f.spec.Driver))
	}
	if f.spec.Driver == task.DriverImage {
		f.image()
	}
	if f.spec.Isolation == task.LevelSandbox && o.Isolation != task.LevelSandbox {
		f.never("isolation", 0, 0, "has no sandbox")
	}
	if len(n.OS) > 0 && !slices.Contains(n.OS, o.OS) {
		f.never("os", 0, 0, "%s is not %s", o.OS, either(n.OS))
	}
	if len(n.Arch) > 0 && !slices.Contains(n.Arch, o.Arch) {
		f.never("arch", 0, 0, "%s is not %s", o.Arch, either(n.Arch))
	}
	if miss := missing(n.Labels, o.Has); len(miss) > 0 {
		f.never("labels", 0, 0, "does not have the label %s", strings.Join(miss, ", "))
	}
	has := func(name string) bool {
		return slices.ContainsFunc(o.Engines, func(e fleet.Engine) bool { return e.Name == name })
	}
	if miss := missing(n.Engines, has); len(miss) > 0 {
		f.never("engines", 0, 0, "does not have %s", strings.Join(miss, ", "))
	}
}

// image looks whether a machine has the image. One that has more than it tells of
// may have it, and decides.
func (f *fit) image() {
	o := f.offer
	if !slices.Contains(o.Drivers, task.DriverImage) {
		return // which was said
	}
	has := slices.ContainsFunc(o.Images, func(i fleet.Image) bool { return i.Is(f.spec.Image) })
	if !has && len(o.Images) < fleet.MaxImages {
		f.never("image", 0, 0, "the image %s is not on this machine", f.spec.Image)
	}
	if f.spec.Isolation == task.LevelSandbox {
		f.never("image", 0, 0, "runs images without a sandbox, but for their container")
	}
	if f.needs.GPUs > 0 {
		f.never("image", 0, 0, "runs images without a GPU")
	}
}

// driverName says what a machine lacks that does not have a driver.
func driverName(driver string) string {
	if driver == task.DriverImage {
		return "container runtime: it runs programs, not images"
	}
	return "driver " + driver
}

func either(words []string) string { return strings.Join(words, " or ") }

func missing(want []string, has func(string) bool) []string {
	var out []string
	for _, w := range want {
		if !has(w) {
			out = append(out, w)
		}
	}
	return out
}

func (f *fit) amounts() {
	o, n := f.offer, f.needs
	if n.CPU > f.cpu {
		all := sub(o.CPU, o.Terms.ReserveCPU)
		f.refuse(n.CPU <= all, "cpu", uint64(n.CPU), uint64(f.cpu),
			"needs %v cores; %v of %v are free%s", n.CPU, f.cpu, o.CPU, kept(o.Terms.ReserveCPU))
	}
	if n.Memory > f.memory {
		all := sub(o.Memory, o.Terms.ReserveMemory)
		f.refuse(n.Memory <= all, "memory", uint64(n.Memory), uint64(f.memory),
			"needs %v of memory; %v of %v are free%s", n.Memory, f.memory, o.Memory, kept(o.Terms.ReserveMemory))
	}
	if n.Disk > f.live.FreeDisk {
		f.refuse(n.Disk <= o.Disk, "disk", uint64(n.Disk), uint64(f.live.FreeDisk),
			"needs %v of disk; %v of %v are free", n.Disk, f.live.FreeDisk, o.Disk)
	}
}

// kept tells what the owner keeps, as part of a sentence.
func kept[T interface {
	task.CPU | task.Bytes
	fmt.Stringer
}](n T) string {
	if n == 0 {
		return ""
	}
	return fmt.Sprintf(", its owner keeps %v", n)
}

// later notes a reason that time can remove, never one that it cannot.
func (f *fit) later(rule string, need, have uint64, format string, args ...any) {
	f.refuse(true, rule, need, have, format, args...)
}

func (f *fit) never(rule string, need, have uint64, format string, args ...any) {
	f.refuse(false, rule, need, have, format, args...)
}

// silent notes a reason without its words, if nobody reads them.
func (f *fit) silent() bool {
	f.failed = f.failed || f.quiet
	return f.quiet
}

// longest bounds a sentence, in which the machine's own words may be.
const longest = 512

func (f *fit) refuse(ever bool, rule string, need, have uint64, format string, args ...any) {
	f.failed = true
	if f.quiet {
		return
	}
	text := fmt.Sprintf(format, args...)
	if len(text) > longest {
		text = strings.ToValidUTF8(text[:longest], "") + "…"
	}
	f.reasons = append(f.reasons, task.Reason{Rule: rule, Text: text, Need: need, Have: have, Ever: ever})
}
