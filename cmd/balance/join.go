package main

import (
	"bytes"
	"cmp"
	"context"
	crand "crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/netip"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/balanceai/balance/exec/task"
	"github.com/balanceai/balance/mesh"
	"github.com/balanceai/balance/mesh/identity"
	"github.com/balanceai/balance/mesh/trust"
	"github.com/balanceai/balance/mesh/wire"
	"github.com/balanceai/balance/store"
)

func randomSecret() (b [32]byte, err error) {
	_, err = crand.Read(b[:])
	return b, err
}

func (a *app) inviteCommand() *cobra.Command {
	var req inviteRequest
	var guest guestRequest
	var qr bool
	req.TTL = time.Hour
	cmd := &cobra.Command{
		Use:   "invite",
		Short: "Make an invite that lets one machine join",
		Long: "Make an invite that lets one machine join.\n\n" +
			"The invite is a secret until it is used or expires. The other machine reads it with: balance join\n\n" +
			"With --wireguard it is for a device that runs plain WireGuard, such as a phone: a configuration for WireGuard's\n" +
			"app or wg-quick. The device is no member but this machine's guest; it is good until it is taken back, or for --ttl.",
		Example: "  balance invite\n  balance invite --wireguard phone\n  balance invite --wireguard tablet --dns 9.9.9.9 >tablet.conf",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if guest.Name != "" {
				if cmd.Flags().Changed("ttl") {
					guest.TTL = req.TTL
				}
				return a.inviteGuest(cmd.Context(), guest, qr)
			}
			var v inviteReply
			if err := a.client.call(cmd.Context(), http.MethodPost, "/v1/invites", req, &v); err != nil {
				return err
			}
			return a.print.answer(v, func(w io.Writer) error {
				if a.print.outTTY {
					writeQR(w, v.Invite)
				}
				fmt.Fprintln(w, v.Invite)
				a.print.say("lets one machine of %s into mesh %s until %s; on that machine: balance join, then paste it", v.Owner, v.Mesh, v.Expires.Local().Format("15:04 on 2 January"))
				return nil
			})
		},
	}
	cmd.Flags().StringVar(&req.Owner, "owner", "", "whose machine will join (default: this node's owner)")
	cmd.Flags().BoolVar(&req.Admin, "admin", false, "it may invite the machines of other owners")
	cmd.Flags().Var(unit[time.Duration]{&req.TTL, task.ParseDuration, "duration"}, "ttl", "how long the invite is good for, up to 7d (default 1h)")
	cmd.Flags().StringVar(&guest.Name, "wireguard", "", "let a plain WireGuard device in instead, under this name")
	cmd.Flags().StringVar(&guest.Endpoint, "endpoint", "", "HOST:PORT at which that device reaches this machine (default: this machine's best address)")
	cmd.Flags().StringSliceVar(&guest.DNS, "dns", nil, "have that device ask this machine for names of the mesh, and these servers for all others")
	cmd.Flags().BoolVar(&qr, "qr", false, "print its configuration as a QR code alone")
	for _, other := range []string{"owner", "admin"} {
		cmd.MarkFlagsMutuallyExclusive("wireguard", other)
	}
	return cmd
}

// joinReply is what join prints with --json.
type joinReply struct {
	Mesh    string      `json:"mesh"`
	MeshID  string      `json:"mesh_id"`
	Name    string      `json:"name"`
	ID      identity.ID `json:"id"`
	Owner   string      `json:"owner"`
	Address string      `json:"address"`
	Members int         `json:"members"`
	Home    string      `json:"home"`
}

func (a *app) joinCommand() *cobra.Command {
	var name string
	var thin bool
	cmd := &cobra.Command{
		Use:   "join [CODE|FILE|-]",
		Short: "Join a mesh with an invite",
		Long: "Join a mesh with an invite.\n\n" +
			"The invite is read from standard input (-), a file, BALANCE_INVITE or a prompt. It can be given as an\n" +
			"argument, too, but then other users of this machine may see it in the list of processes.",
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			name = cmp.Or(name, defaultName())
			if err := identity.ValidName(name); err != nil {
				return fail("usage", "choose another one with --name", "%v", err)
			}
			v, err := a.readInvite(args)
			if err != nil {
				return err
			}
			ctx, cancel := context.WithTimeout(cmd.Context(), joinPatience)
			defer cancel()
			reply, err := join(ctx, a.home, v, name, thin)
			if err != nil {
				return err
			}
			return a.print.answer(reply, func(w io.Writer) error {
				_, err := fmt.Fprintf(w, "joined mesh %s (%s) as %s, owner %s, address %s\nNext: balance up\n", reply.Mesh, reply.MeshID[:8], reply.Name, reply.Owner, reply.Address)
				return err
			})
		},
	}
	nodeFlags(cmd, &name, &thin)
	return cmd
}

// joinPatience bounds a whole join; the first answer of a door that is there
// takes milliseconds.
const joinPatience = 30 * time.Second

// readInvite finds the text of the invite where the person has put it.
func (a *app) readInvite(args []string) (*wire.Invite, error) {
	var text string
	switch {
	case len(args) == 1 && args[0] == "-":
		b, err := io.ReadAll(io.LimitReader(a.in, 4096))
		if err != nil {
			return nil, err
		}
		text = string(b)
	case len(args) == 1:
		text = args[0]
		if f, err := os.Open(args[0]); err == nil {
			defer f.Close()
			b, err := io.ReadAll(io.LimitReader(f, 4096))
			if err != nil {
				return nil, err
			}
			text = string(b)
		}
	case a.env("BALANCE_INVITE") != "":
		text = a.env("BALANCE_INVITE")
	case term.IsTerminal(int(a.in.Fd())):
		fmt.Fprint(a.print.err, "invite: ")
		b, err := term.ReadPassword(int(a.in.Fd()))
		fmt.Fprintln(a.print.err)
		if err != nil {
			return nil, err
		}
		text = string(b)
	default:
		return nil, fail("usage", "pipe it in with: balance join -", "there is no invite")
	}
	v, err := wire.ParseInvite(text)
	if err != nil {
		return nil, fail("bad_invite", "ask for it again; it is one word that starts with BAL1", "%v", err)
	}
	if now := time.Now(); now.After(v.Expires) {
		return nil, fail("invite_expired", "ask for a new one; if this machine's clock is wrong, set it",
			"the invite has expired at %s; this machine's clock says %s", v.Expires.Local().Format(time.DateTime), now.Format(time.DateTime))
	}
	return v, nil
}

// Messages between a joiner and the door, as JSON over HTTP inside WireGuard.
type (
	nonceReply struct {
		Nonce []byte `json:"nonce"`
	}
	knockRequest struct {
		Evidence []byte `json:"evidence"` // trust.InviteUsed
		Bind     []byte `json:"bind"`     // the joiner's own entry: which WireGuard key it will use
	}
	knockReply struct {
		Entries [][]byte   `json:"entries"` // the whole topic mesh
		Peers   []peerAddr `json:"peers"`   // where members were seen
	}
	peerAddr struct {
		ID    identity.ID      `json:"id"`
		Addrs []netip.AddrPort `json:"addrs"`
	}
)

// maxJoinReply bounds what a joiner reads from a door: some 100,000 members.
const maxJoinReply = 256 << 20

// join brings the node of a home into a mesh. Nothing is kept but the keys
// unless all of it succeeds, and trying again with the same keys is the same
// join.
func join(ctx context.Context, h home, v *wire.Invite, name string, thin bool) (joinReply, error) {
	if err := h.make(); err != nil {
		return joinReply{}, err
	}
	lock, err := h.lock()
	if err != nil {
		return joinReply{}, err
	}
	defer lock.Close()
	keys, err := identity.MakeKeys(string(h))
	if err != nil {
		return joinReply{}, err
	}
	if err := notElsewhere(ctx, h, keys.Identity, v.Mesh); err != nil {
		return joinReply{}, err
	}

	reply, err := knock(ctx, v, keys, name)
	if err != nil {
		return joinReply{}, doorError(v, err)
	}
	state, entries, err := checkLog(reply, v, keys.Identity.ID())
	if err != nil {
		return joinReply{}, fmt.Errorf("the door's answer: %w", err)
	}
	if err := writeRules(h, thin); err != nil {
		return joinReply{}, err
	}
	if err := keep(ctx, h, keys.Identity, state, entries, reply.Peers, v); err != nil {
		return joinReply{}, err
	}
	me := state.Members[keys.Identity.ID()]
	return joinReply{
		Mesh: state.Genesis.Mesh, MeshID: v.Mesh.String(), Name: me.Name, ID: me.ID, Owner: me.Owner,
		Address: v.Mesh.Address(me.ID).String(), Members: len(state.Members), Home: string(h),
	}, nil
}

// notElsewhere refuses to join where the home belongs to another mesh.
func notElsewhere(ctx context.Context, h home, key identity.Key, id identity.MeshID) (err error) {
	if !h.joined() {
		return nil
	}
	db, err := store.Open(ctx, h.path(ledgerFile), key)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, db.Close()) }()
	if other, ok := db.Mesh(); ok && other != id {
		return hint(fmt.Errorf("this node belongs to another mesh (%s, home %s)", other.Short(), h), "choose another --home for the new one")
	}
	return nil
}

// knock asks to be let in, until there is an answer. A door that answered and
// then broke off may have another node at it with the same invite: the tunnel is
// the same, and each takes it from the other. Each tries again after a while of
// its own, and one of them is told that it came too late.
func knock(ctx context.Context, v *wire.Invite, keys identity.Keys, name string) (*knockReply, error) {
	for {
		reply, err := knockOnce(ctx, v, keys, name)
		if !errors.Is(err, errBrokenOff) {
			return reply, err
		}
		select {
		case <-ctx.Done():
			return nil, err
		case <-time.After(200*time.Millisecond + rand.N(1500*time.Millisecond)):
		}
	}
}

// errBrokenOff means that the conversation with a door that is there came to no
// end.
var errBrokenOff = errors.New("the conversation with the door broke off")

// doorPatience is how long one try waits for the door to answer a request.
const doorPatience = 3 * time.Second

func knockOnce(ctx context.Context, v *wire.Invite, keys identity.Keys, name string) (*knockReply, error) {
	guest, err := mesh.Knock(ctx, v, quietLog)
	if err != nil {
		return nil, err
	}
	defer func() { _ = guest.Close() }()
	door := &http.Client{Timeout: doorPatience, Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) { return guest.Dial(ctx) },
	}}
	defer door.CloseIdleConnections()
	return request(ctx, door, v, keys, name)
}

// request is the conversation with the door.
func request(ctx context.Context, door *http.Client, v *wire.Invite, keys identity.Keys, name string) (*knockReply, error) {
	var nonce nonceReply
	if err := ask(ctx, door, http.MethodGet, "/v1/nonce", nil, &nonce); err != nil {
		return nil, err
	}
	if len(nonce.Nonce) != 32 {
		return nil, errors.New("the door sent no nonce")
	}
	evidence, err := trust.SignJoin(v.Mesh, keys, v.Secret.Keys(v.Mesh).Sign, [32]byte(nonce.Nonce), name)
	if err != nil {
		return nil, err
	}
	bind, err := ownEntry(keys.Identity, v.Mesh, trust.KindWGBind, trust.WGBind{WG: keys.WG.Public()})
	if err != nil {
		return nil, err
	}
	sent, err := wire.Marshal(evidence)
	if err != nil {
		return nil, err
	}
	var reply knockReply
	return &reply, ask(ctx, door, http.MethodPost, "/v1/join", knockRequest{sent, bind.Encode()}, &reply)
}

// ask is one request to the door.
func ask(ctx context.Context, door *http.Client, method, path string, in, out any) error {
	b, err := json.Marshal(in)
	if err != nil {
		return err
	}
	req, err := http.NewRequestWithContext(ctx, method, "http://door"+path, bytes.NewReader(b))
	if err != nil {
		return err
	}
	resp, err := door.Do(req)
	if err != nil {
		return fmt.Errorf("%w: %w", errBrokenOff, err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxJoinReply))
	if err != nil {
		return fmt.Errorf("%w: %w", errBrokenOff, err)
	}
	if resp.StatusCode != http.StatusOK {
		var reply struct {
			Error *problem `json:"error"`
		}
		if err := json.Unmarshal(body, &reply); err != nil || reply.Error == nil {
			return fmt.Errorf("the door answered %s", resp.Status)
		}
		return reply.Error
	}
	return json.Unmarshal(body, out)
}

// doorError explains why a door did not let us in.
func doorError(v *wire.Invite, err error) error {
	if p, ok := errors.AsType[*problem](err); ok {
		return p
	}
	var where []string
	for _, e := range append(slices.Clone(v.Endpoints), v.Streams...) {
		where = append(where, e.String())
	}
	if errors.Is(err, errBrokenOff) || errors.Is(err, mesh.ErrNoAnswer) || errors.Is(err, context.DeadlineExceeded) {
		return fail("door_unreachable",
			"is that node up, and can this machine send UDP to it?",
			"no answer from the node that made the invite (%s)", strings.Join(where, ", "))
	}
	return fmt.Errorf("join: %w", err)
}

// checkLog evaluates the log that a door sent. It must be the mesh of the
// invite, and we must be in it.
func checkLog(reply *knockReply, v *wire.Invite, self identity.ID) (*trust.State, []*wire.Entry, error) {
	entries, err := decodeEntries(reply.Entries)
	if err != nil {
		return nil, nil, err
	}
	for _, e := range entries {
		id := v.Mesh
		if e.Kind == trust.KindGenesis {
			id = identity.MeshID{}
		}
		if err := e.Verify(id); err != nil {
			return nil, nil, err
		}
	}
	state, err := trust.Evaluate(v.Mesh, entries)
	if err != nil {
		return nil, nil, err
	}
	if me, ok := state.Members[self]; !ok || me.WG == (identity.WGPublic{}) {
		return nil, nil, errors.New("this node is not among the members")
	}
	return state, entries, nil
}

func decodeEntries(raw [][]byte) ([]*wire.Entry, error) {
	entries := make([]*wire.Entry, 0, len(raw))
	for _, b := range raw {
		e, err := wire.ParseEntry(b)
		if err != nil {
			return nil, err
		}
		entries = append(entries, e)
	}
	return entries, nil
}

// keep stores the log and where members were seen.
func keep(ctx context.Context, h home, key identity.Key, state *trust.State, entries []*wire.Entry, peers []peerAddr, v *wire.Invite) (err error) {
	db, err := store.Open(ctx, h.path(ledgerFile), key)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, db.Close()) }()
	if err := db.Import(ctx, v.Mesh, entries); err != nil {
		return err
	}
	for _, m := range state.Members {
		if m.WG == v.Door {
			peers = append(peers, peerAddr{m.ID, v.Endpoints})
		}
	}
	now := time.Now()
	for _, p := range peers {
		if _, ok := state.Members[p.ID]; !ok {
			continue
		}
		for _, addr := range p.Addrs {
			if !addr.IsValid() {
				continue // from the door, which may say anything
			}
			if err := db.SaveAddr(ctx, p.ID, addr, now); err != nil {
				return err
			}
		}
	}
	return nil
}
