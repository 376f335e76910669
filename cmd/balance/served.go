package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/balanceai/balance/exec/dispatch"
	"github.com/balanceai/balance/exec/fleet"
	"github.com/balanceai/balance/exec/gateway"
	"github.com/balanceai/balance/exec/gguf"
	"github.com/balanceai/balance/exec/place"
	"github.com/balanceai/balance/exec/serve"
	"github.com/balanceai/balance/exec/task"
	"github.com/balanceai/balance/mesh/identity"
	"github.com/balanceai/balance/mesh/wire"
	"github.com/balanceai/balance/store"
)

// serveRequest asks this machine to see to it that a model is served.
type serveRequest struct {
	Model    string        `json:"model"`             // what the engine calls it; of weights: their name, or the start of their hash
	Name     string        `json:"name,omitempty"`    // as others ask for it
	Engine   string        `json:"engine,omitempty"`  //
	Replicas int           `json:"replicas"`          //
	Nodes    []string      `json:"nodes,omitempty"`   // those it may be on; empty for any
	Context  int           `json:"context,omitempty"` // tokens
	VRAM     task.Bytes    `json:"vram,omitempty"`    // instead of the estimate
	Idle     time.Duration `json:"idle_ns,omitempty"` // after which a replica is ended; 0 for never
}

// wanted is a model that this machine sees to, as it is kept over restarts.
type wanted struct {
	Name     string        `json:"name"`
	Engine   string        `json:"engine"`
	Specs    []task.Spec   `json:"specs"` // of a replica, those to be preferred first
	Replicas int           `json:"replicas"`
	Nodes    []identity.ID `json:"nodes,omitempty"`
	Resting  int           `json:"resting"` // replicas that were ended because nobody asked them
}

// servedRow is a model that this machine sees to: one element of the answer of
// GET /v1/served.
type servedRow struct {
	Model    string       `json:"model"`
	Engine   string       `json:"engine"`
	Replicas int          `json:"replicas"`
	Resting  int          `json:"resting"`
	On       []replicaRow `json:"on"`
	Why      string       `json:"why,omitempty"` // there are not as many as there should be
	Takes    task.Bytes   `json:"takes"`         // memory of each, as estimated or told
}

type replicaRow struct {
	serve.Replica

	Name   string `json:"node"`
	Serves bool   `json:"serves"` // it answers
}

// settingServed is where the ledger file keeps what is wanted, as JSON.
const settingServed = "served-models"

// served sees to it that the models which this machine's user wants are served,
// wherever they fit.
type served struct {
	db        *store.Store
	submitted *dispatch.Dispatcher
	files     *files
	nodes     func() []fleet.Node
	log       *slog.Logger

	wake  chan struct{}  // of one: look now
	spent *gateway.Spent // by the engines of this machine, on other owners

	mu    sync.Mutex
	list  []wanted
	known map[string]map[string]bool // replicas that have not ended, by model
	past  map[string]*serve.History
	why   map[string]string
	ended map[string]bool // replicas that were told to end
}

func openServed(ctx context.Context, s *served) (*served, error) {
	s.wake = make(chan struct{}, 1)
	s.known, s.past, s.why, s.ended = map[string]map[string]bool{}, map[string]*serve.History{}, map[string]string{}, map[string]bool{}
	if err := s.loadSpent(ctx); err != nil {
		return nil, err
	}
	kept, err := s.db.Setting(ctx, settingServed)
	if err != nil || kept == "" {
		return s, err
	}
	if err := json.Unmarshal([]byte(kept), &s.list); err != nil {
		return nil, fmt.Errorf("read what is served: %w", err)
	}
	return s, nil
}

// saveLocked keeps what is wanted, and has it looked at.
func (s *served) saveLocked(ctx context.Context) error {
	b, err := json.Marshal(s.list)
	if err != nil {
		return err
	}
	select {
	case s.wake <- struct{}{}:
	default:
	}
	return s.db.SetSetting(ctx, settingServed, string(b))
}

// add takes on a model.
func (s *served) add(ctx context.Context, req serveRequest) (wanted, error) {
	m := serve.Model{
		Name: cmp.Or(req.Name, serve.NameOf(req.Model)), Engine: cmp.Or(req.Engine, serve.EngineFor(req.Model)),
		Source: req.Model, Context: req.Context, VRAM: req.VRAM, Idle: req.Idle,
	}
	if !fleet.ValidModel(m.Name) {
		return wanted{}, fail("usage", "give it one with --name", "%q cannot be the name of a model", m.Name)
	}
	if err := s.weigh(ctx, &m, req); err != nil {
		return wanted{}, err
	}
	w := wanted{Name: m.Name, Engine: m.Engine, Replicas: req.Replicas}
	var err error
	if w.Specs, err = m.Specs(); err != nil {
		return w, fail("usage", "", "%v", err)
	}
	for _, name := range req.Nodes {
		id, err := place.Pin(s.nodes(), name)
		if err != nil {
			return w, hint(err, "see the machines with: balance nodes")
		}
		w.Nodes = append(w.Nodes, id)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if slices.ContainsFunc(s.list, func(o wanted) bool { return o.Name == w.Name }) {
		return w, fail("usage", "end that first with: balance serve --off "+w.Name, "%s is served already", w.Name)
	}
	s.list = append(s.list, w)
	return w, s.saveLocked(ctx)
}

// weigh finds the weights of a model for llama-server, and reads in their header
// what the model takes.
func (s *served) weigh(ctx context.Context, m *serve.Model, req serveRequest) error {
	if m.Engine != serve.Llama {
		m.Context = serve.ContextFor(gguf.Header{}, req.Context)
		return nil
	}
	rows, err := s.files.list(ctx)
	if err != nil {
		return err
	}
	f, err := find(rows, req.Model)
	if err != nil {
		return hint(err, "keep the weights first with: balance blobs add FILE.gguf")
	}
	head, err := s.files.head(ctx, f)
	if err != nil {
		return err
	}
	defer head.Close()
	if m.Header, err = gguf.Read(head); err != nil {
		return fail("usage", "llama-server takes weights as a GGUF file", "%s: %v", f.Name, err)
	}
	m.Weights, m.Size, m.Context = f.Hash, f.Size, serve.ContextFor(m.Header, req.Context)
	return nil
}

// remove gives a model up: its replicas end.
func (s *served) remove(ctx context.Context, name string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	at := slices.IndexFunc(s.list, func(w wanted) bool { return w.Name == name })
	if at < 0 {
		return fail("not_found", "see what is with: balance serve", "this machine does not see to a model %s", clean(name, false))
	}
	replicas, err := s.replicas(ctx)
	if err != nil {
		return err
	}
	for _, r := range replicas[name] {
		if err := s.submitted.Cancel(ctx, r.Run, false); err != nil && !errors.Is(err, dispatch.ErrOver) {
			return err
		}
	}
	s.list = slices.Delete(s.list, at, at+1)
	delete(s.known, name)
	delete(s.past, name)
	delete(s.why, name)
	return s.saveLocked(ctx)
}

// replicas returns the runs that serve models and have not ended, by model.
func (s *served) replicas(ctx context.Context) (map[string][]serve.Replica, error) {
	runs, err := s.db.Runs(ctx, store.RunFilter{Own: true, Active: true})
	if err != nil {
		return nil, err
	}
	out := map[string][]serve.Replica{}
	for _, r := range runs {
		if name, ok := strings.CutPrefix(r.Agent, task.ServePrefix); ok {
			out[name] = append(out[name], serve.Replica{Run: r.ID, Node: r.NodeID, State: r.State, Submitted: r.Submitted})
		}
	}
	return out, nil
}

// servedPeriod is how often the replicas are counted.
const servedPeriod = time.Second

// run keeps as many replicas going as are wanted, until ctx ends.
func (s *served) run(ctx context.Context) error {
	tick := time.NewTicker(servedPeriod)
	defer tick.Stop()
	for {
		if err := s.look(ctx); err != nil && ctx.Err() == nil {
			s.log.Error("see to the models that are served", "error", err)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-s.wake:
		case <-tick.C:
		}
	}
}

func (s *served) look(ctx context.Context) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.list) == 0 {
		return nil
	}
	replicas, err := s.replicas(ctx)
	if err != nil {
		return err
	}
	for i := range s.list {
		if err := s.see(ctx, &s.list[i], replicas[s.list[i].Name]); err != nil {
			return err
		}
	}
	return nil
}

// see does what is to be done for one model.
func (s *served) see(ctx context.Context, w *wanted, list []serve.Replica) error {
	if err := s.learn(ctx, w, list); err != nil {
		return err
	}
	plan := serve.Decide(w.Replicas-w.Resting, list, *s.past[w.Name], time.Now())
	for _, run := range plan.End {
		if s.ended[run] {
			continue
		}
		if err := s.submitted.Cancel(ctx, run, false); err != nil && !errors.Is(err, dispatch.ErrOver) {
			return err
		}
		s.ended[run] = true
	}
	if !plan.Start {
		return nil
	}
	spec, why, err := s.choose(ctx, w, list)
	if err != nil || why != "" {
		s.why[w.Name] = why
		return err
	}
	id, err := s.submitted.Submit(ctx, spec)
	if err != nil {
		return err
	}
	s.known[w.Name][id] = true
	s.log.Info("starts a replica", "model", w.Name, "run", id)
	return nil
}

// choose finds a machine for one more replica, or says why there is none.
func (s *served) choose(ctx context.Context, w *wanted, list []serve.Replica) (spec task.Spec, why string, err error) {
	var reasons []string
	for _, spec := range w.Specs {
		if v := *spec.Serve; !v.Weights.IsZero() {
			if v.On, err = s.files.on(ctx, v.Weights); err != nil {
				return spec, "", err
			}
			spec.Serve = &v
		}
		ranking, err := s.submitted.Plan(ctx, spec)
		if err != nil {
			return spec, "", err
		}
		node, why := serve.Choose(ranking, w.Nodes, list)
		if why == "" {
			spec.Node = node.String()
			return spec, "", nil
		}
		if !slices.Contains(reasons, why) {
			reasons = append(reasons, why)
		}
	}
	return spec, "no machine fits: " + strings.Join(reasons, "; or without a GPU: "), nil
}

// learn takes in how replicas have ended since the last look.
func (s *served) learn(ctx context.Context, w *wanted, list []serve.Replica) error {
	if s.past[w.Name] == nil {
		s.past[w.Name], s.known[w.Name] = &serve.History{}, map[string]bool{}
	}
	known := s.known[w.Name]
	going := map[string]bool{}
	for _, r := range list {
		going[r.Run], known[r.Run] = true, true
	}
	for run := range known {
		if going[run] {
			continue
		}
		r, err := s.db.Run(ctx, run)
		if err != nil {
			return err
		}
		if !r.State.Final() {
			continue // it is about to be listed
		}
		delete(known, run)
		delete(s.ended, run)
		failed := r.State == task.Failed || r.State == task.Succeeded || r.State == task.Unplaced
		if r.Cause == task.CauseIdle {
			failed = false
			if w.Resting < w.Replicas {
				w.Resting++
			}
			if err := s.saveLocked(ctx); err != nil {
				return err
			}
		}
		s.past[w.Name].Ended(r.Started, time.Now(), failed)
		s.why[w.Name] = ""
		if failed {
			s.why[w.Name] = "its last replica has ended: " + howEnded(r)
		}
	}
	return nil
}

// howEnded says of a run that has ended by itself how.
func howEnded(r task.Status) string {
	if r.Reason == "" && r.ExitCode != nil {
		return fmt.Sprintf("exit code %d", *r.ExitCode)
	}
	return cmp.Or(r.Reason, string(r.State))
}

// rows lists what is wanted, and what there is of it.
func (s *served) rows(ctx context.Context) ([]servedRow, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	replicas, err := s.replicas(ctx)
	if err != nil {
		return nil, err
	}
	nodes := s.nodes()
	out := []servedRow{}
	for _, w := range s.list {
		row := servedRow{Model: w.Name, Engine: w.Engine, Replicas: w.Replicas, Resting: w.Resting, On: []replicaRow{}}
		n := w.Specs[0].Needs
		row.Takes = max(n.VRAM, n.Memory)
		live := 0
		for _, r := range replicas[w.Name] {
			on := replicaRow{Replica: r}
			if r.State != task.Lost {
				live++
			}
			for _, n := range nodes {
				if n.ID == r.Node {
					_, loaded, ok := n.Has(w.Name)
					on.Name, on.Serves = n.Name, ok && loaded && r.State == task.Running
				}
			}
			row.On = append(row.On, on)
		}
		if want := w.Replicas - w.Resting; live < want {
			row.Why = s.why[w.Name]
			if again := s.past[w.Name]; again != nil && time.Until(again.Again()) > 0 {
				row.Why += fmt.Sprintf("; the next one starts in %v", time.Until(again.Again()).Round(time.Second))
			}
		}
		out = append(out, row)
	}
	slices.SortFunc(out, func(a, b servedRow) int { return cmp.Compare(a.Model, b.Model) })
	return out, nil
}

// onDemand is what this machine has others load when it is asked for it: an
// engine that has all the models it sees to, none of them loaded.
const onDemand = "on demand"

func (s *served) engine() (e gateway.Engine) {
	s.mu.Lock()
	defer s.mu.Unlock()
	e.Kind = onDemand
	for _, w := range s.list {
		e.Models = append(e.Models, fleet.Model{Name: w.Name, Engine: onDemand})
	}
	return e
}

// load has a model loaded that is asked for, and waits until it is.
func (s *served) load(ctx context.Context, model string) error {
	s.mu.Lock()
	at := slices.IndexFunc(s.list, func(w wanted) bool { return w.Name == model })
	if at < 0 {
		s.mu.Unlock()
		return errors.New("this machine does not see to it any more")
	}
	var err error
	if s.list[at].Resting > 0 {
		s.list[at].Resting = 0
		err = s.saveLocked(ctx)
	}
	s.mu.Unlock()
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for err == nil && !s.loaded(model) {
		select {
		case <-ctx.Done():
			err = context.Cause(ctx)
		case <-tick.C:
			err = s.hopeless(model)
		}
	}
	return err
}

// hopeless says why a model cannot be loaded now.
func (s *served) hopeless(model string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if why := s.why[model]; why != "" && len(s.known[model]) == 0 {
		return errors.New(why)
	}
	return nil
}

// loaded reports whether a machine answers for a model.
func (s *served) loaded(model string) bool {
	for _, n := range s.nodes() {
		if m, loaded, ok := n.Has(model); ok && loaded && m.Engine != onDemand && n.State != fleet.Down {
			return true
		}
	}
	return false
}

// on returns the machines that keep a file.
func (f *files) on(ctx context.Context, h wire.Hash) (ids []identity.ID, err error) {
	rows, err := f.list(ctx)
	for _, r := range rows {
		if r.Hash != h {
			continue
		}
		for _, n := range f.nodes() {
			if n.Self && r.Here {
				ids = append(ids, n.ID)
			}
		}
		for _, n := range r.from {
			ids = append(ids, n.ID)
		}
	}
	return ids[:min(len(ids), task.MaxServeOn)], err
}

// head reads a kept file from its beginning, wherever it is.
func (f *files) head(ctx context.Context, r *fileRow) (io.ReadCloser, error) {
	if r.Here {
		return f.blobs.Open(r.Hash)
	}
	if len(r.from) == 0 {
		return nil, fail("not_found", "see what there is with: balance blobs", "no machine that is up keeps %s", r.Name)
	}
	return f.client(r.from[0].ID).Blob(ctx, r.Hash, 0)
}
