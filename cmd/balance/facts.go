package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"log/slog"
	"net/netip"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/balanceai/balance/exec/agent"
	"github.com/balanceai/balance/exec/fleet"
	"github.com/balanceai/balance/exec/place"
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
	reachable func() []netip.AddrPort // TCP addresses at which this machine relays; nil: none

	mu       sync.Mutex
	stamp    fileStamp
	rules    agent.Rules
	rulesErr error
	hardware fleet.Offer // as measured: without the owner's part
	services []fleet.Service
	streams  []string
	found    []fleet.Model // of the engines
	offer    fleet.Offer

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

// newFacts measures the machine and reads the rules.
func newFacts(ctx context.Context, h home, self identity.ID, db *store.Store, who *roster, log *slog.Logger) (*facts, error) {
	f := &facts{rulesPath: h.path(rulesFile), self: self, db: db, who: who, log: log, probe: fleet.NewProbe(string(h)), told: make(chan struct{}, 1)}
	f.stamp = stampOf(f.rulesPath)
	rules, err := agent.LoadRules(f.rulesPath)
	if err != nil {
		f.probe.Close()
		return nil, hint(err, "the node starts when its rules are sound: nobody else may guess what the owner meant")
	}
	f.rules = rules
	f.measure(ctx)
	return f, nil
}

// measure looks at the hardware anew.
func (f *facts) measure(ctx context.Context) {
	offer, err := f.probe.Offer(ctx)
	if err != nil {
		f.log.Warn("measure the machine", "error", err)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.hardware = offer
	f.complete()
}

// complete adds the owner's part to what was measured. The caller holds the
// lock.
func (f *facts) complete() {
	f.offer = f.hardware
	f.offer.Labels = f.rules.Labels
	f.offer.Drivers = []string{task.DriverProcess}
	f.offer.Terms = f.rules.Terms
	f.offer.Isolation = isolation
	f.offer.Streams = f.streams
	f.offer.Program = version
	f.offer.Services = f.services
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
	select {
	case f.told <- struct{}{}:
	default: // run is about to look
	}
}

// serveModels says which models the engines have.
func (f *facts) serveModels(models []fleet.Model) {
	f.mu.Lock()
	f.found = models
	f.complete()
	f.mu.Unlock()
	select {
	case f.told <- struct{}{}:
	default: // run is about to look
	}
}

// isolation is the strongest wall between this machine and another owner's run
// that this version can build.
const isolation = "none"

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
	hardwarePeriod = 10 * time.Minute
)

// run keeps the offer up to date until ctx ends.
func (f *facts) run(ctx context.Context) error {
	rules := time.NewTicker(rulesPeriod)
	defer rules.Stop()
	hardware := time.NewTicker(hardwarePeriod)
	defer hardware.Stop()
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
			case <-rules.C:
				changed = f.reload()
				if f.reachable != nil {
					changed = f.setStreams(f.reachable()) || changed
				}
			case <-f.told:
				changed = true
			}
		}
	}
}

// reload reads the rules if their file has changed, and reports whether that
// changed the offer. Rules with mistakes leave the older ones in force.
func (f *facts) reload() bool {
	now := stampOf(f.rulesPath)
	f.mu.Lock()
	defer f.mu.Unlock()
	if now == f.stamp {
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

// admit is the law: whether a run may come to this machine now, and what it
// gets of it. The runner asks it under its lock.
func (f *facts) admit(ask run.Ask) (run.Grant, []task.Reason) {
	from, ok := f.who.now().Members[ask.From]
	if !ok || !from.May(trust.MayDispatch) {
		return run.Grant{}, []task.Reason{task.Reasonf("terms", "its submitter may not dispatch runs in this mesh")}
	}
	node := f.node(f.held(ask.Held))
	var own task.Needs
	for _, u := range ask.Held {
		if f.who.now().Members[u.From].Owner == from.Owner {
			own.CPU += u.Needs.CPU
			own.Memory += u.Needs.Memory
			own.GPUs += u.Needs.GPUs
		}
	}
	terms, err := wire.Marshal(node.Offer.Terms)
	if err != nil {
		return run.Grant{}, []task.Reason{task.Reasonf("terms", "the owner's terms cannot be read: %v", err)}
	}
	reasons, devices := place.Check(ask.Spec, from.Owner, &node, own, time.Now())
	return run.Grant{Devices: devices, Policy: sha256.Sum256(terms)}, reasons
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
