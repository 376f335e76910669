package main

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/netip"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/balanceai/balance/exec/task"
	"github.com/balanceai/balance/mesh"
	"github.com/balanceai/balance/mesh/identity"
	"github.com/balanceai/balance/mesh/trust"
	"github.com/balanceai/balance/mesh/wire"
	"github.com/balanceai/balance/store"
)

// door lets the holders of this node's invites into the mesh. Each of them
// reaches, inside WireGuard, this one listener and nothing else, until its
// invite expires. It stays open for an invite that was used, so that the node
// that used it can ask again after a broken answer, and so that another one is
// told that it came too late.
type door struct {
	mesh   identity.MeshID
	self   identity.ID
	node   *mesh.Node
	db     *store.Store
	roster *roster
	share  func(...*wire.Entry) // with the other members
	log    *slog.Logger

	streams func() []netip.AddrPort // TCP addresses of this node; nil: none

	mu     sync.Mutex             // one join at a time
	nonces map[nonce32]netip.Addr // given and not used yet, and to whom
}

type nonce32 [32]byte

const (
	maxInviteTTL = 7 * 24 * time.Hour
	maxNonces    = 1024
)

// invite makes an invite and opens the door for it.
func (d *door) invite(ctx context.Context, req inviteRequest) (inviteReply, error) {
	var none inviteReply
	me := d.roster.me()
	if req.Owner == "" {
		req.Owner = me.Owner
	}
	role := trust.MemberRole
	if req.Admin {
		role = trust.Admin
	}
	if err := me.MayAdmit(req.Owner, role, trust.AllRights); err != nil {
		return none, fail("forbidden", "ask an admin of the mesh to make the invite", "no invite for %s: %v", req.Owner, err)
	}
	if req.TTL <= 0 || req.TTL > maxInviteTTL {
		return none, fail("usage", "", "an invite is good for up to %v, not for %v", maxInviteTTL, req.TTL)
	}
	addrs := d.node.Addrs()
	if len(addrs) == 0 {
		return none, fail("failure", "connect it to a network, or start it with --listen", "this machine has no address that another one could reach")
	}
	secret, err := wire.NewInviteSecret()
	if err != nil {
		return none, err
	}
	keys := secret.Keys(d.mesh)
	expires := time.Now().Add(req.TTL).Truncate(time.Second)
	record := trust.Invite{
		Join: keys.Sign.ID(), WG: keys.WG.Public(), Owner: req.Owner, Role: role, Rights: trust.AllRights, NotAfter: expires.UnixMilli(),
	}
	if _, err := d.db.Append(ctx, task.Draft{Topic: wire.TopicMesh, Kind: trust.KindInvite, Record: record}); err != nil {
		return none, err
	}
	if err := d.db.SaveDoor(ctx, store.Door{Join: record.Join, WG: record.WG, PSK: keys.PSK, Expires: expires}); err != nil {
		return none, err
	}
	if err := d.roster.load(ctx); err != nil {
		return none, err
	}
	d.node.OpenDoor(mesh.Joiner{ID: record.Join, WG: record.WG, PSK: keys.PSK, Until: expires})

	v := wire.Invite{Mesh: d.mesh, Door: me.WG, Secret: secret, Expires: expires}
	if d.streams != nil {
		if list := d.streams(); len(list) > 0 {
			v.Streams = list[:1]
		}
	}
	v.Endpoints = inviteEndpoints(addrs, wire.MaxInviteEndpoints-len(v.Streams))
	reply := inviteReply{Invite: v.String(), Mesh: d.roster.now().Genesis.Mesh, Owner: req.Owner, Expires: expires}
	for _, e := range v.Endpoints {
		reply.Endpoints = append(reply.Endpoints, e.String())
	}
	return reply, nil
}

// inviteEndpoints chooses from a node's addresses, of which the host's own come
// first: if there are too many, the last one chosen is one that the world sees.
func inviteEndpoints(addrs []netip.AddrPort, most int) []netip.AddrPort {
	if len(addrs) <= most {
		return addrs
	}
	out := slices.Clone(addrs[:most])
	public := func(a netip.AddrPort) bool { return !a.Addr().IsPrivate() && !a.Addr().IsLoopback() }
	if i := slices.IndexFunc(addrs, public); i >= most {
		out[most-1] = addrs[i]
	}
	return out
}

// reopen opens the door again for the invites of an earlier life.
func (d *door) reopen(ctx context.Context) error {
	doors, err := d.db.Doors(ctx)
	if err != nil {
		return err
	}
	for _, o := range doors {
		if time.Now().After(o.Expires) {
			if err := d.db.DropDoor(ctx, o.Join); err != nil {
				return err
			}
			continue
		}
		d.node.OpenDoor(mesh.Joiner{ID: o.Join, WG: o.WG, PSK: o.PSK, Until: o.Expires})
	}
	return nil
}

// open answers joiners until ctx ends.
func (d *door) open(ctx context.Context, group *errgroup.Group) error {
	ln, err := d.node.DoorListener()
	if err != nil {
		return err
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /v1/nonce", d.handleNonce)
	mux.HandleFunc("POST /v1/join", d.handleJoin)
	serveHTTP(ctx, group, ln, mux, d.log)
	return nil
}

// from is the joiner's address in the overlay, which WireGuard proves.
func from(r *http.Request) netip.Addr {
	ap, _ := netip.ParseAddrPort(r.RemoteAddr)
	return ap.Addr()
}

func (d *door) handleNonce(w http.ResponseWriter, r *http.Request) {
	var n nonce32
	_, _ = rand.Read(n[:]) // never fails: crypto/rand
	d.mu.Lock()
	defer d.mu.Unlock()
	if len(d.nonces) >= maxNonces { // whoever had one asks again
		clear(d.nonces)
	}
	d.nonces[n] = from(r)
	reply(w, nonceReply{n[:]})
}

func (d *door) handleJoin(w http.ResponseWriter, r *http.Request) {
	out, err := d.join(r)
	if err != nil {
		p := joinProblem(err)
		d.log.Warn("join refused", "reason", p.Message)
		replyError(w, p)
		return
	}
	reply(w, out)
}

// joinProblem tells a joiner why, in the words that it shows.
func joinProblem(err error) *problem {
	switch {
	case errors.Is(err, trust.ErrInviteUsed):
		return fail("invite_used", "ask for a new one. If you did not use it yourself, tell whoever made it: somebody else did", "the invite was used by another node")
	case errors.Is(err, trust.ErrInviteExpired):
		return fail("invite_expired", "ask for a new one", "%v", err)
	case errors.Is(err, trust.ErrInviteUnknown):
		return fail("invite_unknown", "ask for a new one", "%v", err)
	}
	return fail("failure", "", "the node that made the invite refused: %v", err)
}

func (d *door) join(r *http.Request) (*knockReply, error) {
	var req knockRequest
	if err := json.NewDecoder(io.LimitReader(r.Body, 64<<10)).Decode(&req); err != nil {
		return nil, fmt.Errorf("read the request: %w", err)
	}
	var u trust.InviteUsed
	if err := wire.Unmarshal(req.Evidence, &u); err != nil {
		return nil, err
	}
	bind, err := wire.ParseEntry(req.Bind)
	if err != nil {
		return nil, err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	to, ok := d.nonces[u.Statement.Nonce]
	delete(d.nonces, u.Statement.Nonce)
	switch {
	case !ok || to != from(r):
		return nil, errors.New("the request is not for the nonce that was given")
	case d.mesh.JoinAddress(u.Statement.Join) != from(r):
		return nil, errors.New("the request is for another invite")
	case bind.Kind != trust.KindWGBind || bind.Topic != wire.TopicMesh || bind.Author != u.Statement.ID:
		return nil, errors.New("the joiner's own entry is not its WireGuard key")
	}
	if err := d.letIn(r.Context(), u, bind); err != nil {
		return nil, err
	}
	return d.everything(r.Context())
}

// letIn writes the admission, unless the same node was admitted by the same
// request before.
func (d *door) letIn(ctx context.Context, u trust.InviteUsed, bind *wire.Entry) error {
	if err := bind.Verify(d.mesh); err != nil {
		return err
	}
	admit, already, err := d.roster.now().Answer(d.self, u, time.Now())
	if err != nil {
		return err
	}
	if already == nil {
		if _, err := d.db.Append(ctx,
			task.Draft{Topic: wire.TopicMesh, Kind: trust.KindInviteUsed, Record: u},
			task.Draft{Topic: wire.TopicMesh, Kind: trust.KindAdmit, Record: admit}); err != nil {
			return err
		}
		d.log.Info("admitted", "name", admit.Name, "owner", admit.Owner, "id", admit.ID.Short())
	}
	fresh, err := d.db.Accept(ctx, bind)
	if err != nil {
		return err
	}
	d.share(fresh...) // nobody can reach the new member without it
	return d.roster.load(ctx)
}

// everything is what a new member needs: the log, and where members were seen.
func (d *door) everything(ctx context.Context) (*knockReply, error) {
	entries, err := d.db.Entries(ctx, wire.TopicMesh)
	if err != nil {
		return nil, err
	}
	out := &knockReply{}
	for _, e := range entries {
		out.Entries = append(out.Entries, e.Encode())
	}
	for _, id := range d.roster.others() {
		if p := d.node.Path(id); p.Kind >= mesh.Direct { // a UDP address
			out.Peers = append(out.Peers, peerAddr{id, []netip.AddrPort{p.Addr}})
		}
	}
	return out, nil
}
