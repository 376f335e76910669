package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/balanceai/balance/exec/agent"
	"github.com/balanceai/balance/exec/blob"
	"github.com/balanceai/balance/exec/fleet"
	"github.com/balanceai/balance/exec/remote"
	"github.com/balanceai/balance/exec/task"
	"github.com/balanceai/balance/mesh/identity"
	"github.com/balanceai/balance/mesh/wire"
	"github.com/balanceai/balance/store"
)

// installed are the agents of this machine: the folders in agents/ of the home.
// They are offered to the owner's other machines, and to whom they are shared
// with; and they are those that the owner's rules can allow by their digest.
type installed struct {
	home   home
	db     *store.Store
	blobs  *blob.Store
	facts  *facts
	who    *roster
	client func(identity.ID) *remote.Client
	nodes  func() []fleet.Node
	log    *slog.Logger

	mu   sync.Mutex
	list []ownAgent // by name
}

// ownAgent is one that is installed here.
type ownAgent struct {
	fleet.Agent

	manifest *agent.Manifest
	inputs   []task.Input
	files    map[wire.Hash]bool // what others may fetch of it
}

// settingShared is where the ledger file keeps with whom agents are shared, as
// JSON.
const settingShared = "shared-agents"

// foundDir is the folder of the home with agents that were found in the mesh.
const foundDir = "found"

// agentsPeriod is how often the folders are packed again, so that what others
// fetch of them counts as used.
const agentsPeriod = time.Hour

// run keeps the agents on offer until ctx ends.
func (i *installed) run(ctx context.Context) error {
	tick := time.NewTicker(agentsPeriod)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		if err := i.look(ctx); err != nil && ctx.Err() == nil {
			i.log.Error("look at the agents of this machine", "error", err)
		}
	}
}

// look reads the folders, and offers what is there.
func (i *installed) look(ctx context.Context) error {
	shared, err := i.shared(ctx)
	if err != nil {
		return err
	}
	folders, err := os.ReadDir(i.home.path(agentsDir))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	var list []ownAgent
	for _, f := range folders {
		if !isAgent(i.home.path(filepath.Join(agentsDir, f.Name()))) || len(list) == fleet.MaxAgents {
			continue
		}
		a, err := i.read(ctx, f.Name())
		if err != nil { // the others are offered still
			i.log.Warn("an agent is not offered", "agent", f.Name(), "error", err)
			continue
		}
		a.To = shared[a.Name]
		list = append(list, a)
	}
	i.mu.Lock()
	i.list = list
	i.mu.Unlock()
	offered := make([]fleet.Agent, len(list))
	for n, a := range list {
		offered[n] = a.Agent
	}
	i.facts.offerAgents(offered)
	return nil
}

// read loads and packs one agent.
func (i *installed) read(ctx context.Context, name string) (ownAgent, error) {
	folder := i.home.path(filepath.Join(agentsDir, name))
	m, err := agent.Load(folder)
	if err != nil {
		return ownAgent{}, err
	}
	if _, err := m.Bundle(); err != nil {
		return ownAgent{}, err
	}
	all, err := i.blobs.Pack(ctx, folder)
	if err != nil {
		return ownAgent{}, err
	}
	a := ownAgent{manifest: m, files: map[wire.Hash]bool{all.Tree: true}}
	tree, err := i.blobs.Tree(all.Tree)
	if err != nil {
		return ownAgent{}, err
	}
	for _, f := range tree {
		a.files[f.Hash] = true
	}
	for _, s := range m.Sources() {
		in, err := i.blobs.Pack(ctx, filepath.Join(folder, s.From))
		if err != nil {
			return ownAgent{}, err
		}
		in.Path = s.To
		a.inputs = append(a.inputs, in)
	}
	about, _, _ := strings.Cut(strings.TrimSpace(m.Description), "\n")
	about = strings.ToValidUTF8(about[:min(len(about), fleet.MaxAbout)], "")
	a.Agent = fleet.Agent{Name: name, Digest: m.Digest, Tree: all.Tree, Size: all.Size, About: about}
	return a, nil
}

func (i *installed) shared(ctx context.Context) (map[string][]string, error) {
	kept, err := i.db.Setting(ctx, settingShared)
	shared := map[string][]string{}
	if err != nil || kept == "" {
		return shared, err
	}
	return shared, json.Unmarshal([]byte(kept), &shared)
}

// share says which other owners may have an agent; nil for none.
func (i *installed) share(ctx context.Context, name string, to []string) error {
	shared, err := i.shared(ctx)
	if err != nil {
		return err
	}
	if shared[name] = to; len(to) == 0 {
		delete(shared, name)
	}
	b, err := json.Marshal(shared)
	if err != nil {
		return err
	}
	if err := i.db.SetSetting(ctx, settingShared, string(b)); err != nil {
		return err
	}
	return i.look(ctx)
}

// find returns an agent that is installed here.
func (i *installed) find(is func(*ownAgent) bool) (ownAgent, bool) {
	i.mu.Lock()
	defer i.mu.Unlock()
	for n := range i.list {
		if is(&i.list[n]) {
			return i.list[n], true
		}
	}
	return ownAgent{}, false
}

// gives reports whether a blob is of an agent that a peer may have.
func (i *installed) gives(peer identity.ID, h wire.Hash) bool {
	from, ok := i.who.now().Members[peer]
	if !ok {
		return false
	}
	_, ok = i.find(func(a *ownAgent) bool { return a.files[h] && a.May(from.Owner, i.who.me().Owner) })
	return ok
}

// check says why a run that the owner's rules allow by its digest is not the
// agent of that digest.
func (i *installed) check(spec *task.Spec) []task.Reason {
	a, ok := i.find(func(a *ownAgent) bool { return a.Digest == spec.Manifest })
	if !ok {
		return []task.Reason{task.Reasonf("agent", "does not have the agent %s installed, which alone it would run", spec.Agent)}
	}
	if err := a.manifest.Check(spec, a.inputs); err != nil {
		return []task.Reason{task.Reasonf("agent", "%v", err)}
	}
	return nil
}

// agentRow is an agent of a machine: one element of the answer of GET /v1/agents.
type agentRow struct {
	fleet.Agent

	Node  string `json:"node"`
	Owner string `json:"owner"`
	Self  bool   `json:"self,omitempty"` // this machine

	id identity.ID
}

// rows lists the agents that machines offer to this machine's owner, by name,
// the nearest machine first.
func (i *installed) rows() []agentRow {
	rows := []agentRow{}
	for _, n := range nearest(i.nodes()) {
		offer := n.Offer
		if n.Self { // also what it has not told the others yet
			own, _ := i.facts.current()
			offer = &own
		}
		if offer == nil {
			continue
		}
		for _, a := range offer.Agents[:min(len(offer.Agents), fleet.MaxAgents)] {
			if a.May(i.who.me().Owner, n.Owner) && agent.CheckName(a.Name) == nil {
				rows = append(rows, agentRow{Agent: a, Node: n.Name, Owner: n.Owner, Self: n.Self, id: n.ID})
			}
		}
	}
	slices.SortStableFunc(rows, func(a, b agentRow) int { return cmp.Compare(a.Name, b.Name) })
	return rows
}

// choose returns the machines that have the one agent that a person means, the
// nearest first: NAME, or NAME@ and the start of a digest. Of several agents of
// one name those of the person's own machines count.
func choose(rows []agentRow, what, owner string) ([]agentRow, error) {
	name, digest, _ := strings.Cut(what, "@")
	digest = strings.TrimPrefix(digest, "sha256:")
	rows = slices.DeleteFunc(slices.Clone(rows), func(r agentRow) bool {
		return r.Name != name || !strings.HasPrefix(r.Digest.String(), digest)
	})
	trees := func(list []agentRow) (all []string) {
		for _, r := range list {
			if s := r.Digest.String()[:16] + " of " + r.Owner; !slices.Contains(all, s) {
				all = append(all, s)
			}
		}
		return all
	}
	same := func(list []agentRow) bool {
		return !slices.ContainsFunc(list, func(r agentRow) bool { return r.Tree != list[0].Tree })
	}
	own := slices.DeleteFunc(slices.Clone(rows), func(r agentRow) bool { return r.Owner != owner })
	switch {
	case len(rows) == 0:
		return nil, fail("not_found", "see what there is with: balance agents", "no machine that is up offers an agent %s to this one", what)
	case same(rows):
		return rows, nil
	case len(own) > 0 && same(own):
		return own, nil
	}
	return nil, fail("ambiguous", "say which one, as NAME@DIGEST, or install it with: balance agent add", "there are several agents %s: %s", what, strings.Join(trees(rows), ", "))
}

// agentReply is an agent that is here.
type agentReply struct {
	agentRow

	Path string `json:"path"` // of its folder
}

// get brings an agent here, and verifies that it is the one that its machine has
// signed for.
func (i *installed) get(ctx context.Context, what string) (agentReply, error) {
	rows, err := choose(i.rows(), what, i.who.me().Owner)
	if err != nil {
		return agentReply{}, err
	}
	if at := slices.IndexFunc(rows, func(r agentRow) bool { return r.Self }); at >= 0 {
		return agentReply{rows[at], i.home.path(filepath.Join(agentsDir, rows[at].Name))}, nil
	}
	var errs []error
	for _, r := range rows {
		path, err := i.bring(ctx, r)
		if err == nil {
			return agentReply{r, path}, nil
		}
		errs = append(errs, err)
	}
	return agentReply{}, errors.Join(errs...)
}

// agentLimits bound an agent that is brought from another machine.
var agentLimits = blob.Limits{Size: 1 * task.GiB, Files: 10_000}

// bring fetches an agent into a folder of its own, named by what is in it. What
// is there already was verified when it came.
func (i *installed) bring(ctx context.Context, r agentRow) (string, error) {
	final := i.home.path(filepath.Join(foundDir, r.Tree.String(), r.Name))
	if isAgent(final) {
		return final, nil
	}
	if _, err := i.blobs.Fetch(ctx, r.Tree, agentLimits, i.client(r.id).Blob); err != nil {
		return "", err
	}
	if err := os.MkdirAll(i.home.path(foundDir), 0o700); err != nil {
		return "", err
	}
	part, err := os.MkdirTemp(i.home.path(foundDir), "new-")
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(part)
	root, err := os.OpenRoot(part)
	if err != nil {
		return "", err
	}
	defer root.Close()
	if err := i.blobs.Unpack(ctx, r.Tree, root, r.Name); err != nil {
		return "", err
	}
	m, err := agent.Load(filepath.Join(part, r.Name))
	if err != nil {
		return "", err
	}
	if m.Digest != r.Digest {
		return "", fail("failure", "", "%s has sent another agent %s than the one that it has signed for", r.Node, r.Name)
	}
	if _, err := m.Bundle(); err != nil {
		return "", err
	}
	if err := os.Rename(part, filepath.Dir(final)); err != nil && !isAgent(final) {
		return "", err
	}
	return final, nil
}
