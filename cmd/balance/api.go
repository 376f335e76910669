package main

import (
	"time"

	"github.com/balanceai/balance/exec/fleet"
	"github.com/balanceai/balance/exec/task"
	"github.com/balanceai/balance/mesh/identity"
	"github.com/balanceai/balance/mesh/wire"
)

// What the local API answers and what --json prints. The names are stable;
// docs/json.md describes them.

// statusReply is the answer of GET /v1/status.
type statusReply struct {
	Running    bool        `json:"running"`
	PID        int         `json:"pid,omitempty"`
	Version    string      `json:"version"`
	Home       string      `json:"home"`
	Mesh       string      `json:"mesh,omitempty"`
	MeshID     string      `json:"mesh_id,omitempty"`
	Name       string      `json:"name,omitempty"`
	ID         identity.ID `json:"id,omitzero"`
	Owner      string      `json:"owner,omitempty"`
	Role       string      `json:"role,omitempty"`
	Address    string      `json:"address,omitempty"`
	Port       int         `json:"port,omitempty"` // UDP
	Since      time.Time   `json:"since,omitzero"`
	Members    int         `json:"members,omitempty"`
	Up         int         `json:"up,omitempty"`
	Offers     bool        `json:"offers"`
	DNS        string      `json:"dns,omitempty"`
	Proxy      string      `json:"proxy,omitempty"` // on loopback, where asked for
	ProxyFile  string      `json:"proxy_socket,omitempty"`
	Mode       string      `json:"mode,omitempty"`        // userspace or tun
	Interface  string      `json:"interface,omitempty"`   // for programs of the host
	Names      string      `json:"names,omitempty"`       // the domain that the host's resolver asks the node about
	NamesError string      `json:"names_error,omitempty"` // why it does not
	NoSandbox  string      `json:"no_sandbox,omitempty"`  // why this machine cannot build one
	Duty       string      `json:"duty,omitempty"`        // draining or paused; empty: it works
	RulesError string      `json:"rules_error,omitempty"` // policy.yaml as it is now is not in force
}

// nodeRow is one element of the answer of GET /v1/nodes.
type nodeRow struct {
	Name    string      `json:"name"`
	ID      identity.ID `json:"id"`
	Owner   string      `json:"owner"`
	Address string      `json:"address"`
	State   string      `json:"state"`
	Path    string      `json:"path"`
	RTTMS   *float64    `json:"rtt_ms"`
	Addr    string      `json:"endpoint,omitempty"`
	Via     string      `json:"via,omitempty"` // the relay
	Self    bool        `json:"self"`
	Offers  bool        `json:"offers"`
	Duty    string      `json:"duty,omitempty"` // draining or paused
	Always  bool        `json:"always_on,omitempty"`
	GPUs    []string    `json:"gpus"`
	Runs    int         `json:"runs"`
}

func nodeRows(nodes []fleet.Node) []nodeRow {
	rows := make([]nodeRow, 0, len(nodes))
	for _, n := range nodes {
		r := nodeRow{Name: n.Name, ID: n.ID, Owner: n.Owner, Address: n.Address, State: n.State, Path: n.Path.Kind, Addr: n.Path.Addr, Via: n.Path.Via, Self: n.Self, GPUs: []string{}}
		if n.Path.RTT > 0 {
			ms := millis(n.Path.RTT)
			r.RTTMS = &ms
		}
		if n.Offer != nil {
			r.Offers, r.Duty, r.Always = n.Offer.Terms.Offers, n.Offer.Terms.Duty, n.Offer.AlwaysOn
			for _, g := range n.Offer.GPUs {
				r.GPUs = append(r.GPUs, g.Model)
			}
		}
		if n.Live != nil {
			r.Runs = n.Live.Runs
		}
		rows = append(rows, r)
	}
	return rows
}

// millis rounds to a microsecond, so that JSON stays readable.
func millis(d time.Duration) float64 {
	return float64(d.Round(time.Microsecond)) / float64(time.Millisecond)
}

// fleetReply is one line of GET /v1/fleet: the whole picture, each second.
type fleetReply struct {
	Mesh  string       `json:"mesh"`
	Self  identity.ID  `json:"self"`
	Nodes []fleet.Node `json:"nodes"`
}

// pingReply is one line of POST /v1/nodes/{node}/ping.
type pingReply struct {
	Node  string  `json:"node"`
	Path  string  `json:"path"`
	Addr  string  `json:"endpoint,omitempty"`
	Via   string  `json:"via,omitempty"` // the relay
	RTTMS float64 `json:"rtt_ms"`
	MTU   int     `json:"mtu,omitempty"` // bytes of the largest packet that goes in one datagram
	Error string  `json:"error,omitempty"`
}

// offerReply is the answer of GET /v1/offer.
type offerReply struct {
	Node  string       `json:"node"`
	Rules string       `json:"rules"` // path of the file that the owner edits
	Offer *fleet.Offer `json:"offer"`
	Live  *fleet.Live  `json:"live"`
	Error string       `json:"rules_error,omitempty"`
}

// inviteRequest is the body of POST /v1/invites.
type inviteRequest struct {
	Owner string        `json:"owner,omitempty"` // empty: the node's own
	Admin bool          `json:"admin,omitempty"`
	TTL   time.Duration `json:"ttl_ns,omitempty"`
}

// inviteReply is the answer.
type inviteReply struct {
	Invite    string    `json:"invite"`
	Mesh      string    `json:"mesh"`
	Owner     string    `json:"owner"`
	Expires   time.Time `json:"expires"`
	Endpoints []string  `json:"endpoints"`
}

// runReply is the answer of POST /v1/runs without following.
type runReply struct {
	Run       string `json:"run"`
	Custodian string `json:"custodian,omitempty"` // the node that sees it through; empty: this one
	Note      string `json:"note,omitempty"`      // why that is not the one that was meant to
}

// attachReply is the answer of POST /v1/runs/{run}/attach.
type attachReply struct {
	Run   string `json:"run"`
	Name  string `json:"name"`  // of its agent or program
	After uint64 `json:"after"` // number of its newest event
	TTY   bool   `json:"tty"`   // it has a terminal
	Stdin bool   `json:"stdin"` // it takes standard input of whoever attaches
}

// inspectReply is the answer of GET /v1/runs/{run}.
type inspectReply struct {
	task.Status

	Custody string        `json:"custody,omitempty"` // who has it in custody, and for whom
	Spec    *task.Spec    `json:"spec,omitempty"`
	Entries []ledgerEntry `json:"entries"`
}

// whyAttempt is one element of the answer of GET /v1/runs/{run}/why.
type whyAttempt struct {
	Attempt int           `json:"attempt"`
	Node    string        `json:"node"`
	Waits   bool          `json:"waits,omitempty"` // for a machine
	Ranking task.Ranking  `json:"ranking"`
	More    int           `json:"more,omitempty"`    // machines left out of the record
	Refused []task.Reason `json:"refused,omitempty"` // why the machine did not take it
	Lost    string        `json:"lost,omitempty"`    // how the machine was lost with it
}

// ledgerEntry is one entry as people and scripts see it.
type ledgerEntry struct {
	Topic   string      `json:"topic"`
	Author  string      `json:"author"` // name, or the short id of who is no member
	ID      identity.ID `json:"author_id"`
	Segment uint64      `json:"segment"`
	Seq     uint64      `json:"seq"`
	Kind    string      `json:"kind"`
	Time    time.Time   `json:"time"`
	Hash    wire.Hash   `json:"hash"`
	Summary string      `json:"summary"`
}

// verifyReply is the answer of GET /v1/ledger/verify.
type verifyReply struct {
	OK      bool      `json:"ok"`
	Entries int       `json:"entries"`
	Topics  int       `json:"topics"`
	Bad     *badEntry `json:"bad,omitempty"`
}

type badEntry struct {
	Topic   string `json:"topic"`
	Author  string `json:"author"`
	Segment uint64 `json:"segment"`
	Seq     uint64 `json:"seq"`
	Why     string `json:"why"`
}

// portReply is the answer of GET /v1/nodes/{node}/ports/{port}.
type portReply struct {
	ID   identity.ID `json:"id"`
	Node string      `json:"node"`
	Port uint16      `json:"port"`
}

// forwardReply is what balance forward prints.
type forwardReply struct {
	Listen string `json:"listen"`
	Node   string `json:"node"`
	Port   uint16 `json:"port"`
}

// serviceRow is one element of the answer of GET /v1/services.
type serviceRow struct {
	Instance string   `json:"instance"`
	Type     string   `json:"type"` // of DNS-SD; empty: not published there
	Node     string   `json:"node"`
	Address  string   `json:"address"`
	Port     uint16   `json:"port"`
	Text     []string `json:"text"`
	For      []string `json:"for"` // owners who may connect; "*" for every member
}
