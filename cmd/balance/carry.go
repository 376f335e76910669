package main

import (
	"cmp"
	"context"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/balanceai/balance/discovery"
	"github.com/balanceai/balance/exec/task"
	"github.com/balanceai/balance/mesh"
	"github.com/balanceai/balance/mesh/identity"
	"github.com/balanceai/balance/mesh/trust"
	"github.com/balanceai/balance/mesh/wire"
	"github.com/balanceai/balance/store"
)

// hosting lets plain WireGuard devices into the mesh as this machine's guests,
// and takes them back. Who they are is in the log; their private keys are
// nowhere but in the configuration, which is told once.
type hosting struct {
	node *mesh.Node
	db   *store.Store
	who  *roster
	log  *slog.Logger

	mu   sync.Mutex    // one change at a time
	wake chan struct{} // has something in it when there may be another expiry
}

// settingGuestPort is where the ledger file keeps the UDP port for guests.
const settingGuestPort = "guest-port"

// keptGuestPort returns the port that guests know; 0 where there is none yet.
func keptGuestPort(ctx context.Context, db *store.Store) (uint16, error) {
	kept, err := db.Setting(ctx, settingGuestPort)
	if err != nil || kept == "" {
		return 0, err
	}
	port, err := strconv.ParseUint(kept, 10, 16)
	return uint16(port), err
}

// openHosting carries the guests that the log says this machine has, now and
// whenever that changes.
func openHosting(node *mesh.Node, db *store.Store, who *roster, log *slog.Logger) *hosting {
	h := &hosting{node: node, db: db, who: who, log: log, wake: make(chan struct{}, 1)}
	who.each(h.carry)
	return h
}

func (h *hosting) carry(s *trust.State) {
	now := time.Now()
	good := slices.DeleteFunc(slices.Clone(s.Guests[h.who.self]), func(g trust.Guest) bool { return expired(g, now) })
	if err := h.node.SetGuests(keysOf(good)); err != nil { // no reason for the node not to be up
		h.log.Error("guests cannot come in", "error", err)
	}
}

func keysOf(list []trust.Guest) (keys []identity.WGPublic) {
	for _, g := range list {
		keys = append(keys, g.WG)
	}
	return keys
}

func expired(g trust.Guest, now time.Time) bool {
	return g.NotAfter != 0 && now.After(g.Expires())
}

// run takes back guests whose time is over, until ctx ends, and tries again to
// open a port for guests that was not free.
func (h *hosting) run(ctx context.Context) error {
	for {
		h.mu.Lock() // under which alone this machine's guests change
		h.carry(h.who.now())
		h.mu.Unlock()
		wait := time.Minute // a clock that was set, or a machine that slept, is noticed after as long
		for _, g := range h.who.now().Guests[h.who.self] {
			if expired(g, time.Now()) {
				if err := h.end(ctx, g.Name); err != nil && ctx.Err() == nil {
					h.log.Error("take a guest back", "guest", g.Name, "error", err)
				}
			} else if g.NotAfter != 0 {
				wait = min(wait, time.Until(g.Expires())+time.Millisecond)
			}
		}
		select {
		case <-ctx.Done():
			return nil
		case <-h.wake:
		case <-time.After(wait):
		}
	}
}

// begin lets a new guest in.
func (h *hosting) begin(ctx context.Context, req guestRequest) (guestReply, error) {
	var none guestReply
	if req.TTL < 0 {
		return none, fail("usage", "", "a guest is good for some time, not for %v", req.TTL)
	}
	for _, s := range req.DNS {
		if _, err := netip.ParseAddr(s); err != nil {
			return none, fail("usage", "for example: --dns 9.9.9.9", "%q is no address of a DNS server", s)
		}
	}
	if req.Endpoint != "" {
		if err := checkEndpoint(req.Endpoint); err != nil {
			return none, err
		}
	}
	if at, _ := h.node.GuestEndpoint(); req.Endpoint == "" && !at.IsValid() {
		return none, fail("failure", "connect it to a network, or say where it is with --endpoint", "this machine has no address that a guest could reach")
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	key, err := identity.NewWGKey()
	if err != nil {
		return none, err
	}
	record := trust.Guest{WG: key.Public(), Name: req.Name}
	if req.TTL > 0 {
		record.NotAfter = time.Now().Add(req.TTL).Truncate(time.Second).UnixMilli()
	}
	state, me := h.who.now(), h.who.me()
	if err := me.MayCarry(record, state.Guests[me.ID]); err != nil {
		return none, fail("usage", "see who is in with: balance guests", "no guest %s: %v", clean(req.Name, false), err)
	}
	if err := h.append(ctx, trust.KindGuest, record); err != nil {
		return none, err
	}
	if id, _ := h.node.Carrier(state.Mesh.GuestAddress(me.ID, record.WG)); id != me.ID {
		err := fail("failure", "see its log", "this machine cannot carry guests")
		if endErr := h.append(ctx, trust.KindGuestEnd, trust.GuestEnd{WG: record.WG}); endErr != nil {
			return none, endErr
		}
		return none, err
	}
	if err := h.db.SetSetting(ctx, settingGuestPort, strconv.Itoa(int(h.node.GuestPort()))); err != nil {
		return none, err
	}
	select {
	case h.wake <- struct{}{}:
	default:
	}
	reply := guestReply{guestRow: h.row(state, me, record), Reach: "given"}
	if reply.Endpoint = req.Endpoint; req.Endpoint == "" {
		at, public := h.node.GuestEndpoint()
		reply.Endpoint = at.String()
		if reply.Reach = "lan"; public {
			reply.Reach = "internet"
		}
	}
	var dns []string
	if len(req.DNS) > 0 {
		dns = slices.Concat([]string{h.node.Address().String()}, req.DNS, discovery.Domains(state.Genesis.Mesh, state.Mesh.Prefix())[:1])
	}
	reply.Config = h.node.GuestConfig(key, reply.Endpoint, dns...)
	return reply, nil
}

// append writes an entry and acts on it.
func (h *hosting) append(ctx context.Context, kind string, record any) error {
	if _, err := h.db.Append(ctx, task.Draft{Topic: wire.TopicMesh, Kind: kind, Record: record}); err != nil {
		return err
	}
	return h.who.load(ctx)
}

// end takes a guest of this machine's back.
func (h *hosting) end(ctx context.Context, name string) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	find := func() (trust.Guest, bool) {
		list := h.who.now().Guests[h.who.self]
		i := slices.IndexFunc(list, func(g trust.Guest) bool { return g.Name == name })
		if i < 0 {
			return trust.Guest{}, false
		}
		return list[i], true
	}
	g, ok := find()
	if !ok {
		return fail("not_found", "see who is with: balance guests; a guest is taken back where it was let in", "this machine has no guest %s", clean(name, false))
	}
	if err := h.append(ctx, trust.KindGuestEnd, trust.GuestEnd{WG: g.WG}); err != nil {
		return err
	}
	if _, ok := find(); ok {
		return fail("failure", "", "the guest %s is still in: this machine's part of the log is not believed any more", name)
	}
	return nil
}

// list returns the guests of all members.
func (h *hosting) list() []guestRow {
	rows := []guestRow{}
	state := h.who.now()
	for id, list := range state.Guests {
		for _, g := range list {
			rows = append(rows, h.row(state, state.Members[id], g))
		}
	}
	slices.SortFunc(rows, func(a, b guestRow) int { return cmp.Or(cmp.Compare(a.Node, b.Node), cmp.Compare(a.Name, b.Name)) })
	return rows
}

func (h *hosting) row(state *trust.State, by trust.Member, g trust.Guest) guestRow {
	return guestRow{
		Name: g.Name, Node: by.Name, Owner: by.Owner, Address: state.Mesh.GuestAddress(by.ID, g.WG).String(),
		Expires: g.Expires(), Self: by.ID == h.who.self,
	}
}

// checkEndpoint refuses what is no HOST:PORT, so that nothing else gets into a
// configuration.
func checkEndpoint(s string) error {
	wrong := fail("usage", "for example: --endpoint home.example.org:41842", "--endpoint: %q is no HOST:PORT", s)
	host, port, err := net.SplitHostPort(s)
	if err != nil {
		return wrong
	}
	if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 {
		return wrong
	}
	if addr, err := netip.ParseAddr(host); err == nil && addr.Zone() == "" {
		return nil
	}
	name := func(r rune) bool {
		return r == '-' || r == '.' || r >= '0' && r <= '9' || r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z'
	}
	if host == "" || len(host) > 253 || strings.ContainsFunc(host, func(r rune) bool { return !name(r) }) || strings.Trim(host, "-.") != host {
		return wrong
	}
	return nil
}

func (l *localAPI) guests(w http.ResponseWriter, _ *http.Request) error {
	reply(w, l.hosting.list())
	return nil
}

func (l *localAPI) beginGuest(w http.ResponseWriter, r *http.Request) error {
	var req guestRequest
	if err := readJSON(r, &req); err != nil {
		return err
	}
	g, err := l.hosting.begin(r.Context(), req)
	if err != nil {
		return err
	}
	reply(w, g)
	return nil
}

func (l *localAPI) endGuest(w http.ResponseWriter, r *http.Request) error {
	if err := l.hosting.end(r.Context(), r.PathValue("guest")); err != nil {
		return err
	}
	reply(w, struct{}{})
	return nil
}
