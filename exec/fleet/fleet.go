// Package fleet knows what each machine has and does.
//
// Three kinds of facts differ in how fast they change and how they travel. An
// [Offer] is what a machine has and on which terms: it is signed and in the
// ledger. A [Live] is how much of that is free: coarse, and gossiped when it
// changes. A [Sample] is one second of measurement: it is streamed to whoever
// watches, and kept nowhere. A [View] holds the newest of all three for every
// member, with its age.
//
// Amounts that could not be measured are absent (nil or [Unknown]), never zero.
package fleet

import (
	"slices"
	"time"

	"github.com/balanceai/balance/exec/policy"
	"github.com/balanceai/balance/exec/task"
	"github.com/balanceai/balance/mesh/identity"
)

// Unknown stands for a percentage that could not be measured.
const Unknown = -1

// KindOffer is the kind of ledger entries that hold an [Offer].
const KindOffer = "offer"

// Offer is what a machine has, to whom it gives it, and on which terms. Its
// author is the machine.
type Offer struct {
	Version   int          `cbor:"1,keyasint" json:"version"`            // of balance's offer format: 1
	OS        string       `cbor:"2,keyasint" json:"os"`                 // GOOS
	Arch      string       `cbor:"3,keyasint" json:"arch"`               // GOARCH
	CPUModel  string       `cbor:"4,keyasint" json:"cpu_model"`          //
	CPU       task.CPU     `cbor:"5,keyasint" json:"cpu_milli"`          // all cores
	Memory    task.Bytes   `cbor:"6,keyasint" json:"memory"`             // all of it
	Disk      task.Bytes   `cbor:"7,keyasint" json:"disk"`               // of the file system that holds the runs
	GPUs      []Device     `cbor:"8,keyasint,omitempty" json:"gpus"`     //
	Engines   []Engine     `cbor:"9,keyasint,omitempty" json:"engines"`  // model servers found on the machine
	Labels    []string     `cbor:"10,keyasint,omitempty" json:"labels"`  // given by the owner
	Drivers   []string     `cbor:"11,keyasint,omitempty" json:"drivers"` // what can start a run here
	Terms     policy.Terms `cbor:"12,keyasint" json:"terms"`             //
	Zone      int          `cbor:"13,keyasint" json:"utc_offset_s"`      // the machine's time zone, for the hours in its terms
	Isolation string       `cbor:"14,keyasint" json:"isolation"`         // the strongest level that it has, of package task
	Program   string       `cbor:"15,keyasint" json:"program"`           // version of balance
	Services  []Service    `cbor:"16,keyasint,omitempty" json:"services,omitempty"`
	Portable  bool         `cbor:"18,keyasint,omitempty" json:"portable,omitempty"`         // it has a battery of its own
	AlwaysOn  bool         `cbor:"19,keyasint,omitempty" json:"always_on,omitempty"`        // its owner says that it does not sleep: it takes runs of the owner's nodes into custody
	Holds     []string     `cbor:"24,keyasint,omitempty" json:"holds,omitempty"`            // limits that hold for all of a run together: memory, cpu, pids
	Streams   []string     `cbor:"17,keyasint,omitempty" json:"streams,omitempty"`          // TCP addresses at which it relays, where UDP does not pass; eight at most
	Models    []Model      `cbor:"40,keyasint,omitempty" json:"models,omitempty"`           // that its engines have; [MaxModels] at most
	Agents    []Agent      `cbor:"41,keyasint,omitempty" json:"agents,omitempty"`           // that are installed; [MaxAgents] at most
	Engine    string       `cbor:"42,keyasint,omitempty" json:"container_engine,omitempty"` // that runs images: podman or docker, and its version, and rootless where it has no more rights than its user
	Images    []Image      `cbor:"43,keyasint,omitempty" json:"images,omitempty"`           // that it holds; [MaxImages] at most
}

// Has reports whether the owner has given the machine a label.
func (o *Offer) Has(label string) bool { return slices.Contains(o.Labels, label) }

// Service is a TCP port of a machine's overlay address that its owner has
// opened. Who may not connect is turned away there; others read this to know
// beforehand.
type Service struct {
	Port uint16   `cbor:"1,keyasint" json:"port"`
	Type string   `cbor:"2,keyasint,omitempty" json:"type,omitempty"` // of DNS-SD, such as _http._tcp; empty: not published there
	Name string   `cbor:"3,keyasint,omitempty" json:"name,omitempty"` // tells services of one type and machine apart
	Text []string `cbor:"4,keyasint,omitempty" json:"text,omitempty"` // key=value, of DNS-SD
	To   []string `cbor:"5,keyasint,omitempty" json:"to,omitempty"`   // owners besides the machine's own; [policy.AnyOwner] for all
}

// MaxServices is how many services of one machine count.
const MaxServices = 32

// May reports whether machines of an owner may connect to a service of a
// machine whose owner is given.
func (s Service) May(owner, machine string) bool {
	return owner == machine || slices.Contains(s.To, owner) || slices.Contains(s.To, policy.AnyOwner)
}

// Vendors of devices.
const (
	NVIDIA = "nvidia"
	AMD    = "amd"
	Intel  = "intel"
	Apple  = "apple"
)

// Device is one GPU.
type Device struct {
	UUID    string     `cbor:"1,keyasint" json:"uuid"` // the vendor's, or made of the PCI address
	Vendor  string     `cbor:"2,keyasint" json:"vendor"`
	Model   string     `cbor:"3,keyasint" json:"model"`
	VRAM    task.Bytes `cbor:"4,keyasint" json:"vram"`                        // 0 where the driver does not tell
	Unified bool       `cbor:"5,keyasint,omitempty" json:"unified,omitempty"` // VRAM is the machine's memory
	Driver  string     `cbor:"6,keyasint,omitempty" json:"driver,omitempty"`
}

// Engine is a model server that is installed on a machine.
type Engine struct {
	Name    string `cbor:"1,keyasint" json:"name"` // ollama, llama-server, vllm, lm-studio
	Version string `cbor:"2,keyasint,omitempty" json:"version,omitempty"`
}

// Live is what is free on a machine. It is small: it rides on the gossip of
// who is alive.
type Live struct {
	Millis     int64      `cbor:"1,keyasint" json:"at_ms"`       // the machine's clock when it was measured
	HeldCPU    task.CPU   `cbor:"2,keyasint" json:"held_cpu"`    // promised to runs
	HeldMemory task.Bytes `cbor:"3,keyasint" json:"held_memory"` // promised to runs
	FreeMemory task.Bytes `cbor:"4,keyasint" json:"free_memory"` // as measured: what a new program could get, other programs' use counted
	FreeDisk   task.Bytes `cbor:"5,keyasint" json:"free_disk"`
	GPUs       []LiveGPU  `cbor:"6,keyasint,omitempty" json:"gpus"` // in the order of the offer
	Runs       int        `cbor:"7,keyasint" json:"runs"`
	CPUPercent int        `cbor:"8,keyasint" json:"cpu_percent"` // of all cores; [Unknown] where not measured

	OnBattery bool `cbor:"10,keyasint,omitempty" json:"on_battery,omitempty"` // nothing else feeds it

	// Queue is about how long a run would wait for its turn there, where others
	// wait, in seconds; 0 where nobody does.
	Queue int `cbor:"11,keyasint,omitempty" json:"queue_s,omitempty"`

	// Taken is how many runs the machine has taken since its node was started: by
	// how it grows, others tell how fast runs are placed.
	Taken uint32 `cbor:"9,keyasint,omitempty" json:"taken,omitempty"`

	Loaded []uint16 `cbor:"40,keyasint,omitempty" json:"loaded,omitempty"` // models in memory, as [ModelKey] has them
	Asked  int      `cbor:"41,keyasint,omitempty" json:"asked,omitempty"`  // requests that its engines are answering
}

// LiveGPU is what is free on one device.
type LiveGPU struct {
	FreeVRAM task.Bytes `cbor:"1,keyasint" json:"free_vram"` // as measured, other programs' use counted
	Held     bool       `cbor:"2,keyasint" json:"held"`      // promised to a run
	Percent  int        `cbor:"3,keyasint" json:"percent"`   // busy; [Unknown] where not measured

	// What is promised to runs that share the device: all of one owner.
	Share    int        `cbor:"4,keyasint,omitempty" json:"share,omitempty"` // thousandths
	Promised task.Bytes `cbor:"5,keyasint,omitempty" json:"promised,omitempty"`
	Owner    string     `cbor:"6,keyasint,omitempty" json:"owner,omitempty"`
}

// Sample is one measurement of a machine, taken each second while somebody
// watches.
type Sample struct {
	Time       time.Time   `json:"time"`
	CPUPercent float64     `json:"cpu_percent"` // of all cores; [Unknown] where not measured
	MemoryUsed task.Bytes  `json:"memory_used"`
	Memory     task.Bytes  `json:"memory"`
	GPUs       []SampleGPU `json:"gpus"`
	Runs       []RunUse    `json:"runs"`
}

// SampleGPU is one measurement of a device.
type SampleGPU struct {
	UUID        string     `json:"uuid"`
	Percent     float64    `json:"percent"` // busy; [Unknown] where not measured
	VRAMUsed    task.Bytes `json:"vram_used"`
	VRAM        task.Bytes `json:"vram"`
	Temperature float64    `json:"temperature_c,omitempty"` // degrees Celsius; 0 where not measured
	Power       float64    `json:"power_w,omitempty"`       // watts; 0 where not measured
}

// RunUse is a run on a machine as its neighbours see it: no command, no owner's
// secrets.
type RunUse struct {
	ID     string     `json:"id"`
	Owner  string     `json:"owner"`
	CPU    task.CPU   `json:"cpu_milli"` // held
	Memory task.Bytes `json:"memory"`    // held
	GPUs   int        `json:"gpus"`      // held
	Since  time.Time  `json:"since"`
}

// Liveness of a node.
const (
	Up      = "up"
	Suspect = "suspect" // did not answer, not given up yet
	Down    = "down"
)

// Kinds of path to a node.
const (
	PathSelf   = "self"
	PathLAN    = "lan"    // direct, on one network
	PathDirect = "direct" // direct, routed
	PathTCP    = "tcp"    // a connection, where UDP does not pass
	PathRelay  = "relay"  // through another member
	PathNone   = "none"   // nothing has answered
)

// Path is how packets reach a node.
type Path struct {
	Kind string        `json:"kind"`
	Addr string        `json:"addr,omitempty"` // UDP address of the other end
	Via  string        `json:"via,omitempty"`  // name of the relay
	RTT  time.Duration `json:"rtt_ns"`         // 0 where not measured
	Rate task.Bytes    `json:"rate,omitempty"` // a second that large files have had on it; 0 where none was sent yet
}

// Node is all that this machine knows of a member. It is a value: a [View]
// gives copies.
type Node struct {
	ID      identity.ID `json:"id"`
	Name    string      `json:"name"`
	Owner   string      `json:"owner"`
	Address string      `json:"address"` // in the overlay
	Self    bool        `json:"self,omitempty"`
	State   string      `json:"state"`
	Path    Path        `json:"path"`
	Offer   *Offer      `json:"offer,omitempty"`   // nil: none seen yet
	Live    *Live       `json:"live,omitempty"`    // nil: none seen yet
	LiveAt  time.Time   `json:"live_at,omitzero"`  // this machine's clock when Live arrived
	History []Sample    `json:"history,omitempty"` // the newest last; empty unless watched
}

// Sample returns the newest measurement, or nil.
func (n *Node) Sample() *Sample {
	if len(n.History) == 0 {
		return nil
	}
	return &n.History[len(n.History)-1]
}
