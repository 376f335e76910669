package main

import (
	"encoding/binary"
	"strconv"
	"time"

	"github.com/balanceai/balance/exec/fleet"
	"github.com/balanceai/balance/exec/place"
	"github.com/balanceai/balance/exec/policy"
	"github.com/balanceai/balance/exec/task"
	"github.com/balanceai/balance/mesh/identity"
)

// product is the policy of the product, as its dispatcher uses it: it starts
// without knowing what runs ask for, and learns that from those that come. The
// machine picks the devices, as an executor does.
type product struct {
	c      *cluster
	index  *place.Index
	recent place.Recent
	nodes  []fleet.Node
}

const benchOwner = "bench"

var benchFrom = policy.Asker{Owner: benchOwner}

var benchTime = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)

func newProduct(c *cluster, _ *arrivals) chooser {
	p := &product{c: c, index: place.NewIndex(place.NewWorkload(nil)), nodes: nodesOf(c)}
	p.index.Update(p.nodes)
	return p
}

// nodesOf returns the machines as the product knows them, by rank.
func nodesOf(c *cluster) []fleet.Node {
	nodes := make([]fleet.Node, len(c.machines))
	for i, m := range c.machines {
		o := &fleet.Offer{
			OS: "linux", Arch: "amd64", CPU: task.CPU(m.cpu), Memory: task.Bytes(m.memory) * task.MiB, Disk: task.TiB,
			Drivers: []string{task.DriverProcess}, Terms: policy.Terms{Offers: true},
		}
		for d := range m.gpus {
			o.GPUs = append(o.GPUs, fleet.Device{UUID: strconv.Itoa(d), Vendor: fleet.NVIDIA, Model: m.model})
		}
		nodes[i] = fleet.Node{ID: nodeID(i), Name: m.name, Owner: benchOwner, State: fleet.Up, Path: fleet.Path{Kind: fleet.PathLAN, RTT: time.Millisecond}, Offer: o, Live: liveOf(c, i)}
	}
	return nodes
}

func nodeID(rank int) (id identity.ID) {
	binary.BigEndian.PutUint32(id[:], uint32(rank)+1)
	return id
}

func rankOf(id identity.ID) int { return int(binary.BigEndian.Uint32(id[:])) - 1 }

// liveOf is what is free on a machine, as it would tell.
func liveOf(c *cluster, i int) *fleet.Live {
	m := &c.machines[i]
	l := &fleet.Live{HeldCPU: task.CPU(m.cpu - c.cpu[i]), HeldMemory: task.Bytes(m.memory-c.memory[i]) * task.MiB, FreeDisk: task.TiB}
	for _, f := range c.free[i] {
		g := fleet.LiveGPU{Held: f == 0}
		if f > 0 && f < 1000 {
			g.Share, g.Owner = 1000-f, benchOwner
		}
		l.GPUs = append(l.GPUs, g)
	}
	return l
}

func specOf(j *job) *task.Spec {
	s := &task.Spec{Driver: task.DriverProcess, Command: []string{"true"}, Needs: task.Needs{CPU: task.CPU(j.cpu), Memory: task.Bytes(j.memory) * task.MiB, GPUs: j.gpus, GPUModels: j.models}}
	if j.part() {
		s.Needs.Share = j.milli
	}
	return s
}

func (p *product) changed(m int) {
	p.nodes[m].Live = liveOf(p.c, m)
	p.index.Set(&p.nodes[m])
}

func (p *product) place(j *job) (int, []int) {
	s := specOf(j)
	if p.recent.Add(s.Needs) {
		p.index.Expect(p.recent.Workload())
	}
	best := p.index.Best(s, benchFrom, benchTime, 1, nil)
	if len(best) == 0 {
		return -1, nil
	}
	m := rankOf(best[0].Node)
	return m, admit(s, &p.nodes[m])
}

// admit is the machine's part: the devices that it gives to a run that fits.
func admit(s *task.Spec, n *fleet.Node) []int {
	_, uuids := place.Check(s, benchFrom, n, place.Own{}, benchTime)
	devices := make([]int, len(uuids))
	for i, u := range uuids {
		devices[i], _ = strconv.Atoi(u) // as nodesOf has written it
	}
	return devices
}
