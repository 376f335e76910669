package main

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"errors"
	"log/slog"
	"math"
	"net/netip"
	"os"
	"os/signal"
	"slices"
	"sync"
	"syscall"
	"time"

	"github.com/balanceai/balance/exec/agent"
	"github.com/balanceai/balance/exec/container"
	"github.com/balanceai/balance/exec/fleet"
	"github.com/balanceai/balance/exec/isolate"
	"github.com/balanceai/balance/exec/place"
	"github.com/balanceai/balance/exec/policy"
	"github.com/balanceai/balance/exec/run"
	"github.com/balanceai/balance/exec/task"
	"github.com/balanceai/balance/mesh/identity"
	"github.com/balanceai/balance/mesh/trust"
	"github.com/balanceai/balance/mesh/wire"
	"github.com/balanceai/balance/store"
)

// facts are what this machine knows of itself: what it has, what its owner's
// rules say, what runs hold, and what is free. It publishes the offer and
// answers the executor's question whether a run may come.
type facts struct {
	rulesPath string
	self      identity.ID
	db        *store.Store
	who       *roster
	log       *slog.Logger
	probe     *fleet.Probe
	sampler   *fleet.Sampler
	holds     []string                // limits that hold for all of a run together
	alwaysOn  bool                    // see [fleet.Offer]
	machine   *isolate.Machine        // what it can put between itself and a run
	engine    *container.Engine       // what runs images; nil for none
	reachable func() []netip.AddrPort // TCP addresses at which this machine relays; nil: none

	mu       sync.Mutex
	stamp    fileStamp
	rules    agent.Rules
	duty     string // what the owner has told the machine for now
	rulesErr error
	hardware fleet.Offer // as measured: without the owner's part
	services []fleet.Service
	streams  []string
	found    []fleet.Model // of the engines
	agents   []fleet.Agent // that are installed
	images   []fleet.Image // that the engine holds
	offer    fleet.Offer

	allows  func(*task.Spec) []task.Reason      // whether a run is the agent that it says it is; nil before up has them
	engines func() (loaded []string, asked int) // what the engines do; nil before up has them

	told chan struct{} // of one: the offer has changed
}

// fileStamp tells whether a file has changed.
type fileStamp struct {
	mod  time.Time
	size int64
}

func stampOf(path string) fileStamp {
	info, err := os.Stat(path)
	if err != nil {
		return fileStamp{}
	}
	return fileStamp{info.ModTime(), info.Size()}
}

// newFacts reads the rules. What the machine is it does not know before look.
func newFacts(ctx context.Context, h home, self identity.ID, db *store.Store, who *roster, log *slog.Logger) (*facts, error) {
	f := &facts{rulesPath: h.path(rulesFile), self: self, db: db, who: who, log: log, probe: fleet.NewProbe(string(h)), told: make(chan struct{}, 1)}
	duty, err := db.Setting(ctx, settingDuty)
	if err != nil {
		return nil, err
	}
	f.duty = duty
	f.stamp = stampOf(f.rulesPath)
	rules, err := agent.LoadRules(f.rulesPath)
	if err != nil {
		f.probe.Close()
		return nil, hint(err, "the node starts when its rules are sound: nobody else may guess what the owner meant")
	}
	f.rules = rules
	f.complete()
	return f, nil
}

// look measures the machine, and tries what it can put between itself and a run.
func (f *facts) look(ctx context.Context, h home) {
	f.holds = run.Groups(f.self).Can().Holds()
	f.machine = isolate.Detect(ctx, h.path(sandboxDir))
	if f.machine.Level() != isolate.Sandbox {
		f.log.Warn("this machine has no sandbox: it takes no runs of other owners but those that its rules trust", "why", f.machine.Why)
	}
	var err error
	if f.engine, err = container.Find(ctx, container.Sockets(os.Getenv)); err != nil {
		f.log.Debug("this machine runs no images", "why", err)
	}
	f.measure(ctx)
}

// measure looks at the hardware anew.
func (f *facts) measure(ctx context.Context) {
	offer, err := f.probe.Offer(ctx)
	if err != nil {
		f.log.Warn("measure the machine", "error", err)
	}
	images := f.listImages(ctx)
	f.mu.Lock()
	defer f.mu.Unlock()
	f.hardware, f.images = offer, images
	f.complete()
}

// lookImages looks for images that have come or gone, and reports whether that
// changed the offer.
func (f *facts) lookImages(ctx context.Context) bool {
	if f.engine == nil {
		return false
	}
	images := f.listImages(ctx)
	f.mu.Lock()
	defer f.mu.Unlock()
	same := slices.EqualFunc(images, f.images, func(a, b fleet.Image) bool { return a.ID == b.ID && slices.Equal(a.Names, b.Names) })
	f.images = images
	f.complete()
	return !same
}

// listImages lists the images of the machine's engine, those with a name.
func (f *facts) listImages(ctx context.Context) []fleet.Image {
	if f.engine == nil {
		return nil
	}
	all, err := f.engine.Images(ctx)
	if err != nil {
		f.log.Warn("list the images of this machine", "error", err)
	}
	slices.SortFunc(all, func(a, b container.Image) int { return cmp.Compare(a.ID, b.ID) })
	var out []fleet.Image
	for _, i := range all[:min(len(all), fleet.MaxImages)] {
		out = append(out, fleet.Image{ID: i.ID, Names: i.Names, Size: task.Bytes(i.Size)})
	}
	return out
}

// complete adds the owner's part to what was measured. The caller holds the
// lock.
func (f *facts) complete() {
	f.offer = f.hardware
	f.offer.Labels = f.rules.Labels
	f.offer.Drivers = []string{task.DriverProcess}
	if f.engine != nil {
		f.offer.Drivers = append(f.offer.Drivers, task.DriverImage)
		f.offer.Engine, f.offer.Images = f.engine.String(), f.images
	}
	f.offer.Terms = f.rules.Terms
	f.offer.Terms.Duty = f.duty
	f.offer.Isolation = f.machine.Level()
	f.offer.Holds = f.holds
	f.offer.Streams = f.streams
	f.offer.AlwaysOn = f.alwaysOn
	f.offer.Program = version
	f.offer.Services = f.services
	f.offer.Agents = f.agents
	f.offer.Models = nil
	if f.rules.Terms.Offers {
		f.offer.Models = f.found
	}
}

// serve says which services the owner has opened.
func (f *facts) serve(services []fleet.Service) {
	f.mu.Lock()
	f.services = services
	f.complete()
	f.mu.Unlock()
	f.tell()
}

// tell has run publish the offer.
func (f *facts) tell() {
	select {
	case f.told <- struct{}{}:
	default: // run is about to look
	}
}

// settingDuty is where the ledger file keeps what the owner has told the
// machine to do for now, so that a restart does not forget it.
const settingDuty = "duty"

// setDuty has the machine drain, pause or, with nothing, work again.
func (f *facts) setDuty(ctx context.Context, duty string) error {
	if err := f.db.SetSetting(ctx, settingDuty, duty); err != nil {
		return err
	}
	f.mu.Lock()
	f.duty = duty
	f.complete()
	f.mu.Unlock()
	f.tell()
	return nil
}

// serveModels says which models the engines have.
func (f *facts) serveModels(models []fleet.Model) {
	f.mu.Lock()
	f.found = models
	f.complete()
	f.mu.Unlock()
	f.tell()
}

// offerAgents says which agents are installed.
func (f *facts) offerAgents(agents []fleet.Agent) {
	f.mu.Lock()
	f.agents = agents
	f.complete()
	f.mu.Unlock()
	f.tell()
}

// current returns the offer, and why the rules as they are now are not in
// force, if so.
func (f *facts) current() (fleet.Offer, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.offer, f.rulesErr
}

// publish writes the offer to the ledger unless the newest one says the same.
func (f *facts) publish(ctx context.Context) error {
	offer, _ := f.current()
	newest, err := f.db.Latest(ctx, fleet.KindOffer)
	if err != nil {
		return err
	}
	for _, e := range newest {
		var old fleet.Offer
		if e.Author == f.self && wire.Unmarshal(e.Payload, &old) == nil && sameOffer(old, offer) {
			return nil
		}
	}
	_, err = f.db.Append(ctx, task.Draft{Topic: wire.TopicMesh, Kind: fleet.KindOffer, Record: offer})
	return err
}

// sameOffer compares what others would read.
func sameOffer(a, b fleet.Offer) bool {
	x, err1 := wire.Marshal(a)
	y, err2 := wire.Marshal(b)
	return errors.Join(err1, err2) == nil && bytes.Equal(x, y)
}

// How often the rules and the hardware are looked at.
const (
	rulesPeriod    = time.Second
	imagesPeriod   = 30 * time.Second
	hardwarePeriod = 10 * time.Minute
)

// run keeps the offer up to date until ctx ends.
func (f *facts) run(ctx context.Context) error {
	rules := time.NewTicker(rulesPeriod)
	defer rules.Stop()
	hardware := time.NewTicker(hardwarePeriod)
	defer hardware.Stop()
	images := time.NewTicker(imagesPeriod)
	defer images.Stop()
	hangup := make(chan os.Signal, 1)
	signal.Notify(hangup, syscall.SIGHUP)
	defer signal.Stop(hangup)
	for {
		if err := f.publish(ctx); err != nil && ctx.Err() == nil {
			f.log.Error("publish the offer", "error", err)
		}
		for changed := false; !changed; {
			select {
			case <-ctx.Done():
				return nil
			case <-hardware.C:
				f.measure(ctx)
				changed = true
			case <-images.C:
				changed = f.lookImages(ctx)
			case <-hangup:
				f.lookImages(ctx)
				changed = f.reload(true)
			case <-rules.C:
				changed = f.reload(false)
				if f.reachable != nil {
					changed = f.setStreams(f.reachable()) || changed
				}
			case <-f.told:
				changed = true
			}
		}
	}
}

// reload reads the rules if their file has changed, or anyway, and reports
// whether that changed the offer. Rules with mistakes leave the older ones in
// force.
func (f *facts) reload(anyway bool) bool {
	now := stampOf(f.rulesPath)
	f.mu.Lock()
	defer f.mu.Unlock()
	if now == f.stamp && !anyway {
		return false
	}
	f.stamp = now
	rules, err := agent.LoadRules(f.rulesPath)
	f.rulesErr = err
	if err != nil {
		f.log.Error("the rules have mistakes: the older ones stay in force", "error", err)
		return false
	}
	f.rules = rules
	f.complete()
	f.log.Info("rules read")
	return true
}

// setStreams says at which TCP addresses this machine relays, and reports
// whether that changed the offer.
func (f *facts) setStreams(addrs []netip.AddrPort) bool {
	var list []string
	for _, a := range addrs {
		list = append(list, a.String())
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if slices.Equal(list, f.streams) {
		return false
	}
	f.streams = list
	f.complete()
	return true
}

// relays says whether this machine passes on what one member sends to another,
// and how many bytes a second of it; 0 is any number.
func (f *facts) relays(from, to identity.ID) (rate int, ok bool) {
	members := f.who.now().Members
	offer, _ := f.current()
	return int(offer.Terms.RelayRate), offer.Terms.Relays(f.who.me().Owner, members[from].Owner, members[to].Owner)
}

// self as placement sees it: the same facts and the same code that a submitter
// uses, but live.
func (f *facts) node(held fleet.Held) fleet.Node {
	offer, _ := f.current()
	live := f.sampler.Live(held)
	me := f.who.me()
	return fleet.Node{ID: f.self, Name: me.Name, Owner: me.Owner, Self: true, State: fleet.Up, Path: fleet.Path{Kind: fleet.PathSelf}, Offer: &offer, Live: &live}
}

// bare is this machine as if nothing were on it but some runs.
func (f *facts) bare(held fleet.Held) fleet.Node {
	node := f.node(fleet.Held{})
	live := fleet.Idle(node.Offer).With(node.Offer, held)
	node.Live = &live
	return node
}

// weigh says what a run counts for among those that wait for this machine.
func (f *facts) weigh(from identity.ID, n task.Needs) run.Weight {
	offer, _ := f.current()
	owner := f.who.now().Members[from].Owner
	w := run.Weight{Owner: owner, Own: owner == f.who.me().Owner}
	gpus := float64(n.GPUs)
	if n.Share > 0 {
		gpus *= float64(n.Share) / 1000
	}
	for _, part := range []struct{ of, all float64 }{{float64(n.CPU), float64(offer.CPU)}, {float64(n.Memory), float64(offer.Memory)}, {gpus, float64(len(offer.GPUs))}} {
		if part.all > 0 {
			w.Share = max(w.Share, min(1, part.of/part.all))
		}
	}
	return w
}

// free encodes what is free here besides what runs hold.
func (f *facts) free(held []run.Use) []byte {
	b, err := wire.Marshal(f.sampler.Live(f.held(held)))
	if err != nil {
		f.log.Error("tell what is free", "error", err)
	}
	return b
}

// admit is the law: whether a run may come to this machine now, and what it
// gets of it. The runner asks it under its lock.
func (f *facts) admit(ask run.Ask) (run.Grant, []task.Reason) {
	from, ok := f.who.now().Members[ask.From]
	if !ok || !from.May(trust.MayDispatch) {
		return run.Grant{}, []task.Reason{task.Reasonf("terms", "its submitter may not dispatch runs in this mesh")}
	}
	held := f.held(ask.Held)
	node := f.node(held)
	if ask.Bare {
		node = f.bare(held)
	}
	terms, err := wire.Marshal(node.Offer.Terms)
	if err != nil {
		return run.Grant{}, []task.Reason{task.Reasonf("terms", "the owner's terms cannot be read: %v", err)}
	}
	own := place.Own{Held: f.use(ask.Held, from.Owner), Measured: f.presence(node.Offer.Terms, held)}
	reasons, devices := place.Check(ask.Spec, asker(from), &node, own, time.Now())
	grant := run.Grant{Devices: devices, Policy: sha256.Sum256(terms), Isolation: node.Offer.Terms.Level(asker(from), node.Owner)}
	if g, ok := node.Offer.Terms.Grant(asker(from)); ok && from.Owner != node.Owner && g.Agents != "" && len(reasons) == 0 {
		reasons = f.allows(ask.Spec)
	}
	if from.Owner != node.Owner {
		grant.Limits, grant.Network = othersLimits(ask.Spec.Needs.Held()), []string{}
	}
	return grant, reasons
}

// quota returns why a member's owner may not have this machine keep one more run.
func (f *facts) quota(from identity.ID, kept func(identity.ID) run.Kept) []task.Reason {
	members := f.who.now().Members
	who := members[from]
	offer, _ := f.current()
	var sum policy.Kept
	for id, m := range members {
		if m.Owner == who.Owner {
			k := kept(id)
			sum.Runs += k.Runs
			sum.Ledger += k.Ledger
		}
	}
	return offer.Terms.Quota(asker(who), f.who.me().Owner, sum)
}

// What a run of another owner gets, where it does not say what it needs.
const (
	othersPIDs = 1024
	othersDisk = 1 * task.GiB
)

// othersLimits hold a run of another owner to what it has said that it needs, by
// which the owner's rules have let it in. Nobody is held to less than one core:
// a program that is starved takes its place for longer.
func othersLimits(n task.Needs) task.Limits {
	return task.Limits{Memory: n.Memory, CPU: max(n.CPU, task.Core), PIDs: othersPIDs, Disk: max(n.Disk, othersDisk)}
}

// asker is a member as the terms of others see it.
func asker(m trust.Member) policy.Asker {
	return policy.Asker{Owner: m.Owner, Node: m.Name, Role: m.Role.String()}
}

// presence measures whether the owner is there, if terms ask for that.
func (f *facts) presence(terms policy.Terms, held fleet.Held) *policy.Conditions {
	if !terms.Measure() {
		return nil
	}
	c := f.sampler.Presence(held)
	return &c
}

// use adds up what an owner's runs use of the machine, and have used of it.
func (f *facts) use(held []run.Use, owner string) policy.Held {
	members := f.who.now().Members
	var own policy.Held
	for _, u := range held {
		if members[u.From].Owner == owner {
			own.Add(u.Needs)
		}
	}
	own.Used = func(within time.Duration) time.Duration {
		now := time.Now()
		used, err := f.usedSince(owner, now.Add(-within), now)
		if err != nil {
			f.log.Error("add up what an owner has used", "owner", owner, "error", err)
			return math.MaxInt64 // what is not known is not given
		}
		return used
	}
	return own
}

// usedSince adds up the time that an owner's runs were going on this machine.
func (f *facts) usedSince(owner string, since, now time.Time) (sum time.Duration, err error) {
	runs, err := f.db.Runs(context.Background(), store.RunFilter{Since: since})
	if err != nil {
		return 0, err
	}
	members := f.who.now().Members
	for _, r := range runs {
		if r.NodeID != f.self || members[r.Submitter].Owner != owner {
			continue
		}
		sum += overlap(r, since, now)
	}
	return sum, nil
}

// overlap is how long a run was going between two moments.
func overlap(r task.Status, from, to time.Time) time.Duration {
	if r.Started.IsZero() {
		return 0
	}
	end := r.Finished
	if end.IsZero() || end.After(to) {
		end = to
	}
	if r.Started.After(from) {
		from = r.Started
	}
	return max(0, end.Sub(from))
}

// held turns what the runner holds into what the fleet is told.
func (f *facts) held(uses []run.Use) fleet.Held {
	var h fleet.Held
	if f.engines != nil {
		h.Loaded, h.Asked = f.engines()
	}
	for _, u := range uses {
		owner := f.who.now().Members[u.From].Owner
		for _, d := range u.Devices {
			h.Devices = append(h.Devices, fleet.DeviceUse{UUID: d, Share: u.Needs.Share, VRAM: u.Needs.VRAM, Owner: owner})
		}
		h.Runs = append(h.Runs, fleet.RunUse{
			ID: u.Run, Owner: owner, CPU: u.Needs.CPU, Memory: u.Needs.Memory, GPUs: u.Needs.GPUs, Since: u.Since,
		})
	}
	return h
}
