package main

import (
	"cmp"
	"log/slog"
	"net/netip"
	"slices"
	"sync"

	"github.com/balanceai/balance/discovery"
	"github.com/balanceai/balance/exec/fleet"
	"github.com/balanceai/balance/exec/policy"
	"github.com/balanceai/balance/mesh/trust"
)

// balanceService is what every node publishes of itself.
const balanceService = "_balance._tcp"

// services lists what the members publish and what they expose.
func services(nodes []fleet.Node) []serviceRow {
	rows := []serviceRow{}
	for _, n := range nodes {
		text := []string{"owner=" + n.Owner, "id=" + n.ID.String()}
		if n.Offer != nil {
			// Where the offer is: the newest entry of this kind by that author.
			text = append(text, "offer="+fleet.KindOffer)
		}
		rows = append(rows, serviceRow{Instance: n.Name, Type: balanceService, Node: n.Name, Address: n.Address, Port: apiPort, Text: text, For: []string{policy.AnyOwner}})
		if n.Offer != nil {
			rows = append(rows, exposedRows(n)...)
			if len(n.Offer.Models) > 0 {
				rows = append(rows, modelsRow(n))
			}
		}
	}
	slices.SortFunc(rows, func(a, b serviceRow) int {
		return cmp.Or(cmp.Compare(a.Type, b.Type), cmp.Compare(a.Instance, b.Instance), cmp.Compare(a.Port, b.Port))
	})
	return rows
}

// exposedRows lists what a machine says that it exposes, as far as it may.
func exposedRows(n fleet.Node) []serviceRow {
	var rows []serviceRow
	all := n.Offer.Services
	for _, s := range all[:min(len(all), fleet.MaxServices)] {
		if checkService(n.Name, s) != nil {
			continue
		}
		row := serviceRow{Instance: instance(n.Name, s), Type: s.Type, Node: n.Name, Address: n.Address, Port: s.Port, Text: []string{}, For: []string{policy.AnyOwner}}
		if len(s.Text) > 0 {
			row.Text = s.Text
		}
		if !slices.Contains(s.To, policy.AnyOwner) {
			row.For = append([]string{n.Owner}, s.To...)
		}
		rows = append(rows, row)
	}
	return rows
}

// names keeps the answers of the mesh's DNS in step with the view.
type names struct {
	view *fleet.View
	who  *roster
	log  *slog.Logger

	mu      sync.Mutex
	version uint64
	names   *discovery.Names
}

// now returns the names as the view is at this moment.
func (n *names) now() *discovery.Names {
	nodes, version := n.view.Snapshot()
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.names != nil && n.version == version {
		return n.names
	}
	var errs []error
	n.names, errs = zone(n.who.now(), n.who.me().Name, nodes).Index()
	n.version = version
	for _, err := range errs {
		n.log.Debug("left out of DNS", "error", err)
	}
	return n.names
}

func zone(state *trust.State, self string, nodes []fleet.Node) discovery.Zone {
	z := discovery.Zone{Mesh: state.Genesis.Mesh, Self: self, Prefix: state.Mesh.Prefix()}
	for _, n := range nodes {
		if addr, err := netip.ParseAddr(n.Address); err == nil {
			z.Hosts = append(z.Hosts, discovery.Host{Name: n.Name, Addr: addr})
		}
	}
	for _, s := range services(nodes) {
		if s.Type == "" {
			continue
		}
		z.Services = append(z.Services, discovery.Service{Instance: s.Instance, Type: s.Type, Host: s.Node, Port: s.Port, Text: s.Text})
	}
	return z
}
