package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/balanceai/balance/exec/blob"
	"github.com/balanceai/balance/exec/fleet"
	"github.com/balanceai/balance/exec/policy"
	"github.com/balanceai/balance/exec/remote"
	"github.com/balanceai/balance/exec/task"
	"github.com/balanceai/balance/mesh/identity"
	"github.com/balanceai/balance/mesh/wire"
	"github.com/balanceai/balance/store"
)

// fileRow is a file that members keep: one element of the answer of GET /v1/files.
type fileRow struct {
	Name string     `json:"name"`
	Hash wire.Hash  `json:"sha256"`
	Size task.Bytes `json:"size"`
	On   []string   `json:"on"`   // machines that hold it, the nearest first
	Here bool       `json:"here"` // this one does
	Own  bool       `json:"own"`  // and was given it by a person
	To   []string   `json:"to,omitempty"`

	from []fleet.Node // the holders besides this machine, in the same order
}

// filesReply is the answer of GET /v1/files.
type filesReply struct {
	Files  []*fileRow `json:"files"`
	Budget task.Bytes `json:"budget"` // of this machine's disk, for files that were brought
	Used   task.Bytes `json:"used"`   // by all kept files
}

// getRequest asks for a file to be brought here.
type getRequest struct {
	File string    `json:"file"`           // its name, its hash, or the start of its hash
	From string    `json:"from,omitempty"` // a URL, for when no member holds it
	Hash wire.Hash `json:"sha256,omitzero"`
}

// getProgress is a line of the answer to it; the last one has the file or the
// problem.
type getProgress struct {
	Have    int64      `json:"have"`
	Size    task.Bytes `json:"size"`
	From    []string   `json:"from,omitempty"` // machines, or the URL
	File    *fileReply `json:"file,omitempty"`
	Problem *problem   `json:"error,omitempty"`
}

// fileReply is a file that is here.
type fileReply struct {
	blob.Kept

	Path string `json:"path"`
	Came int64  `json:"came"` // bytes that were brought for this request
}

// files brings files that members keep, such as the weights of models, from the
// nearest that hold them.
type files struct {
	blobs  *blob.Store
	db     *store.Store
	peers  *http.Client
	client func(identity.ID) *remote.Client
	nodes  func() []fleet.Node
	uses   func(wire.Hash) bool // whether a run of this machine does now
	log    *slog.Logger
}

const (
	settingFileBudget = "file-budget"
	defaultFileBudget = 100 * task.GiB

	mostHolders  = 4               // that are asked for parts of one file
	listPatience = 3 * time.Second // for what a member keeps
	maxFileList  = 1 << 20         // bytes of a member's list
)

func (f *files) budget(ctx context.Context) (task.Bytes, error) {
	kept, err := f.db.Setting(ctx, settingFileBudget)
	if err != nil || kept == "" {
		return defaultFileBudget, err
	}
	n, err := strconv.ParseUint(kept, 10, 64)
	return task.Bytes(n), err
}

// list returns the files of this machine and of all members that are up, as far
// as they are for this machine's owner.
func (f *files) list(ctx context.Context) ([]*fileRow, error) {
	own, err := f.blobs.Kept()
	if err != nil {
		return nil, err
	}
	rows := map[wire.Hash]*fileRow{}
	for _, k := range own {
		rows[k.Hash] = &fileRow{Name: k.Name, Hash: k.Hash, Size: k.Size, Here: true, Own: k.Own, To: k.To}
	}
	nodes := nearest(f.nodes())
	lists := make([][]blob.Kept, len(nodes))
	var asked sync.WaitGroup
	for i, n := range nodes {
		if n.Self {
			lists[i] = own
			continue
		}
		asked.Go(func() { lists[i] = f.ask(ctx, n) })
	}
	asked.Wait()
	for i, n := range nodes {
		for _, k := range lists[i] {
			r := rows[k.Hash]
			if r == nil {
				r = &fileRow{Name: k.Name, Hash: k.Hash, Size: k.Size}
				rows[k.Hash] = r
			}
			if k.Size != r.Size { // one of them does not tell the truth
				continue
			}
			r.On = append(r.On, n.Name)
			if !n.Self {
				r.from = append(r.from, n)
			}
		}
	}
	out := make([]*fileRow, 0, len(rows))
	for _, r := range rows {
		out = append(out, r)
	}
	slices.SortFunc(out, func(a, b *fileRow) int {
		return cmp.Or(cmp.Compare(a.Name, b.Name), slices.Compare(a.Hash[:], b.Hash[:]))
	})
	return out, nil
}

// nearest returns the members that are up, this machine and then those on the
// local network first.
func nearest(nodes []fleet.Node) []fleet.Node {
	kinds := []string{fleet.PathSelf, fleet.PathLAN, fleet.PathDirect, fleet.PathTCP, fleet.PathRelay}
	nodes = slices.DeleteFunc(slices.Clone(nodes), func(n fleet.Node) bool { return !n.Self && n.State != fleet.Up })
	slices.SortStableFunc(nodes, func(a, b fleet.Node) int {
		return cmp.Or(cmp.Compare(slices.Index(kinds, a.Path.Kind), slices.Index(kinds, b.Path.Kind)), cmp.Compare(a.Path.RTT, b.Path.RTT))
	})
	return nodes
}

// ask returns what a member keeps for this one. One that does not answer keeps
// nothing.
func (f *files) ask(ctx context.Context, n fleet.Node) []blob.Kept {
	ctx, cancel := context.WithTimeout(ctx, listPatience)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+n.ID.String()+"/v1/files", nil)
	if err != nil {
		return nil
	}
	resp, err := f.peers.Do(req)
	if err != nil {
		f.log.Debug("ask for files", "node", n.Name, "error", err)
		return nil
	}
	defer resp.Body.Close()
	var list []blob.Kept
	if resp.StatusCode != http.StatusOK || json.NewDecoder(io.LimitReader(resp.Body, maxFileList)).Decode(&list) != nil {
		return nil
	}
	return slices.DeleteFunc(list, func(k blob.Kept) bool { return blob.CheckName(k.Name) != nil || k.Size == 0 || k.Hash.IsZero() })
}

// find returns the one file that a person means.
func find(rows []*fileRow, what string) (*fileRow, error) {
	var found []*fileRow
	for _, r := range rows {
		if h := r.Hash.String(); r.Name == what || h == what || len(what) >= 8 && strings.HasPrefix(h, what) {
			found = append(found, r)
		}
	}
	switch len(found) {
	case 0:
		return nil, fail("not_found", "see what there is with: balance blobs", "no machine that is up keeps %s for this one", what)
	case 1:
		return found[0], nil
	}
	var hashes []string
	for _, r := range found {
		hashes = append(hashes, r.Hash.String()[:16])
	}
	return nil, fail("ambiguous", "say which one by the start of its hash", "there are %d files %s: %s", len(found), what, strings.Join(hashes, ", "))
}

// get brings a file here, and tells how it goes on.
func (f *files) get(ctx context.Context, req getRequest, tell func(getProgress)) (fileReply, error) {
	rows, err := f.list(ctx)
	if err != nil {
		return fileReply{}, err
	}
	want := req.File
	if !req.Hash.IsZero() {
		want = req.Hash.String()
	}
	r, err := find(rows, want)
	var holders []blob.Holder
	switch {
	case err == nil && r.Here:
		k, ok := f.blobs.Find(r.Hash)
		if !ok {
			return fileReply{}, fs.ErrNotExist
		}
		return fileReply{Kept: k, Path: f.blobs.Path(k)}, nil
	case err == nil:
		r.from = r.from[:min(len(r.from), mostHolders)]
		for _, n := range r.from {
			holders = append(holders, f.client(n.ID).Part)
		}
		r.On = r.On[:len(holders)]
	case req.From != "":
		if r, err = onWeb(ctx, req); err == nil {
			holders = []blob.Holder{httpHolder(req.From)}
		}
	}
	if err == nil {
		err = f.room(ctx, r)
	}
	if err != nil {
		return fileReply{}, err
	}
	return f.bring(ctx, r, holders, tell)
}

func (f *files) bring(ctx context.Context, r *fileRow, holders []blob.Holder, tell func(getProgress)) (fileReply, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var telling sync.WaitGroup
	telling.Go(func() {
		tick := time.NewTicker(500 * time.Millisecond)
		defer tick.Stop()
		for {
			tell(getProgress{Have: min(f.blobs.Gathered(r.Hash), int64(r.Size)), Size: r.Size, From: r.On})
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
			}
		}
	})
	came, err := f.blobs.Gather(ctx, r.Hash, int64(r.Size), holders)
	cancel()
	telling.Wait()
	k := blob.Kept{Name: r.Name, Hash: r.Hash, Size: r.Size}
	if err == nil {
		err = f.blobs.Keep(k)
	}
	if err != nil {
		return fileReply{}, err
	}
	return fileReply{Kept: k, Path: f.blobs.Path(k), Came: came}, nil
}

// room makes place for a file, at the cost of others that were brought.
func (f *files) room(ctx context.Context, r *fileRow) error {
	budget, err := f.budget(ctx)
	if err != nil {
		return err
	}
	own, err := f.blobs.Kept()
	if err != nil {
		return err
	}
	var fixed task.Bytes
	for _, k := range own {
		if k.Own {
			fixed += k.Size
		}
	}
	if r.Size > budget || fixed > budget-r.Size {
		return fail("failure", "give it more with: balance blobs --budget SIZE; or take a file away with: balance blobs remove",
			"%s has %v, and of the %v for files %v are taken by those that were put here", r.Name, r.Size, budget, fixed)
	}
	gone, err := f.blobs.Trim(budget-r.Size, f.uses)
	for _, k := range gone {
		f.log.Info("removed a file to make room", "name", k.Name, "sha256", k.Hash, "size", k.Size)
	}
	return err
}

// setBudget bounds what kept files take, from now on.
func (f *files) setBudget(ctx context.Context, budget task.Bytes) error {
	if err := f.db.SetSetting(ctx, settingFileBudget, strconv.FormatUint(uint64(budget), 10)); err != nil {
		return err
	}
	_, err := f.blobs.Trim(budget, f.uses)
	return err
}

// onWeb finds out how long a file on a web server is.
func onWeb(ctx context.Context, req getRequest) (*fileRow, error) {
	if req.Hash.IsZero() {
		return nil, fail("usage", "the page that you have the URL from often tells it", "a file from outside needs its --sha256")
	}
	body, span, err := httpRange(ctx, req.From, 0, 1)
	if err != nil {
		return nil, err
	}
	body.Close()
	_, size, _ := strings.Cut(span, "/")
	n, err := strconv.ParseUint(size, 10, 63)
	if err != nil || n == 0 {
		return nil, fail("failure", "", "%s does not tell how long the file is", req.From)
	}
	name := req.File
	if blob.CheckName(name) != nil {
		name = req.Hash.String()[:16]
	}
	return &fileRow{Name: name, Hash: req.Hash, Size: task.Bytes(n), On: []string{req.From}}, nil
}

func httpHolder(url string) blob.Holder {
	return func(ctx context.Context, _ wire.Hash, offset, n int64) (io.ReadCloser, error) {
		body, _, err := httpRange(ctx, url, offset, n)
		return body, err
	}
}

// httpRange reads n bytes of a file on a web server, and returns what the server
// says of them.
func httpRange(ctx context.Context, url string, offset, n int64) (io.ReadCloser, string, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return nil, "", fail("usage", "", "%v", err)
	}
	req.Header.Set("Range", fmt.Sprintf("bytes=%d-%d", offset, offset+n-1))
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return nil, "", err
	}
	if resp.StatusCode == http.StatusPartialContent {
		return resp.Body, resp.Header.Get("Content-Range"), nil
	}
	resp.Body.Close()
	err = fmt.Errorf("%s answers %s", url, resp.Status)
	if resp.StatusCode == http.StatusOK {
		err = fmt.Errorf("%s does not give parts of a file", url)
	}
	if resp.StatusCode < http.StatusInternalServerError {
		err = fmt.Errorf("%w: %w", err, fs.ErrNotExist) // it will not be another one the next time
	}
	return nil, "", err
}

// shares reports whether a kept file is for a machine of an owner.
func shares(k blob.Kept, owner, machine string) bool {
	return owner == machine || slices.Contains(k.To, owner) || slices.Contains(k.To, policy.AnyOwner)
}

// files answers a member with what this machine keeps for it.
func (p *peerAPI) files(w http.ResponseWriter, r *http.Request) {
	peer, _ := p.caller(r)
	list, err := p.blobs.Kept()
	if err != nil {
		p.log.Warn("list kept files", "error", err)
	}
	out := []blob.Kept{}
	for _, k := range list {
		if p.shared(peer, k.Hash) {
			out = append(out, blob.Kept{Name: k.Name, Hash: k.Hash, Size: k.Size})
		}
	}
	reply(w, out)
}

// shared reports whether a blob is a kept file that is for a peer.
func (p *peerAPI) shared(peer identity.ID, h wire.Hash) bool {
	from, ok := p.who.now().Members[peer]
	if !ok {
		return false
	}
	k, ok := p.blobs.Find(h)
	return ok && shares(k, from.Owner, p.who.me().Owner)
}

// filesList answers with what members keep.
func (l *localAPI) filesList(w http.ResponseWriter, r *http.Request) error {
	rows, err := l.files.list(r.Context())
	if err != nil {
		return err
	}
	budget, err := l.files.budget(r.Context())
	if err != nil {
		return err
	}
	out := filesReply{Files: rows, Budget: budget}
	for _, f := range rows {
		if f.Here {
			out.Used += f.Size
		}
	}
	reply(w, out)
	return nil
}

// filesGet brings a file, and streams how it goes on.
func (l *localAPI) filesGet(w http.ResponseWriter, r *http.Request) error {
	var req getRequest
	if err := readJSON(r, &req); err != nil {
		return err
	}
	w.Header().Set("Content-Type", "application/x-ndjson")
	enc, out := json.NewEncoder(w), http.NewResponseController(w)
	tell := func(p getProgress) { _ = errors.Join(enc.Encode(p), out.Flush()) } // who asked has gone
	file, err := l.files.get(r.Context(), req, tell)
	if err != nil {
		tell(getProgress{Problem: describe(err)})
		return nil
	}
	tell(getProgress{Have: int64(file.Size), Size: file.Size, File: &file})
	return nil
}

// filesBudget sets how much of the disk kept files may take.
func (l *localAPI) filesBudget(w http.ResponseWriter, r *http.Request) error {
	var req struct {
		Budget task.Bytes `json:"budget"`
	}
	if err := readJSON(r, &req); err != nil {
		return err
	}
	if err := l.files.setBudget(r.Context(), req.Budget); err != nil {
		return err
	}
	return l.filesList(w, r)
}
