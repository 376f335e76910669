package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/user"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/balanceai/balance/exec/agent"
	"github.com/balanceai/balance/mesh/identity"
	"github.com/balanceai/balance/mesh/trust"
	"github.com/balanceai/balance/mesh/wire"
	"github.com/balanceai/balance/store"
)

// initReply is what init prints with --json.
type initReply struct {
	Mesh     string      `json:"mesh"`
	MeshID   string      `json:"mesh_id"`
	Name     string      `json:"name"`
	ID       identity.ID `json:"id"`
	Owner    string      `json:"owner"`
	Home     string      `json:"home"`
	Recovery string      `json:"recovery_words,omitempty"`
}

func (a *app) initCommand() *cobra.Command {
	var meshName, name, owner string
	var thin bool
	cmd := &cobra.Command{
		Use:   "init",
		Short: "Found a mesh with this machine as its first node",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			owner = cmp.Or(owner, defaultOwner())
			g := trust.Genesis{Mesh: cmp.Or(meshName, owner), Name: cmp.Or(name, defaultName()), Owner: owner}
			for flag, value := range map[string]string{"--mesh": g.Mesh, "--name": g.Name, "--owner": g.Owner} {
				if err := identity.ValidName(value); err != nil {
					return fail("usage", "choose another one with "+flag, "%v", err)
				}
			}
			reply, err := found(cmd.Context(), a.home, g, thin)
			if err != nil {
				return err
			}
			return a.print.answer(reply, func(w io.Writer) error {
				fmt.Fprintf(w, "founded mesh %s; this node is %s, its owner %s\n\n", reply.Mesh, reply.Name, reply.Owner)
				fmt.Fprintf(w, "Recovery words. They are shown once and are nowhere on this machine: copy them to paper.\nWhoever has them can replace every admin of the mesh.\n\n%s\n\n", inLines(reply.Recovery, 6))
				_, err := fmt.Fprintf(w, "Next:  balance up        start the node (%s)\n       balance invite    let another machine join\n", reply.Home)
				return err
			})
		},
	}
	cmd.Flags().StringVar(&meshName, "mesh", "", "name of the mesh (default: the owner's)")
	nodeFlags(cmd, &name, &thin)
	cmd.Flags().StringVar(&owner, "owner", "", "whose machine this is (default: the user's name)")
	return cmd
}

// nodeFlags are those that init and join share.
func nodeFlags(cmd *cobra.Command, name *string, thin *bool) {
	cmd.Flags().StringVar(name, "name", "", "name of this node (default: the host's)")
	cmd.Flags().BoolVar(thin, "client", false, "a thin client: offer nothing, only dispatch")
}

// found makes the keys, the genesis record and the rules of a new mesh.
func found(ctx context.Context, h home, g trust.Genesis, thin bool) (reply initReply, err error) {
	if err := h.make(); err != nil {
		return initReply{}, err
	}
	lock, err := h.lock()
	if err != nil {
		return initReply{}, err
	}
	defer lock.Close()
	keys, err := identity.MakeKeys(string(h))
	if err != nil {
		return initReply{}, err
	}
	recovery, err := identity.NewKey()
	if err != nil {
		return initReply{}, err
	}
	g.Recovery = recovery.ID()
	if g.Secret, err = randomSecret(); err != nil {
		return initReply{}, err
	}
	db, err := store.Open(ctx, h.path(ledgerFile), keys.Identity)
	if err != nil {
		return initReply{}, err
	}
	defer func() { err = errors.Join(err, db.Close()) }()
	if id, ok := db.Mesh(); ok {
		return initReply{}, hint(fmt.Errorf("this node belongs to a mesh already (%s, home %s)", id.Short(), h), "start it with: balance up; or choose another --home")
	}
	genesis, err := ownEntry(keys.Identity, identity.MeshID{}, trust.KindGenesis, g)
	if err != nil {
		return initReply{}, err
	}
	mesh := identity.MeshID(genesis.Hash())
	if err := writeRules(h, thin); err != nil {
		return initReply{}, err
	}
	if err := db.Import(ctx, mesh, []*wire.Entry{genesis}); err != nil {
		return initReply{}, err
	}
	return initReply{
		Mesh: g.Mesh, MeshID: mesh.String(), Name: g.Name, ID: keys.Identity.ID(), Owner: g.Owner, Home: string(h),
		Recovery: identity.Words(recovery.Seed()),
	}, nil
}

// ownEntry signs an entry of the topic mesh that is not written by the ledger:
// the first of a chain of its own, so that a repeated try gives no number to
// two entries.
func ownEntry(key identity.Key, mesh identity.MeshID, kind string, record any) (*wire.Entry, error) {
	payload, err := wire.Marshal(record)
	if err != nil {
		return nil, err
	}
	now := time.Now()
	return wire.NewEntry(key, mesh, wire.Body{
		Topic: wire.TopicMesh, Segment: uint64(now.UnixNano()), Kind: kind, Millis: now.UnixMilli(), Payload: payload,
	})
}

// writeRules writes the file that says what the machine offers, unless the
// owner has written one.
func writeRules(h home, thin bool) error {
	text := agent.DefaultRules
	if thin {
		text = strings.Replace(text, "offer: all", "offer: nothing", 1)
	}
	f, err := os.OpenFile(h.path(rulesFile), os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if errors.Is(err, fs.ErrExist) {
		return nil
	}
	if err != nil {
		return err
	}
	_, err = f.WriteString(text)
	return errors.Join(err, f.Close())
}

func defaultOwner() string {
	if u, err := user.Current(); err == nil {
		return asName(u.Username, "owner")
	}
	return "owner"
}

func defaultName() string {
	host, _ := os.Hostname()
	host, _, _ = strings.Cut(host, ".")
	return asName(host, "node")
}

// asName makes a valid name of what a system calls something.
func asName(s, otherwise string) string {
	name := strings.Map(func(r rune) rune {
		switch {
		case r >= 'A' && r <= 'Z':
			return r - 'A' + 'a'
		case r >= 'a' && r <= 'z', r >= '0' && r <= '9':
			return r
		}
		return '-'
	}, s)
	name = strings.Trim(name[:min(len(name), 30)], "-")
	return cmp.Or(name, otherwise)
}

// inLines breaks words into lines of n.
func inLines(words string, n int) string {
	var b strings.Builder
	for i, w := range strings.Fields(words) {
		switch {
		case i == 0:
			b.WriteString("  ")
		case i%n == 0:
			b.WriteString("\n  ")
		default:
			b.WriteByte(' ')
		}
		b.WriteString(w)
	}
	return b.String()
}
